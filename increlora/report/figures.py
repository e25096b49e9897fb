"""Figures 4-6 of the paper, and those of this package: growth of ranks, training, and the claims. From records alone.

Each figure has a function that collects its numbers into a tidy frame, and one that draws them. The frame is written as
CSV and is all that gets drawn, so the CSV beside a figure holds exactly what the figure shows.

No text is below 8 pt at the printed size, fonts are embedded as TrueType, and there are no time stamps: the same
numbers give the same bytes. Colour and marker of a method stand in its registry entry and are the same in every figure.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import style as matplotlib_style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from increlora.glue.tasks import TASKS
from increlora.methods.families import MATRICES, locate
from increlora.methods.method import Look
from increlora.report import claims, published, statistics
from increlora.report.frame import write_csv
from increlora.report.render import between, count, fixed
from increlora.report.results import Results
from increlora.study.cells import Cell, make_cell, method_of
from increlora.study.config import Figure4, Figure5, Figure6, RankGrowth, Study, TrainingCurves

log = logging.getLogger(__name__)

DECIMALS = {
    **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "low", "high", "gini", "entropy"), 6),
    **{"params_mean": 1, "rank": 4, "largest": 2},
    **dict.fromkeys(("estimate", "corrected_low", "corrected_high", "visible", "paper"), 6),
}

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of a column and of a page, in inches."""
DPI = 300

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
"""Okabe and Ito's colours, which can be told apart with colour-blindness."""
MAP = "cividis"
"""Sequential, perceptually uniform, the same for colour-blind eyes."""

RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "increlora",
}


_MATH = {name: f"$W_{{{name[2:]}}}$" for name in MATRICES}
_MATRIX_COLOURS = {
    **{"W_q": SKY, "W_k": BLUE, "W_v": GREEN, "W_qkv": PURPLE},
    **{"W_o": YELLOW, "W_f1": ORANGE, "W_f2": VERMILLION},
}


def build(study: Study, records_root: str | Path, out_dir: str | Path) -> list[Path]:
    """Writes every figure that the study has as PNG, PDF and CSV, and returns the files.

    A figure without any record is a page that says so, and a warning.

    Raises:
        RecordError: a record is malformed.
    """
    results, paths = Results(study, records_root), []
    for name, what, data, draw in _figures(results):
        stem = Path(out_dir) / f"{study.study}_{name}"
        paths.append(write_csv(data, stem.with_name(f"{stem.name}.csv"), DECIMALS))
        with context():
            if data.empty:
                log.warning("%s: no records for %s", stem.name, what)
                fig = nothing(f"no records for {what}\n(study {study.study})")
            else:
                fig = draw(data)
        paths += save(fig, stem)
    return paths


def _figures(results: Results) -> Iterator[tuple[str, str, pd.DataFrame, Callable[[pd.DataFrame], Figure]]]:
    """Name, content in words, numbers and drawing function of each figure."""
    study = results.study
    wanted = study.artefacts.chosen
    if four := wanted.figure4:
        what = f"{_titles(results, four.methods)} on {', '.join(TASKS[task].title for task in four.tasks)}"
        draw = partial(
            draw_figure4,
            tasks=four.tasks,
            looks=looks(study, four.methods),
            references=_references(results, four),
            note=f"{study.report.checkpoint} checkpoint",
        )
        yield "figure4", what, figure4(results, four), draw
    if five := wanted.figure5:
        what = f"{_titles(results, (five.with_advance, five.without_advance))} {_where(five)}"
        draw = partial(draw_figure5, note=_where(five), recorded=recorded_gaps())
        yield "figure5", what, figure5(results, five), draw
    if six := wanted.figure6:
        titles = {method: study.title(method) for method in six.methods}
        draw = partial(draw_figure6, titles=titles, note=_where(six))
        yield "figure6", f"{_titles(results, six.methods)} {_where(six)}", figure6(results, six), draw
    if growth := wanted.rank_growth:
        what = f"{study.title(growth.method)} {_where(growth)}"
        draw = partial(draw_rank_growth, budget=_budget_rank(results, growth), note=what)
        yield "rank_growth", what, rank_growth(results, growth), draw
    if curves := wanted.training:
        what = f"{_titles(results, (curves.method, curves.reference))} {_where(curves)}"
        variants = (curves.method, curves.reference)
        draw = partial(draw_training, looks=looks(study, variants), axis=TASKS[curves.task].axis, note=_where(curves))
        yield "training", what, training(results, curves), draw
    if wanted.claims:
        yield "claims", "any claim of the paper", claim_lines(results), draw_claims


def _where(wanted: Figure5 | Figure6 | RankGrowth | TrainingCurves) -> str:
    return f"on {TASKS[wanted.task].title}, average rank {wanted.budget}"


def _titles(results: Results, methods: Iterable[str]) -> str:
    return " and ".join(results.study.title(method) for method in methods)


# ---- Figure 4


def figure4(results: Results, wanted: Figure4) -> pd.DataFrame:
    """Score over the budget: one row per task, method and budget, with the 95 % interval over seeds."""
    rows = []
    for task, method, budget in product(wanted.tasks, wanted.methods, sorted(wanted.budgets)):
        estimate = results.scores.column(Cell(task, method, budget)).estimate
        if estimate.mean is None:
            log.warning("figure4: no score of %s on %s at budget %s", method, task, budget)
            continue
        (line,) = results.lines([(method, budget)])
        params = results.mean_over_tasks("trainable", [task], line)
        numbers = (estimate.mean, estimate.sd, *(estimate.interval() or (None, None)), estimate.n)
        rows.append((task, method, results.study.title(method), budget, params, *numbers))
    names = ("task", "method", "title", "budget", "params_mean", "mean", "sd", "ci_low", "ci_high", "seeds")
    return pd.DataFrame(rows, columns=list(names)).astype(dict.fromkeys(names[4:-1], float))


def _references(results: Results, wanted: Figure4) -> list[tuple[str, str, int | None, float]]:
    """Published points as (task, method, budget or None for a line, value), where they are comparable."""
    if results.not_comparable:
        return []
    return [
        (row.task, row.method, 2 if row.budget_label == "0.3M" else None, row.number)
        for row in published.load()
        if row.artefact == "figure4" and row.number is not None and row.method in wanted.methods
    ]


def draw_figure4(
    data: pd.DataFrame,
    tasks: Sequence[str],
    looks: Mapping[str, Look],
    references: Sequence[tuple[str, str, int | None, float]] = (),
    note: str = "",
) -> Figure:
    """Score against the budget: a panel per task, 95 % intervals over seeds, each method's parameters below."""
    budgets = sorted(set(data["budget"]))
    methods = list(dict.fromkeys(data["method"]))
    fig = figure(DOUBLE if len(tasks) > 1 else SINGLE, 2.6 + 0.14 * len(methods))
    axes = fig.subplots(1, len(tasks), squeeze=False)[0]
    for ax, task in zip(axes, tasks, strict=True):
        for number, method in enumerate(methods):
            rows = data[(data["task"] == task) & (data["method"] == method)].sort_values("budget")
            look, shift = looks[method], 0.12 * (number - (len(methods) - 1) / 2)
            places = np.array([budgets.index(budget) for budget in rows["budget"]])
            for place, params in zip(places, rows["params_mean"], strict=True):
                _below(ax, place, 1 + number, count(params), look.colour)
            x = places + shift
            spread = np.nan_to_num(np.array([rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]]))
            ax.errorbar(x, rows["mean"], spread, color=look.colour, marker=look.marker, capsize=2.5, elinewidth=1)
            for _, _, budget, value in [one for one in references if one[:2] == (task, method)]:
                if budget is None:
                    ax.axhline(value, color=look.colour, linestyle=":", linewidth=1.2)
                elif budget in budgets:
                    place = budgets.index(budget) + shift
                    ax.plot(place, value, marker="*", markersize=9, color=look.colour, markerfacecolor="white")
        ax.set_title(TASKS[task].title)
        if not (data["task"] == task).any():
            _no_records(ax)
            continue
        ax.set_ylabel(TASKS[task].axis)
        ax.set_xticks(range(len(budgets)), list(map(str, budgets)))
        ax.set_xlim(-0.4, len(budgets) - 0.6)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("Average rank, and parameters by colour", labelpad=5 + 11 * len(methods))
    titles = dict(zip(data["method"], data["title"], strict=True))
    handles = [_handle(looks[m], titles[m]) for m in methods]
    if any(budget is not None for _, _, budget, _ in references):
        handles.append(
            Line2D(
                [], [], color="k", marker="*", markersize=9, markerfacecolor="white", linestyle="", label="published"
            )
        )
    if any(budget is None for _, _, budget, _ in references):
        handles.append(Line2D([], [], color="k", linestyle=":", linewidth=1.2, label="published, best over budgets"))
    shown = "mean and 95 % interval over seeds" if int(data["seeds"].max()) > 1 else "one seed"
    _legend(fig, handles, f"{shown}, {note}" if note else shown)
    return fig


def _below(ax: Axes, place: float, line: int, text: str, colour: str) -> None:
    """A further line of a tick's label, in a colour of its own."""
    ax.annotate(
        text,
        (place, 0),
        xycoords=ax.get_xaxis_transform(),
        xytext=(0, -6 - 11 * line),
        textcoords="offset points",
        ha="center",
        va="top",
        color=colour,
        annotation_clip=False,
    )


# ---- Figure 5

MEASURES = {
    "A": (r"$\|AA^\top - I\|_F^2$, mean over modules", "A", "A_with_reserve"),
    "B": (r"$\|B^\top B - I\|_F^2$, mean over modules", "B", "B_with_reserve"),
    "norm": ("Norm, mean over all A and B\n(what the authors' code logs)", "norm", "norm_with_reserve"),
}
"""Panels of Figure 5: title, and the fields of a record for active components and with the reserve."""


def figure5(results: Results, wanted: Figure5) -> pd.DataFrame:
    """Orthogonality over training: mean, least and greatest over seeds, by measure, components, variant and step.

    Rows of the measure `event` are the steps at which ranks grew in some run.
    """
    rows = []
    for advance, method in (("with", wanted.with_advance), ("without", wanted.without_advance)):
        found = results.allocations(Cell(wanted.task, method, wanted.budget))
        if not found:
            log.warning("figure5: no records of %s on %s at budget %s", method, wanted.task, wanted.budget)
        for allocation in found.values():
            about = {"advance": advance, "method": method}
            rows += [
                {"measure": measure, "components": components, **about, "step": one.step, "loss": getattr(one, name)}
                for one in allocation.orthogonality
                for measure, (_, *names) in MEASURES.items()
                for components, name in zip(("active", "with reserve"), names, strict=True)
            ]
            rows += [
                {"measure": "event", "components": "", **about, "step": event.step, "loss": 0.0}
                for event in allocation.events
            ]
    return _over_seeds(rows, ["measure", "components", "advance", "method", "step"], "loss")


def _over_seeds(rows: list[dict[str, Any]], keys: list[str], value: str) -> pd.DataFrame:
    """Mean, least and greatest over seeds of a value."""
    if not rows:
        return pd.DataFrame(columns=[*keys, "mean", "low", "high", "seeds"])
    groups = pd.DataFrame(rows).groupby(keys, sort=True)[value]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def draw_figure5(data: pd.DataFrame, note: str = "", recorded: str = "") -> Figure:
    """Orthogonality over training, mean over seeds: active components and with the reserve; events of growth marked.

    Args:
        data: from `figure5`.
        note: where, for the legend.
        recorded: what recordings of the authors' code show, below the panels.
    """
    fig = figure(DOUBLE, 3.4)
    axes = fig.subplots(1, len(MEASURES))
    events = sorted(set(data.loc[data["measure"] == "event", "step"]))
    drawn = {"with": (BLUE, "with advance learning"), "without": (ORANGE, "without advance learning")}
    lines: dict[str, Literal["-", "--"]] = {"active": "-", "with reserve": "--"}
    for ax, (measure, (title, *_)) in zip(axes, MEASURES.items(), strict=True):
        for step in events:
            ax.axvline(step, color="#BBBBBB", linewidth=0.5, zorder=0)
        shown = data[data["measure"] == measure]
        for (advance, (colour, _)), (components, line) in product(drawn.items(), lines.items()):
            rows = shown[(shown["components"] == components) & (shown["advance"] == advance)].sort_values("step")
            ax.plot(rows["step"], rows["mean"], color=colour, linestyle=line)
            if components == "active":
                ax.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
        if len(shown) and shown["low"].min() > 0 and shown["high"].max() > 20 * shown["low"].min():
            ax.set_yscale("log")
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(bottom=0)
        ax.grid(axis="x", visible=False)
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("Step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlim(left=0)
    present = set(data["advance"])
    handles = [
        Line2D([], [], color=colour, label=label if advance in present else f"{label}: no records")
        for advance, (colour, label) in drawn.items()
    ]
    handles += [Line2D([], [], color="k", linestyle=line, label=name) for name, line in lines.items()]
    handles += [Line2D([], [], color="#BBBBBB", linewidth=0.8, label="ranks grow")] if events else []
    seeds = int(data["seeds"].max())
    _legend(fig, handles, f"{note}; {_seeds(seeds)}" + (", band: least to greatest" if seeds > 1 else ""))
    if recorded:
        fig.supxlabel(plain(recorded), fontsize=8)
    return fig


def recorded_gaps() -> str:
    """How much of Figure 5's gap is the frozen reserve in recordings of the authors' code, in a sentence."""
    found = {row.column: row.value for row in published.load() if row.artefact == "figure5" and row.kind == "recorded"}
    return (
        "In recorded runs of the authors' code the norm of the last step is higher without advance learning: by\n"
        f"{found['norm with reserve'].lstrip('+')} with the reserve counted, which is frozen there, and by "
        f"{found['norm'].lstrip('+')} for active components.\nHere the reserve is dropped when growth ends."
    )


# ---- Figure 6


def figure6(results: Results, wanted: Figure6) -> pd.DataFrame:
    """Final rank of every module, mean over seeds: one row per method, layer (from 1) and matrix.

    How concentrated a method's ranks are stands in each of its rows, mean over seeds: their Gini coefficient, their
    entropy as a part of the most there can be, and the largest rank.
    """
    rows = []
    for method in wanted.methods:
        found = results.allocations(Cell(wanted.task, method, wanted.budget))
        ranks = [allocation.ranks for allocation in found.values()]
        if not ranks:
            log.warning("figure6: no ranks of %s on %s at budget %s", method, wanted.task, wanted.budget)
        spread = [
            statistics.estimate(measure(one.values()) for one in ranks).mean
            for measure in (statistics.gini, statistics.evenness, max)
        ]
        for module in dict.fromkeys(name for one in ranks for name in one):
            place = locate(module)
            if place is None:
                log.warning("figure6: %s is none of the six matrices of a layer; left out", module)
                continue
            mean = statistics.estimate(one.get(module, 0) for one in ranks).mean
            about = (method, results.study.title(method), place.layer + 1, place.matrix, module)
            rows.append((*about, mean, *spread, len(ranks)))
    names = ("method", "title", "layer", "matrix", "module", "rank", "gini", "entropy", "largest", "seeds")
    return pd.DataFrame(rows, columns=list(names))


def draw_figure6(data: pd.DataFrame, titles: Mapping[str, str], note: str = "") -> Figure:
    """Final ranks as heat maps side by side on one colour scale, the numbers in the cells."""
    layers = sorted(set(data["layer"]))
    fig = figure(DOUBLE, 1.3 + 0.23 * len(layers))
    fig.suptitle(plain(f"Final ranks {note}"), fontsize=8)
    matrices = [name for name in MATRICES if (data["matrix"] == name).any()]
    axes = fig.subplots(1, len(titles), squeeze=False)[0]
    low, high = float(data["rank"].min()), float(data["rank"].max())
    whole = bool((data["rank"] % 1 == 0).all())
    image = None
    for ax, (method, title) in zip(axes, titles.items(), strict=True):
        rows = data[data["method"] == method]
        if rows.empty:
            ax.set_title(plain(title))
            _no_records(ax)
            continue
        grid = rows.pivot(index="layer", columns="matrix", values="rank").reindex(index=layers, columns=matrices)
        seeds = int(rows["seeds"].max())
        first = rows.iloc[0]
        spread = f"Gini {first['gini']:.2f}, entropy {first['entropy']:.2f}, largest {first['largest']:.1f}"
        ax.set_title(plain(f"{title} ({_seeds(seeds)})\n{spread}"), fontsize=8)
        ax.set_xticks(range(len(matrices)), [_MATH[name] for name in matrices])
        ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        ax.set_ylabel("Layer" if image is None else "")
        ax.tick_params(labelleft=image is None)
        image = _heat_map(ax, grid, low, max(high, low + 1), whole)
    if image is not None:
        bar = fig.colorbar(image, ax=list(axes), label="Final rank", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
    return fig


def _heat_map(ax: Axes, grid: pd.DataFrame, low: float, high: float, whole: bool) -> AxesImage:
    image = ax.imshow(grid.to_numpy(dtype=float), cmap=MAP, vmin=low, vmax=high, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    for (row, column), value in np.ndenumerate(grid.to_numpy(dtype=float)):
        if not np.isnan(value):
            colour = "white" if (value - low) / (high - low) < 0.55 else "black"
            ax.text(column, row, f"{value:.{0 if whole else 1}f}", ha="center", va="center", color=colour)
    return image


# ---- Growth of ranks


def rank_growth(results: Results, wanted: RankGrowth) -> pd.DataFrame:
    """Rank over training, mean over seeds: one row per step, layer (from 1) and matrix.

    Ranks change at events and stay until the next; seeds whose events differ are carried forward to common steps. The
    last step is the end of training.
    """
    tracks = []
    for seed, allocation in results.allocations(Cell(wanted.task, wanted.method, wanted.budget)).items():
        places = [place for place in map(locate, allocation.modules) if place is not None]
        points = {point.step: point.ranks for point in allocation.growth or ()}
        if not points or len(places) < len(allocation.modules):
            log.warning("rank_growth: seed %s has no ranks over training in the six matrices; left out", seed)
            continue
        track = pd.DataFrame(points, index=pd.MultiIndex.from_tuples(places, names=["layer", "matrix"])).T.sort_index()
        record = results.records.get(Cell(wanted.task, wanted.method, wanted.budget), seed)
        if record and (end := record.cost.steps) > track.index[-1]:
            track.loc[end] = track.iloc[-1]
        tracks.append(track)
    names = ["step", "layer", "matrix", "rank", "seeds"]
    if not tracks:
        return pd.DataFrame(columns=names)
    steps = sorted(set().union(*(track.index for track in tracks)))
    aligned = [track.reindex(steps).ffill().bfill() for track in tracks]
    mean = pd.concat(aligned, keys=range(len(aligned)), names=["seed", "step"]).groupby(level="step").mean()
    frame = mean.melt(ignore_index=False, value_name="rank").reset_index()
    frame = frame.assign(layer=frame["layer"] + 1, seeds=len(tracks), order=frame["matrix"].map(MATRICES.index))
    return frame.sort_values(["step", "layer", "order"])[names].reset_index(drop=True)


def _budget_rank(results: Results, wanted: RankGrowth) -> float | None:
    """Total rank that the growth figure's runs were to reach."""
    found = results.allocations(Cell(wanted.task, wanted.method, wanted.budget)).values()
    return statistics.estimate(allocation.budget_rank for allocation in found).mean


def draw_rank_growth(data: pd.DataFrame, budget: float | None = None, note: str = "") -> Figure:
    """Growth of ranks over training: total by kind of matrix (stacked), and by layer (heat map)."""
    fig = figure(DOUBLE, 2.9)
    left, right = fig.subplots(1, 2)
    seeds = int(data["seeds"].iloc[0])
    by_matrix = data.pivot_table(index="step", columns="matrix", values="rank", aggfunc="sum")
    matrices = [name for name in MATRICES if name in by_matrix]
    by_matrix = by_matrix[matrices]
    steps = by_matrix.index.to_numpy()
    areas = left.stackplot(
        steps,
        by_matrix.to_numpy().T,
        step="post",
        colors=[_MATRIX_COLOURS[name] for name in matrices],
        edgecolor="white",
        linewidth=0.4,
    )
    total = float(by_matrix.to_numpy().sum(axis=1).max())
    if budget:
        left.axhline(budget, color="black", linestyle="--", linewidth=1)
        left.annotate(
            f"budget {budget:.0f}", (steps[0], budget), (3, 3), textcoords="offset points", ha="left", va="bottom"
        )
    left.set_ylim(0, 1.12 * max(total, budget or 0))
    left.set_xlim(steps[0], steps[-1])
    left.set_xlabel("Step")
    left.set_ylabel("Total rank")
    left.set_title("By kind of matrix")
    left.legend(
        areas[::-1],
        [_MATH[name] for name in matrices][::-1],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        handlelength=1,
        handleheight=1,
        borderaxespad=0.4,
    )
    by_layer = data.pivot_table(index="layer", columns="step", values="rank", aggfunc="sum")
    edges = by_layer.columns.to_numpy(dtype=float)
    layers = by_layer.index.to_numpy()
    mesh = right.pcolormesh(
        edges, np.append(layers, layers[-1] + 1) - 0.5, by_layer.to_numpy()[:, :-1], cmap=MAP, rasterized=True
    )
    right.grid(visible=False)
    right.invert_yaxis()
    right.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    right.set_xlabel("Step")
    right.set_ylabel("Layer")
    right.set_title("By layer")
    bar = fig.colorbar(mesh, ax=right, label="Rank, sum over a layer's matrices")
    bar.outline.set_visible(False)
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    fig.suptitle(plain(f"{note}; {_seeds(seeds)}"), fontsize=8)
    return fig


# ---- Training


def training(results: Results, wanted: TrainingCurves) -> pd.DataFrame:
    """Total rank at every event, weighted regulariser and development score at every evaluation, over seeds.

    The reference has a score only. Rows of the quantity `event` are the steps at which ranks grew in some run.
    """
    rows = []
    for method in (wanted.method, wanted.reference):
        cell = make_cell(results.study, wanted.task, method, wanted.budget)
        about = {"method": method, "title": results.study.title(method)}
        for record in filter(None, (results.records.get(cell, seed) for seed in results.study.seeds)):
            quantities = ("score",) if method == wanted.reference else ("penalty", "score")
            rows += [
                {"quantity": quantity, **about, "step": entry.step, "value": getattr(entry, quantity)}
                for entry in record.score.history
                for quantity in quantities
                if getattr(entry, quantity) is not None
            ]
            if method == wanted.method and record.allocation:
                totals = {point.step: float(sum(point.ranks)) for point in record.allocation.growth}
                totals[record.cost.steps] = float(record.allocation.total_rank)
                rows += [{"quantity": "total_rank", **about, "step": at, "value": n} for at, n in totals.items()]
                events = record.allocation.events
                rows += [{"quantity": "event", **about, "step": event.step, "value": 0.0} for event in events]
    return _over_seeds(rows, ["quantity", "method", "title", "step"], "value")


CURVES = {"total_rank": "Total rank", "penalty": "Weighted regulariser", "score": "Score, development split"}
"""Panels of the figure of training."""


def draw_training(data: pd.DataFrame, looks: Mapping[str, Look], axis: str, note: str = "") -> Figure:
    """A panel for each of `CURVES`: mean over seeds, band from the least to the greatest, events of growth marked."""
    fig = figure(DOUBLE, 2.7)
    events = sorted(set(data.loc[data["quantity"] == "event", "step"]))
    for ax, (quantity, label) in zip(fig.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for step in events:
            ax.axvline(step, color="#BBBBBB", linewidth=0.5, zorder=0)
        for number, (method, look) in enumerate(looks.items()):
            rows = data[(data["quantity"] == quantity) & (data["method"] == method)].sort_values("step")
            at_events = quantity == "total_rank"
            bounds = (rows["step"], rows["low"], rows["high"])
            ax.fill_between(*bounds, color=look.colour, alpha=0.2, linewidth=0, step="post" if at_events else None)
            stairs: Literal["steps-post", "default"] = "steps-post" if at_events else "default"
            ax.plot(rows["step"], rows["mean"], color=look.colour, linestyle="--" if number else "-", drawstyle=stairs)
        ax.set_title(label)
        ax.set_ylabel(axis if quantity == "score" else "")
        ax.set_xlabel("Step")
        ax.grid(axis="x", visible=False)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlim(left=0)
        if quantity != "score":
            ax.set_ylim(bottom=0)
    titles = dict(zip(data["method"], data["title"], strict=True))
    handles = [
        Line2D([], [], color=look.colour, linestyle="--" if number else "-", label=plain(titles[method]))
        for number, (method, look) in enumerate(looks.items())
        if method in titles
    ]
    handles += [Line2D([], [], color="#BBBBBB", linewidth=0.8, label="ranks grow")] if events else []
    seeds = int(data["seeds"].max())
    _legend(fig, handles, f"{note}; {_seeds(seeds)}" + (", band: least to greatest" if seeds > 1 else ""))
    return fig


# ---- Claims


def claim_lines(results: Results) -> pd.DataFrame:
    """Estimate, corrected interval and smallest visible difference of every claim that the study has numbers for.

    A bound has its margin in place of the smallest visible difference.
    """
    rows = []
    for one in claims.findings(results)[0]:
        claim, tested = one.claim, one.tested
        interval, visible = tested.interval, claim.margin or tested.visible
        if interval and visible:
            numbers = (tested.estimate.mean, *interval, visible, one.effect)
            rows.append((claim.name, claim.claim, one.place, claim.unit, claim.sign, *numbers, one.verdict))
    names = ("name", "claim", "place", "unit", "sign", "estimate", "corrected_low", "corrected_high", "visible")
    return pd.DataFrame(rows, columns=[*names, "paper", "verdict"])


def draw_claims(data: pd.DataFrame) -> Figure:
    """A forest plot: the claims' estimates with corrected intervals, as multiples of the smallest visible difference.

    So claims of different units share an axis, on which the paper's way is to the right, and 1 is where 80 % of such
    studies would have seen a difference.
    """
    fig = figure(DOUBLE, 1.3 + 0.34 * len(data))
    ax = fig.subplots()
    drawn = {"supported": (BLUE, "o"), "contradicted": (VERMILLION, "s"), "higher": (BLUE, "o"), "lower": (BLUE, "o")}
    limit = 30.0
    for place, row in enumerate(data.itertuples()):
        scale = (row.sign or 1) / row.visible
        ends = sorted(end * scale for end in (row.corrected_low, row.corrected_high))
        colour, marker = drawn.get(row.verdict, ("#666666", "o"))
        ax.plot(np.clip(ends, -limit, limit), [place, place], color=colour, linewidth=1.2)
        for end in ends:
            if abs(end) > limit:
                ax.plot(np.sign(end) * limit, place, color=colour, marker="<" if end < 0 else ">", markersize=4)
        face = colour if row.verdict in drawn else "white"
        if abs(row.estimate * scale) <= limit:
            ax.plot(row.estimate * scale, place, color=colour, marker=marker, markerfacecolor=face)
        if not np.isnan(row.paper):
            ax.plot(np.clip(row.paper * scale, -limit, limit), place, "kD", markersize=4, markerfacecolor="none")
        decimals = claims.PLACES[row.unit]
        interval = between((row.corrected_low, row.corrected_high), decimals)
        ax.annotate(
            plain(f"{fixed(row.estimate, decimals, sign=True)} {interval} {row.unit}"),
            (1.01, place),
            xycoords=ax.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
        )
    for at in (-1, 1):
        ax.axvline(at, color="#999999", linestyle=":", linewidth=1)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(data)), [plain("\n".join(textwrap.wrap(text, 44))) for text in data["claim"]])
    ax.set_ylim(len(data) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-1.3 * limit, 1.3 * limit)
    ax.set_xticks([-10, -1, 0, 1, 10], ["−10", "−1", "0", "1", "10"])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("Difference the paper's way / smallest visible difference")
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="supported, or an open question decided"),
        Line2D([], [], color=VERMILLION, marker="s", label="contradicted"),
        Line2D([], [], color="#666666", marker="o", markerfacecolor="white", label="not visible"),
        Line2D([], [], color="k", marker="D", markersize=4, markerfacecolor="none", linestyle="", label="the paper"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return fig


# ---- What they share


def _legend(fig: Figure, handles: Sequence[Line2D], note: str) -> None:
    """A legend above the panels, where it covers no data, with a line on what is shown."""
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), title=plain(note), title_fontsize=8)


def _no_records(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no records", ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"mean of {number} seeds"


def _handle(look: Look, label: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, label=plain(label))


def nothing(message: str) -> Figure:
    """A page that says why there is no figure."""
    fig = figure(SINGLE, 1.2)
    fig.text(0.5, 0.5, plain(message), ha="center", va="center", wrap=True)
    return fig


def looks(study: Study, variants: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of some variants: those of their methods, or further ones where a method occurs again."""
    further = [Look(colour, marker) for marker in "*hd>" for colour in (PURPLE, ORANGE, SKY, BLACK)]
    chosen: dict[str, Look] = {}
    for variant in variants:
        own = method_of(study, variant).look
        chosen[variant] = own if own not in chosen.values() else further[len(chosen) % len(further)]
    return chosen


def context() -> AbstractContextManager[None]:
    """Matplotlib's defaults and `RC`, whatever the user's own matplotlibrc says."""
    return matplotlib_style.context(["default", RC])


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, apart from pyplot's global state."""
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    return fig


def plain(text: str) -> str:
    """Text that Matplotlib prints as it stands: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def save(fig: Figure, stem: Path) -> list[Path]:
    """Writes ``<stem>.png`` and ``<stem>.pdf`` without time stamps or versions in them."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    with context():
        fig.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        fig.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths

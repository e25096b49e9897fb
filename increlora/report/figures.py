"""Figures 4-6 of the paper and the growth of ranks, from records alone.

Each figure has a function that collects its numbers into a tidy frame, and one that draws them. The frame is written as
CSV and is all that gets drawn, so the CSV beside a figure holds exactly what the figure shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from increlora.glue.tasks import TASKS
from increlora.methods.families import MATRICES, locate
from increlora.methods.method import Look
from increlora.report import published, statistics, style
from increlora.report.frame import write_csv
from increlora.report.render import count
from increlora.report.results import Results
from increlora.study.cells import Cell
from increlora.study.config import Figure4, Figure5, Figure6, RankGrowth, Study
from increlora.training.record import Allocation

log = logging.getLogger(__name__)

DECIMALS = {
    **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "low", "high"), 6),
    **{"params_mean": 1, "rank": 4},
}
_MATH = {name: f"$W_{{{name[2:]}}}$" for name in MATRICES}
_MATRIX_COLOURS = {
    **{"W_q": style.SKY, "W_k": style.BLUE, "W_v": style.GREEN, "W_qkv": style.PURPLE},
    **{"W_o": style.YELLOW, "W_f1": style.ORANGE, "W_f2": style.VERMILLION},
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
        with style.context():
            if data.empty:
                log.warning("%s: no records for %s", stem.name, what)
                fig = nothing(f"no records for {what}\n(study {study.study})")
            else:
                fig = draw(data)
        paths += style.save(fig, stem)
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
            looks=style.looks(study, four.methods),
            references=_references(results, four),
            note=f"{study.report.checkpoint} checkpoint",
        )
        yield "figure4", what, figure4(results, four), draw
    if five := wanted.figure5:
        what = f"{_titles(results, (five.with_advance, five.without_advance))} {_where(five)}"
        yield "figure5", what, figure5(results, five), partial(draw_figure5, note=_where(five))
    if six := wanted.figure6:
        titles = {method: study.title(method) for method in six.methods}
        draw = partial(draw_figure6, titles=titles, note=_where(six))
        yield "figure6", f"{_titles(results, six.methods)} {_where(six)}", figure6(results, six), draw
    if growth := wanted.rank_growth:
        what = f"{study.title(growth.method)} {_where(growth)}"
        draw = partial(draw_rank_growth, budget=_budget_rank(results, growth), note=what)
        yield "rank_growth", what, rank_growth(results, growth), draw


def _where(wanted: Figure5 | Figure6 | RankGrowth) -> str:
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
        numbers = (estimate.mean, estimate.sd, estimate.low, estimate.high, estimate.n)
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
    fig = style.figure(style.DOUBLE if len(tasks) > 1 else style.SINGLE, 2.6 + 0.14 * len(methods))
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


def figure5(results: Results, wanted: Figure5) -> pd.DataFrame:
    """Orthogonality over training: mean, least and greatest over seeds, per step, variant and factor (A, B)."""
    for method in (wanted.with_advance, wanted.without_advance):
        if not _allocations(results, wanted.task, method, wanted.budget):
            log.warning("figure5: no records of %s on %s at budget %s", method, wanted.task, wanted.budget)
    rows = [
        {"factor": factor, "advance": advance, "method": method, "step": point.step, "loss": getattr(point, factor)}
        for advance, method in (("with", wanted.with_advance), ("without", wanted.without_advance))
        for allocation in _allocations(results, wanted.task, method, wanted.budget).values()
        for point in allocation.orthogonality or ()
        for factor in ("A", "B")
    ]
    keys = ["factor", "advance", "method", "step"]
    if not rows:
        return pd.DataFrame(columns=[*keys, "mean", "low", "high", "seeds"])
    groups = pd.DataFrame(rows).groupby(keys, sort=True)["loss"]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def draw_figure5(data: pd.DataFrame, note: str = "") -> Figure:
    """Orthogonality of A and of B over training: mean over seeds, band from the least to the greatest."""
    fig = style.figure(style.DOUBLE, 2.6)
    axes = fig.subplots(1, 2, sharey=True)
    drawn: dict[str, tuple[str, Literal["-", "--"], str]] = {
        "with": (style.VERMILLION, "-", "with advance learning"),
        "without": (style.BLUE, "--", "without advance learning"),
    }
    norms = {"A": r"$\|AA^\top - I\|_F^2$", "B": r"$\|B^\top B - I\|_F^2$"}
    for ax, factor in zip(axes, ("A", "B"), strict=True):
        for advance, (colour, line, _) in drawn.items():
            rows = data[(data["factor"] == factor) & (data["advance"] == advance)].sort_values("step")
            ax.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
            ax.plot(rows["step"], rows["mean"], color=colour, linestyle=line)
        ax.set_title(norms[factor])
        ax.set_xlabel("Step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlim(left=0)
    axes[0].set_ylabel("Orthogonality loss,\nmean over modules")
    positive = data[["low", "mean"]].to_numpy(dtype=float).min() > 0
    if positive and data["high"].max() > 20 * data["low"].min():
        axes[0].set_yscale("log")
    else:
        axes[0].set_ylim(bottom=0)
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            linestyle=line,
            label=label if (data["advance"] == advance).any() else f"{label}: no records",
        )
        for advance, (colour, line, label) in drawn.items()
    ]
    seeds = int(data["seeds"].max())
    _legend(fig, handles, f"{note}; {_seeds(seeds)}" + (", band: least to greatest" if seeds > 1 else ""))
    return fig


# ---- Figure 6


def figure6(results: Results, wanted: Figure6) -> pd.DataFrame:
    """Final rank of every module, mean over seeds: one row per method, layer (from 1) and matrix."""
    rows = []
    for method in wanted.methods:
        found = _allocations(results, wanted.task, method, wanted.budget)
        ranks = [allocation.ranks for allocation in found.values()]
        if not ranks:
            log.warning("figure6: no ranks of %s on %s at budget %s", method, wanted.task, wanted.budget)
        for module in dict.fromkeys(name for one in ranks for name in one):
            place = locate(module)
            if place is None:
                log.warning("figure6: %s is none of the six matrices of a layer; left out", module)
                continue
            mean = statistics.estimate(one.get(module, 0) for one in ranks).mean
            rows.append((method, results.study.title(method), place.layer + 1, place.matrix, module, mean, len(ranks)))
    return pd.DataFrame(rows, columns=["method", "title", "layer", "matrix", "module", "rank", "seeds"])


def draw_figure6(data: pd.DataFrame, titles: Mapping[str, str], note: str = "") -> Figure:
    """Final ranks as heat maps side by side on one colour scale, the numbers in the cells."""
    layers = sorted(set(data["layer"]))
    fig = style.figure(style.DOUBLE, 1.1 + 0.23 * len(layers))
    fig.suptitle(style.plain(f"Final ranks {note}"), fontsize=8)
    matrices = [name for name in MATRICES if (data["matrix"] == name).any()]
    axes = fig.subplots(1, len(titles), squeeze=False)[0]
    low, high = float(data["rank"].min()), float(data["rank"].max())
    whole = bool((data["rank"] % 1 == 0).all())
    image = None
    for ax, (method, title) in zip(axes, titles.items(), strict=True):
        rows = data[data["method"] == method]
        if rows.empty:
            ax.set_title(style.plain(title))
            _no_records(ax)
            continue
        grid = rows.pivot(index="layer", columns="matrix", values="rank").reindex(index=layers, columns=matrices)
        seeds = int(rows["seeds"].max())
        ax.set_title(style.plain(f"{title} ({_seeds(seeds)})"))
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
    image = ax.imshow(grid.to_numpy(dtype=float), cmap=style.MAP, vmin=low, vmax=high, aspect="auto")
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
    for seed, allocation in _allocations(results, wanted.task, wanted.method, wanted.budget).items():
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
    found = _allocations(results, wanted.task, wanted.method, wanted.budget).values()
    return statistics.estimate(allocation.budget_rank for allocation in found).mean


def draw_rank_growth(data: pd.DataFrame, budget: float | None = None, note: str = "") -> Figure:
    """Growth of ranks over training: total by kind of matrix (stacked), and by layer (heat map)."""
    fig = style.figure(style.DOUBLE, 2.9)
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
        edges, np.append(layers, layers[-1] + 1) - 0.5, by_layer.to_numpy()[:, :-1], cmap=style.MAP, rasterized=True
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
    fig.suptitle(style.plain(f"{note}; {_seeds(seeds)}"), fontsize=8)
    return fig


# ---- What they share


def _allocations(results: Results, task: str, method: str, budget: int) -> dict[int, Allocation]:
    """The allocation block of each seed that has one."""
    records = {seed: results.records.get(Cell(task, method, budget), seed) for seed in results.study.seeds}
    return {seed: record.allocation for seed, record in records.items() if record and record.allocation}


def _legend(fig: Figure, handles: Sequence[Line2D], note: str) -> None:
    """A legend above the panels, where it covers no data, with a line on what is shown."""
    fig.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), title=style.plain(note), title_fontsize=8
    )


def _no_records(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no records", ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"mean of {number} seeds"


def _handle(look: Look, label: str) -> Line2D:
    return Line2D([], [], color=look.colour, marker=look.marker, label=style.plain(label))


def nothing(message: str) -> Figure:
    """A page that says why there is no figure."""
    fig = style.figure(style.SINGLE, 1.2)
    fig.text(0.5, 0.5, style.plain(message), ha="center", va="center", wrap=True)
    return fig

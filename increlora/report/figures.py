"""Figures 4-6 of the paper, and those of this package: growth of ranks, training curves, and the claims.

Each figure has a function that collects its numbers from the records into a tidy frame, and one that draws that frame.
The frame is written as CSV beside the figure, so it holds exactly what the figure shows.

No text is smaller than 8 pt in print, fonts are embedded as TrueType, and files carry no time stamps: the same numbers
give the same bytes. A method's colour and marker come from its registry entry and are the same in every figure.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from increlora.glue.tasks import TASKS
from increlora.methods.families import MATRICES, locate
from increlora.methods.method import Look
from increlora.report import claims, published, statistics
from increlora.report.render import between, count, fixed, write_csv
from increlora.report.results import Results
from increlora.study import jobs
from increlora.study.cells import Cell, make_cell, method_of
from increlora.study.config import Figure4, Figure5, Figure6, RankGrowth, Study, TrainingCurves

log = logging.getLogger(__name__)

DECIMALS = {"params_mean": 1, "rank": 4, "largest": 2} | dict.fromkeys(
    "mean sd ci_low ci_high low high gini entropy estimate corrected_low corrected_high visible paper".split(), 6
)
SINGLE, DOUBLE = 3.35, 6.9
"""Widths of a column and of a page, in inches."""
DPI = 300
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000 #E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7".split()
)
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
GREY = "#BBBBBB"
MOST_EVENTS = 12
"""Events of growth that are drawn one by one."""
MAP = "cividis"
"""Sequential, perceptually uniform, and much the same to colour-blind readers."""
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    "axes.titlesize": 9,
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
    "ps.fonttype": 42,  # decides which glyphs a PDF embeds, too
}
_MATH = {name: f"$W_{{{name[2:]}}}$" for name in MATRICES}
_MATRIX_COLOURS = {
    "W_q": SKY,
    "W_k": BLUE,
    "W_v": GREEN,
    "W_qkv": PURPLE,
    "W_o": YELLOW,
    "W_f1": ORANGE,
    "W_f2": VERMILLION,
}


def build(results: Results, out_dir: str | Path) -> list[Path]:
    """Writes every figure that the study has as PNG, PDF and CSV, and returns the files.

    A figure without any record is a page that says so, and a warning.
    """
    study, out, paths = results.study, Path(out_dir), []
    for name in jobs.figures(study):
        numbers, draw = FIGURES[name]
        wanted, stem = getattr(study.artefacts.chosen, name), f"{study.study}_{name}"
        data = numbers(results, wanted)
        files = [out / f"{stem}.{suffix}" for suffix in ("csv", "png", "pdf")]
        write_csv(data, files[0], DECIMALS)
        with style.context(["default", RC]):  # whatever the user's own matplotlibrc says
            if data.empty:
                log.warning("%s: no records for it", stem)
                fig = Figure((SINGLE, 1.2))
                fig.text(0.5, 0.5, f"no records for {stem}", ha="center", va="center", wrap=True)
            else:
                fig = draw(data, results, wanted)
            fig.savefig(files[1], dpi=DPI, metadata={"Software": None})
            fig.savefig(files[2], metadata={"CreationDate": None, "Creator": None, "Producer": None})
        paths += files
    return paths


# ---- Figure 4


def figure4(results: Results, wanted: Figure4) -> pd.DataFrame:
    """Score against the budget: a row per task, method and budget, with the 95 % interval over seeds."""
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


def draw_figure4(data: pd.DataFrame, results: Results, wanted: Figure4) -> Figure:
    """A panel per task: a curve with error bars per method, and below each budget every method's parameters."""
    budgets, titles = sorted(set(data["budget"])), dict(zip(data["method"], data["title"], strict=True))
    looks, known = _looks(results.study, wanted.methods), _published_points(results, wanted)
    fig = Figure((DOUBLE if len(wanted.tasks) > 1 else SINGLE, 2.6 + 0.14 * len(titles)))
    for ax, task in zip(fig.subplots(1, len(wanted.tasks), squeeze=False)[0], wanted.tasks, strict=True):
        ax.set_title(TASKS[task].title)
        if not (data["task"] == task).any():
            _no_records(ax)
            continue
        for number, method in enumerate(titles):
            rows = data[(data["task"] == task) & (data["method"] == method)].sort_values("budget")
            look, shift = looks[method], 0.12 * (number - (len(titles) - 1) / 2)
            places = np.array([budgets.index(budget) for budget in rows["budget"]])
            for place, params in zip(places, rows["params_mean"], strict=True):
                _below(ax, place, 1 + number, count(params), look.colour)
            spread = np.nan_to_num(np.array([rows["mean"] - rows["ci_low"], rows["ci_high"] - rows["mean"]]))
            bars = {"capsize": 2.5, "elinewidth": 1}
            ax.errorbar(places + shift, rows["mean"], spread, color=look.colour, marker=look.marker, **bars)
            for point_task, point_method, budget, value in known:
                if (point_task, point_method) != (task, method):
                    continue
                if budget is None:
                    ax.axhline(value, color=look.colour, **_LINE)
                elif budget in budgets:
                    ax.plot(budgets.index(budget) + shift, value, color=look.colour, **_STAR)
        ax.set_ylabel(TASKS[task].axis)
        ax.set_xticks(range(len(budgets)), list(map(str, budgets)))
        ax.set_xlim(-0.4, len(budgets) - 0.6)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("Average rank, and parameters by colour", labelpad=5 + 11 * len(titles))
    handles = [
        Line2D([], [], color=looks[method].colour, marker=looks[method].marker, label=_plain(title))
        for method, title in titles.items()
    ]
    if any(budget is not None for *_, budget, _ in known):
        handles.append(Line2D([], [], color="k", linestyle="", label="published", **_STAR))
    if any(budget is None for *_, budget, _ in known):
        handles.append(Line2D([], [], color="k", label="published, best over budgets", **_LINE))
    shown = "mean and 95 % interval over seeds" if int(data["seeds"].max()) > 1 else "one seed"
    _legend(fig, handles, f"{shown}, {results.study.report.checkpoint} checkpoint")
    return fig


_LINE: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2}
_STAR: dict[str, Any] = {"marker": "*", "markersize": 9, "markerfacecolor": "white"}


def _published_points(results: Results, wanted: Figure4) -> list[tuple[str, str, int | None, float]]:
    """Published points as (task, method, budget or None for a line, value), where they are comparable."""
    if results.not_comparable:
        return []
    ranks = {label: rank for rank, label in published.RANK_LABELS.items()}
    return [
        (row.task, row.method, ranks.get(row.budget_label), row.number)
        for row in published.load()
        if row.artefact == "figure4" and row.number is not None and row.method in wanted.methods
    ]


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
"""Panels of Figure 5: title, and the record's fields for active components and with the reserve."""


def figure5(results: Results, wanted: Figure5) -> pd.DataFrame:
    """Orthogonality over training: mean, minimum and maximum over seeds, by measure, components, variant and step.

    Rows of the measure `event` are the steps at which ranks grew in some run.
    """
    rows = []
    for advance, method in (("with", wanted.with_advance), ("without", wanted.without_advance)):
        found = results.allocations(Cell(wanted.task, method, wanted.budget))
        if not found:
            log.warning("figure5: no records of %s on %s at budget %s", method, wanted.task, wanted.budget)
        about = {"advance": advance, "method": method}
        for allocation in found.values():
            rows += [
                {"measure": measure, "components": components, **about, "step": one.step, "value": getattr(one, name)}
                for one in allocation.orthogonality
                for measure, (_, *names) in MEASURES.items()
                for components, name in zip(("active", "with reserve"), names, strict=True)
            ]
            rows += [
                {"measure": "event", "components": "", **about, "step": event.step, "value": 0.0}
                for event in allocation.events
            ]
    return _over_seeds(rows, ["measure", "components", "advance", "method", "step"])


def draw_figure5(data: pd.DataFrame, results: Results, wanted: Figure5) -> Figure:
    """A panel per measure: active components and with the reserve; what the authors' code records below the panels."""
    fig = Figure((DOUBLE, 3.4))
    events = data.loc[data["measure"] == "event", "step"]
    variants = {"with": (BLUE, "with advance learning"), "without": (ORANGE, "without advance learning")}
    lines: dict[str, Literal["-", "--"]] = {"active": "-", "with reserve": "--"}
    for ax, (measure, (title, *_)) in zip(fig.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        shown = data[data["measure"] == measure]
        for (advance, (colour, _)), (components, line) in product(variants.items(), lines.items()):
            rows = shown[(shown["components"] == components) & (shown["advance"] == advance)].sort_values("step")
            ax.plot(rows["step"], rows["mean"], color=colour, linestyle=line)
            if components == "active":
                ax.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
        if len(shown) and shown["low"].min() > 0 and shown["high"].max() > 20 * shown["low"].min():
            ax.set_yscale("log")
            ax.yaxis.set_minor_formatter(NullFormatter())
        else:
            ax.set_ylim(bottom=0)
        ax.set_title(title, fontsize=8)
        _over_steps(ax, events)
    present = set(data["advance"])
    handles = [
        Line2D([], [], color=colour, label=label if advance in present else f"{label}: no records")
        for advance, (colour, label) in variants.items()
    ]
    handles += [Line2D([], [], color="k", linestyle=line, label=name) for name, line in lines.items()]
    _legend_over_steps(fig, handles, data, events, f"Orthogonality {_where(wanted)}")
    fig.supxlabel(_plain(_recorded_gaps()), fontsize=8)
    return fig


def _recorded_gaps() -> str:
    """How much of Figure 5's gap is the frozen reserve in recordings of the authors' code, in a sentence."""
    found = {row.column: row.value for row in published.load() if row.artefact == "figure5" and row.kind == "recorded"}
    return (
        "In recorded runs of the authors' code the norm of the last step is higher without advance learning: by\n"
        f"{found['norm with reserve'].lstrip('+')} with the reserve counted, which is frozen there, and by "
        f"{found['norm'].lstrip('+')} for active components.\nHere the reserve is dropped when growth ends."
    )


# ---- Figure 6


def figure6(results: Results, wanted: Figure6) -> pd.DataFrame:
    """Final rank of every module, mean over seeds: a row per method, layer (from 1) and matrix.

    Each row also says how concentrated its method's ranks are, mean over seeds: their Gini coefficient, their entropy
    as a fraction of the maximum, and the largest rank.
    """
    rows = []
    for method in wanted.methods:
        ranks = [one.ranks for one in results.allocations(Cell(wanted.task, method, wanted.budget)).values()]
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


def draw_figure6(data: pd.DataFrame, results: Results, wanted: Figure6) -> Figure:
    """Heat maps side by side on one colour scale, with the ranks in their cells."""
    layers = sorted(set(data["layer"]))
    matrices = [name for name in MATRICES if (data["matrix"] == name).any()]
    low, high = float(data["rank"].min()), float(data["rank"].max())
    places = 0 if (data["rank"] % 1 == 0).all() else 1
    fig = Figure((DOUBLE, 1.3 + 0.23 * len(layers)))
    fig.suptitle(_plain(f"Final ranks {_where(wanted)}"), fontsize=8)
    axes = fig.subplots(1, len(wanted.methods), squeeze=False)[0]
    image = None
    for ax, method in zip(axes, wanted.methods, strict=True):
        rows, title = data[data["method"] == method], results.study.title(method)
        if rows.empty:
            ax.set_title(_plain(title))
            _no_records(ax)
            continue
        first = rows.iloc[0]
        spread = f"Gini {first['gini']:.2f}; highest rank of a run {first['largest']:.1f}"
        ax.set_title(_plain(f"{title} ({_seeds(rows)})\n{spread}"), fontsize=8)
        ax.set_xticks(range(len(matrices)), [_MATH[name] for name in matrices])
        ax.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        ax.set_ylabel("Layer" if image is None else "")
        ax.tick_params(labelleft=image is None)
        grid = rows.pivot(index="layer", columns="matrix", values="rank").reindex(index=layers, columns=matrices)
        image = _heat_map(ax, grid.to_numpy(dtype=float), low, max(high, low + 1), places)
    if image is not None:
        bar = fig.colorbar(image, ax=list(axes), label="Final rank", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
    return fig


def _heat_map(ax: Axes, grid: np.ndarray, low: float, high: float, places: int) -> AxesImage:
    image = ax.imshow(grid, cmap=MAP, vmin=low, vmax=high, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if (value - low) / (high - low) < 0.55 else "black"
            ax.text(column, row, f"{value:.{places}f}", ha="center", va="center", color=colour)
    return image


# ---- Growth of ranks


def _tracks(results: Results, cell: Cell) -> pd.DataFrame:
    """Ranks over training: a row for every step at which those of any seed change, and for the end of training.

    Columns are (seed, module). Ranks change at events and stay until the next.
    """
    found = {}
    for seed, allocation in results.allocations(cell).items():
        if allocation.growth:
            found[seed] = pd.DataFrame({one.step: one.ranks for one in allocation.growth}, index=allocation.modules).T
            found[seed].loc[results.records[cell, seed].cost.steps] = allocation.growth[-1].ranks
    names = ["seed", "module"]
    if not found:
        return pd.DataFrame(columns=pd.MultiIndex.from_arrays([[], []], names=names))
    return pd.concat(found, axis="columns", names=names).sort_index().ffill()


def rank_growth(results: Results, wanted: RankGrowth) -> pd.DataFrame:
    """Rank over training, mean over seeds: a row per step, layer (from 1) and matrix."""
    tracks, rows = _tracks(results, Cell(wanted.task, wanted.method, wanted.budget)), []
    for module, ranks in tracks.T.groupby(level="module").mean().iterrows():
        place = locate(module)
        if place is None:
            log.warning("rank_growth: %s is none of the six matrices of a layer; left out", module)
            continue
        order = (place.layer + 1, MATRICES.index(place.matrix))
        rows += [(step, *order, place.matrix, rank) for step, rank in ranks.items()]
    frame = pd.DataFrame(sorted(rows), columns=["step", "layer", "order", "matrix", "rank"]).drop(columns="order")
    return frame.assign(seeds=tracks.columns.unique("seed").size)


def draw_rank_growth(data: pd.DataFrame, results: Results, wanted: RankGrowth) -> Figure:
    """Total rank by kind of matrix, stacked, and rank by layer as a heat map."""
    fig = Figure((DOUBLE, 2.9))
    fig.suptitle(_plain(f"{results.study.title(wanted.method)} {_where(wanted)}; {_seeds(data)}"), fontsize=8)
    left, right = fig.subplots(1, 2)
    for ax, title in ((left, "By kind of matrix"), (right, "By layer")):
        ax.set_title(title)
        ax.set_xlabel("Step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    by_matrix = data.pivot_table(index="step", columns="matrix", values="rank", aggfunc="sum")
    matrices = [name for name in MATRICES if name in by_matrix]
    steps, heights = by_matrix.index.to_numpy(), by_matrix[matrices].to_numpy()
    colours = [_MATRIX_COLOURS[name] for name in matrices]
    areas = left.stackplot(steps, heights.T, step="post", colors=colours, edgecolor="white", linewidth=0.4)
    found = results.allocations(Cell(wanted.task, wanted.method, wanted.budget)).values()
    budget = statistics.estimate(allocation.budget_rank for allocation in found).mean or 0.0
    if budget:
        left.axhline(budget, color="black", linestyle="--", linewidth=1)
        left.annotate(f"budget {budget:.0f}", (steps[0], budget), (3, 3), textcoords="offset points", va="bottom")
    left.set_ylim(0, 1.12 * max(float(heights.sum(axis=1).max()), budget))
    left.set_xlim(steps[0], steps[-1])
    left.set_ylabel("Total rank")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    small = {"handlelength": 1, "handleheight": 1, "borderaxespad": 0.4}
    left.legend(areas[::-1], [_MATH[name] for name in matrices][::-1], **beside, **small)
    by_layer = data.pivot_table(index="layer", columns="step", values="rank", aggfunc="sum")
    layers, ranks = by_layer.index.to_numpy(), by_layer.to_numpy()[:, :-1]
    edges = np.append(layers, layers[-1] + 1) - 0.5
    mesh = right.pcolormesh(by_layer.columns.to_numpy(dtype=float), edges, ranks, cmap=MAP, rasterized=True)
    right.grid(visible=False)
    right.invert_yaxis()
    right.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    right.set_ylabel("Layer")
    bar = fig.colorbar(mesh, ax=right, label="Rank, sum over a layer's matrices")
    bar.outline.set_visible(False)
    return fig


# ---- Training curves

CURVES = {"total_rank": "Total rank", "penalty": "Weighted regulariser", "score": "Score, development split"}
"""Panels of the figure of training."""


def training(results: Results, wanted: TrainingCurves) -> pd.DataFrame:
    """Total rank at every event, weighted regulariser and development score at every evaluation, over seeds.

    The reference has a score only. Rows of the quantity `event` are the steps at which ranks grew in some run.
    """
    rows = []
    for method in (wanted.method, wanted.reference):
        cell = make_cell(results.study, wanted.task, method, wanted.budget)
        about = {"method": method, "title": results.study.title(method)}
        quantities = ("score",) if method == wanted.reference else ("penalty", "score")
        for record in results.of(cell).values():
            rows += [
                {"quantity": quantity, **about, "step": entry.step, "value": getattr(entry, quantity)}
                for entry in record.score.history
                for quantity in quantities
                if getattr(entry, quantity) is not None
            ]
            if method == wanted.method and record.allocation:
                events = record.allocation.events
                rows += [{"quantity": "event", **about, "step": event.step, "value": 0.0} for event in events]
        if method == wanted.method:
            totals = _tracks(results, cell).T.groupby(level="seed").sum().T.melt(ignore_index=False)["value"]
            rows += [{"quantity": "total_rank", **about, "step": step, "value": n} for step, n in totals.items()]
    return _over_seeds(rows, ["quantity", "method", "title", "step"])


def draw_training(data: pd.DataFrame, results: Results, wanted: TrainingCurves) -> Figure:
    """A panel for each of `CURVES`: the method, and the reference dashed."""
    fig = Figure((DOUBLE, 2.7))
    events = data.loc[data["quantity"] == "event", "step"]
    lines: tuple[Literal["-", "--"], ...] = ("-", "--")
    looks = _looks(results.study, (wanted.method, wanted.reference))
    for ax, (quantity, label) in zip(fig.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        is_rank = quantity == "total_rank"  # constant between events
        for (method, look), line in zip(looks.items(), lines, strict=False):
            rows = data[(data["quantity"] == quantity) & (data["method"] == method)].sort_values("step")
            bounds, step = (rows["step"], rows["low"], rows["high"]), "post" if is_rank else None
            ax.fill_between(*bounds, color=look.colour, alpha=0.2, linewidth=0, step=step)
            drawn: Literal["steps-post", "default"] = "steps-post" if is_rank else "default"
            mark = None if is_rank else "."
            ax.plot(rows["step"], rows["mean"], color=look.colour, linestyle=line, drawstyle=drawn, marker=mark)
        ax.set_title(label)
        if quantity == "score":
            ax.set_ylabel(TASKS[wanted.task].axis)
        else:
            ax.set_ylim(bottom=0)
        _over_steps(ax, events)
    titles = dict(zip(data["method"], data["title"], strict=True))
    handles = [
        Line2D([], [], color=look.colour, linestyle=line, label=_plain(titles[method]))
        for (method, look), line in zip(looks.items(), lines, strict=False)
        if method in titles
    ]
    _legend_over_steps(fig, handles, data, events, f"Training {_where(wanted)}")
    return fig


# ---- Claims


def claim_estimates(results: Results, wanted: object) -> pd.DataFrame:
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
    return pd.DataFrame(rows, columns=[*names, "paper", "verdict"]).astype({"paper": float})


def draw_claims(data: pd.DataFrame, results: Results, wanted: object) -> Figure:
    """A forest plot: the claims' estimates with corrected intervals, as multiples of the smallest visible difference.

    Claims of different units then share an axis: positive is the direction that the paper claims, and at 1 a true
    difference is detected with 80 % power.
    """
    fig = Figure((DOUBLE, 1.3 + 0.34 * len(data)))
    ax, limit = fig.subplots(), 30.0
    decided = {"supported": (BLUE, "o"), "contradicted": (VERMILLION, "s"), "higher": (BLUE, "o"), "lower": (BLUE, "o")}
    for place, row in enumerate(data.itertuples()):
        scale = (row.sign or 1) / row.visible
        ends = sorted(end * scale for end in (row.corrected_low, row.corrected_high))
        colour, marker = decided.get(row.verdict, (_UNDECIDED, "o"))
        ax.plot(np.clip(ends, -limit, limit), [place, place], color=colour, linewidth=1.2)
        for end in ends:
            if abs(end) > limit:
                ax.plot(np.sign(end) * limit, place, color=colour, marker="<" if end < 0 else ">", markersize=4)
        face = colour if row.verdict in decided else "white"
        if abs(row.estimate * scale) <= limit:
            ax.plot(row.estimate * scale, place, color=colour, marker=marker, markerfacecolor=face)
        if not np.isnan(row.paper):
            ax.plot(np.clip(row.paper * scale, -limit, limit), place, "kD", markersize=4, markerfacecolor="none")
        decimals = claims.PLACES[row.unit]
        numbers = (fixed(row.estimate, decimals, sign=True), between((row.corrected_low, row.corrected_high), decimals))
        text, beside = _plain(f"{' '.join(numbers)} {row.unit}"), ax.get_yaxis_transform()
        ax.annotate(text, (1.03, place), xycoords=beside, va="center", annotation_clip=False)
    for at in (-1, 1):
        ax.axvline(at, color="#999999", linestyle=":", linewidth=1)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(data)), [_plain("\n".join(textwrap.wrap(text, 44))) for text in data["claim"]])
    ax.set_ylim(len(data) - 0.4, -0.6)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-1.3 * limit, 1.3 * limit)
    ax.set_xticks([-10, -1, 0, 1, 10], ["−10", "−1", "0", "1", "10"])
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("← against the claim   |   as claimed →\nEffect ÷ smallest visible effect (linear from −1 to 1)")
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="supported, or an open question decided"),
        Line2D([], [], color=VERMILLION, marker="s", label="contradicted"),
        Line2D([], [], color=_UNDECIDED, marker="o", markerfacecolor="white", label="not visible"),
        Line2D([], [], color="#999999", linestyle=":", label="smallest visible effect"),
        Line2D([], [], color="k", marker="D", markersize=4, markerfacecolor="none", linestyle="", label="the paper's"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


_UNDECIDED = "#666666"

FIGURES: dict[str, tuple[Callable[[Results, Any], pd.DataFrame], Callable[[pd.DataFrame, Results, Any], Figure]]] = {
    "figure4": (figure4, draw_figure4),
    "figure5": (figure5, draw_figure5),
    "figure6": (figure6, draw_figure6),
    "rank_growth": (rank_growth, draw_rank_growth),
    "training": (training, draw_training),
    "claims": (claim_estimates, draw_claims),
}
"""What collects the numbers of each figure, and what draws them."""


# ---- What they share


def _over_seeds(rows: list[dict[str, Any]], keys: list[str]) -> pd.DataFrame:
    """Mean, minimum and maximum of `value` over seeds."""
    if not rows:
        return pd.DataFrame(columns=[*keys, "mean", "low", "high", "seeds"])
    groups = pd.DataFrame(rows).groupby(keys, sort=True)["value"]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def _over_steps(ax: Axes, events: Iterable[int]) -> None:
    """The axis of training steps, with a line at every event of growth; a band over them if they are many."""
    steps = sorted(set(events))
    if len(steps) > MOST_EVENTS:
        ax.axvspan(steps[0], steps[-1], color=GREY, alpha=0.25, linewidth=0, zorder=0)
        steps = []
    for step in steps:
        ax.axvline(step, color=GREY, linewidth=0.5, zorder=0)
    ax.set_xlabel("Step")
    ax.grid(axis="x", visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlim(left=0)


def _legend_over_steps(
    fig: Figure, handles: Sequence[Line2D], data: pd.DataFrame, events: pd.Series, title: str
) -> None:
    growth = (
        []
        if events.empty
        else [Line2D([], [], color=GREY, label="ranks grow", linewidth=0.8 if events.nunique() <= MOST_EVENTS else 6)]
    )
    band = ", band: least to greatest" if data["seeds"].max() > 1 else ""
    _legend(fig, [*handles, *growth], f"{title}; {_seeds(data)}{band}")


def _legend(fig: Figure, handles: Sequence[Line2D], note: str) -> None:
    """A legend above the panels, where it covers no data, under a line that says what is shown; as wide as fits."""
    options: dict[str, Any] = {"loc": "outside upper center", "title": _plain(note), "title_fontsize": 8}
    for columns in range(len(handles), 0, -1):
        legend = fig.legend(handles=handles, ncols=columns, **options)
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            break
        legend.remove()


def _where(wanted: Figure5 | Figure6 | RankGrowth | TrainingCurves) -> str:
    return f"on {TASKS[wanted.task].title}, average rank {wanted.budget}"


def _seeds(data: pd.DataFrame) -> str:
    seeds = int(data["seeds"].max())
    return "one seed" if seeds == 1 else f"mean of {seeds} seeds"


def _no_records(ax: Axes) -> None:
    ax.text(0.5, 0.5, "no records", ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _looks(study: Study, variants: Iterable[str]) -> dict[str, Look]:
    """Colour and marker of some variants: those of their methods, or others where a method occurs again."""
    colours, markers = (PURPLE, ORANGE, SKY, BLACK), "*hd>"
    others = [Look(colour, markers[(i + turn) % 4]) for turn in range(4) for i, colour in enumerate(colours)]
    chosen: dict[str, Look] = {}
    for variant in variants:
        own = method_of(study, variant).look
        chosen[variant] = own if own not in chosen.values() else others[len(chosen) % len(others)]
    return chosen


def _plain(text: str) -> str:
    """Text that Matplotlib prints as it stands: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")

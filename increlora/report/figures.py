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
from matplotlib.ticker import MaxNLocator

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
    ax.set_xlim(-limit - 0.1, limit + 0.1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("Difference the paper's way / smallest visible difference")
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="supported, or an open question decided"),
        Line2D([], [], color=VERMILLION, marker="o", label="contradicted"),
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

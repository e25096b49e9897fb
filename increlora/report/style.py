"""How every figure looks: one place for sizes, fonts, colours and the way a figure is written.

No text below 8 pt at the printed size, fonts embedded as TrueType, no time stamps: the same numbers give the same
bytes. Colour and marker of a method stand in its registry entry and are the same in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from matplotlib import style as matplotlib_style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from increlora.methods.method import Look
from increlora.study.cells import method_of
from increlora.study.config import Study

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

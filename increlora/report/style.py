"""How every figure looks: one place for sizes, fonts, colours and the way a figure is written.

Okabe-Ito colours (distinguishable with colour-blindness), a marker and a colour per method that are the same in every
figure, no text below 8 pt at the printed size, fonts embedded as TrueType, and no time stamps: the same numbers give
the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import style as matplotlib_style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of a column and of a page, in inches."""
DPI = 300

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
GREY = "#666666"
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


class Look(NamedTuple):
    """Colour and marker of a method."""

    colour: str
    marker: str


_LOOKS = {
    "increlora": Look(VERMILLION, "o"),
    "lora": Look(BLUE, "s"),
    "adalora": Look(GREEN, "^"),
    "svd_lora": Look(PURPLE, "D"),
    "full_ft": Look(BLACK, "X"),
    "bitfit": Look(GREY, "P"),
    "hadapter": Look(ORANGE, "v"),
    "padapter": Look(SKY, "<"),
}
_FURTHER = tuple(Look(colour, marker) for marker in "*hd>" for colour in (PURPLE, ORANGE, SKY, BLACK))


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of each of a study's method variants; a variant of no known name gets one by its position."""
    unknown = [method for method in methods if method not in _LOOKS]
    return {m: _LOOKS.get(m) or _FURTHER[unknown.index(m) % len(_FURTHER)] for m in methods}


def context() -> AbstractContextManager[None]:
    """Matplotlib's defaults and `RC`, whatever the user's own matplotlibrc says."""
    return matplotlib_style.context(["default", RC])


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, apart from pyplot's global state."""
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, stem: Path) -> list[Path]:
    """Writes `<stem>.png` and `<stem>.pdf` without time stamps or versions in them."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    with context():
        fig.savefig(paths[0], dpi=DPI, metadata={"Software": None})
        fig.savefig(paths[1], metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return paths

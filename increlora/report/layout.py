"""A table as data: what `tables` builds and `render` prints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from increlora.report.summary import Summary

NOTHING = "–"
MARKS = {"partial": "†", "collapsed": "‡", "diverged": "§", "stale": "¶"}
LEGEND = {
    "partial": "fewer seeds than planned",
    "collapsed": "a run collapsed to constant predictions (its score is counted)",
    "diverged": "a run diverged (counted with its score from before, if it has one)",
    "stale": "a record was made with other settings than the config's",
}


@dataclass(frozen=True)
class Cell:
    """One printed cell: `text ± spread` and footnote marks."""

    text: str
    spread: str = ""
    marks: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """Heading of a column, with the heading that it shares with its neighbours."""

    title: str
    group: str = ""
    left: bool = False


@dataclass(frozen=True)
class Grid:
    """One block of rows under common headings; `rules` are the rows above which a line is drawn."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    rules: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Table:
    """A whole table: what is printed, and the same numbers as a tidy frame."""

    name: str
    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    tidy: pd.DataFrame
    decimals: dict[str, int]


def score_cell(summary: Summary, places: int = 2, bold: bool = False, sign: bool = False) -> Cell:
    """`mean ± sd` with the marks of what went wrong; a dash without any value."""
    marks = "".join(
        MARKS[name]
        for name, is_so in (
            ("partial", summary.status == "partial"),
            ("collapsed", summary.collapsed),
            ("diverged", summary.diverged),
            ("stale", summary.stale),
        )
        if is_so
    )
    estimate = summary.estimate
    text = fixed(estimate.mean, places, sign=sign)
    return Cell(text, fixed(estimate.sd, places) if estimate.sd is not None else "", marks, bold)


def fixed(value: float | None, places: int, sign: bool = False) -> str:
    """A number with fixed decimals, or a dash."""
    if value is None or math.isnan(value):
        return NOTHING
    value = round(value, places) or 0.0  # no "−0.00"
    text = f"{value:+.{places}f}" if sign and value else f"{value:.{places}f}"
    return text.replace("-", "−")


def count(value: float | None) -> str:
    """A number of parameters as papers print it: 1.33M, 331.8K, 512."""
    if value is None or math.isnan(value):
        return NOTHING
    if value >= 999_500_000:
        return f"{value / 1e9:.2f}G"
    if value >= 99_950_000:
        return f"{value / 1e6:.0f}M"
    if value >= 999_950:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.1f}K" if value >= 1000 else f"{value:.0f}"


def used_marks(grids: tuple[Grid, ...]) -> list[str]:
    """A legend line for every mark that occurs."""
    used = {mark for grid in grids for row in grid.rows for cell in row for mark in cell.marks}
    return [f"{mark} {LEGEND[name]}." for name, mark in MARKS.items() if mark in used]

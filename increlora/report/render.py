"""A table as data, and as Markdown, LaTeX or text for a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

NOTHING = "–"
_LATEX = {
    **{char: rf"\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "·": r"$\cdot$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "✓": r"$\checkmark$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}
_STACKED = 12
"""Columns from which a LaTeX cell has its spread below the mean, to keep the print large."""


_LABEL = 24
"""Characters of a label in the terminal below which it does not wrap."""


@dataclass(frozen=True)
class Entry:
    """One printed value: `text ± spread` and footnote marks."""

    text: str
    spread: str = ""
    marks: str = ""
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """Heading of a column, with the heading that it shares with its neighbours.

    Text stands to the `left`, numbers to the right. Columns of text that come first are a row's labels.
    """

    title: str
    group: str = ""
    left: bool = False


@dataclass(frozen=True)
class Panel:
    """One block of rows under common headings; `rules` are the rows above which a line is drawn."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    rules: frozenset[int] = frozenset()

    def frame(self, printed: Callable[[Entry], str], heading: Callable[[str], str] = str) -> pd.DataFrame:
        """The panel with every entry and heading in its printed form; headings are (group, title)."""
        names = [(heading(column.group), heading(column.title)) for column in self.columns]
        return pd.DataFrame([[printed(entry) for entry in row] for row in self.rows], columns=pd.Index(names))


@dataclass(frozen=True)
class Table:
    """A whole table: what is printed, and the same numbers as a tidy frame."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]
    tidy: pd.DataFrame
    decimals: dict[str, int]

    def write(self, folder: Path) -> list[Path]:
        """The table as CSV, Markdown and LaTeX in a folder; returns the files."""
        paths = [write_csv(self.tidy, folder / f"{self.name}.csv", self.decimals)]
        for suffix, text in (("md", markdown(self)), ("tex", latex(self))):
            paths.append(folder / f"{self.name}.{suffix}")
            paths[-1].write_text(text, encoding="utf-8", newline="\n")
        return paths


def write_csv(frame: pd.DataFrame, path: Path, decimals: Mapping[str, int]) -> Path:
    """Writes a frame with a fixed number of decimals per column, so that equal numbers give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = frame.copy()
    for name, places in decimals.items():
        if name in text.columns:
            text[name] = [None if pd.isna(value) else f"{value:.{places}f}" for value in text[name]]
    text.to_csv(path, index=False, lineterminator="\n")
    return path


def fixed(value: float | None, places: int, sign: bool = False) -> str:
    """A number with fixed decimals, or a dash."""
    if value is None or math.isnan(value):
        return NOTHING
    value = round(value, places) or 0.0  # no "−0.00"
    text = f"{value:+.{places}f}" if sign and value else f"{value:.{places}f}"
    return text.replace("-", "−")


def between(interval: tuple[float, float] | None, places: int) -> str:
    """An interval with signs, or a dash."""
    return NOTHING if interval is None else f"[{', '.join(fixed(end, places, sign=True) for end in interval)}]"


def probability(p: float | None) -> str:
    """A p-value as papers print it: 0.012, <0.001."""
    return "<0.001" if p is not None and p < 0.001 else fixed(p, 3)


def times(ratio: float | None) -> str:
    """A ratio, or a dash: 1.25×."""
    return NOTHING if ratio is None else f"{ratio:.2f}×"


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


def markdown(table: Table) -> str:
    """GitHub Markdown: the title, each panel under its caption, the notes as a list."""
    parts = [f"# {_md(table.title)}"]
    for panel in table.panels:
        frame = panel.frame(_md_entry, _md)
        frame.columns = pd.Index([" ".join(filter(None, names)) for names in frame.columns])
        sides = ["left" if column.left else "right" for column in panel.columns]
        text = frame.to_markdown(index=False, disable_numparse=True, colalign=sides)
        parts.append(f"**{_md(panel.caption)}**\n\n{text}")
    parts.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([|*<`\\])", r"\\\1", text)


def _md_entry(entry: Entry) -> str:
    text = f"**{_md(entry.text)}**" if entry.bold else _md(entry.text)
    return text + (f" ± {entry.spread}" if entry.spread else "") + (f" {entry.marks}" if entry.marks else "")


def latex(table: Table) -> str:
    """One floating table per panel (packages: amssymb, booktabs, graphicx), the notes below the first."""
    title = re.sub(r"^Table \d+: ", "", table.title)  # LaTeX numbers its tables itself
    parts = [f"% {table.title}\n% Needs \\usepackage{{amssymb,booktabs,graphicx}}."]
    for number, panel in enumerate(table.panels):
        label = f"tab:{table.name.replace('_', '-')}" + (f"-{number}" if number else "")
        caption = latex_escape(f"{title[:1].upper()}{title[1:]}. {panel.caption}")
        head = [r"\begin{table*}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
        parts += [*head, _tabular(panel)]
        if not number:
            notes = [latex_escape(note) + r"\par" for note in table.notes]
            parts += ["", r"\smallskip", r"\begin{minipage}{\textwidth}\footnotesize", *notes, r"\end{minipage}"]
        parts.append("\\end{table*}\n")
    return "\n".join(parts)


def _tabular(panel: Panel) -> str:
    """The panel as a tabular that shrinks to the width of the text where it is wider."""
    stacked = len(panel.columns) >= _STACKED
    frame = panel.frame(lambda entry: _tex_entry(entry, stacked), latex_escape)
    if not any(column.group for column in panel.columns):
        frame.columns = frame.columns.droplevel(0)
    sides = "".join("l" if column.left else "r" for column in panel.columns)
    style = frame.style.hide(axis="index")
    lines = style.to_latex(column_format=f"@{{}}{sides}@{{}}", hrules=True, multicol_align="c").splitlines()
    first = lines.index(r"\midrule") + 1
    for row in sorted(panel.rules, reverse=True):
        lines.insert(first + row, r"\midrule")
    fit = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
    return "\n".join([fit, *lines]) + "}"


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(char, char) for char in text)


def _tex_entry(entry: Entry, stacked: bool) -> str:
    text = latex_escape(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else text
    text += "".join(rf"\textsuperscript{{{latex_escape(mark)}}}" for mark in entry.marks)
    if not entry.spread:
        return text
    spread = rf"{{\scriptsize$\pm$\,{entry.spread}}}"
    return rf"\shortstack[r]{{{text}\\{spread}}}" if stacked else rf"{text}\,{spread}"


def terminal(table: Table, width: int = 120, bold: bool = False) -> str:
    """Text for a terminal of so many columns.

    A panel that is too wide gets the spread on a line below the mean; one that still is too wide is continued below.

    Args:
        table: what to print.
        width: columns of the terminal.
        bold: mark bold entries with ANSI codes.
    """
    console = Console(width=width, force_terminal=bold, color_system="standard" if bold else None, highlight=False)
    with console.capture() as captured:
        console.print(Text(table.title, style="bold"))
        for panel in table.panels:
            console.print()
            for part in _parts(panel, console):
                console.print(part)
        console.print()
        for note in table.notes:
            console.print(Text(f"- {note}"))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def _parts(panel: Panel, console: Console) -> list[RichTable]:
    """The panel in one piece if it fits, otherwise in several with the columns of labels repeated."""
    number = next((i for i, column in enumerate(panel.columns) if not column.left), len(panel.columns))
    labels, values = list(range(number)), list(range(number, len(panel.columns)))
    for apart in (" ±", "\n±"):
        whole = _rich(panel, [*labels, *values], apart)
        if _width(console, whole) <= console.width:
            return [whole]
    parts, chosen = [], labels
    for i in values:
        wider = _rich(panel, [*chosen, i], apart)
        fits = _width(console, wider) <= console.width
        if not fits and chosen != labels:
            parts.append(_rich(panel, chosen, apart))
            chosen = labels
        chosen = [*chosen, i]
    return [*parts, _rich(panel, chosen, apart)]


def _width(console: Console, table: RichTable) -> int:
    """The least width of a table: labels wrap, but not below `_LABEL`."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).minimum


def _rich(panel: Panel, chosen: Sequence[int], apart: str) -> RichTable:
    table = RichTable(
        title=Text(panel.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1)
    )
    cells = {i: [_rich_entry(row[i], apart) for row in panel.rows] for i in chosen}
    for i in chosen:
        column = panel.columns[i]
        heading = Text("\n".join(filter(None, (column.group, column.title))))
        longest = max(line.cell_len for text in (heading, *cells[i]) for line in text.split())
        least = min(longest, _LABEL) if column.left else longest
        table.add_column(heading, justify="left" if column.left else "right", no_wrap=not column.left, min_width=least)
    for number, row in enumerate(zip(*cells.values(), strict=True)):
        if number in panel.rules:
            table.add_section()
        table.add_row(*row)
    return table


def _rich_entry(entry: Entry, apart: str) -> Text:
    text = Text(entry.text, style="bold" if entry.bold else "")
    return text.append(f"{apart}{entry.spread}" if entry.spread else "", style="not bold").append(entry.marks)

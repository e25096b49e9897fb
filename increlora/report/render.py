"""A table as Markdown, LaTeX or terminal text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

from increlora.report.layout import Cell, Column, Grid, Table

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
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "✓": r"$\checkmark$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}
_FIT = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
"""Shrinks a table that is wider than the text, and leaves others as they are."""
_STACKED = 12
"""Columns from which a LaTeX row takes two lines."""


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(char, char) for char in text)


def markdown(table: Table) -> str:
    """GitHub Markdown: the title, each grid under its caption, the notes as a list."""
    parts = [f"# {_md(table.title)}"]
    for grid in table.grids:
        headings = [_md(" ".join(filter(None, (column.group, column.title)))) for column in grid.columns]
        lines = [f"| {' | '.join(headings)} |", f"|{'|'.join(':--' if c.left else '--:' for c in grid.columns)}|"]
        lines += [f"| {' | '.join(_md_cell(cell) for cell in row)} |" for row in grid.rows]
        parts.append(f"**{_md(grid.caption)}**\n\n" + "\n".join(lines))
    parts.append("\n".join(f"- {_md(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return "".join(f"\\{char}" if char in "|*<" else char for char in text)


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)
    return text + (f" ± {cell.spread}" if cell.spread else "") + (f" {cell.marks}" if cell.marks else "")


def latex(table: Table) -> str:
    """One floating table per grid (packages: booktabs, amssymb, graphicx), the notes below the first."""
    title = re.sub(r"^Table \d+: ", "", table.title)  # LaTeX numbers its tables itself
    title = title[:1].upper() + title[1:]
    head = f"% {table.title}\n% Needs \\usepackage{{amssymb,booktabs,graphicx}}.\n"
    return head + "\n".join(
        _latex_grid(
            grid,
            f"{title}. {grid.caption}",
            f"tab:{table.name.replace('_', '-')}" + (f"-{number}" if number else ""),
            notes,
        )
        for number, grid in enumerate(table.grids)
        for notes in [table.notes if number == 0 else ()]
    )


def _latex_grid(grid: Grid, caption: str, label: str, notes: Sequence[str]) -> str:
    alignment = "".join("l" if column.left else "r" for column in grid.columns)
    body = [
        _FIT,
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        *_latex_header(grid.columns),
        r"\midrule",
    ]
    for number, row in enumerate(grid.rows):
        if number in grid.rules:
            body.append(r"\midrule")
        body += _latex_row(row, stacked=len(grid.columns) >= _STACKED)
    body += [r"\bottomrule", r"\end{tabular}}"]
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{latex_escape(caption)}}}",
        rf"\label{{{label}}}",
        *body,
    ]
    if notes:
        lines += ["", r"\smallskip", r"\begin{minipage}{\textwidth}\footnotesize"]
        lines += [latex_escape(note) + r"\par" for note in notes]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _latex_header(columns: Sequence[Column]) -> list[str]:
    """One heading row, or two where columns share a heading."""
    titles = " & ".join(latex_escape(column.title) for column in columns) + r" \\"
    if not any(column.group for column in columns):
        return [titles]
    cells, rules, start = [], [], 1
    for group, members in groupby(columns, key=lambda column: column.group):
        width = len(list(members))
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_escape(group)}}}" if group else " & ".join([""] * width))
        if group:
            rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    return [" & ".join(cells) + r" \\", "".join(rules), titles]


def _latex_row(row: Sequence[Cell], stacked: bool) -> list[str]:
    """A row; in a table of many columns the spreads go on a line below the means, to keep the print large."""
    if not stacked or not any(cell.spread for cell in row):
        return [" & ".join(_latex_cell(cell) for cell in row) + r" \\"]
    spreads = [rf"{{\scriptsize$\pm$\,{cell.spread}}}" if cell.spread else "" for cell in row]
    means = [_latex_cell(replace(cell, spread="")) for cell in row]
    return [" & ".join(means) + r" \\[-2pt]", " & ".join(spreads) + r" \\"]


def _latex_cell(cell: Cell) -> str:
    text = latex_escape(cell.text)
    if cell.bold:
        text = rf"\textbf{{{text}}}"
    if cell.spread:
        text += rf"\,{{\scriptsize$\pm$\,{cell.spread}}}"
    return text + "".join(rf"\textsuperscript{{{latex_escape(mark)}}}" for mark in cell.marks)


def terminal(table: Table, width: int = 120, bold: bool = False) -> str:
    """Aligned plain text, at most `width` columns wide where the labels allow it.

    A grid that is too wide gets the spread on a line below the mean; one that still is too wide is continued below.

    Args:
        table: what to print.
        width: columns of the terminal.
        bold: mark bold cells with ANSI codes.
    """
    parts = [table.title, "=" * min(width, len(table.title))]
    for grid in table.grids:
        parts += ["", *_wrap(grid.caption, width), *_terminal_grid(grid, width, bold)]
    parts.append("")
    for note in table.notes:
        parts += _wrap(note, width, "  ")
    return "\n".join(parts) + "\n"


def _terminal_grid(grid: Grid, width: int, bold: bool) -> list[str]:
    for lay_out in (_one_line, _two_lines):
        widths = _widths(grid, lay_out)
        if sum(widths) + 2 * (len(widths) - 1) <= width:
            return _lines(grid, range(len(widths)), widths, lay_out, bold)
    lines, fixed_columns = [], [i for i, column in enumerate(grid.columns) if column.left]
    rest = [i for i in range(len(grid.columns)) if i not in fixed_columns]
    while rest:
        chosen = [*fixed_columns]
        while rest and (chosen == fixed_columns or sum(widths[i] + 2 for i in [*chosen, rest[0]]) - 2 <= width):
            chosen.append(rest.pop(0))
        lines += _lines(grid, chosen, widths, lay_out, bold) + ([""] if rest else [])
    return lines


def _one_line(cell: Cell) -> tuple[str, ...]:
    return (cell.text + (f" ±{cell.spread}" if cell.spread else "") + cell.marks,)


def _two_lines(cell: Cell) -> tuple[str, ...]:
    return cell.text + cell.marks, f"±{cell.spread}" if cell.spread else ""


def _widths(grid: Grid, lay_out: Callable[[Cell], tuple[str, ...]]) -> list[int]:
    return [
        max(len(column.title), len(column.group), *(len(line) for row in grid.rows for line in lay_out(row[i])), 1)
        for i, column in enumerate(grid.columns)
    ]


def _lines(
    grid: Grid, chosen: Sequence[int], widths: Sequence[int], lay_out: Callable[[Cell], tuple[str, ...]], bold: bool
) -> list[str]:
    def row(texts: Sequence[str], strong: Sequence[bool] = ()) -> str:
        padded = [
            text.ljust(widths[i]) if grid.columns[i].left else text.rjust(widths[i])
            for i, text in zip(chosen, texts, strict=True)
        ]
        marked = [f"\033[1m{t}\033[0m" if s else t for t, s in zip(padded, strong, strict=True)] if strong else padded
        return "  ".join(marked).rstrip()

    rule = "-" * (sum(widths[i] for i in chosen) + 2 * (len(chosen) - 1))
    columns = [grid.columns[i] for i in chosen]
    lines = [row([column.group for column in columns])] if any(column.group for column in columns) else []
    lines += [row([column.title for column in columns]), rule]
    for number, cells in enumerate(grid.rows):
        if number in grid.rules:
            lines.append(rule)
        shown = [lay_out(cells[i]) for i in chosen]
        for level in range(len(shown[0])):
            strong = [bold and level == 0 and cells[i].bold for i in chosen]
            text = row([lines_of[level] for lines_of in shown], strong)
            if text or level == 0:
                lines.append(text)
    return lines


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent) or [""]

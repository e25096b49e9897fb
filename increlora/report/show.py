"""The tables of a study for the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from increlora.errors import unknown
from increlora.report.render import terminal
from increlora.report.results import Results
from increlora.report.tables import tables

if TYPE_CHECKING:
    from increlora.study.config import Study

NAMES = ("table1", "table2", "table3", "cost")


def show(
    study: Study, records_root: str | Path, which: str | None = None, *, width: int = 120, bold: bool | None = None
) -> str:
    """The study's tables as aligned text.

    Args:
        study: the study.
        records_root: folder of the records.
        which: `table1`, `table2`, `table3` or `cost`; None for all that the study has.
        width: columns of the terminal.
        bold: mark the best values with ANSI codes; None: if standard output is a terminal.

    Raises:
        ConfigError: there is no table of that name.
    """
    if which is not None and which not in NAMES:
        raise unknown("--only", which, NAMES)
    if bold is None:
        bold = sys.stdout.isatty()
    prefix = f"{study.study}_"
    built = {table.name.removeprefix(prefix): table for table in tables(Results(study, records_root))}
    if which is not None and which not in built:
        raise unknown("--only", which, built)
    chosen = built if which is None else {which: built[which]}
    return "\n".join(terminal(table, width, bold) for table in chosen.values())

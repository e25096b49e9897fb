"""Compares the records on disk with the runs that a study wants.

A record that came with a clone, or that was made before the config was edited, is accepted by the workflow without a
look inside. `verify` looks inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from increlora.study.config import Study
from increlora.study.expand import Cell
from increlora.training.record import is_finished, state
from increlora.training.settings import RunSettings

Status = Literal["ok", "stale", "missing", "unreadable", "protocol"]


class Finding(NamedTuple):
    """What was found about one run."""

    settings: RunSettings
    path: Path
    status: Status
    """`ok`; `stale`: made with other settings; `missing`; `unreadable`: no whole, self-consistent record; `protocol`:
    made when the same settings meant something else."""
    detail: str = ""


def verify(study: Study, records_root: str | Path = "results/runs") -> list[Finding]:
    """One finding for every run of the study."""
    return [_compare(settings, settings.record_path(records_root)) for settings in study.runs()]


def unexpected(study: Study, records_root: str | Path = "results/runs") -> list[Path]:
    """Records of this study's name that belong to none of its runs."""
    wanted = {settings.record_path(records_root) for settings in study.runs()}
    return [path for path in sorted((Path(records_root) / study.study).rglob("seed*.json")) if path not in wanted]


def finished(study: Study, cell: Cell, records_root: str | Path = "results/runs") -> bool:
    """Whether every record of a cell is there and is that of its settings."""
    runs = (study.settings(cell.task, cell.method, cell.budget, seed) for seed in cell.seeds)
    return all(is_finished(settings, settings.record_path(records_root)) for settings in runs)


def _compare(settings: RunSettings, path: Path) -> Finding:
    found = state(settings, path)
    return Finding(settings, path, found.status, found.detail)

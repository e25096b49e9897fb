"""Checks after training: whether the records on disk are those of the runs that a study wants."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from increlora.study.config import Study
from increlora.study.settings import all_runs
from increlora.training.record import State, state
from increlora.training.settings import RunSettings


class Finding(NamedTuple):
    """What was found about one run."""

    settings: RunSettings
    path: Path
    state: State


def verify(study: Study, records_root: str | Path = "results/runs") -> list[Finding]:
    """One finding for every run of the study."""
    paths = ((settings, settings.record_path(records_root)) for settings in all_runs(study))
    return [Finding(settings, path, state(settings, path)) for settings, path in paths]


def unexpected(study: Study, records_root: str | Path = "results/runs") -> list[Path]:
    """Records of this study's name that belong to none of its runs."""
    wanted = {settings.record_path(records_root) for settings in all_runs(study)}
    return [path for path in sorted((Path(records_root) / study.study).rglob("seed*.json")) if path not in wanted]

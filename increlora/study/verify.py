"""Compares the records on disk with the runs that a study wants.

A record that came with a clone, or that was made before the config was edited, is accepted by the workflow without a
look inside. `verify` looks inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from increlora.study.config import Study
from increlora.study.expand import Cell
from increlora.training.settings import PROTOCOL, RunSettings
from increlora.training.store import RecordError, read_record

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
    return all(_compare(settings, settings.record_path(records_root)).status == "ok" for settings in runs)


def _compare(settings: RunSettings, path: Path) -> Finding:
    if not path.exists():
        return Finding(settings, path, "missing")
    try:
        stored = read_record(path)["run"]
    except RecordError as error:
        return Finding(settings, path, "unreadable", str(error))
    if stored["settings"]["protocol"] != PROTOCOL:
        return Finding(settings, path, "protocol", f"protocol {stored['settings']['protocol']}, now {PROTOCOL}")
    if stored["digest"] != settings.digest:
        changes = "; ".join(differences(stored["settings"], settings.model_dump(mode="json")))
        return Finding(settings, path, "stale", changes)
    return Finding(settings, path, "ok")


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields in which two settings differ, as ``field: recorded -> wanted``; local paths do not count."""
    old, new = dict(_flat(recorded)), dict(_flat(wanted))
    ignored = {"study", "method", "backbone.path", "data.path"}
    fields = [field for field in {**old, **new} if field not in ignored]
    missing = object()
    return [
        f"{field}: {old.get(field, 'unset')!r} -> {new.get(field, 'unset')!r}"
        for field in fields
        if old.get(field, missing) != new.get(field, missing)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

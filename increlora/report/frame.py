"""Records on disk -> one tidy frame: a row per run, checkpoint and metric.

A missing record is a missing row; a malformed one is an error that names the file. Records of variants or seeds that
the study does not have (any more) are left out with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from increlora.errors import IncreLoraError
from increlora.glue.tasks import TASKS
from increlora.study.cells import Cell
from increlora.study.config import Study
from increlora.study.settings import run_settings
from increlora.training.record import CHECKPOINTS, Checkpoint, Record, RecordError, read_record

log = logging.getLogger(__name__)

COST = ("peak_trainable", "optimizer_state", "peak_memory_mb", "step_ms", "train_seconds", "wall_seconds")
COLUMNS = (
    *("study", "task", "method", "title", "kind", "budget", "seed", "status", "reason", "digest", "stale"),
    *("checkpoint", "step", "metric", "value", "total_rank"),
    *("trainable", "head", "total", "budget_parameters", "deviation"),
    *COST,
    *("device", "threads", "commit"),
)
DECIMALS = {"value": 4, "deviation": 4, "peak_memory_mb": 1, "step_ms": 2, "train_seconds": 1, "wall_seconds": 1}

Run = tuple[Cell, int]
"""A run of a study: its cell and seed."""


@dataclass(frozen=True)
class Records:
    """The records of a study by run; the stale ones were made with other settings than the config's."""

    by_run: Mapping[Run, Record]
    stale: frozenset[Run] = field(default_factory=frozenset)

    def get(self, cell: Cell, seed: int) -> Record | None:
        return self.by_run.get((cell, seed))


def read_all(records_root: str | Path, study: Study) -> Records:
    """Every record of the study, in the order of tasks, variants, budgets and seeds.

    Raises:
        RecordError: names the file and what is wrong with it.
    """
    found: dict[Run, Record] = {}
    stale = set()
    for path in sorted(Path(records_root, study.study).glob("*/*/*/seed*.json")):
        try:
            record = read_record(path)
        except RecordError as error:
            raise RecordError(f"{path}: {error}; delete the file and run again to make it anew") from None
        run = record.run
        if path != run.settings.record_path(records_root):
            raise RecordError(f"{path}: the record is that of {run.settings.record_path(records_root)}")
        if run.method not in study.methods or run.seed not in study.seeds:
            log.warning("%s: the study has no such method or seed; left out", path)
            continue
        key = (Cell(run.task, run.method, run.budget), run.seed)
        found[key] = record
        if run.digest != _digest(study, key):
            log.warning("%s: made with other settings than the config's", path)
            stale.add(key)
    tasks, variants = list(TASKS), list(study.methods)

    def order(run: Run) -> tuple[int, int, int, int]:
        cell, seed = run
        return tasks.index(cell.task), variants.index(cell.variant), -1 if cell.budget is None else cell.budget, seed

    return Records({key: found[key] for key in sorted(found, key=order)}, frozenset(stale))


def _digest(study: Study, run: Run) -> str | None:
    """Digest that the config gives a run; None if the config no longer has it."""
    try:
        return run_settings(study, *run).digest
    except (IncreLoraError, KeyError):
        return None


def load(records_root: str | Path, study: Study) -> pd.DataFrame:
    """The tidy frame of a study: one row per run, rule for the checkpoint (`Record.shown`) and metric.

    `metric` is a metric key of the task, or `score`, the task's single number; `value` is in percent and NaN where a
    run diverged. Cost and parameter columns repeat in every row of a run.

    Raises:
        RecordError: a record is malformed.
    """
    return to_frame(read_all(records_root, study), study)


def to_frame(records: Records, study: Study) -> pd.DataFrame:
    """`load` for records that are read already."""
    rows = [
        {**about, "checkpoint": checkpoint, **score}
        for key, record in records.by_run.items()
        for about in [_about(record, study, key in records.stale)]
        for checkpoint in CHECKPOINTS
        for score in _scores(record, checkpoint)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ["budget", "step", "total_rank", "trainable", "head", "total", "budget_parameters", "peak_trainable"]
    return frame.astype(dict.fromkeys([*whole, "optimizer_state", "threads", "seed"], "Int64") | {"value": float})


def _about(record: Record, study: Study, stale: bool) -> dict[str, Any]:
    run, parameters, cost = record.run, record.parameters, record.cost
    names = ("study", "task", "method", "kind", "budget", "seed", "status", "reason", "digest")
    return {
        **{name: getattr(run, name) for name in names},
        **{"title": study.title(run.method), "stale": stale},
        **{name: getattr(parameters, name) for name in ("trainable", "head", "total", "deviation")},
        "budget_parameters": parameters.budget,
        **{name: getattr(cost, name) for name in (*COST, "device", "threads")},
        "commit": record.provenance.commit,
    }


def _scores(record: Record, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    task, metrics = TASKS[record.run.task], record.shown(checkpoint)
    values = dict.fromkeys(task.metrics, math.nan)
    if metrics is not None:
        values = {key: 100 * metrics[key] for key in task.metrics} | {"score": task.score(metrics)}
    entry = record.score.last if checkpoint == "last" else None if checkpoint == "crossfit" else record.score.best
    common = {"step": entry.step if entry else None, "total_rank": entry.total_rank if entry else None}
    return [{**common, "metric": name, "value": values.get(name, math.nan)} for name in (*task.metrics, "score")]


def write_csv(frame: pd.DataFrame, path: Path, decimals: Mapping[str, int]) -> Path:
    """Writes a frame with a fixed number of decimals per column, so that equal numbers give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = frame.copy()
    for name, places in decimals.items():
        if name in text.columns:
            text[name] = [None if pd.isna(value) else f"{value:.{places}f}" for value in text[name]]
    text.to_csv(path, index=False, lineterminator="\n")
    return path

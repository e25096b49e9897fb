"""Records on disk -> one tidy frame: a row per run, checkpoint and metric.

A missing record is a missing row; a malformed one is an error that names the file. Records of methods or seeds that the
study does not have (any more) are left out with a warning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from increlora.errors import IncreLoraError
from increlora.glue.tasks import TASKS
from increlora.training import record as record_model
from increlora.training.record import RecordError
from increlora.training.settings import budget_label

if TYPE_CHECKING:
    from increlora.study.config import Study

log = logging.getLogger(__name__)

CHECKPOINTS = ("best", "last")
COST = ("peak_trainable", "optimizer_state", "peak_memory_mb", "step_ms", "train_seconds", "wall_seconds")
COLUMNS = (
    *("study", "task", "method", "title", "kind", "budget", "seed", "status", "reason", "digest", "stale"),
    *("checkpoint", "step", "metric", "value", "total_rank"),
    *("trainable", "head", "total", "budget_parameters", "deviation"),
    *COST,
    *("device", "threads", "commit"),
)
DECIMALS = {"value": 4, "deviation": 4, "peak_memory_mb": 1, "step_ms": 2, "train_seconds": 1, "wall_seconds": 1}


@dataclass(frozen=True)
class Records:
    """The records of a study by (task, method, budget, seed)."""

    by_run: Mapping[tuple[str, str, int | None, int], dict[str, Any]]
    stale: frozenset[tuple[str, str, int | None, int]] = field(default_factory=frozenset)

    def get(self, task: str, method: str, budget: int | None, seed: int) -> dict[str, Any] | None:
        return self.by_run.get((task, method, budget, seed))


def read_record(path: Path) -> dict[str, Any]:
    """One record as plain data.

    Raises:
        RecordError: names the file and what is wrong with it.
    """
    try:
        record = record_model.read_record(path).model_dump(mode="json")
    except RecordError as error:
        raise RecordError(f"{path}: {error}; delete the file and run again to make it anew") from None
    run = record["run"]
    place = f"{run['study']}/{run['task']}/{run['method']}/{budget_label(run['budget'])}/seed{run['seed']}.json"
    if not path.as_posix().endswith(place):
        raise RecordError(f"{path}: the record is that of {place}; delete the file and run again to make it anew")
    return record


def read_all(records_root: str | Path, study: Study) -> Records:
    """Every record of the study, in the order of tasks, methods, budgets and seeds."""
    found: dict[tuple[str, str, int | None, int], dict[str, Any]] = {}
    stale = set()
    for path in sorted(Path(records_root, study.study).glob("*/*/*/seed*.json")):
        record = read_record(path)
        run = record["run"]
        if run["method"] not in study.methods or run["seed"] not in study.seeds:
            log.warning("%s: the study has no such method or seed; left out", path)
            continue
        key = (run["task"], run["method"], run["budget"], run["seed"])
        found[key] = record
        if run["digest"] != _digest(study, key):
            log.warning("%s: made with other settings than the config's", path)
            stale.add(key)
    tasks, methods = list(TASKS), list(study.methods)

    def order(key: tuple[str, str, int | None, int]) -> tuple[int, int, int, int]:
        return tasks.index(key[0]), methods.index(key[1]), -1 if key[2] is None else key[2], key[3]

    return Records({key: found[key] for key in sorted(found, key=order)}, frozenset(stale))


def _digest(study: Study, key: tuple[str, str, int | None, int]) -> str | None:
    """Digest that the config gives a run; None if the config no longer has it."""
    try:
        return study.settings(*key).digest
    except (IncreLoraError, KeyError):
        return None


def load(records_root: str | Path, study: Study) -> pd.DataFrame:
    """The tidy frame of a study: one row per run, checkpoint (best, last) and metric.

    `metric` is a metric key of the task, or `score`, the task's single number; `value` is in percent and NaN where a
    run diverged. Cost and parameter columns repeat in every row of a run.

    Raises:
        RecordError: a record is malformed.
    """
    return to_frame(read_all(records_root, study), study)


def to_frame(records: Records, study: Study) -> pd.DataFrame:
    """`load` for records that are read already."""
    rows = [
        {**run, "checkpoint": checkpoint, **score}
        for key, record in records.by_run.items()
        for run in [_run_columns(record, study, key in records.stale)]
        for checkpoint in CHECKPOINTS
        for score in _score_rows(record, checkpoint)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ["budget", "step", "total_rank", "trainable", "head", "total", "budget_parameters", "peak_trainable"]
    return frame.astype(dict.fromkeys([*whole, "optimizer_state", "threads", "seed"], "Int64") | {"value": float})


def _run_columns(record: Mapping[str, Any], study: Study, stale: bool) -> dict[str, Any]:
    run, parameters, cost = record["run"], record["parameters"], record["cost"]
    return {
        **{name: run.get(name) for name in ("study", "task", "method", "kind", "budget", "seed", "status", "reason")},
        "title": study.title(run["method"]),
        "digest": run["digest"],
        "stale": stale,
        **{name: parameters.get(name) for name in ("trainable", "head", "total", "deviation")},
        "budget_parameters": parameters.get("budget"),
        **{name: cost.get(name) for name in (*COST, "device", "threads")},
        "commit": record["provenance"].get("commit"),
    }


def _score_rows(record: Mapping[str, Any], checkpoint: str) -> list[dict[str, Any]]:
    task = TASKS[record["run"]["task"]]
    entry = record["score"].get(checkpoint) or {}
    metrics = entry.get("metrics") or {}
    values = {key: math.nan if metrics.get(key) is None else 100 * metrics[key] for key in task.metrics}
    complete = all(metrics.get(key) is not None for key in task.metrics)
    values["score"] = task.score(metrics) if complete else math.nan
    common = {"step": entry.get("step"), "total_rank": entry.get("total_rank")}
    return [{**common, "metric": metric, "value": value} for metric, value in values.items()]


def write_csv(frame: pd.DataFrame, path: Path, decimals: Mapping[str, int]) -> Path:
    """Write a frame with a fixed number of decimals per column, so that equal numbers give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = frame.copy()
    for name, places in decimals.items():
        if name in text.columns:
            text[name] = [None if pd.isna(value) else f"{value:.{places}f}" for value in text[name]]
    text.to_csv(path, index=False, lineterminator="\n")
    return path


def write_runs(records_root: str | Path, study: Study, out_dir: str | Path) -> Path:
    """`<study>_runs.csv`: the tidy frame."""
    return write_csv(load(records_root, study), Path(out_dir) / f"{study.study}_runs.csv", DECIMALS)

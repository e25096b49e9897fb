"""How fast a machine trains a study: a table of measured seconds, from which the plan takes its hours.

    increlora plan CONFIG --measure

trains the first steps of every kind of run, with real batches, and writes ``.increlora/speed/<study>.csv``, which later
plans read. IncreLoRA's first steps are its cheaper ones (docs/reference/costs.md); over a run it takes some percent
more.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from increlora.errors import ConfigError
from increlora.model import Block, parsed
from increlora.study.config import Study
from increlora.study.settings import all_runs
from increlora.training.run import measure_speed
from increlora.training.settings import RunSettings

TRAIN_ROWS, EVAL_ROWS = 2048, 256
"""Rows that are read at most: a window of length grouping at a batch size of 32, and two batches of evaluation."""


class _Key(NamedTuple):
    """What decides a run's speed; method variants of one kind share it."""

    task: str
    kind: str
    budget: int | None


class SpeedRow(Block):
    """Task, kind of method and budget on one machine."""

    task: str
    kind: str
    budget: int | None
    step_seconds: float = Field(gt=0)
    """Of one optimizer step, all micro-batches included."""
    row_seconds: float = Field(gt=0)
    """Of evaluating one example."""
    machine: str


class Speeds:
    """A table of measured speeds."""

    def __init__(self, rows: list[SpeedRow]):
        self._rows = {_Key(row.task, row.kind, row.budget): row for row in rows}
        self.machine = ", ".join(sorted({row.machine for row in rows}))

    def has(self, run: RunSettings) -> bool:
        """Whether runs like this one were measured."""
        return _key(run) in self._rows

    def seconds(self, run: RunSettings) -> float:
        """Expected seconds of a run that was measured: its steps and the examples of its evaluations."""
        row, (steps, examples) = self._rows[_key(run)], run.work()
        return steps * row.step_seconds + examples * row.row_seconds


def measure(study: Study, progress: bool = True) -> Iterator[SpeedRow]:
    """Time the runs of a study on this machine, one of each task, kind of method and budget.

    Raises:
        IncreLoraError: model or data are not there.

    The process keeps the study's number of threads.
    """
    torch.set_num_threads(study.execution.threads)
    runs: dict[_Key, RunSettings] = {}
    for run in all_runs(study):
        if run.ranks_from is None:
            runs.setdefault(_key(run), run)
    machine = _machine()
    for key, run in tqdm(runs.items(), disable=None if progress else True, unit="run"):
        training = run.training.model_copy(update={"max_steps": run.work()[0]})
        rows = {
            "train_rows": min(TRAIN_ROWS, run.data.train_rows or TRAIN_ROWS),
            "eval_rows": min(EVAL_ROWS, run.data.eval_rows or EVAL_ROWS),
        }
        data = run.data.model_copy(update=rows)
        speed = measure_speed(run.model_copy(update={"training": training, "data": data}))
        yield SpeedRow(**key._asdict(), step_seconds=speed.step, row_seconds=speed.row, machine=machine)


def _key(run: RunSettings) -> _Key:
    return _Key(run.task, run.kind, run.budget)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write(rows: list[SpeedRow], path: Path) -> None:
    """Writes the table; seconds with four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([row.model_dump() for row in rows]).astype({"budget": "Int64"})
    frame.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def read(path: Path) -> Speeds | None:
    """The table, or None if nothing was measured.

    Raises:
        ConfigError: the file is not such a table.
    """
    if not path.exists():
        return None
    try:
        rows = pd.read_csv(path, dtype={"budget": "Int64"}).astype(object)
    except ValueError as error:
        raise ConfigError(str(path), f"is no table of speeds ({error}); `increlora plan --measure` makes one") from None
    rows = rows.where(rows.notna(), None).to_dict("records")
    return Speeds([parsed(SpeedRow, row, f"{path}, line {number}") for number, row in enumerate(rows, 2)])

"""Trains runs of a study one after the other in this process, and logs the progress of the study.

A run that is already finished comes from the store. A run that fails is reported and does not stop the others, so that
only the failed ones are left for the next attempt.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from increlora.errors import ConfigError, IncreLoraError, sentence, unknown
from increlora.glue.tasks import TASKS
from increlora.study.cells import all_cells
from increlora.study.config import Study
from increlora.study.settings import all_runs, run_settings
from increlora.training.job import finish, is_first_process
from increlora.training.record import Record, is_finished, write_record
from increlora.training.settings import RunSettings, budget_label

log = logging.getLogger(__name__)


def choose(
    study: Study,
    tasks: Sequence[str] = (),
    variants: Sequence[str] = (),
    budgets: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[RunSettings]:
    """Runs of a study by name; what is left empty is everything. Budgets are numbers or ``all``, as in paths.

    Raises:
        ConfigError: a name is not there, or no run has all that is given.
    """
    cells = every = all_cells(study)
    parts = {
        "task": (tasks, lambda cell: cell.task),
        "method": (variants, lambda cell: cell.variant),
        "budget": (budgets, lambda cell: budget_label(cell.budget)),
    }
    for name, (wanted, part) in parts.items():
        known = sorted({part(cell) for cell in every}, key=lambda label: (len(label), label))
        for value in wanted:
            if value not in known:
                raise unknown(f"--{name}", value, known)
        cells = tuple(cell for cell in cells if not wanted or part(cell) in wanted)
    if not cells:
        given = " ".join(f"--{name} {' '.join(wanted)}" for name, (wanted, _) in parts.items() if wanted)
        raise ConfigError(given, f"no run of study {study.study} has all of these")
    return [run_settings(study, cell, seed) for cell in cells for seed in (seeds or study.seeds)]


def train(
    study: Study, runs: Iterable[RunSettings], records_root: str | Path, *, progress: bool = True
) -> dict[str, str]:
    """Trains or restores runs and writes their records. The process keeps the study's number of threads.

    Args:
        study: the study.
        runs: what to train. Those that others start from come first, then one seed after the other, and of a seed the
            runs on the same data one after another.
        records_root: folder of the study's records.
        progress: show a progress bar for each run.

    Returns:
        Why each failed run failed, by its label.
    """
    torch.set_num_threads(study.execution.threads)
    runs = sorted(runs, key=lambda run: (run.ranks_from is not None, run.seed, list(TASKS).index(run.task)))
    failed: dict[str, str] = {}
    meter = Meter(study, runs, records_root)
    for settings in runs:
        record, trained = None, False
        try:
            record, trained = finish(settings, settings.source_path(records_root), progress=progress)
            if is_first_process():
                write_record(settings.record_path(records_root), record)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()  # the next run may read this record
        except Exception as error:
            if "RANK" in os.environ:  # the other processes of torchrun wait for this one: all have to end
                raise
            if isinstance(error, IncreLoraError | OSError):
                failed[settings.label] = sentence(error)
                log.error("%s failed: %s", settings.label, failed[settings.label])
            else:
                failed[settings.label] = " ".join(f"{type(error).__name__}: {error}".split())
                log.exception("%s failed: %s", settings.label, failed[settings.label])
        meter.tick(settings, record, trained)
    return failed


class Meter:
    """Logs after every run how far this process and the whole study are.

    Jobs run beside one another, so the study's progress is that of its records on disk, and the time left follows from
    how fast those appeared since this process began.

    Args:
        study: the study.
        runs: those of this process.
        records_root: folder of the study's records.
    """

    def __init__(self, study: Study, runs: Sequence[RunSettings], records_root: str | Path):
        self.study, self.here, self.done, self.restored = study.study, len(runs), 0, 0
        every = {run.record_path(records_root): run for run in (*all_runs(study), *runs)}
        # When the record of an unfinished run was written: one of other settings may be there.
        self.before = {path: _written(path) for path, run in every.items() if not is_finished(run, path)}
        self.total, self.started = len(every), time.monotonic()

    def _made(self) -> int:
        return sum(_written(path) not in (None, before) for path, before in self.before.items())

    def tick(self, settings: RunSettings, record: Record | None, trained: bool) -> None:
        """Counts a run that ended; ``record`` is None if it failed."""
        self.done, self.restored = self.done + 1, self.restored + (not trained)
        score = f"{record.score.best.score:.2f}" if record and record.score.best else "no score"
        made, seconds = self._made(), time.monotonic() - self.started
        now = self.total - len(self.before) + made
        here = _left(seconds, self.done - self.restored, self.here - self.done)
        whole = _left(seconds, made - self.restored, self.total - now)
        place = f"{self.done} of {self.here} here{here}; study {self.study}: {now} of {self.total}{whole}"
        log.info("%s  %s  (%s)", settings.label, score, place)


def _written(path: Path) -> int | None:
    """When a file was written, in nanoseconds; None if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else None


def _left(seconds: float, made: int, remaining: int) -> str:
    """The time that the remaining runs take at the pace so far, in words; nothing where there is no pace."""
    if made < 1 or remaining < 1:
        return ""
    minutes, rest = divmod(round(seconds / made * remaining), 60)
    return f", {minutes // 60}:{minutes % 60:02}:{rest:02} left"

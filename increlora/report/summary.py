"""One table cell out of the frame: which seeds are there, what they say, and what went wrong.

A run that *collapsed* (constant predictions) counts with the score that it has: it is what the method did. A run that
*diverged* counts with what it scored before, if the shown checkpoint has a score, and else is missing from the mean.
Either is said; neither is dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.report import statistics
from increlora.report.statistics import Estimate


@dataclass(frozen=True)
class Summary:
    """What the records say about one number.

    Attributes:
        estimate: mean, sd, interval over seeds.
        expected: seeds that the study asks for.
        missing: seeds without a record.
        collapsed, diverged, stale: seeds whose run ended so, or whose record was made with other settings.
        scored: seeds that have a value.
    """

    estimate: Estimate
    expected: int
    missing: tuple[int, ...] = ()
    collapsed: tuple[int, ...] = ()
    diverged: tuple[int, ...] = ()
    stale: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()

    @property
    def status(self) -> str:
        """`missing` without any value, `partial` with fewer values than seeds, `complete` otherwise."""
        if self.estimate.n == 0:
            return "missing"
        return "complete" if self.estimate.n == self.expected else "partial"

    def remarks(self) -> list[str]:
        """What a reader has to know about this cell, in words."""
        said = {
            "no record": self.missing if self.status == "partial" else (),
            "collapsed to constant predictions, score counted": self.collapsed,
            "diverged, no score": tuple(seed for seed in self.diverged if seed not in self.scored),
            "diverged, score from before that counted": tuple(seed for seed in self.diverged if seed in self.scored),
            "made with other settings than the config's": self.stale,
        }
        return [f"{_seeds(seeds)} {what}" for what, seeds in said.items() if seeds]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


class Scores:
    """Scores of a study at one checkpoint rule.

    Args:
        frame: as `increlora.report.frame.load` returns it.
        seeds: the study's seeds.
        checkpoint: `best` or `last`.
    """

    def __init__(self, frame: pd.DataFrame, seeds: Sequence[int], checkpoint: str):
        self.seeds = tuple(seeds)
        self._values: dict[tuple[str, str, int | None, int], dict[str, float]] = {}
        self._status: dict[tuple[str, str, int | None, int], str] = {}
        self._stale: set[tuple[str, str, int | None, int]] = set()
        shown = frame[frame["checkpoint"] == checkpoint]
        names = ("task", "method", "budget", "seed", "metric", "value", "status", "stale")
        for task, method, budget, seed, metric, value, status, stale in zip(*(shown[n] for n in names), strict=True):
            key = (task, method, None if pd.isna(budget) else int(budget), int(seed))
            self._values.setdefault(key, {})[metric] = value
            self._status[key] = status
            if stale:
                self._stale.add(key)

    def by_seed(self, task: str, method: str, budget: int | None, column: str | None = None) -> dict[int, float]:
        """Value of each seed that has one, in percent: a column of the task, or its single number."""
        keys = ("score",) if column is None else TASKS[task].columns[column]
        found = {}
        for seed in self.seeds:
            values = self._values.get((task, method, budget, seed))
            if values is not None:
                value = sum(values[key] for key in keys) / len(keys)
                if not math.isnan(value):
                    found[seed] = value
        return found

    def column(self, task: str, method: str, budget: int | None, column: str | None = None) -> Summary:
        """One cell: a column of a task, or with None the task's single number."""
        values = self.by_seed(task, method, budget, column)
        return self._summary(statistics.estimate(values.values()), [(task, method, budget)], tuple(values))

    def all_tasks(self, tasks: Sequence[str], method: str, budget: int | None) -> Summary:
        """The column "All": mean over tasks of each task's mean over seeds, where every task has a value.

        The sd is that of the per-seed means over tasks (seeds that every task has), the interval a bootstrap of seeds
        within tasks. `estimate.n` is the smallest number of seeds of a task.
        """
        cells = [(task, method, budget) for task in tasks]
        values = [self.by_seed(*cell) for cell in cells]
        if not all(values):
            return self._summary(Estimate(0), cells)
        common = [seed for seed in self.seeds if all(seed in found for found in values)]
        per_seed = statistics.estimate(float(np.mean([found[seed] for found in values])) for seed in common)
        interval = statistics.stratified_bootstrap([list(found.values()) for found in values])
        mean = float(np.mean([np.mean(list(found.values())) for found in values]))
        low, high = interval or (None, None)
        return self._summary(Estimate(min(map(len, values)), mean, per_seed.sd, low, high), cells)

    def difference(
        self, task: str, one: tuple[str, int | None], other: tuple[str, int | None], column: str | None = None
    ) -> Summary:
        """`one - other`, paired by seed; both are (method, budget)."""
        first, second = self.by_seed(task, *one, column), self.by_seed(task, *other, column)
        common = [seed for seed in self.seeds if seed in first and seed in second]
        estimate = statistics.estimate(first[seed] - second[seed] for seed in common)
        return self._summary(estimate, [(task, *one), (task, *other)])

    def _summary(
        self, estimate: Estimate, cells: Sequence[tuple[str, str, int | None]], scored: tuple[int, ...] = ()
    ) -> Summary:
        def seeds_where(status: str) -> tuple[int, ...]:
            return tuple(s for s in self.seeds if any(self._status.get((*cell, s)) == status for cell in cells))

        return Summary(
            estimate,
            len(self.seeds),
            missing=tuple(s for s in self.seeds if any((*cell, s) not in self._values for cell in cells)),
            collapsed=seeds_where("collapsed"),
            diverged=seeds_where("diverged"),
            stale=tuple(s for s in self.seeds if any((*cell, s) in self._stale for cell in cells)),
            scored=scored,
        )

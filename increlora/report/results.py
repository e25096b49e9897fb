"""A study together with its records: the rows of its tables, and what the seeds say about each entry.

A run that *collapsed* (constant predictions) counts with the score that it has: it is what the method did. A run that
*diverged* counts with what it scored before, if the shown checkpoint has a score, and else is missing from the mean.
Either is said; neither is dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.report import published, statistics
from increlora.report.frame import Records, read_all, to_frame
from increlora.report.statistics import Estimate
from increlora.study.cells import Cell, kind_of, make_cell, method_of
from increlora.study.config import Study


class Line(NamedTuple):
    """A row of a table: a variant at a budget."""

    variant: str
    budget: int | None
    label: str
    tier: int | None
    """0 for the largest budget of the row's family in this table, and so on; None without a budget."""
    published_method: str
    """Registry name if the row is the method that the papers tabulate, empty if it is a variant of it."""
    published_budget: str | None
    """The papers' label of the row's budget, None where there is no counterpart."""

    def on(self, task: str) -> Cell:
        """The row's cell on a task."""
        return Cell(task, self.variant, self.budget)


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
        """What a reader has to know about this number, in words."""
        said = {
            "no record": self.missing if self.status == "partial" else (),
            "collapsed to constant predictions, score counted": self.collapsed,
            "diverged, no score": tuple(seed for seed in self.diverged if seed not in self.scored),
            "diverged, score from before that counted": tuple(seed for seed in self.diverged if seed in self.scored),
            "made with other settings than the config's": self.stale,
        }
        return [
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {what}"
            for what, seeds in said.items()
            if seeds
        ]


class Results:
    """The records of one study.

    Args:
        study: the study.
        records_root: folder that holds ``<study>/<task>/<method>/<budget>/seed<seed>.json``.
    """

    def __init__(self, study: Study, records_root: str | Path):
        self.study = study
        self.records: Records = read_all(records_root, study)
        self.frame: pd.DataFrame = to_frame(self.records, study)
        self.scores = Scores(self.frame, study.seeds, study.report.checkpoint)

    @cached_property
    def not_comparable(self) -> str | None:
        """Why measured and published values must not be compared; None if they may be."""
        return published.why_not_comparable(self.study)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run: the frame's columns about runs, and AdamW's state without the head's two moments."""
        runs = self.frame.drop_duplicates(["task", "method", "budget", "seed"]).reset_index(drop=True)
        head = runs["head"].where(runs["trainable"] < runs["total"], 0)  # full fine-tuning counts its head as trained
        state = runs["optimizer_state"] - 2 * head
        return runs.assign(state_without_head=state.where(state >= 0))

    def lines(self, wanted: Iterable[tuple[str, int | None]], name_budget: bool = True) -> list[Line]:
        """The rows of a table, in the given order; budgets of methods without one are dropped.

        Args:
            wanted: variants with the budget that the artefact states.
            name_budget: whether labels say the budget.
        """
        some_task = next(iter(self.study.tasks))
        rows = list(dict.fromkeys(make_cell(self.study, some_task, *one)[1:] for one in wanted))
        budgets: dict[str, set[int]] = {}
        for variant, budget in rows:
            if budget is not None:
                budgets.setdefault(self._family(variant), set()).add(budget)
        lines = []
        for variant, budget in rows:
            kind, unit = kind_of(self.study, variant), method_of(self.study, variant).budget
            family = sorted(budgets.get(self._family(variant), ()), reverse=True)
            named = f" ({unit.symbol} = {budget})" if unit and name_budget else ""
            lines.append(
                Line(
                    variant,
                    budget,
                    self.study.title(variant) + named,
                    None if budget is None else family.index(budget),
                    kind if variant == kind else "",
                    published.budget_label(kind, budget, family),
                )
            )
        return lines

    def _family(self, variant: str) -> str:
        """Variants whose equal budgets mean the same: average ranks, or the widths of one kind of adapter."""
        unit = method_of(self.study, variant).budget
        return unit.name if unit and unit.is_common else kind_of(self.study, variant)

    def select(self, tasks: Sequence[str], variant: str, budget: int | None) -> pd.DataFrame:
        """The runs of a variant at a budget on some tasks."""
        runs = self.runs
        same_budget = runs["budget"].isna() if budget is None else (runs["budget"] == budget).fillna(False)
        return runs[runs["task"].isin(list(tasks)) & (runs["method"] == variant) & same_budget.astype(bool)]

    def mean_over_tasks(self, column: str, tasks: Sequence[str], line: Line) -> float | None:
        """Mean over tasks of the mean over seeds of a cost or parameter column; None without any value."""
        runs = self.select(tasks, line.variant, line.budget)
        means = runs.assign(value=pd.to_numeric(runs[column]).astype(float)).groupby("task")["value"].mean().dropna()
        return float(np.mean(means)) if len(means) else None


class Scores:
    """Scores of a study at one checkpoint rule.

    Args:
        frame: as `increlora.report.frame.load` returns it.
        seeds: the study's seeds.
        checkpoint: `best` or `last`.
    """

    def __init__(self, frame: pd.DataFrame, seeds: Sequence[int], checkpoint: str):
        self.seeds = tuple(seeds)
        self._values: dict[tuple[Cell, int], dict[str, float]] = {}
        self._status: dict[tuple[Cell, int], str] = {}
        self._stale: set[tuple[Cell, int]] = set()
        shown = frame[frame["checkpoint"] == checkpoint]
        names = ("task", "method", "budget", "seed", "metric", "value", "status", "stale")
        for task, method, budget, seed, metric, value, status, stale in zip(*(shown[n] for n in names), strict=True):
            run = Cell(task, method, None if pd.isna(budget) else int(budget)), int(seed)
            self._values.setdefault(run, {})[metric] = value
            self._status[run] = status
            if stale:
                self._stale.add(run)

    def by_seed(self, cell: Cell, column: str | None = None) -> dict[int, float]:
        """Value of each seed that has one, in percent: a column of the task, or its single number."""
        keys = ("score",) if column is None else TASKS[cell.task].columns[column]
        found = {seed: self._values[cell, seed] for seed in self.seeds if (cell, seed) in self._values}
        means = {seed: sum(values[key] for key in keys) / len(keys) for seed, values in found.items()}
        return {seed: value for seed, value in means.items() if not math.isnan(value)}

    def column(self, cell: Cell, column: str | None = None) -> Summary:
        """One entry of a table: a column of the task, or with None the task's single number."""
        values = self.by_seed(cell, column)
        return self._summary(statistics.estimate(values.values()), [cell], tuple(values))

    def over_tasks(self, cells: Sequence[Cell]) -> Summary:
        """The mean over tasks of each task's mean over seeds, where every task has a value.

        The sd is that of the per-seed means over tasks (seeds that every task has), `estimate.n` the smallest number of
        seeds of a task.
        """
        values = [self.by_seed(cell) for cell in cells]
        if not values or not all(values):
            return self._summary(Estimate(0), cells)
        common = [seed for seed in self.seeds if all(seed in found for found in values)]
        per_seed = statistics.estimate(float(np.mean([found[seed] for found in values])) for seed in common)
        low, high = statistics.mean_interval([found.values() for found in values]) or (None, None)
        mean = float(np.mean([np.mean(list(found.values())) for found in values]))
        return self._summary(Estimate(min(map(len, values)), mean, per_seed.sd, low, high), cells)

    def difference(self, one: Cell, other: Cell, column: str | None = None) -> Summary:
        """`one - other`, paired by seed."""
        first, second = self.by_seed(one, column), self.by_seed(other, column)
        common = [seed for seed in self.seeds if seed in first and seed in second]
        return self._summary(statistics.estimate(first[seed] - second[seed] for seed in common), [one, other])

    def _summary(self, estimate: Estimate, cells: Sequence[Cell], scored: tuple[int, ...] = ()) -> Summary:
        def seeds(condition: Callable[[tuple[Cell, int]], bool]) -> tuple[int, ...]:
            return tuple(seed for seed in self.seeds if any(condition((cell, seed)) for cell in cells))

        return Summary(
            estimate,
            len(self.seeds),
            missing=seeds(lambda run: run not in self._values),
            collapsed=seeds(lambda run: self._status.get(run) == "collapsed"),
            diverged=seeds(lambda run: self._status.get(run) == "diverged"),
            stale=seeds(lambda run: run in self._stale),
            scored=scored,
        )

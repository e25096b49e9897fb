"""A study together with its records: what every table and figure starts from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from increlora.report import published
from increlora.report.frame import Records, read_all, to_frame
from increlora.report.summary import Scores
from increlora.study.expand import cell, variant

if TYPE_CHECKING:
    from increlora.study.config import Study

ADAPTERS = ("hadapter", "padapter")


class Line(NamedTuple):
    """A row of a table: a method variant at a budget."""

    method: str
    budget: int | None
    label: str
    tier: int | None
    """0 for the largest budget of the row's family in this table, and so on; None without a budget."""
    published_method: str
    """Registry name if the row is the method that the papers tabulate, empty if it is a variant of it."""
    published_budget: str | None
    """The papers' label of the row's budget, None where there is no counterpart."""


class Results:
    """The records of one study.

    Args:
        study: the study.
        records_root: folder that holds `<study>/<task>/<method>/<budget>/seed<seed>.json`.
    """

    def __init__(self, study: Study, records_root: str | Path):
        self.study = study
        self.records: Records = read_all(records_root, study)
        self.frame: pd.DataFrame = to_frame(self.records, study)
        self.scores = Scores(self.frame, study.seeds, study.report.checkpoint)

    @cached_property
    def not_comparable(self) -> str | None:
        """Why differences to the published values are left out; None if they are shown."""
        return published.why_not_comparable(self.study)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run: the frame's columns about runs, and AdamW's state without the head's two moments."""
        runs = self.frame.drop_duplicates(["task", "method", "budget", "seed"]).reset_index(drop=True)
        head = runs["head"].where(runs["trainable"] < runs["total"], 0)  # whoever trains everything counts the head
        state = runs["optimizer_state"] - 2 * head
        return runs.assign(state_without_head=state.where(state >= 0))

    def kind(self, method: str) -> str:
        return variant(self.study, method).kind

    def budget_name(self, method: str, budget: int | None) -> str:
        """`r = 8`, `d = 32` for the bottleneck of an adapter, or nothing."""
        if budget is None:
            return ""
        return f"{'d' if self.kind(method) in ADAPTERS else 'r'} = {budget}"

    def lines(self, wanted: Iterable[tuple[str, int | None]], name_budget: bool = True) -> list[Line]:
        """The rows of a table, in the given order; budgets of methods without one are dropped.

        Args:
            wanted: method variants with the budget that the artefact states.
            name_budget: whether labels say the budget.
        """
        some_task = next(iter(self.study.tasks))
        rows = [(method, cell(self.study, some_task, method, budget).budget) for method, budget in wanted]
        budgets: dict[str, list[int]] = {}
        for method, budget in rows:
            if budget is not None:
                budgets.setdefault(self._family(method), []).append(budget)
        lines = []
        for method, budget in dict.fromkeys(rows):
            kind, family = self.kind(method), sorted(set(budgets.get(self._family(method), [])), reverse=True)
            name = self.budget_name(method, budget) if name_budget else ""
            lines.append(
                Line(
                    method,
                    budget,
                    self.study.title(method) + (f" ({name})" if name else ""),
                    None if budget is None else family.index(budget),
                    kind if method == kind else "",
                    published.budget_label(kind, budget, family),
                )
            )
        return lines

    def _family(self, method: str) -> str:
        """Methods whose budgets count the same thing: bottleneck widths of one adapter, or ranks."""
        kind = self.kind(method)
        return kind if kind in ADAPTERS else "rank"

    def select(self, tasks: Sequence[str], method: str, budget: int | None) -> pd.DataFrame:
        """The runs of a method variant at a budget on some tasks."""
        runs = self.runs
        same_budget = runs["budget"].isna() if budget is None else (runs["budget"] == budget).fillna(False)
        return runs[runs["task"].isin(list(tasks)) & (runs["method"] == method) & same_budget.astype(bool)]

    def mean_over_tasks(self, column: str, tasks: Sequence[str], method: str, budget: int | None) -> float | None:
        """Mean over tasks of the mean over seeds of a cost or parameter column; None without any value."""
        runs = self.select(tasks, method, budget)
        means = runs.assign(value=pd.to_numeric(runs[column]).astype(float)).groupby("task")["value"].mean().dropna()
        return float(np.mean(means)) if len(means) else None

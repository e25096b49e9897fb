"""The papers' values, as data with their source (`published.csv`).

Every row says whether its value was *read* in a paper, *inferred* from values that were, or is an *ordering* stated
without a number. What is not in the file is not known, and no table guesses it. All of it is DeBERTaV3-base on GLUE.
Comparisons of rows stand there too, in the order in which tables print them; those that only this package makes are
*unpublished*.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

from increlora.study.config import Study

BACKBONE = "microsoft/deberta-v3-base"
TITLE = "DeBERTaV3-base"

ALL = "all"
"""Task of the column "All", the mean over the eight tasks."""

RANK_LABELS = {8: "1.2M", 2: "0.3M"}
"""The papers' budget labels by average rank."""
NOMINAL = {
    **dict.fromkeys(("lora", "adalora", "increlora"), RANK_LABELS),
    "hadapter": {32: "1.2M", 16: "0.6M", 8: "0.3M"},
    "padapter": {64: "1.2M", 32: "0.6M", 16: "0.3M"},
}
"""The papers' budget labels by average rank or bottleneck width."""


@dataclass(frozen=True)
class Published:
    """One published value.

    Attributes:
        artefact: `table1`, `table2`, ... of the IncreLoRA paper.
        method: registry name, or a comparison such as `orth - raw`.
        budget_label: `1.2M`, `0.6M`, `0.3M`, or `none` for methods without a budget.
        params: #Params as printed, empty if not known.
        task, column: where in the table, as in `increlora.glue.tasks` (task `all` is the mean).
        value: as printed.
        kind: `read`, `inferred`, `ordering` or `unpublished`.
        source: which paper, where.
    """

    artefact: str
    method: str
    budget_label: str
    params: str
    task: str
    column: str
    value: str
    kind: str
    source: str

    @property
    def number(self) -> float | None:
        return float(self.value) if self.kind in ("read", "inferred") else None


@cache
def load() -> tuple[Published, ...]:
    """Every published value, in the order of the file."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(Published(**row) for row in csv.DictReader(text.splitlines()))


def find(artefact: str, method: str, label: str | None, task: str, column: str) -> list[Published]:
    """The published values of one cell: those that were read first. Empty if none is known."""
    key = (artefact, method, label, task, column)
    rows = [row for row in load() if (row.artefact, row.method, row.budget_label, row.task, row.column) == key]
    return sorted(rows, key=lambda row: row.kind != "read")


def comparisons(artefact: str) -> list[tuple[str, str]]:
    """The pairs of rows that a table compares, each as (minuend, subtrahend) of a difference."""
    pairs = [row.method.split(" - ") for row in load() if row.artefact == artefact and " - " in row.method]
    return list(dict.fromkeys((first, second) for first, second in pairs))


def printed_params(method: str, label: str | None) -> str:
    """#Params as the papers print it for a row of Table 1; empty if not known."""
    rows = [row for row in load() if row.artefact == "table1" and (row.method, row.budget_label) == (method, label)]
    return next((row.params for row in rows if row.params), "")


def budget_label(method: str, budget: int | None, budgets: list[int]) -> str | None:
    """Which of the papers' budgets a row stands for.

    With two budgets in a family of methods (as in Table 1) the larger stands for 1.2M and the smaller for 0.3M, on
    any backbone; otherwise only the papers' own numbers are recognised.

    Args:
        method: registry name.
        budget: the row's budget.
        budgets: every budget of the row's family in the table.

    Returns:
        The label, `none` for a method without a budget, None where there is no counterpart.
    """
    if budget is None:
        return "none"
    ordered = sorted(set(budgets), reverse=True)
    if len(ordered) == 2 and budget in ordered:
        return ("1.2M", "0.3M")[ordered.index(budget)]
    return NOMINAL.get(method, {}).get(budget)


def why_not_comparable(study: Study) -> str | None:
    """Why this study's numbers must not be subtracted from the published ones; None if they may be."""
    reasons = []
    if study.backbone.name != BACKBONE:
        reasons.append(f"the backbone is {study.backbone.name}")
    if study.data.source == "builtin":
        reasons.append("the data are the built-in corpus, not GLUE")
    elif study.data.train_rows or study.data.eval_rows:
        reasons.append("only a part of each data set is used")
    return " and ".join(reasons) or None

"""The papers' values, as data with their source (`published.csv`).

Every row says whether its value was *read* in a paper, *inferred* from values that were, or is an *ordering* stated
without a number; *recorded* ones come from runs of the authors' code. What is not in the file is not known, and no
table guesses it. All but the recorded ones are DeBERTaV3-base on GLUE.
The comparisons of rows are listed there too, in the order in which tables print them; those that only this package
makes are *unpublished*.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.methods.registry import METHODS
from increlora.report.render import NOTHING, Column, Entry, Panel, Table
from increlora.study.config import Study
from increlora.training.settings import Data

BACKBONE = "microsoft/deberta-v3-base"
TITLE = "DeBERTaV3-base"
GLUE = Data.model_fields["name"].default

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
        kind: `read`, `inferred`, `recorded`, `ordering` or `unpublished`.
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
        return float(self.value) if self.kind in ("read", "inferred", "recorded") else None


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


def budget_label(method: str, budget: int | None) -> str | None:
    """The papers' label of a method's budget: `none` for a method without one, None where there is no counterpart."""
    return "none" if budget is None else NOMINAL.get(method, {}).get(budget)


def why_not_comparable(study: Study) -> str | None:
    """Why this study's numbers must not be subtracted from the published ones; None if they may be."""
    reasons = []
    if study.backbone.name != BACKBONE:
        reasons.append(f"the backbone is {study.backbone.name}")
    if study.data.source == "builtin":
        reasons.append("the data are the built-in corpus, not GLUE")
    elif study.data.name != GLUE:
        reasons.append(f"the data are {study.data.name}")
    elif study.data.train_rows or study.data.eval_rows:
        reasons.append("only a part of each data set is used")
    elif study.data.evaluate_on == "held_out":
        reasons.append("scores are those of held-out training rows")
    return " and ".join(reasons) or None


def table() -> Table:
    """The values of the papers, which are not those of a study: another backbone, and GLUE itself."""
    eight = [task for task in TASKS.values() if task.in_all]
    places = [*((task.name, column) for task in eight for column in task.columns), (ALL, "All")]
    values = [row for row in load() if row.artefact == "table1" and row.method in METHODS]
    entries = []
    for method, label in dict.fromkeys((row.method, row.budget_label) for row in values):
        found = [next((row.value for row in find("table1", method, label, *place)), NOTHING) for place in places]
        size = printed_params(method, label) or (NOTHING if label == "none" else label)
        entries.append((Entry(METHODS[method].title), Entry(size), *map(Entry, found)))
    headings = [Column("Method", left=True), Column("#Params")]
    headings += [Column(column, TASKS[task].title if task in TASKS else "") for task, column in places]
    said = [row for row in load() if row not in values and row.kind != "unpublished"]
    stated = [
        tuple(map(Entry, (row.artefact.replace("e", "e ").capitalize(), _what(row), _task(row), row.value)))
        for row in said
    ]
    columns = [Column(name, left=True) for name in ("Where", "What", "Task", "Value")]
    panels = (
        Panel(f"{TITLE}, GLUE development sets", tuple(headings), tuple(entries)),
        Panel("Stated in the text, or recorded from the authors' code", tuple(columns), tuple(stated)),
    )
    sources = dict.fromkeys(row.source for row in (*values, *said))
    notes = (f"{NOTHING}: not known.", *_two_values(), f"Sources: {'; '.join(sources)}.")
    tidy = pd.DataFrame([vars(row) for row in (*values, *said)])
    return Table("published", "Published values", panels, notes, tidy, {})


def _what(row: Published) -> str:
    is_no_score = row.task not in TASKS or row.column not in TASKS[row.task].columns
    return f"{row.method}: {row.column}" if is_no_score else row.method


def _task(row: Published) -> str:
    return TASKS[row.task].title if row.task in TASKS else "–"


def _two_values() -> list[str]:
    said = []
    for place in dict.fromkeys((row.method, row.budget_label, row.task, row.column) for row in load()):
        found = find("table1", *place)
        title = f"{METHODS[place[0]].title}, {TASKS[place[2]].title}" if len(found) > 1 else ""
        said += [
            f"Two values, {title}: {found[0].value} ({found[0].source}) and {other.value} ({other.source})."
            for other in found[1:]
            if other.value != found[0].value
        ]
    return said

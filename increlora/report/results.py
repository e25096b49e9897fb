"""A study with its records: one tidy frame, the rows of its tables, the scores over seeds, and the notes below a table.

A missing record is a missing row; a malformed one is an error that names the file. Records of runs that the study does
not have (any more) are left out with a warning.

A run that *collapsed* (constant predictions) counts with the score that it has: it is what the method did. A run that
*diverged* counts with the last score before, if the shown checkpoint has one, and is missing from the mean otherwise.
The notes say so in both cases; neither is dropped silently.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.methods.method import Component
from increlora.methods.registry import METHODS, REFERENCE
from increlora.report import published, statistics
from increlora.report.render import Entry, Panel, fixed
from increlora.report.statistics import Estimate, over_tasks, paired
from increlora.study.cells import Cell, all_cells, kind_of, make_cell, method_of, ranks_from
from increlora.study.config import Study
from increlora.study.settings import run_settings
from increlora.study.verify import unexpected
from increlora.training.record import RULES, Allocation, Record, RecordError, Rule, state

log = logging.getLogger(__name__)

COLUMNS = (
    "study task method title kind budget seed status reason digest stale checkpoint step metric value total_rank "
    "trainable head total budget_parameters deviation peak_trainable optimizer_state peak_memory_mb step_ms "
    "train_seconds wall_seconds device threads commit"
).split()
DECIMALS = {"value": 4, "deviation": 4, "peak_memory_mb": 1, "step_ms": 2, "train_seconds": 1, "wall_seconds": 1}

RunKey = tuple[Cell, int]
"""A run of a study: its cell and seed."""

# ---- Records


def read_all(records_root: str | Path, study: Study) -> tuple[dict[RunKey, Record], set[RunKey]]:
    """Every record of the study, in the order of tasks, variants, budgets and seeds, and which of them are stale.

    Raises:
        RecordError: names the file and what is wrong with it.
    """
    if others := unexpected(study, records_root):
        log.warning("%d records are of no run of the study and left out, the first: %s", len(others), others[0])
    tasks, variants = list(TASKS), list(study.methods)
    cells = sorted(all_cells(study), key=lambda at: (tasks.index(at.task), variants.index(at.variant), at.budget or 0))
    records: dict[RunKey, Record] = {}
    stale: set[RunKey] = set()
    for run in product(cells, sorted(study.seeds)):
        settings = run_settings(study, *run)
        path = settings.record_path(records_root)
        status, detail, record = state(settings, path)
        if status == "unreadable":
            raise RecordError(f"{path}: {detail}; delete the file and run again to make it anew")
        if record is None:
            continue
        if (own := record.run.settings.record_path(records_root)) != path:
            raise RecordError(f"{path}: the record is that of {own}")
        records[run] = record
        if status != "ok":
            log.warning("%s: made with other settings than the config's", path)
            stale.add(run)
    return records, stale


# ---- Rows of a table


class Line(NamedTuple):
    """A row of a table: a variant at a budget."""

    variant: str
    budget: int | None
    label: str
    tier: int | None
    """0 for the largest budget of the row's family in this table, and so on; None without a budget."""
    published_method: str
    """Registry name if the row is the method that the papers tabulate, empty if it is a variant of it."""

    def on(self, task: str) -> Cell:
        """The row's cell on a task."""
        return Cell(task, self.variant, self.budget)


@dataclass(frozen=True)
class Summary:
    """Everything that a table says about one number.

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

    Attributes:
        records: by run.
        stale: runs whose record was made with other settings than those that the config gives them now.

    Raises:
        RecordError: a record is malformed.
    """

    def __init__(self, study: Study, records_root: str | Path):
        self.study = study
        self.records, self.stale = read_all(records_root, study)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run, checkpoint rule (`Record.shown`) and metric.

        `metric` is a metric key of the task, or `score`, the task's single number; `value` is in percent, NaN where the
        run has no such number. Columns about the run, its parameters and its cost repeat in each of its rows.
        """
        rows = [row for run, record in self.records.items() for row in self._rows(run, record)]
        whole = ["budget", "step", "total_rank", "trainable", "head", "total", "budget_parameters", "peak_trainable"]
        types = dict.fromkeys([*whole, "optimizer_state", "threads", "seed"], "Int64") | {"value": float}
        return pd.DataFrame(rows, columns=COLUMNS).astype(types)

    def _rows(self, run: RunKey, record: Record) -> list[dict[str, Any]]:
        """A record's rows of the frame: one for each checkpoint rule and metric."""
        task, score = TASKS[record.run.task], record.score
        about = {
            **dict(record.parameters),
            **dict(record.cost),
            **dict(record.run),
            "title": self.study.title(record.run.method),
            "stale": run in self.stale,
            "budget_parameters": record.parameters.budget,
            "commit": record.provenance.commit,
        }
        rows = []
        evaluations = {"test": score.best, "best": score.best, "last": score.last}
        for rule in RULES:
            metrics, entry = self.by_rule[rule].shown.get(run), evaluations.get(rule)
            values = {"score": task.score(metrics)} if metrics else {}
            values |= {name: 100 * value for name, value in (metrics or {}).items()}
            at = {"step": entry.step if entry else None, "total_rank": entry.total_rank if entry else None}
            rows += [
                {**about, **at, "checkpoint": rule, "metric": name, "value": values.get(name, math.nan)}
                for name in (*task.metrics, "score")
            ]
        return rows

    @cached_property
    def by_rule(self) -> dict[Rule, Scores]:
        """Scores by each rule of which checkpoint is shown."""
        return {rule: Scores(self, rule) for rule in RULES}

    @property
    def scores(self) -> Scores:
        """Scores by the study's own rule."""
        return self.by_rule[self.study.report.checkpoint]

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

    @cached_property
    def numbers_per_rank(self) -> float | None:
        """m of the paper's memory formulas: the numbers that one rank in every module adds, by the reference's runs."""
        runs = self.runs[(self.runs["kind"] == REFERENCE.kind) & self.runs["budget"].notna()]
        ratios = runs["trainable"].astype(float) / runs["budget"].astype(float)
        return None if ratios.dropna().empty else float(ratios.median())

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
                )
            )
        return lines

    def main_lines(self) -> tuple[tuple[str, ...], list[Line]]:
        """Tasks and rows of Table 1, grouped by budget; of all cells in a study without it."""
        if wanted := self.study.artefacts.chosen.table1:
            tasks = wanted.tasks
            lines = self.lines((row.method, budget) for row in wanted.rows for budget in (row.budgets or (None,)))
        else:
            tasks = tuple(dict.fromkeys(cell.task for cell in all_cells(self.study)))
            lines = self.lines((cell.variant, cell.budget) for cell in all_cells(self.study))
        return tasks, sorted(lines, key=lambda line: -1 if line.tier is None else line.tier)

    def roles(self, artefact: str) -> tuple[tuple[str, ...], dict[str, list[Line]]]:
        """Tasks of an artefact, and its rows by what they are in the paper's claims, lowest budget first.

        Rows of Table 1 and Figures 4 and 6 are called after their method; in Table 2 after the components that are on,
        in Table 3 after their ranks, in Figure 5 `with` and `without`.
        """
        wanted = getattr(self.study.artefacts.chosen, artefact)
        found: dict[str, list[Line]] = {}
        if wanted is None:
            return (), found
        match artefact:
            case "table1":
                tasks, lines = self.main_lines()
                for line in sorted(lines, key=lambda line: line.budget or 0):
                    found.setdefault(line.published_method, [line])
            case "table2" | "table3":
                tasks, role = wanted.tasks, self._ablated if artefact == "table2" else self._retrained
                for line in self.lines(((row, wanted.budget) for row in wanted.rows), name_budget=False):
                    found.setdefault(role(line), [line])
            case "figure4":
                tasks = wanted.tasks
                for line in self.lines((row, budget) for row in wanted.methods for budget in sorted(wanted.budgets)):
                    found.setdefault(line.published_method, []).append(line)
            case "figure5":
                tasks, pair = (wanted.task,), {"with": wanted.with_advance, "without": wanted.without_advance}
                found = {role: self.lines([(variant, wanted.budget)]) for role, variant in pair.items()}
            case _:
                tasks = (wanted.task,)
                for line in self.lines((row, wanted.budget) for row in wanted.methods):
                    found.setdefault(line.published_method, [line])
        return tasks, {role: lines for role, lines in found.items() if role}

    def components(self, line: Line) -> dict[Component, bool]:
        """The parts of the row's method that can be switched off, and whether they are on."""
        settings = run_settings(self.study, line.on(next(iter(self.study.tasks))), self.study.seeds[0])
        return {part: part.is_on(settings.options) for part in METHODS[settings.kind].components}

    def _ablated(self, line: Line) -> str:
        parts = self.components(line)
        on = [part.name for part, is_on in parts.items() if is_on]
        if not parts:
            return line.published_method
        return "raw" if not on else "full" if len(on) == len(parts) else "_".join(on)

    def _retrained(self, line: Line) -> str:
        source = ranks_from(self.study, line.variant)
        if source is None:
            return line.published_method
        return f"svd_{kind_of(self.study, source.method)}" if source.transform == "none" else source.transform

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

    def of(self, cell: Cell) -> dict[int, Record]:
        """The records of a cell by seed."""
        return {seed: self.records[cell, seed] for seed in self.study.seeds if (cell, seed) in self.records}

    def allocations(self, cell: Cell) -> dict[int, Allocation]:
        """The allocation block of each seed that has one."""
        return {seed: record.allocation for seed, record in self.of(cell).items() if record.allocation}


def averaged(tasks: Iterable[str]) -> list[str]:
    """Of some tasks those that count in "All"."""
    return [task for task in tasks if TASKS[task].in_all]


def reference_of(lines: Iterable[Line], line: Line) -> Line | None:
    """The reference at the row's budget; for a method without budgets, at the largest one."""
    found = (one for one in lines if one.published_method == REFERENCE.kind and one.tier == (line.tier or 0))
    return next(found, None)


def tiers(lines: Sequence[Line]) -> frozenset[int]:
    """The rows at which another budget begins."""
    return frozenset(i for i in range(1, len(lines)) if lines[i].tier != lines[i - 1].tier)


class Scores:
    """Scores of a study by one rule.

    Args:
        results: the study with its records.
        rule: which checkpoint is shown, see `Record.shown`.

    Attributes:
        shown: the metrics of every run that has some by this rule, as fractions.
    """

    def __init__(self, results: Results, rule: Rule):
        self.seeds, self._records, self._stale = results.study.seeds, results.records, results.stale
        found = {run: record.shown(rule) for run, record in self._records.items()}
        self.shown = {run: metrics for run, metrics in found.items() if metrics is not None}

    def by_seed(self, cell: Cell, column: str | None = None) -> dict[int, float]:
        """Value of each seed that has one, in percent: a column of the task, or its single number."""
        task = TASKS[cell.task]
        found = {seed: self.shown[cell, seed] for seed in self.seeds if (cell, seed) in self.shown}
        return {
            seed: task.score(metrics) if column is None else task.column_scores(metrics)[column]
            for seed, metrics in found.items()
        }

    def column(self, cell: Cell, column: str | None = None) -> Summary:
        """One entry of a table: a column of the task, or with None the task's single number."""
        values = self.by_seed(cell, column)
        return self._summary(statistics.estimate(values.values()), [cell], tuple(values))

    def over_tasks(self, cells: Sequence[Cell]) -> Summary:
        """The mean over tasks of each task's mean over seeds, where every task has a value."""
        return self._summary(over_tasks([self.by_seed(cell) for cell in cells]), cells)

    def difference(self, ones: Sequence[Cell], others: Sequence[Cell]) -> Summary:
        """`ones - others`, cells of the same tasks: paired by seed on each task, then the mean over tasks."""
        pairs = [paired(self.by_seed(one), self.by_seed(other)) for one, other in zip(ones, others, strict=True)]
        return self._summary(over_tasks(pairs), [*ones, *others])

    def _summary(self, estimate: Estimate, cells: Sequence[Cell], scored: tuple[int, ...] = ()) -> Summary:
        def seeds(condition: Callable[[RunKey], bool]) -> tuple[int, ...]:
            return tuple(seed for seed in self.seeds if any(condition((cell, seed)) for cell in cells))

        def ended(status: str) -> tuple[int, ...]:
            return seeds(lambda run: run in self._records and self._records[run].run.status == status)

        return Summary(
            estimate,
            len(self.seeds),
            missing=seeds(lambda run: run not in self._records),
            collapsed=ended("collapsed"),
            diverged=ended("diverged"),
            stale=seeds(lambda run: run in self._stale),
            scored=scored,
        )


# ---- Notes below a table

_DATA = {"builtin": "the built-in GLUE-shaped corpus (not GLUE)", "hub": "{name}", "local": "a local copy of {name}"}
CHECKPOINT = {
    "crossfit": "crossfit, chosen on one half of the {rows} and shown on the other, mean of both ways",
    "test": "test, chosen on the development split and shown on the test split",
    "best": "best, chosen and shown on the same {rows}{papers}, which flatters methods whose scores vary more between "
    "evaluations",
    "last": "last, the evaluation at the end of training",
}
"""What each rule for the shown checkpoint means, in words (see `rule_in_words`)."""
_MARKS = {
    "partial": ("†", "fewer seeds than planned"),
    "collapsed": ("‡", "a run collapsed to constant predictions (its score is counted)"),
    "diverged": ("§", "a run diverged (counted with its score from before, if it has one)"),
    "stale": ("¶", "a record was made with other settings than the config's"),
}


def rule_in_words(study: Study, rule: str) -> str:
    """What a rule for the shown checkpoint means, with the rows on which this study evaluates."""
    if study.data.evaluate_on == "held_out":
        return CHECKPOINT[rule].format(rows="held-out training rows", papers="")
    return CHECKPOINT[rule].format(rows="development rows", papers=" as in the papers")


def about(results: Results) -> str:
    """Study, backbone, data and seeds."""
    study = results.study
    data = _DATA[study.data.source].format(name=study.data.name)
    limits = [
        f"{rows} {what} examples"
        for rows, what in ((study.data.train_rows, "training"), (study.data.eval_rows, "evaluation"))
        if rows
    ]
    revision = f" at {study.backbone.revision}" if study.backbone.revision else ""
    made = ", pretrained by this study" if study.backbone.pretrain is not None else ""
    return (
        f"Study {study.study}. Backbone: {study.backbone.name}{revision}{made}. Data: {data}"
        + (f", at most {' and '.join(limits)}" if limits else "")
        + f". Seeds: {', '.join(map(str, study.seeds))}."
    )


def rule_note(study: Study) -> str:
    """Which checkpoint the study shows."""
    return f"Checkpoint: {rule_in_words(study, study.report.checkpoint)}."


def method_notes(results: Results, lines: Iterable[Line] = ()) -> list[str]:
    """What methods say about the options of the runs of some rows, or of all."""
    variants = {line.variant for line in lines}
    options: dict[str, list[Mapping[str, Any]]] = {}
    for record in results.records.values():
        if not variants or record.run.method in variants:
            options.setdefault(record.run.kind, []).append(record.run.settings.options)
    return [method.note(options[kind]) for kind, method in METHODS.items() if method.note and kind in options]


def hindsight(results: Results, lines: Iterable[Line], tasks: Sequence[str]) -> list[str]:
    """A line for each row with best checkpoints from before the end of growth, by their total rank."""
    if results.study.report.checkpoint == "last":
        return []
    said = []
    for line in lines:
        early = whole = 0
        for record in (record for task in tasks for record in results.of(line.on(task)).values()):
            best = record.score.best
            if record.allocation and best and best.total_rank is not None:
                whole += 1
                early += best.total_rank != record.allocation.total_rank
        if early:
            said.append(f"{line.label}: in {early} of {whole} runs the best checkpoint precedes the final ranks.")
    return said


def what_happened(entries: Iterable[tuple[str, str, Summary]]) -> list[str]:
    """Missing values, and remarks on single runs: one line per row of the table and event, over its tasks."""
    absent: dict[str, list[str]] = {}
    said: dict[tuple[str, str], list[str]] = {}
    tasks = set()
    for label, task, summary in entries:
        tasks.add(task)
        if summary.status == "missing":
            absent.setdefault(label, []).append(TASKS[task].title)
        for remark in summary.remarks():
            said.setdefault((label, remark), []).append(TASKS[task].title)
    return [
        f"Missing: {label}, {'all tasks' if len(names) == len(tasks) else ', '.join(names)}."
        for label, names in absent.items()
    ] + [f"{label}, {', '.join(titles)}: {remark}." for (label, remark), titles in said.items()]


def score(summary: Summary, bold: bool = False, sign: bool = False) -> Entry:
    """`mean ± sd` with the marks of what went wrong; a dash without any value."""
    happened = {"partial": summary.status == "partial"}
    happened |= {name: bool(getattr(summary, name)) for name in ("collapsed", "diverged", "stale")}
    marks = "".join(mark for name, (mark, _) in _MARKS.items() if happened[name])
    mean, sd = summary.estimate.mean, summary.estimate.sd
    return Entry(fixed(mean, 2, sign=sign), "" if sd is None else fixed(sd, 2), marks, bold)


def legend(panels: Iterable[Panel]) -> list[str]:
    """A line for every mark that occurs."""
    used = {mark for panel in panels for row in panel.rows for entry in row for mark in entry.marks}
    return [f"{mark} {meaning}." for mark, meaning in _MARKS.values() if mark in used]

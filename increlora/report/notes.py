"""What stands below a table: how it was made, what is missing, what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from increlora.glue.tasks import TASKS
from increlora.methods.registry import METHODS
from increlora.report.render import Entry, Grid, fixed
from increlora.report.results import Line, Results, Summary

_DATA = {"builtin": "the built-in GLUE-shaped corpus (not GLUE)", "hub": "{name}", "local": "a local copy of {name}"}
_CHECKPOINT = {
    "best": "best, the evaluation with the highest development score of each run. The same rule holds for every "
    "method, but it flatters those whose scores vary more between evaluations",
    "last": "last, the evaluation at the end of training",
}
_MARKS = {
    "partial": ("†", "fewer seeds than planned"),
    "collapsed": ("‡", "a run collapsed to constant predictions (its score is counted)"),
    "diverged": ("§", "a run diverged (counted with its score from before, if it has one)"),
    "stale": ("¶", "a record was made with other settings than the config's"),
}


def header(results: Results) -> list[str]:
    """Study, backbone, data, seeds, checkpoint rule, and what methods say about the options of their runs."""
    study = results.study
    data = _DATA[study.data.source].format(name=study.data.name)
    limits = [
        f"{rows} {what} examples"
        for rows, what in ((study.data.train_rows, "training"), (study.data.eval_rows, "evaluation"))
        if rows
    ]
    revision = f" at {study.backbone.revision}" if study.backbone.revision else ""
    made = ", pretrained by this study" if study.backbone.pretrain is not None else ""
    options: dict[str, list[Mapping[str, Any]]] = {}
    for record in results.records.by_run.values():
        options.setdefault(record.run.kind, []).append(record.run.settings.options)
    return [
        f"Study {study.study}. Backbone: {study.backbone.name}{revision}{made}. Data: {data}"
        + (f", at most {' and '.join(limits)}" if limits else "")
        + f". Seeds: {', '.join(map(str, study.seeds))}.",
        f"Checkpoint: {_CHECKPOINT[study.report.checkpoint]}.",
        *(method.note(options[kind]) for kind, method in METHODS.items() if method.note and kind in options),
    ]


def hindsight(results: Results, lines: Iterable[Line], tasks: Sequence[str]) -> list[str]:
    """Rows whose shown checkpoint has another total rank than the finished model (a best one found during growth)."""
    said = []
    for line in lines:
        early = whole = 0
        for record in filter(None, (results.records.get(line.on(t), s) for t in tasks for s in results.study.seeds)):
            shown = getattr(record.score, results.study.report.checkpoint)
            if record.allocation and shown and shown.total_rank is not None:
                whole += 1
                early += shown.total_rank != record.allocation.total_rank
        if early:
            said.append(f"{line.label}: in {early} of {whole} runs the checkpoint shown precedes the final ranks.")
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


def legend(grids: Iterable[Grid]) -> list[str]:
    """A line for every mark that occurs."""
    used = {mark for grid in grids for row in grid.rows for entry in row for mark in entry.marks}
    return [f"{mark} {meaning}." for mark, meaning in _MARKS.values() if mark in used]

"""What stands below a table: how it was made, what is missing, what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from increlora.glue.tasks import TASKS
from increlora.report.results import Line, Results
from increlora.report.summary import Summary

_DATA = {"builtin": "the built-in GLUE-shaped corpus (not GLUE)", "hub": "{name}", "local": "a local copy of {name}"}
_CHECKPOINT = {
    "best": "best, the evaluation with the highest development score of each run (the same rule for every method; it "
    "flatters all of them)",
    "last": "last, the evaluation at the end of training",
}
_REDUCTIONS = {
    "mean": "mean of |ΔW · grad| over its entries (paper)",
    "sum_sqrt": "sum of |ΔW · grad| over the root of the number of entries (authors' code)",
}
_PRESETS = {"paper": "mean", "code": "sum_sqrt"}


def header(results: Results) -> list[str]:
    """Study, backbone, data, checkpoint rule, importance score of IncreLoRA, seeds."""
    study = results.study
    data = _DATA[study.data.source].format(name=study.data.name)
    limits = [
        f"{getattr(study.data, part)} {what} examples"
        for part, what in (("train_rows", "training"), ("eval_rows", "evaluation"))
        if getattr(study.data, part)
    ]
    revision = f" at {study.backbone.revision}" if study.backbone.revision else ""
    origin = ", pretrained by this study" if study.backbone.pretrain is not None else ""
    lines = [
        f"Study {study.study}. Backbone: {study.backbone.name}{revision}{origin}. Data: {data}"
        + (f", at most {' and '.join(limits)}" if limits else "")
        + f". Seeds: {', '.join(map(str, study.seeds))}.",
        f"Checkpoint: {_CHECKPOINT[study.report.checkpoint]}.",
    ]
    return lines + _importance(results)


def _importance(results: Results) -> list[str]:
    """Which preset and importance score the records of IncreLoRA were made with."""
    presets, reductions = set(), set()
    for record in results.records.by_run.values():
        run = record["run"]
        if run["kind"] == "increlora":
            options = (run.get("settings") or {}).get("options", {})
            preset = options.get("preset", "paper")
            presets.add(preset)
            reductions.add(options.get("score_reduction") or _PRESETS.get(preset, "mean"))
    if not presets:
        return []
    scores = " and ".join(_REDUCTIONS.get(name, name) for name in sorted(reductions))
    return [f"IncreLoRA: preset {' and '.join(sorted(presets))}; importance score: {scores}."]


def hindsight(results: Results, lines: Iterable[Line], tasks: Sequence[str]) -> list[str]:
    """Rows whose shown checkpoint has another total rank than the finished model (a best one found during growth)."""
    said = []
    for line in lines:
        early = whole = 0
        for task in tasks:
            for seed in results.study.seeds:
                record = results.records.get(task, line.method, line.budget, seed)
                allocation = (record or {}).get("allocation")
                shown = ((record or {}).get("score", {}).get(results.study.report.checkpoint) or {}).get("total_rank")
                if allocation and shown is not None:
                    whole += 1
                    early += shown != allocation["total_rank"]
        if early:
            said.append(
                f"{line.label}: in {early} of {whole} runs the shown checkpoint is from before the final ranks."
            )
    return said


def missing(cells: Iterable[tuple[str, str, Summary]]) -> list[str]:
    """Cells without any value, one line per row of the table."""
    tasks, absent = _by_row((label, task, summary.status == "missing") for label, task, summary in cells)
    return [
        f"Missing: {label}, {'all tasks' if len(names) == len(tasks) else ', '.join(names)}."
        for label, names in absent.items()
    ]


def remarks(cells: Iterable[tuple[str, str, Summary]]) -> list[str]:
    """What happened to single runs, one line per row of the table and event."""
    said: dict[tuple[str, str], list[str]] = {}
    for label, task, summary in cells:
        for remark in summary.remarks():
            said.setdefault((label, remark), []).append(TASKS[task].title)
    return [f"{label}, {', '.join(titles)}: {remark}." for (label, remark), titles in said.items()]


def _by_row(cells: Iterable[tuple[str, str, bool]]) -> tuple[set[str], dict[str, list[str]]]:
    tasks: set[str] = set()
    chosen: dict[str, list[str]] = {}
    for label, task, is_so in cells:
        tasks.add(task)
        if is_so:
            chosen.setdefault(label, []).append(TASKS[task].title)
    return tasks, chosen

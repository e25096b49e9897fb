"""What training costs: trainable numbers, optimizer state, memory and time, beside the paper's formulas.

The formulas count, for m = numbers added by one rank in every adapted matrix, the parameters that train and AdamW's two
moments of each; they stand with their methods in `increlora.methods`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from increlora.methods.registry import REFERENCE
from increlora.report import statistics
from increlora.report.notes import header
from increlora.report.render import NOTHING, Column, Entry, Grid, Table, count, fixed
from increlora.report.results import Line, Results
from increlora.study.cells import all_cells, method_of

COLUMNS = (
    *("row", "method", "budget", "runs", "trainable", "peak_trainable", "optimizer_state", "state_without_head"),
    *("together", "paper_formula", "paper_numbers", "peak_memory_mb", "peak_memory_ratio", "step_ms", "step_ratio"),
    *("train_seconds", "devices"),
)
DECIMALS = {
    **dict.fromkeys(("trainable", "peak_trainable", "optimizer_state", "state_without_head", "together"), 1),
    **{"paper_numbers": 1, "peak_memory_mb": 1, "step_ms": 2, "train_seconds": 1},
    **dict.fromkeys(("peak_memory_ratio", "step_ratio"), 3),
}
_TO = f"to {REFERENCE.title}"
_HEADINGS = (
    *(("", "#Params"), ("Trainable", "at peak"), ("Optimizer", "state"), ("Both", "together"), ("Paper", "formula")),
    *(("Paper", "numbers"), ("Memory", "MiB"), ("Memory", _TO), ("Step", "ms"), ("Step", _TO)),
)


def cost_table(results: Results) -> Table:
    """Costs of every method and budget of Table 1, or of all runs in a study without it."""
    study = results.study
    if wanted := study.artefacts.chosen.table1:
        tasks = wanted.tasks
        lines = results.lines((row.method, budget) for row in wanted.rows for budget in (row.budgets or (None,)))
    else:
        tasks = tuple(dict.fromkeys(cell.task for cell in all_cells(study)))
        lines = results.lines((cell.variant, cell.budget) for cell in all_cells(study))
    lines = sorted(lines, key=lambda line: -1 if line.tier is None else line.tier)
    per_rank = _numbers_per_rank(results)
    rows = [_row(results, tasks, line, _reference(results, lines, line), per_rank) for line in lines]
    grid = Grid(
        f"Study {study.study}: cost of training, mean over tasks and seeds",
        (Column("Method", left=True), *(Column(title, group) for group, title in _HEADINGS)),
        tuple(map(_entries, rows)),
        frozenset(i for i in range(1, len(lines)) if lines[i].tier != lines[i - 1].tier),
    )
    notes = (*header(results), *_notes(rows, per_rank))
    tidy = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"budget": "Int64"})
    return Table(f"{study.study}_cost", "Cost of training", (grid,), notes, tidy, DECIMALS)


def _numbers_per_rank(results: Results) -> float | None:
    """m: the numbers that one rank in every module adds, from the reference's records."""
    runs = results.runs
    runs = runs[(runs["kind"] == REFERENCE.kind) & runs["budget"].notna() & runs["trainable"].notna()]
    if runs.empty:
        return None
    return float((runs["trainable"].astype(float) / runs["budget"].astype(float)).median())


def _reference(results: Results, lines: Sequence[Line], line: Line) -> Line | None:
    """The reference at the same budget; for a method without budgets, at the largest one."""
    found = [one for one in lines if one.published_method == REFERENCE.kind and one.tier == (line.tier or 0)]
    return found[0] if found else None


def _row(
    results: Results, tasks: Sequence[str], line: Line, reference: Line | None, per_rank: float | None
) -> dict[str, Any]:
    names = ("trainable", "peak_trainable", "optimizer_state", "state_without_head")
    means = {name: results.mean_over_tasks(name, tasks, line) for name in (*names, "peak_memory_mb", "step_ms")}
    peak, state = means["peak_trainable"], means["state_without_head"]
    runs = results.select(tasks, line.variant, line.budget)
    paper = method_of(results.study, line.variant).paper_memory
    numbers = paper.numbers(per_rank, line.budget) if paper and per_rank is not None and line.budget else None
    return {
        **{"row": line.label, "method": line.variant, "budget": line.budget, "runs": len(runs), **means},
        "together": None if peak is None or state is None else peak + state,
        "paper_formula": paper.formula if paper else None,
        "paper_note": paper.note if paper else "",
        "paper_numbers": numbers,
        "peak_memory_ratio": _ratio(results, "peak_memory_mb", tasks, line, reference),
        "step_ratio": _ratio(results, "step_ms", tasks, line, reference),
        "train_seconds": results.mean_over_tasks("train_seconds", tasks, line),
        "devices": "; ".join(_devices(runs)),
    }


def _ratio(results: Results, column: str, tasks: Sequence[str], line: Line, reference: Line | None) -> float | None:
    """Geometric mean over tasks of this row's ratio to the reference; a task of long texts counts as much as others."""
    if reference is None:
        return None
    pairs = [[results.mean_over_tasks(column, [task], one) for one in (line, reference)] for task in tasks]
    return statistics.geometric_mean(mine / its if mine is not None and its else None for mine, its in pairs)


def _devices(runs: pd.DataFrame) -> list[str]:
    found = {
        str(device) + ("" if pd.isna(threads) else f", threads: {threads}")
        for device, threads in zip(runs["device"], runs["threads"], strict=True)
        if device
    }
    return sorted(found)


def _entries(row: dict[str, Any]) -> tuple[Entry, ...]:
    counts = ("trainable", "peak_trainable", "state_without_head", "together")
    texts = [row["row"], *(count(row[name]) for name in counts)]
    texts += [row["paper_formula"] or NOTHING, count(row["paper_numbers"])]
    for name, places, ratio_of in (("peak_memory_mb", 0, "peak_memory_ratio"), ("step_ms", 1, "step_ratio")):
        ratio = row[ratio_of]
        texts += [fixed(row[name], places), NOTHING if ratio is None else f"{ratio:.2f}×"]
    return tuple(map(Entry, texts))


def _notes(rows: Sequence[dict[str, Any]], per_rank: float | None) -> list[str]:
    with_m = "" if per_rank is None else f", with m = {per_rank:,.0f} numbers added by one rank in every matrix"
    notes = [
        "Counts are numbers, not bytes, and leave out pooler and classifier and their two moments (a method that "
        "trains all weights counts them too). At peak: the most parameters that had a gradient at once. Optimizer "
        "state: the most numbers that it held. Memory: measured peak, frozen weights and activations included; on a "
        "GPU of the whole run, on a CPU of all tensors in one step a quarter of the way through training.",
        f"Paper: numbers kept for training with AdamW by the paper's formulas{with_m}.",
        *dict.fromkeys(row["paper_note"] for row in rows if row["paper_note"]),
        f"{_TO[:1].upper()}{_TO[1:]}: geometric mean over tasks of the ratio at the same budget (methods without a "
        "budget: at the largest one). Step: median time of an optimizer step of each run. What allocation adds to a "
        "step, such as scores, masks and the regulariser, takes a fixed time per matrix: a large part of a step of a "
        "small model on short texts, hardly any of one at the shape of a full-size encoder (benchmarks/results).",
    ]
    devices = sorted({device for row in rows for device in row["devices"].split("; ") if device})
    if devices:
        notes.append(f"Measured on: {'; '.join(devices)}.")
    if len(devices) > 1:
        notes.append("Runs were made on different devices: times and memory are not comparable between them.")
    absent = [row["row"] for row in rows if not row["runs"]]
    return notes + ([f"Missing: {', '.join(absent)}."] if absent else [])

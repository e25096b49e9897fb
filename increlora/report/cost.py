"""What training costs: trainable numbers, optimizer state, memory and time, beside the paper's formulas.

The paper counts, for m = numbers added by one rank in every adapted matrix and AdamW (a gradient and two moments each):
3 m r for LoRA, 6 m r for pruning from twice the target rank, 3 m (r + 1) for IncreLoRA with its reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from increlora.report import statistics
from increlora.report.layout import NOTHING, Cell, Column, Grid, Table, count, fixed
from increlora.report.notes import header
from increlora.report.results import Line, Results

FORMULAS: dict[str, tuple[str, Callable[[float, int], float]]] = {
    "lora": ("3mr", lambda m, r: 3 * m * r),
    "adalora": ("6mr", lambda m, r: 6 * m * r),
    "increlora": ("3m(r+1)", lambda m, r: 3 * m * (r + 1)),
}
"""Numbers kept for training by kind, as functions of m and the average rank."""

COLUMNS = (
    *(
        "row",
        "method",
        "budget",
        "runs",
        "trainable",
        "peak_trainable",
        "optimizer_state",
        "state_without_head",
        "together",
    ),
    *("paper_formula", "paper_numbers", "peak_memory_mb", "peak_memory_to_lora", "step_ms", "step_to_lora"),
    *("train_seconds", "devices"),
)
_RATIOS = dict.fromkeys(("peak_memory_to_lora", "step_to_lora"), 3)
DECIMALS = {
    **dict.fromkeys(("trainable", "peak_trainable", "optimizer_state", "state_without_head", "together"), 1),
    **{"paper_numbers": 1, "peak_memory_mb": 1, "step_ms": 2, "train_seconds": 1, **_RATIOS},
}


def cost_table(results: Results) -> Table:
    """Costs of every method and budget of Table 1, or of all runs in a study without it."""
    study = results.study
    if wanted := study.artefacts.table1:
        tasks = wanted.tasks
        lines = results.lines((row.method, budget) for row in wanted.rows for budget in (row.budgets or (None,)))
    else:
        tasks = tuple(dict.fromkeys(cell.task for cell in study.cells()))
        lines = results.lines((cell.method, cell.budget) for cell in study.cells())
    lines = sorted(lines, key=lambda line: -1 if line.tier is None else line.tier)
    per_rank = _numbers_per_rank(results)
    rows = [_row(results, tasks, line, _lora_beside(lines, line), per_rank) for line in lines]
    grid = Grid(
        f"Study {study.study}: cost of training, mean over tasks and seeds",
        (
            Column("Method", left=True),
            Column("#Params"),
            Column("at peak", "Trainable"),
            Column("state", "Optimizer"),
            Column("together", "Both"),
            Column("formula", "Paper"),
            Column("numbers", "Paper"),
            Column("MiB", "Memory"),
            Column("to LoRA", "Memory"),
            Column("ms", "Step"),
            Column("to LoRA", "Step"),
        ),
        tuple(_cells(row) for row in rows),
        frozenset(i for i in range(1, len(lines)) if lines[i].tier != lines[i - 1].tier),
    )
    notes = [*header(results), *_notes(results, rows, per_rank)]
    tidy = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"budget": "Int64"})
    return Table(f"{study.study}_cost", "Cost of training", (grid,), tuple(notes), tidy, DECIMALS)


def _numbers_per_rank(results: Results) -> float | None:
    """m: the numbers that one rank in every module adds, from LoRA's records."""
    runs = results.runs
    lora = runs[(runs["kind"] == "lora") & runs["budget"].notna() & runs["trainable"].notna()]
    if lora.empty:
        return None
    return float((lora["trainable"].astype(float) / lora["budget"].astype(float)).median())


def _lora_beside(lines: Sequence[Line], line: Line) -> Line | None:
    """LoRA at the same budget; for a method without budgets, LoRA at the largest one."""
    return next((other for other in lines if other.published_method == "lora" and other.tier == (line.tier or 0)), None)


def _row(
    results: Results, tasks: Sequence[str], line: Line, lora: Line | None, per_rank: float | None
) -> dict[str, Any]:
    def mean(column: str) -> float | None:
        return results.mean_over_tasks(column, tasks, line.method, line.budget)

    runs = results.select(tasks, line.method, line.budget)
    peak, state, without_head = mean("peak_trainable"), mean("optimizer_state"), mean("state_without_head")
    formula, numbers = FORMULAS.get(results.kind(line.method), (None, None))
    paper = numbers(per_rank, line.budget) if numbers and per_rank is not None and line.budget is not None else None
    return {
        **{"row": line.label, "method": line.method, "budget": line.budget, "runs": len(runs)},
        **{"trainable": mean("trainable"), "peak_trainable": peak, "optimizer_state": state},
        "state_without_head": without_head,
        "together": None if peak is None or without_head is None else peak + without_head,
        **{"paper_formula": formula, "paper_numbers": paper, "peak_memory_mb": mean("peak_memory_mb")},
        "peak_memory_to_lora": _ratio(results, "peak_memory_mb", tasks, line, lora),
        "step_ms": mean("step_ms"),
        "step_to_lora": _ratio(results, "step_ms", tasks, line, lora),
        "train_seconds": mean("train_seconds"),
        "devices": "; ".join(_devices(runs)),
    }


def _ratio(results: Results, column: str, tasks: Sequence[str], line: Line, lora: Line | None) -> float | None:
    """Geometric mean over tasks of this row's value over LoRA's: tasks differ in length, ratios do not mind."""
    if lora is None:
        return None
    ratios = []
    for task in tasks:
        mine, its = (results.mean_over_tasks(column, [task], one.method, one.budget) for one in (line, lora))
        ratios.append(mine / its if mine is not None and its else None)
    return statistics.geometric_mean(ratios)


def _devices(runs: pd.DataFrame) -> list[str]:
    found = {
        str(device) + ("" if pd.isna(threads) else f", threads: {threads}")
        for device, threads in zip(runs["device"], runs["threads"], strict=True)
        if device
    }
    return sorted(found)


def _cells(row: dict[str, Any]) -> tuple[Cell, ...]:
    def ratio(value: float | None) -> Cell:
        return Cell(NOTHING if value is None else f"{value:.2f}×")

    return (
        Cell(row["row"]),
        *(Cell(count(row[name])) for name in ("trainable", "peak_trainable", "state_without_head", "together")),
        Cell(row["paper_formula"] or NOTHING),
        Cell(count(row["paper_numbers"])),
        Cell(fixed(row["peak_memory_mb"], 0)),
        ratio(row["peak_memory_to_lora"]),
        Cell(fixed(row["step_ms"], 1)),
        ratio(row["step_to_lora"]),
    )


def _notes(results: Results, rows: Sequence[dict[str, Any]], per_rank: float | None) -> list[str]:
    notes = [
        "Counts are numbers, not bytes, and leave out pooler and classifier and their two moments (Full FT counts "
        "everything). At peak: the most parameters that had a gradient at once. Optimizer state: the most numbers that "
        "it held. Memory: measured peak, frozen weights and activations included; on a GPU of the whole run, on a "
        "CPU of all tensors in one step a quarter of the way through training.",
        "Paper: numbers kept for training with AdamW by the paper's formulas"
        + (
            ""
            if per_rank is None
            else f", with m = {per_rank:,.0f} numbers added by one rank in every matrix of this backbone"
        )
        + ". 6mr is pruning from twice the target rank; AdaLoRA as configured here may start elsewhere (1.5 times by "
        "default).",
        "To LoRA: geometric mean over tasks of the ratio to LoRA at the same budget (methods without a budget: at the "
        "largest one). Step: median time of an optimizer step of each run.",
    ]
    devices = sorted({device for row in rows for device in row["devices"].split("; ") if device})
    if devices:
        notes.append(f"Measured on: {'; '.join(devices)}.")
    if len(devices) > 1:
        notes.append("Runs were made on different devices: times and memory are not comparable between them.")
    absent = [row["row"] for row in rows if not row["runs"]]
    return notes + ([f"Missing: {', '.join(absent)}."] if absent else [])

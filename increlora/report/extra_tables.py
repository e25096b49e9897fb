"""Tables that the paper lacks: checkpoint rules, headroom of the tasks, selection of settings, cost of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.methods.registry import REFERENCE
from increlora.report import statistics
from increlora.report.published import ALL
from increlora.report.render import NOTHING, Column, Entry, Panel, Table, count, fixed, times
from increlora.report.results import (
    Line,
    Results,
    about,
    averaged,
    method_notes,
    reference_of,
    rule_in_words,
    rule_note,
    score,
    tiers,
)
from increlora.report.statistics import over_tasks, paired
from increlora.study.cells import method_of
from increlora.study.grid import best, trials
from increlora.training.record import RULES

# ---- Checkpoints


def checkpoints(results: Results) -> Table:
    """Every row of Table 1 under each rule of which checkpoint is shown, and what choosing and showing on the same rows
    is worth: best minus each other rule, paired by seed.
    """
    tasks, lines = results.main_lines()
    in_all = averaged(tasks) or list(tasks)
    places = {task: [task] for task in tasks} | {ALL: in_all}
    rows: list[dict[str, Any]] = []
    for line in lines:
        for task, members in places.items():
            cells = [line.on(member) for member in members]
            values = {rule: [results.by_rule[rule].by_seed(cell) for cell in cells] for rule in RULES}
            for rule in RULES:
                shown = over_tasks(values[rule])
                more = over_tasks([paired(*both) for both in zip(values["best"], values[rule], strict=True)])
                low, high = shown.interval() or (None, None)
                more_low, more_high = (rule != "best" and more.interval()) or (None, None)
                rows.append(
                    {"row": line.label, "method": line.variant, "budget": line.budget, "task": task}
                    | {"checkpoint": rule, "mean": shown.mean, "sd": shown.sd, "ci_low": low, "ci_high": high}
                    | {"best_minus": None if rule == "best" else more.mean, "best_minus_low": more_low}
                    | {"best_minus_high": more_high, "seeds": shown.n}
                )
    tidy = pd.DataFrame(rows).astype({"budget": "Int64"})
    shown_rules = [rule for rule in RULES if tidy.loc[tidy["checkpoint"] == rule, "mean"].notna().any()]
    others = [rule for rule in shown_rules if rule != "best"]
    entries, worths = [], []
    for line in lines:
        of_all = {row["checkpoint"]: row for row in rows if (row["row"], row["task"]) == (line.label, ALL)}
        means = [Entry(fixed(of_all[rule]["mean"], 2), _spread(of_all[rule]["sd"])) for rule in shown_rules]
        worth = [of_all[rule]["best_minus"] for rule in others]
        worths.append((line.label, worth))
        entries.append((Entry(line.label), *means, *(Entry(fixed(value, 2, sign=True)) for value in worth)))
    headings = [Column("Method", left=True), *(Column(rule, "All") for rule in shown_rules)]
    headings += [Column(rule, "best minus") for rule in others]
    caption = f"Study {results.study.study}: mean over {_names(in_all)}, ± sd over seeds"
    panel = Panel(caption, tuple(headings), tuple(entries), tiers(lines))
    notes = [about(results), *(f"{rule_in_words(results.study, rule)}." for rule in shown_rules)]
    for place, rule in enumerate(others):
        if known := [(worth[place], label) for label, worth in worths if worth[place] is not None]:
            (low, least), (high, most) = min(known), max(known)
            notes.append(
                f"Best shows more than {rule} by {fixed(low, 2, sign=True)} ({least}) to {fixed(high, 2, sign=True)} "
                f"({most}): what that choice is worth differs by method."
            )
    decimals = dict.fromkeys(tidy.columns[5:-1], 4)
    return Table(f"{results.study.study}_checkpoints", "Checkpoint rules", (panel,), tuple(notes), tidy, decimals)


def _spread(sd: float | None) -> str:
    return "" if sd is None else fixed(sd, 2)


def _names(tasks: Iterable[str]) -> str:
    return ", ".join(TASKS[task].title for task in tasks)


# ---- Headroom

POINTS, ERRORS = 10.0, 5.0
"""What full fine-tuning has to gain over a trained head: points, and standard errors of the paired difference."""
BUDGET_ERRORS = 3.0
"""What the largest budget has to gain over the smallest, in standard errors."""


def headroom(results: Results) -> Table:
    """Whether each task leaves room: full fine-tuning minus a trained head, the largest budget minus the smallest."""
    wanted = results.study.artefacts.chosen.headroom
    assert wanted is not None
    (full, head) = results.lines([(wanted.full, None), (wanted.head, None)])
    gains = [_gains(results, wanted.tasks, full, head, POINTS, ERRORS)]
    needed = [f"{full.label} minus {head.label}: {POINTS:.0f} points or more and at least {ERRORS:.0f} standard errors"]
    if over := wanted.over_budgets:
        smallest, largest = results.lines((over.method, budget) for budget in over.budgets)
        gains.append(_gains(results, over.tasks, largest, smallest, 0.0, BUDGET_ERRORS))
        needed.append(f"{largest.label} minus {smallest.label}: at least {BUDGET_ERRORS:.0f} standard errors")
    rows = [row for _, found in gains for row in found]
    notes = [
        about(results),
        rule_note(results.study),
        f"Room (✓): {'; '.join(needed)}. Standard errors are those of the difference paired by seed.",
        *[f"No room: {row['row']}, {TASKS[row['task']].title}." for row in rows if row["room"] is False],
    ]
    panels = tuple(panel for panel, _ in gains)
    decimals = {**dict.fromkeys(("high", "low", "difference", "error"), 4), "errors": 2}
    return Table(f"{results.study.study}_headroom", "Headroom", panels, tuple(notes), pd.DataFrame(rows), decimals)


def _gains(
    results: Results, tasks: Sequence[str], high: Line, low: Line, points: float, errors: float
) -> tuple[Panel, list[dict[str, Any]]]:
    entries, rows = [], []
    for task in tasks:
        one, other = (results.scores.column(line.on(task)) for line in (high, low))
        gain = results.scores.difference([high.on(task)], [low.on(task)])
        difference, error = gain.estimate.mean, gain.estimate.error
        ratio = difference / error if difference is not None and error else None
        room = None if ratio is None or difference is None else difference >= points and ratio >= errors
        rows.append(
            {"row": f"{high.label} − {low.label}", "task": task, "high": one.estimate.mean, "low": other.estimate.mean}
            | {"difference": difference, "error": error, "errors": ratio, "seeds": gain.estimate.n, "room": room}
        )
        texts = (fixed(difference, 2, sign=True), fixed(error, 2), fixed(ratio, 1), "✓" if room else "")
        entries.append((Entry(TASKS[task].title), score(one), score(other), *map(Entry, texts)))
    columns = [Column("Task", left=True), Column(high.label), Column(low.label)]
    columns += [Column(title, "gain") for title in ("points", "standard error", "in errors")] + [Column("Room")]
    return Panel(f"{high.label} minus {low.label}, paired by seed", tuple(columns), tuple(entries)), rows


# ---- Selection of settings


def selection(results: Results) -> Table:
    """The trials of a grid, which of them each method takes, and which are best at the edge of what was tried."""
    study, grid, shown_in = results.study, results.study.grid, results.study.artefacts.chosen.table1
    assert grid is not None
    assert shown_in is not None
    rule, budgets = grid.choose, {row.method: row.budgets or (None,) for row in shown_in.rows}
    tasks = averaged(shown_in.tasks) if rule.metric == "all" else [rule.metric]
    entries: list[tuple[Entry, ...]] = []
    rows, rules, edges, efforts = [], [], [], []
    for origin in grid.methods:
        tried = [trial for trial in trials(study, origin) if trial.name in budgets]
        scores: dict[str, dict[int | None, float]] = {trial.name: {} for trial in tried}
        for trial in tried:
            for line in results.lines((trial.name, budget) for budget in budgets[trial.name]):
                if (mean := results.scores.over_tasks([line.on(task) for task in tasks]).estimate.mean) is not None:
                    scores[trial.name][line.budget] = mean
        taken, highest = best(scores, rule.over), best(scores, "each_budget")
        rules.append(len(entries))
        for trial in tried:
            own = scores[trial.name]
            takes = [budget for budget, name in taken.items() if name == trial.name]
            edge = trial.at_edge if takes or trial.name in highest.values() else ()
            edges += [f"{study.title(trial.name)} ({', '.join(edge)})"] if edge else []
            shown = " / ".join(
                f"{fixed(own.get(budget), 2)}{'*' if highest.get(budget) == trial.name else ''}"
                for budget in budgets[trial.name]
            )
            mean = sum(own.values()) / len(own) if own else None
            chosen = "✓" if takes and rule.over == "budgets" else ", ".join(str(budget or "✓") for budget in takes)
            at = " / ".join("–" if budget is None else str(budget) for budget in budgets[trial.name])
            texts = (at, shown, fixed(mean, 2), chosen, ", ".join(edge))
            entries.append((Entry(study.title(trial.name), bold=bool(takes)), *map(Entry, texts)))
            rows.append(
                {"method": origin, "trial": trial.name, **trial.values, "mean": mean}
                | {"chosen": chosen or None, "at_edge": ", ".join(edge) or None}
            )
        names = [trial.name for trial in tried]
        runs = results.runs[results.runs["method"].isin(names)]
        hours = runs.groupby("device")["wall_seconds"].sum() / 3600
        took = " and ".join(f"{spent:.2f} hours ({device})" for device, spent in hours.items())
        efforts.append(f"{study.title(origin)} {len(tried)} trials, {len(runs)} runs, {took}")
    columns = ("Trial", "Budgets", "Score at each", "Mean", "Chosen", "At the edge")
    what = "All" if rule.metric == "all" else TASKS[rule.metric].title
    how = {
        "budgets": f"the trial with the highest {what}, mean over the method's budgets",
        "each_budget": f"at each budget the trial with the highest {what}",
    }[rule.over]
    notes = [
        about(results),
        rule_note(study),
        *method_notes(results),
        f"Chosen: {how}; the same rule for every method. *: highest of a method at that budget.",
        f"Effort: {'; '.join(efforts)}.",
        *([f"Highest at the edge of the grid, so a better one may lie beyond: {'; '.join(edges)}."] if edges else []),
    ]
    sides = tuple(Column(title, left=not number) for number, title in enumerate(columns))
    panel = Panel(f"Study {study.study}: trials", sides, tuple(entries), frozenset(rules) - {0})
    title = "Selection of training settings"
    return Table(f"{study.study}_selection", title, (panel,), tuple(notes), pd.DataFrame(rows), {"mean": 4})


# ---- Cost

COST_COLUMNS = (
    "row method budget runs trainable peak_trainable optimizer_state state_without_head together paper_formula "
    "paper_numbers formula_ratio peak_memory_mb peak_memory_ratio step_ms step_ratio step_more_ms train_seconds devices"
).split()
_COUNTS = "trainable peak_trainable optimizer_state state_without_head together paper_numbers".split()
COST_DECIMALS = {
    **dict.fromkeys([*_COUNTS, "peak_memory_mb", "train_seconds"], 1),
    **dict.fromkeys(["step_ms", "step_more_ms"], 2),
    **dict.fromkeys(["formula_ratio", "peak_memory_ratio", "step_ratio"], 3),
}
_TO = f"to {REFERENCE.title}"
_HEADINGS = (
    ("", "#Params"),
    ("Trainable", "at peak"),
    ("Optimizer", "state"),
    ("Both", "together"),
    ("Paper", "formula"),
    ("Paper", "numbers"),
    ("Both", "to formula"),
    ("Memory", "MiB"),
    ("Memory", _TO),
    ("Step", "ms"),
    ("Step", _TO),
    ("Step", "ms more"),
)


def cost(results: Results) -> Table:
    """Trainable numbers, optimizer state, memory and time of the rows of Table 1, beside the paper's formulas.

    The formulas count, for m = numbers added by one rank in every adapted matrix, the parameters that train and AdamW's
    two moments of each; they stand with their methods in `increlora.methods`.
    """
    study = results.study
    tasks, lines = results.main_lines()
    rows = [_cost_row(results, tasks, line, reference_of(lines, line)) for line in lines]
    panel = Panel(
        f"Study {study.study}: cost of training, mean over tasks and seeds",
        (Column("Method", left=True), *(Column(title, group) for group, title in _HEADINGS)),
        tuple(map(_cost_entries, rows)),
        tiers(lines),
    )
    notes = (about(results), rule_note(study), *method_notes(results, lines), *_cost_notes(results, rows))
    tidy = pd.DataFrame(rows, columns=COST_COLUMNS).astype({"budget": "Int64"})
    return Table(f"{study.study}_cost", "Cost of training", (panel,), notes, tidy, COST_DECIMALS)


def _cost_row(results: Results, tasks: Sequence[str], line: Line, reference: Line | None) -> dict[str, Any]:
    names = ("trainable", "peak_trainable", "optimizer_state", "state_without_head")
    means = {name: results.mean_over_tasks(name, tasks, line) for name in names}
    peak, state = means["peak_trainable"], means["state_without_head"]
    together = None if peak is None or state is None else peak + state
    runs, per_rank = results.select(tasks, line.variant, line.budget), results.numbers_per_rank
    paper = method_of(results.study, line.variant).paper_memory
    numbers = paper.numbers(per_rank, line.budget) if paper and per_rank is not None and line.budget else None
    devices = _devices(runs)
    alone = tasks if len(devices) == 1 else ()
    measured = {name: results.mean_over_tasks(name, alone, line) for name in ("peak_memory_mb", "step_ms")}
    step = [mine - its for mine, its in _beside_reference(results, "step_ms", tasks, line, reference)]
    return {
        "row": line.label,
        "method": line.variant,
        "budget": line.budget,
        "runs": len(runs),
        **means,
        **measured,
        "together": together,
        "paper_formula": paper.formula if paper else None,
        "paper_numbers": numbers,
        "formula_ratio": together / numbers if together is not None and numbers else None,
        "paper_note": paper.note if paper else "",
        "peak_memory_ratio": _cost_ratio(results, "peak_memory_mb", tasks, line, reference),
        "step_ratio": _cost_ratio(results, "step_ms", tasks, line, reference),
        "step_more_ms": sum(step) / len(step) if step else None,
        "train_seconds": results.mean_over_tasks("train_seconds", alone, line),
        "devices": "; ".join(devices),
    }


def _cost_ratio(
    results: Results, column: str, tasks: Sequence[str], line: Line, reference: Line | None
) -> float | None:
    """Geometric mean over tasks of this row's ratio to the reference; a task of long texts counts as much as others."""
    pairs = _beside_reference(results, column, tasks, line, reference)
    return statistics.geometric_mean(mine / its if its else None for mine, its in pairs)


def _beside_reference(
    results: Results, column: str, tasks: Sequence[str], line: Line, reference: Line | None
) -> list[tuple[float, float]]:
    """This row's mean and the reference's, of each task on which one and the same device measured both."""
    pairs: list[tuple[float, float]] = []
    if reference is None:
        return pairs
    for task in tasks:
        runs = [results.select([task], one.variant, one.budget) for one in (line, reference)]
        if len(_devices(pd.concat(runs))) == 1:
            mine, its = (results.mean_over_tasks(column, [task], one) for one in (line, reference))
            pairs += [(mine, its)] if mine is not None and its is not None else []
    return pairs


def _devices(runs: pd.DataFrame) -> list[str]:
    found = {
        str(device) + ("" if pd.isna(threads) else f", threads: {threads}")
        for device, threads in zip(runs["device"], runs["threads"], strict=True)
        if device
    }
    return sorted(found)


def _cost_entries(row: dict[str, Any]) -> tuple[Entry, ...]:
    counts = ("trainable", "peak_trainable", "state_without_head", "together")
    texts = [row["row"], *(count(row[name]) for name in counts)]
    texts += [row["paper_formula"] or NOTHING, count(row["paper_numbers"]), times(row["formula_ratio"])]
    texts += [fixed(row["peak_memory_mb"], 0), times(row["peak_memory_ratio"])]
    texts += [fixed(row["step_ms"], 1), times(row["step_ratio"]), fixed(row["step_more_ms"], 1, sign=True)]
    return tuple(map(Entry, texts))


def _cost_notes(results: Results, rows: Sequence[dict[str, Any]]) -> list[str]:
    per_rank = results.numbers_per_rank
    with_m = "" if per_rank is None else f", with m = {per_rank:,.0f} numbers added by one rank in every matrix"
    allocations = (record.allocation for record in results.records.values())
    matrices = next((len(one.modules) for one in allocations if one and one.modules), None)
    each = f" {matrices}" if matrices else ""
    notes = [
        "Counts are numbers, not bytes, and leave out pooler and classifier and their two moments (a method that "
        "trains all weights counts them too). At peak: the most parameters that had a gradient at once. Optimizer "
        "state: the most numbers that it held. Memory: measured peak, frozen weights and activations included; on a "
        "GPU of the whole run, on a CPU of all tensors in one step a quarter of the way through training.",
        f"Paper: numbers kept for training with AdamW by the paper's formulas{with_m}. They take every rank for an "
        "average one: a method that gives its ranks to small matrices needs less.",
        *dict.fromkeys(row["paper_note"] for row in rows if row["paper_note"]),
        f"{_TO[:1].upper()}{_TO[1:]}: geometric mean over tasks of the ratio at the same budget (methods without a "
        "budget: at the largest one). Step: median time of an optimizer step of each run.",
        f"Ms more: than {REFERENCE.title}'s step. Scores, masks and the regulariser are a few small operations for "
        f"each of the{each} matrices, and take about the same time for small matrices as for large ones: a large ratio "
        "beside a step of some milliseconds (a small model, short texts), a small one beside a step of hundreds. "
        "Scores that need the gradient of a whole update add a matrix product to the steps that are scored. Ratios at "
        "the width of a full-size encoder are in docs/reference/costs.md.",
    ]
    devices = sorted({device for row in rows for device in row["devices"].split("; ") if device})
    if devices:
        notes.append(f"Measured on: {'; '.join(devices)}.")
    if len(devices) > 1:
        notes.append(
            "Times and memory of different devices are not compared: a row of more than one has none, and "
            f"{_TO} is over the tasks where one device measured both."
        )
    absent = [row["row"] for row in rows if not row["runs"]]
    return notes + ([f"Missing: {', '.join(absent)}."] if absent else [])

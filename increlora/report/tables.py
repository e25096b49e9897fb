"""Tables 1-3 of the paper and the table of costs, from records alone.

`build` writes each as `<study>_<table>.csv` (tidy: one row per cell), `.md` and `.tex`. The cells of Table 1 are
mean ± sd over seeds; "All" is the mean of the tasks' single numbers, MNLI = mean(m, mm) and QQP = mean(Acc, F1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.methods.registry import METHODS
from increlora.report import published
from increlora.report.cost import cost_table
from increlora.report.frame import write_csv
from increlora.report.layout import NOTHING, Cell, Column, Grid, Table, count, fixed, score_cell, used_marks
from increlora.report.notes import header, hindsight, missing, remarks
from increlora.report.render import latex, markdown
from increlora.report.results import Line, Results
from increlora.report.summary import Summary

if TYPE_CHECKING:
    from increlora.study.config import Comparison, Study, Table1

COLUMNS = (
    *("row", "method", "budget", "params_mean", "task", "column", "mean", "sd", "ci_low", "ci_high"),
    *("seeds", "seeds_expected", "published", "published_source", "difference", "status"),
    *("collapsed", "diverged", "note"),
)
DECIMALS = {"params_mean": 1, **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "difference"), 4)}

_COMPONENTS = {
    frozenset[str](): "raw",
    frozenset({"orth"}): "orth",
    frozenset({"advance"}): "advance",
    frozenset({"orth", "advance"}): "orth_advance",
    frozenset({"orth", "advance", "restart"}): "full",
}
_ABLATION = (
    ("raw", "lora"),
    ("orth", "raw"),
    ("advance", "raw"),
    ("orth_advance", "orth"),
    ("orth_advance", "raw"),
    ("full", "orth_advance"),
    ("full", "lora"),
)
_RETRAINED = (
    ("svd_increlora", "svd_adalora"),
    ("svd_increlora", "increlora"),
    ("svd_adalora", "adalora"),
    ("svd_increlora", "uniform"),
    ("svd_increlora", "shuffled"),
)


def build(study: Study, records_root: str | Path, out_dir: str | Path) -> list[Path]:
    """Writes every table that the study has, and returns the files.

    Raises:
        increlora.report.frame.RecordError: a record is malformed.
    """
    results = Results(study, records_root)
    return [path for table in tables(results) for path in write(table, Path(out_dir))]


def write(table: Table, out_dir: Path) -> list[Path]:
    """One table as CSV, Markdown and LaTeX."""
    paths = [write_csv(table.tidy, out_dir / f"{table.name}.csv", table.decimals)]
    for suffix, text in (("md", markdown(table)), ("tex", latex(table))):
        paths.append(out_dir / f"{table.name}.{suffix}")
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def tables(results: Results) -> Iterator[Table]:
    """The study's tables; an artefact that the config leaves out is skipped."""
    artefacts = results.study.artefacts
    if artefacts.table1:
        yield table1(results, artefacts.table1)
    if artefacts.table2:
        yield table2(results, artefacts.table2)
    if artefacts.table3:
        yield table3(results, artefacts.table3)
    yield cost_table(results)


def table1(results: Results, wanted: Table1) -> Table:
    """Comparison of methods over the tasks."""
    lines = results.lines((row.method, budget) for row in wanted.rows for budget in (row.budgets or (None,)))
    lines.sort(key=lambda line: -1 if line.tier is None else line.tier)  # stable: within a tier as in the config
    columns = [(task, column) for task in wanted.tasks for column in TASKS[task].columns]
    cells = {
        (line, *place): results.scores.column(place[0], line.method, line.budget, place[1])
        for line in lines
        for place in columns
    }
    overall = [(published.ALL, "All")] if len(wanted.tasks) > 1 else []
    for line in lines:
        for place in overall:
            cells[(line, *place)] = results.scores.all_tasks(wanted.tasks, line.method, line.budget)
    places = [*columns, *overall]
    params = {line: results.mean_over_tasks("trainable", wanted.tasks, line.method, line.budget) for line in lines}
    all_eight = set(wanted.tasks) == set(TASKS)

    known = {
        (line, *place): _published(line, *place)
        for line in lines
        for place in places
        if place[0] != published.ALL or all_eight
    }
    best = {
        (tier, place): _best(cells[(line, *place)] for line in lines if line.tier == tier)
        for tier in {line.tier for line in lines} - {None}
        for place in places
    }
    headings = (Column("Method", left=True), Column("#Params"), *map(_heading, places))
    rules = frozenset(i for i in range(1, len(lines)) if lines[i].tier != lines[i - 1].tier)

    def grid(caption: str, number: list[str], cell: Any) -> Grid:
        rows = [
            (Cell(line.label), Cell(text or NOTHING), *(cell(line, place) for place in places))
            for line, text in zip(lines, number, strict=True)
        ]
        return Grid(caption, headings, tuple(rows), rules)

    def measured(line: Line, place: tuple[str, str]) -> Cell:
        summary = cells[(line, *place)]
        return score_cell(summary, bold=_is_best(summary, best.get((line.tier, place))))

    def printed(line: Line, place: tuple[str, str]) -> Cell:
        values = known.get((line, *place))
        return Cell(values[0].value if values else NOTHING)

    def difference(line: Line, place: tuple[str, str]) -> Cell:
        values = known.get((line, *place)) or []
        return Cell(fixed(_difference(cells[(line, *place)], values), 2, sign=True))

    reported = [published.printed_params(line.published_method, line.published_budget) for line in lines]
    name = results.study.study
    grids = [grid(f"Study {name}: measured, mean ± sd over seeds", [count(params[line]) for line in lines], measured)]
    if any(known.values()):
        grids.append(grid(f"Published ({published.TITLE}, GLUE development sets)", reported, printed))
        if results.not_comparable is None:
            grids.append(grid("Difference: measured − published", reported, difference))
    rows = [
        _row(results, line, params[line], place, cells[(line, *place)], known.get((line, *place)) or [])
        for line in lines
        for place in places
    ]
    of_all = "the eight tasks" if all_eight else f"the {len(wanted.tasks)} tasks shown (the paper's is over eight)"
    by_task = [(line.label, task, cells[(line, task, _first(task))]) for line in lines for task in wanted.tasks]
    notes = [
        *header(results),
        "± is the standard deviation over seeds (ddof 1); the CSV has 95 % intervals.",
        "#Params: trained parameters, pooler and classifier not counted (Full FT counts everything), final count, mean "
        "over tasks.",
        f"All: mean over {of_all}, MNLI as mean(m, mm) and QQP as mean(Acc, F1). Bold: best of a budget.",
        *hindsight(results, lines, wanted.tasks),
        *_published_notes(results, known.values()),
        *missing(by_task),
        *used_marks(tuple(grids)),
        *remarks(by_task),
    ]
    return _table(results, "table1", "Table 1: comparison of methods", grids, notes, rows)


def table2(results: Results, wanted: Comparison) -> Table:
    """Ablation of IncreLoRA's components."""
    lines = results.lines(((method, wanted.budget) for method in wanted.rows), name_budget=False)
    components = {line: _components(results, wanted.tasks[0], line) for line in lines}
    roles: dict[str, Line] = {}
    for line in lines:
        parts = components[line]
        role = _COMPONENTS.get(parts) if parts is not None else line.published_method
        if role:
            roles.setdefault(role, line)
    ticks = [
        (Column(title), [Cell("✓" if part in (components[line] or ()) else "") for line in lines])
        for title, part in (("OR", "orth"), ("AL", "advance"), ("RW", "restart"))
    ]
    legend = "OR: orthogonality regulariser, AL: advance learning, RW: restarted warmup."
    title = f"Table 2: ablation at an average rank of {wanted.budget}"
    return _comparison(results, "table2", title, wanted, lines, ticks, roles, _ABLATION, [legend])


def table3(results: Results, wanted: Comparison) -> Table:
    """Fresh SVD-form LoRA models retrained from saved rank distributions, beside the runs that found them."""
    lines = results.lines(((method, wanted.budget) for method in wanted.rows), name_budget=False)
    roles: dict[str, Line] = {}
    ranks: list[Cell] = []
    for line in lines:
        settings = results.study.settings(wanted.tasks[0], line.method, line.budget, results.study.seeds[0])
        source = settings.ranks_from
        if source is None:
            roles.setdefault(line.published_method or line.method, line)
            ranks.append(Cell("grown or pruned in training"))
            continue
        plain = source.transform == "none"
        roles.setdefault(f"svd_{results.kind(source.method)}" if plain else source.transform, line)
        what = {"none": "those of", "uniform": "uniform, total of", "shuffled": "shuffled, those of"}[source.transform]
        ranks.append(Cell(f"{what} {results.study.title(source.method)}"))
    legend = "Retrained rows start anew with fixed ranks taken from the finished run of the same seed."
    title = f"Table 3: rank distributions retrained from scratch, average rank {wanted.budget}"
    extra = [(Column("Ranks", left=True), ranks)]
    return _comparison(results, "table3", title, wanted, lines, extra, roles, _RETRAINED, [legend])


def _comparison(
    results: Results,
    name: str,
    title: str,
    wanted: Comparison,
    lines: Sequence[Line],
    extra: Sequence[tuple[Column, list[Cell]]],
    roles: dict[str, Line],
    pairs: Sequence[tuple[str, str]],
    legend: list[str],
) -> Table:
    """A table of variants at one budget: their scores, then differences between them, paired by seed."""
    places = [(task, column) for task in wanted.tasks for column in TASKS[task].columns]
    comparable = results.not_comparable is None
    params = {line: results.mean_over_tasks("trainable", wanted.tasks, line.method, line.budget) for line in lines}
    cells = {
        (line, *place): results.scores.column(place[0], line.method, line.budget, place[1])
        for line in lines
        for place in places
    }
    known = {(line, *place): _published(line, *place) for line in lines for place in places}
    best = {place: _best(cells[(line, *place)] for line in lines) for place in places}
    columns = [Column("Method", left=True), *(column for column, _ in extra), Column("#Params")]
    grid_rows = [
        [Cell(line.label), *(texts[i] for _, texts in extra), Cell(count(params[line]))] for i, line in enumerate(lines)
    ]
    for place in places:
        heading = " ".join(filter(None, (_heading(place).group, _heading(place).title)))
        columns += [Column("measured", heading), Column("published", heading)]
        columns += [Column("difference", heading)] if comparable else []
        for row, line in zip(grid_rows, lines, strict=True):
            summary, values = cells[(line, *place)], known[(line, *place)]
            row.append(score_cell(summary, bold=_is_best(summary, best[place])))
            row.append(Cell(values[0].value if values else NOTHING))
            if comparable:
                row.append(Cell(fixed(_difference(summary, values), 2, sign=True)))
    caption = f"Study {results.study.study}: mean ± sd over seeds"
    grids = [Grid(caption, tuple(columns), tuple(map(tuple, grid_rows)))]
    rows = [
        _row(results, line, params[line], place, cells[(line, *place)], known[(line, *place)])
        for line in lines
        for place in places
    ]
    pairs = [pair for pair in pairs if set(pair) <= set(roles)]
    if pairs:
        grid, more = _differences(results, name, wanted.tasks, roles, pairs)
        grids.append(grid)
        rows += more
    by_task = [(line.label, task, cells[(line, task, _first(task))]) for line in lines for task in wanted.tasks]
    notes = [
        *header(results),
        *legend,
        "± is the standard deviation over seeds (ddof 1).",
        "#Params: final count, pooler and classifier not counted, mean over the tasks shown. Bold: best of a column.",
        "Differences are paired by seed; intervals are 95 % Student-t over seeds, so an interval that holds 0 shows no "
        "difference. The published differences are single numbers without spread.",
        *hindsight(results, lines, wanted.tasks),
        *_published_notes(results, known.values()),
        *missing(by_task),
        *used_marks(tuple(grids)),
        *remarks(by_task),
    ]
    return _table(results, name, title, grids, notes, rows)


def _differences(
    results: Results, name: str, tasks: Sequence[str], roles: dict[str, Line], pairs: Sequence[tuple[str, str]]
) -> tuple[Grid, list[dict[str, Any]]]:
    columns, grid_rows, rows = [Column("Difference", left=True)], [], []
    for task in tasks:
        group = TASKS[task].title
        columns += [Column("measured", group), Column("95 % interval", group), Column("published", group)]
    for one, other in pairs:
        first, second = roles[one], roles[other]
        title = " − ".join(f"({line.label})" if "+" in line.label else line.label for line in (first, second))
        row = [Cell(title)]
        for task in tasks:
            summary = results.scores.difference(task, first[:2], second[:2])
            column = _first(task)
            label = published.budget_label("increlora", first.budget, [])
            values = published.find(name, f"{one} - {other}", label, task, column)
            low, high = summary.estimate.low, summary.estimate.high
            interval = NOTHING if low is None else f"[{fixed(low, 2, sign=True)}, {fixed(high, 2, sign=True)}]"
            shown = values[0].value.replace("-", "−") if values else NOTHING
            row += [score_cell(summary, sign=True), Cell(interval), Cell(shown)]
            rows.append(
                {
                    **_row(results, first, None, (task, "difference"), summary, values),
                    "row": title,
                    "method": f"{first.method} - {second.method}",
                }
            )
        grid_rows.append(tuple(row))
    return Grid("Differences between rows", tuple(columns), tuple(grid_rows)), rows


def _components(results: Results, task: str, line: Line) -> frozenset[str] | None:
    """Which components of IncreLoRA a row has, by its options; None if it is another method."""
    settings = results.study.settings(task, line.method, line.budget, results.study.seeds[0])
    if settings.kind != "increlora":
        return None
    options = settings.options
    has = {
        "orth": options.get("orth_reg_weight") != 0,  # null: the preset's
        "advance": options.get("advance_learning", True),
        "restart": options.get("restart_warmup", True),
    }
    return frozenset(name for name, is_so in has.items() if is_so)


def _first(task: str) -> str:
    """First column of a task: runs that go wrong do so in all of its columns."""
    return next(iter(TASKS[task].columns))


def _heading(place: tuple[str, str]) -> Column:
    task, column = place
    return Column("All") if task == published.ALL else Column(column, TASKS[task].title)


def _published(line: Line, task: str, column: str) -> list[published.Published]:
    if not line.published_method:
        return []
    return published.find("table1", line.published_method, line.published_budget, task, column)


def _difference(summary: Summary, values: Sequence[published.Published]) -> float | None:
    number = values[0].number if values else None
    mean = summary.estimate.mean
    return None if number is None or mean is None else mean - number


def _best(summaries: Iterable[Summary]) -> float | None:
    """The highest mean as printed; None where there is nothing to compare."""
    means = [round(s.estimate.mean, 2) for s in summaries if s.estimate.mean is not None]
    return max(means) if len(means) > 1 else None


def _is_best(summary: Summary, best: float | None) -> bool:
    mean = summary.estimate.mean
    return best is not None and mean is not None and math.isclose(round(mean, 2), best)


def _published_notes(results: Results, known: Iterable[Sequence[published.Published]]) -> list[str]:
    """Where the published values are from, and why they are not subtracted if they are not."""
    used = [values for values in known if values]
    if not used:
        return []
    sources = dict.fromkeys(values[0].source for values in used)
    lines = [
        f"Published values are those of {published.TITLE} on GLUE ({'; '.join(sources)}); {NOTHING} where the value is "
        "not known."
    ]
    for values in used:
        lines += [
            f"Two published values, {METHODS[other.method].title}, {TASKS[other.task].title}: {values[0].value} "
            f"({values[0].source}) and {other.value} ({other.source})."
            for other in values[1:]
            if other.value != values[0].value
        ]
    if results.not_comparable:
        lines.append(
            f"No differences to the published values: {results.not_comparable}, so the two are not comparable."
        )
    return lines


def _row(
    results: Results,
    line: Line,
    params: float | None,
    place: tuple[str, str],
    summary: Summary,
    values: Sequence[published.Published],
) -> dict[str, Any]:
    """One row of the tidy CSV."""
    estimate, comparable = summary.estimate, results.not_comparable is None
    said = summary.remarks()
    if values and not comparable:
        said.append(f"no difference: {results.not_comparable}")
    return {
        **{"row": line.label, "method": line.method, "budget": line.budget, "params_mean": params},
        **{"task": place[0], "column": place[1], "mean": estimate.mean, "sd": estimate.sd},
        **{"ci_low": estimate.low, "ci_high": estimate.high, "seeds": estimate.n, "seeds_expected": summary.expected},
        "published": values[0].value if values else None,
        "published_source": values[0].source if values else None,
        "difference": _difference(summary, values) if comparable else None,
        "status": summary.status,
        "collapsed": len(summary.collapsed),
        "diverged": len(summary.diverged),
        "note": "; ".join(said) or None,
    }


def _table(
    results: Results, name: str, title: str, grids: list[Grid], notes: list[str], rows: list[dict[str, Any]]
) -> Table:
    tidy = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"budget": "Int64"})
    return Table(f"{results.study.study}_{name}", title, tuple(grids), tuple(notes), tidy, DECIMALS)

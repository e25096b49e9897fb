"""Tables 1-3 of the paper, the selection of settings, and the table of published values.

Each table is written as CSV (tidy: one row per number), Markdown and LaTeX. Scores are mean ± sd over seeds; "All" is
the mean over the tasks that the paper averages, each with the mean of its columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from increlora.errors import unknown
from increlora.glue.tasks import TASKS
from increlora.methods.registry import METHODS
from increlora.report import published
from increlora.report.cost import cost_table
from increlora.report.notes import header, hindsight, legend, score, what_happened
from increlora.report.published import ALL, Published
from increlora.report.render import NOTHING, Column, Entry, Grid, Table, count, fixed, terminal
from increlora.report.results import Line, Results, Summary
from increlora.study.cells import kind_of, method_of, ranks_from
from increlora.study.config import Comparison, Study, Table1
from increlora.study.grid import best, trials
from increlora.study.settings import run_settings

COLUMNS = (
    *("row", "method", "budget", "params_mean", "task", "column", "mean", "sd", "ci_low", "ci_high"),
    *("seeds", "seeds_expected", "published", "published_source", "difference", "status"),
    *("collapsed", "diverged", "note"),
)
DECIMALS = {"params_mean": 1, **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "difference"), 4)}

Place = tuple[str, str]
"""Task and column; `ALL` and "All" for the mean over tasks."""


def build(study: Study, records_root: str | Path, out_dir: str | Path) -> list[Path]:
    """Writes every table that the study has, and returns the files.

    Raises:
        RecordError: a record is malformed.
    """
    results = Results(study, records_root)
    return [path for table in tables(results) for path in table.write(Path(out_dir))]


def tables(results: Results) -> Iterator[Table]:
    """The study's tables; an artefact that the config leaves out is skipped."""
    wanted = results.study.artefacts.chosen
    if wanted.table1:
        yield table1(results, wanted.table1)
    if wanted.table2:
        yield table2(results, wanted.table2)
    if wanted.table3:
        yield table3(results, wanted.table3)
    if results.study.grid and wanted.table1:
        yield selection(results, wanted.table1)
    yield cost_table(results)


def show(
    study: Study, records_root: str | Path, which: str | None = None, *, width: int = 120, bold: bool = False
) -> str:
    """The study's tables as text for a terminal.

    Args:
        study: the study.
        records_root: folder of the records.
        which: name of a table, such as `table1` or `cost`; None for all that the study has.
        width: columns of the terminal.
        bold: mark the highest values with ANSI codes.

    Raises:
        ConfigError: the study has no table of that name.
    """
    built = {table.name.removeprefix(f"{study.study}_"): table for table in tables(Results(study, records_root))}
    if which is not None and which not in built:
        raise unknown("--only", which, built)
    return "\n".join(terminal(table, width, bold) for name, table in built.items() if which in (None, name))


def averaged(tasks: Iterable[str]) -> list[str]:
    """Of some tasks those that count in "All"."""
    return [task for task in tasks if TASKS[task].in_all]


def table1(results: Results, wanted: Table1) -> Table:
    """Comparison of methods over the tasks."""
    lines = results.lines((row.method, budget) for row in wanted.rows for budget in (row.budgets or (None,)))
    lines.sort(key=lambda line: -1 if line.tier is None else line.tier)  # stable: within a tier as in the config
    places: list[Place] = [(task, column) for task in wanted.tasks for column in TASKS[task].columns]
    in_all = averaged(wanted.tasks)
    whole = set(in_all) == set(averaged(TASKS))
    summaries = _summaries(results, lines, places)
    if len(in_all) > 1:
        places.append((ALL, "All"))
        summaries |= {(line, places[-1]): results.scores.over_tasks([line.on(t) for t in in_all]) for line in lines}
    known = {
        (line, place): _published(line, place) if place[0] != ALL or whole else [] for line in lines for place in places
    }
    best_of = {
        (tier, place): _best(summaries[line, place] for line in lines if line.tier == tier)
        for tier in {line.tier for line in lines} - {None}
        for place in places
    }
    params = {line: results.mean_over_tasks("trainable", wanted.tasks, line) for line in lines}
    printed = {line: published.printed_params(line.published_method, line.published_budget) for line in lines}
    headings = (Column("Method", left=True), Column("#Params"), *map(_heading, places))
    rules = frozenset(i for i in range(1, len(lines)) if lines[i].tier != lines[i - 1].tier)

    def grid(caption: str, size: Any, entry: Any) -> Grid:
        rows = [(Entry(line.label), Entry(size(line)), *(entry(line, place) for place in places)) for line in lines]
        return Grid(caption, headings, tuple(rows), rules)

    def measured(line: Line, place: Place) -> Entry:
        summary = summaries[line, place]
        return score(summary, bold=_is_best(summary, best_of.get((line.tier, place))))

    def difference(line: Line, place: Place) -> Entry:
        return Entry(fixed(_difference(summaries[line, place], known[line, place]), 2, sign=True))

    study = results.study.study
    grids = [grid(f"Study {study}: measured, mean ± sd over seeds", lambda line: count(params[line]), measured)]
    if results.not_comparable is None and any(known.values()):
        size = lambda line: printed[line] or NOTHING  # noqa: E731
        values = grid(
            f"Published ({published.TITLE}, GLUE development sets)", size, lambda *at: Entry(_value(known[at]))
        )
        grids += [values, grid("Difference: measured − published", size, difference)]
    of_all = "the eight tasks" if whole else f"{', '.join(TASKS[t].title for t in in_all)} (the paper's is over eight)"
    notes = [
        "± is the standard deviation over seeds (ddof 1); the CSV has 95 % intervals, Student-t over seeds and for All "
        "with Satterthwaite's degrees of freedom.",
        "#Params: trained parameters, pooler and classifier not counted (a method that trains all weights counts "
        "them too), final count, mean over tasks.",
        f"All: mean over {of_all}{_as_means(in_all)}." if len(in_all) > 1 else "",
        "Bold: highest mean of a budget; whether it is higher than the others is a question for the intervals.",
    ]
    rows = [_row(results, params[at[0]], *at, summaries[at], known[at]) for at in known]
    return _table(results, "table1", "Table 1: comparison of methods", wanted.tasks, lines, grids, notes, known, rows)


def table2(results: Results, wanted: Comparison) -> Table:
    """Ablation of a method's components."""
    lines = results.lines(((method, wanted.budget) for method in wanted.rows), name_budget=False)
    parts = {}
    roles: dict[str, Line] = {}
    for line in lines:
        settings = run_settings(results.study, line.on(wanted.tasks[0]), results.study.seeds[0])
        components = METHODS[settings.kind].components
        parts[line] = {part: part.is_on(settings.options) for part in components}
        on = [part.name for part in components if parts[line][part]]
        ablated = "raw" if not on else "full" if len(on) == len(components) else "_".join(on)
        roles.setdefault(ablated if components else line.published_method, line)
    shown = list(dict.fromkeys(part for line in lines for part in parts[line]))
    ticks = [(Column(part.symbol), [Entry("✓" if parts[line].get(part) else "") for line in lines]) for part in shown]
    meaning = [f"{', '.join(f'{part.symbol}: {part.title}' for part in shown)}."] if shown else []
    title = f"Table 2: ablation at an average rank of {wanted.budget}"
    return _comparison(results, "table2", title, wanted, lines, ticks, roles, meaning)


def table3(results: Results, wanted: Comparison) -> Table:
    """Fresh models retrained from saved rank distributions, beside the runs that found them."""
    study = results.study
    lines = results.lines(((method, wanted.budget) for method in wanted.rows), name_budget=False)
    roles: dict[str, Line] = {}
    ranks: list[Entry] = []
    for line in lines:
        source = ranks_from(study, line.variant)
        if source is None:
            roles.setdefault(line.published_method or line.variant, line)
            found = method_of(study, line.variant).allocates
            ranks.append(Entry("grown or pruned in training" if found else "the same everywhere"))
            continue
        plain = source.transform == "none"
        roles.setdefault(f"svd_{kind_of(study, source.method)}" if plain else source.transform, line)
        what = {"none": "those of", "uniform": "uniform, total of", "shuffled": "shuffled, those of"}[source.transform]
        ranks.append(Entry(f"{what} {study.title(source.method)}"))
    meaning = ["Retrained rows start anew with fixed ranks taken from the finished run of the same seed."]
    title = f"Table 3: rank distributions retrained from scratch, average rank {wanted.budget}"
    return _comparison(results, "table3", title, wanted, lines, [(Column("Ranks", left=True), ranks)], roles, meaning)


def _comparison(
    results: Results,
    name: str,
    title: str,
    wanted: Comparison,
    lines: Sequence[Line],
    extra: Sequence[tuple[Column, list[Entry]]],
    roles: dict[str, Line],
    meaning: list[str],
) -> Table:
    """A table of variants at one budget: their scores, then differences between them, paired by seed."""
    places = [(task, column) for task in wanted.tasks for column in TASKS[task].columns]
    comparable = results.not_comparable is None
    params = {line: results.mean_over_tasks("trainable", wanted.tasks, line) for line in lines}
    summaries = _summaries(results, lines, places)
    known = {(line, place): _published(line, place) for line in lines for place in places}
    columns = [Column("Method", left=True), *(column for column, _ in extra), Column("#Params")]
    rows = [
        [Entry(line.label), *(one[i] for _, one in extra), Entry(count(params[line]))] for i, line in enumerate(lines)
    ]
    for place in places:
        heading, top = _heading(place), _best(summaries[line, place] for line in lines)
        group = f"{heading.group} {heading.title}"
        columns += (
            [Column(title, group) for title in ("measured", "published", "difference")] if comparable else [heading]
        )
        for row, line in zip(rows, lines, strict=True):
            summary, values = summaries[line, place], known[line, place]
            row.append(score(summary, bold=_is_best(summary, top)))
            if comparable:
                row += [Entry(_value(values)), Entry(fixed(_difference(summary, values), 2, sign=True))]
    caption = f"Study {results.study.study}: mean ± sd over seeds"
    grids = [Grid(caption, tuple(columns), tuple(map(tuple, rows)))]
    tidy = [_row(results, params[at[0]], *at, summaries[at], known[at]) for at in known]
    pairs = [pair for pair in published.comparisons(name) if set(pair) <= set(roles)]
    if pairs:
        grid, more = _differences(results, name, wanted.tasks, roles, pairs)
        grids.append(grid)
        tidy += more
    notes = [
        *meaning,
        "± is the standard deviation over seeds (ddof 1).",
        "#Params: final count, pooler and classifier not counted, mean over the tasks shown. Bold: highest mean of a "
        "column; whether it is higher than the others is a question for the intervals.",
        "Differences are paired by seed; intervals are 95 % Student-t over seeds, so an interval that holds 0 shows no "
        "difference." + (" The published differences are single numbers without spread." if comparable else ""),
    ]
    return _table(results, name, title, wanted.tasks, lines, grids, notes, known, tidy)


def _differences(
    results: Results, name: str, tasks: Sequence[str], roles: dict[str, Line], pairs: Sequence[tuple[str, str]]
) -> tuple[Grid, list[dict[str, Any]]]:
    comparable = results.not_comparable is None
    columns, grid_rows, rows = [Column("Difference", left=True)], [], []
    for task in tasks:
        titles = ("measured", "95 % interval", *(["published"] if comparable else []))
        columns += [Column(title, TASKS[task].title) for title in titles]
    for one, other in pairs:
        first, second = roles[one], roles[other]
        title = " − ".join(f"({line.label})" if "+" in line.label else line.label for line in (first, second))
        row = [Entry(title)]
        label = published.RANK_LABELS.get(first.budget or 0)
        for task in tasks:
            summary = results.scores.difference(first.on(task), second.on(task))
            values = published.find(name, f"{one} - {other}", label, task, _first(task))
            low, high = summary.estimate.low, summary.estimate.high
            interval = NOTHING if low is None else f"[{fixed(low, 2, sign=True)}, {fixed(high, 2, sign=True)}]"
            row += [score(summary, sign=True), Entry(interval)]
            row += [Entry(_value(values).replace("-", "−"))] if comparable else []
            tidy = _row(results, None, first, (task, "difference"), summary, values)
            rows.append(tidy | {"row": title, "method": f"{first.variant} - {second.variant}"})
        grid_rows.append(tuple(row))
    return Grid("Differences between rows", tuple(columns), tuple(grid_rows)), rows


def selection(results: Results, wanted: Table1) -> Table:
    """The trials of a grid, which of them each method takes, and which are best at the edge of what was tried."""
    study, grid = results.study, results.study.grid
    assert grid is not None
    rule, budgets = grid.choose, {row.method: row.budgets or (None,) for row in wanted.rows}
    tasks = averaged(wanted.tasks) if rule.metric == "all" else [rule.metric]
    entries: list[tuple[Entry, ...]] = []
    rows, rules, edges = [], [], []
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
            chosen = "" if not takes else "✓" if rule.over == "budgets" else ", ".join(map(str, takes))
            at = " / ".join("–" if budget is None else str(budget) for budget in budgets[trial.name])
            texts = (at, shown, fixed(mean, 2), chosen, ", ".join(edge))
            entries.append((Entry(study.title(trial.name), bold=bool(takes)), *map(Entry, texts)))
            rows.append(
                {"method": origin, "trial": trial.name, **trial.values, "mean": mean}
                | {"chosen": chosen or None, "at_edge": ", ".join(edge) or None}
            )
    columns = ("Trial", "Budgets", "Score at each", "Mean", "Chosen", "At the edge")
    what = "All" if rule.metric == "all" else TASKS[rule.metric].title
    how = {
        "budgets": f"the trial with the highest {what}, mean over the method's budgets",
        "each_budget": f"at each budget the trial with the highest {what}",
    }[rule.over]
    notes = [
        *header(results),
        f"Chosen: {how}; the same rule for every method. *: highest of a method at that budget.",
        *([f"Highest at the edge of the grid, so a better one may lie beyond: {'; '.join(edges)}."] if edges else []),
    ]
    sides = tuple(Column(title, left=not number) for number, title in enumerate(columns))
    shown_grid = Grid(f"Study {study.study}: trials", sides, tuple(entries), frozenset(rules) - {0})
    title = "Selection of training settings"
    return Table(
        f"{study.study}_selection", title, (shown_grid,), tuple(notes), pd.DataFrame(rows), {"mean": DECIMALS["mean"]}
    )


def published_table() -> Table:
    """The values of the papers, which are not those of a study: another backbone, and GLUE itself."""
    places: list[Place] = [(task, column) for task in averaged(TASKS) for column in TASKS[task].columns]
    places.append((ALL, "All"))
    values = [row for row in published.load() if row.artefact == "table1"]
    entries = []
    for method, label in dict.fromkeys((row.method, row.budget_label) for row in values):
        found = [_value(published.find("table1", method, label, *place)) for place in places]
        size = published.printed_params(method, label) or (NOTHING if label == "none" else label)
        entries.append((Entry(METHODS[method].title), Entry(size), *map(Entry, found)))
    headings = (Column("Method", left=True), Column("#Params"), *map(_heading, places))
    said = [row for row in published.load() if row.artefact != "table1" and row.kind != "unpublished"]
    stated = [
        tuple(map(Entry, (row.artefact.replace("e", "e ").capitalize(), row.method, _task(row), row.value)))
        for row in said
    ]
    columns = [Column(name, left=True) for name in ("Where", "What", "Task", "Value")]
    grids = (
        Grid(f"{published.TITLE}, GLUE development sets", headings, tuple(entries)),
        Grid("Stated about the other tables and figures", tuple(columns), tuple(stated)),
    )
    sources = dict.fromkeys(row.source for row in (*values, *said))
    notes = (f"{NOTHING}: not known.", *_two_values(), f"Sources: {'; '.join(sources)}.")
    tidy = pd.DataFrame([vars(row) for row in (*values, *said)])
    return Table("published", "Published values", grids, notes, tidy, {})


def _task(row: Published) -> str:
    return TASKS[row.task].title if row.task in TASKS else "–"


def _two_values() -> list[str]:
    said = []
    for place in dict.fromkeys((row.method, row.budget_label, row.task, row.column) for row in published.load()):
        found = published.find("table1", *place)
        title = f"{METHODS[place[0]].title}, {TASKS[place[2]].title}" if len(found) > 1 else ""
        said += [
            f"Two values, {title}: {found[0].value} ({found[0].source}) and {other.value} ({other.source})."
            for other in found[1:]
            if other.value != found[0].value
        ]
    return said


def _as_means(tasks: Iterable[str]) -> str:
    """Which tasks with several columns count as the mean of these."""
    several = [TASKS[task] for task in tasks if len(TASKS[task].columns) > 1]
    return ", " + " and ".join(f"{t.title} as mean({', '.join(t.columns)})" for t in several) if several else ""


def _summaries(results: Results, lines: Sequence[Line], places: Sequence[Place]) -> dict[tuple[Line, Place], Summary]:
    return {
        (line, (task, column)): results.scores.column(line.on(task), column)
        for line in lines
        for task, column in places
    }


def _first(task: str) -> str:
    """First column of a task: runs that go wrong do so in all of its columns."""
    return next(iter(TASKS[task].columns))


def _heading(place: Place) -> Column:
    task, column = place
    return Column("All") if task == ALL else Column(column, TASKS[task].title)


def _published(line: Line, place: Place) -> list[Published]:
    found = line.published_method and published.find("table1", line.published_method, line.published_budget, *place)
    return found or []


def _value(values: Sequence[Published]) -> str:
    return values[0].value if values and values[0].value else NOTHING


def _difference(summary: Summary, values: Sequence[Published]) -> float | None:
    number = values[0].number if values else None
    mean = summary.estimate.mean
    return None if number is None or mean is None else mean - number


def _best(summaries: Iterable[Summary]) -> float | None:
    """The highest mean as printed; None where there is nothing to compare."""
    means = [round(s.estimate.mean, 2) for s in summaries if s.estimate.mean is not None]
    return max(means) if len(means) > 1 else None


def _is_best(summary: Summary, highest: float | None) -> bool:
    mean = summary.estimate.mean
    return highest is not None and mean is not None and math.isclose(round(mean, 2), highest)


def _row(
    results: Results,
    params: float | None,
    line: Line,
    place: Place,
    summary: Summary,
    values: Sequence[Published],
) -> dict[str, Any]:
    """One row of the tidy CSV."""
    estimate, comparable = summary.estimate, results.not_comparable is None
    said = summary.remarks()
    value = values[0].value if values else ""
    if value and not comparable:
        said.append(f"no difference: {results.not_comparable}")
    return {
        **{"row": line.label, "method": line.variant, "budget": line.budget, "params_mean": params},
        **{"task": place[0], "column": place[1], "mean": estimate.mean, "sd": estimate.sd},
        **{"ci_low": estimate.low, "ci_high": estimate.high, "seeds": estimate.n, "seeds_expected": summary.expected},
        "published": value or None,
        "published_source": values[0].source if value else None,
        "difference": _difference(summary, values) if comparable else None,
        "status": summary.status,
        "collapsed": len(summary.collapsed),
        "diverged": len(summary.diverged),
        "note": "; ".join(said) or None,
    }


def _table(
    results: Results,
    name: str,
    title: str,
    tasks: Sequence[str],
    lines: Sequence[Line],
    grids: list[Grid],
    meaning: list[str],
    known: dict[tuple[Line, Place], list[Published]],
    rows: list[dict[str, Any]],
) -> Table:
    happened = [
        (line.label, task, results.scores.column(line.on(task), _first(task))) for line in lines for task in tasks
    ]
    used = [values for values in known.values() if values]
    origin = []
    if used and results.not_comparable:
        origin = [f"Published values are in published.md: {results.not_comparable}, so they are not comparable."]
    elif used:
        sources = "; ".join(dict.fromkeys(values[0].source for values in used))
        origin = [f"Published values are those of {published.TITLE} on GLUE ({sources}); {NOTHING}: not known."]
    notes = [
        *header(results),
        *filter(None, meaning),
        *hindsight(results, lines, tasks),
        *origin,
        *what_happened(happened),
        *legend(grids),
    ]
    tidy = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"budget": "Int64"})
    return Table(f"{results.study.study}_{name}", title, tuple(grids), tuple(notes), tidy, DECIMALS)

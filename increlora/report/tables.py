"""Tables 1-3 of the paper, the table of variants at one budget, and which tables a study has.

Each table is written as CSV (tidy: one row per number), Markdown and LaTeX. Scores are mean ± sd over seeds; "All" is
the mean over the tasks that the paper averages, each with the mean of its columns. Differences between rows are paired
by seed, and the p-values of a table are corrected together (`increlora.report.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from increlora.errors import unknown
from increlora.glue.tasks import TASKS
from increlora.methods.registry import REFERENCE
from increlora.report import claims, extra_tables, published
from increlora.report.published import ALL, Published
from increlora.report.render import (
    NOTHING,
    Column,
    Entry,
    Grid,
    Table,
    between,
    count,
    fixed,
    probability,
    terminal,
    times,
    write_csv,
)
from increlora.report.results import DECIMALS as RUN_DECIMALS
from increlora.report.results import (
    Line,
    Results,
    Summary,
    averaged,
    header,
    hindsight,
    legend,
    reference_of,
    score,
    tiers,
    what_happened,
)
from increlora.report.statistics import Tested, holm
from increlora.study import jobs
from increlora.study.cells import method_of, ranks_from
from increlora.study.config import Study

COLUMNS = (
    *("row", "method", "budget", "params_mean", "params_ratio", "task", "column", "mean", "sd", "ci_low", "ci_high"),
    *("p", "p_corrected", "corrected_low", "corrected_high", "visible", "seeds", "seeds_expected"),
    *("published", "published_source", "minus_published", "status", "collapsed", "diverged", "note"),
)
DECIMALS = {
    **{"params_mean": 1, "params_ratio": 4, "p": 6, "p_corrected": 6},
    **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "corrected_low", "corrected_high", "visible"), 4),
    "minus_published": 4,
}
_RULE = (
    "Intervals and p are corrected over all differences of this table (Holm; tasks that the paper lacks apart); an "
    "interval is bold where it excludes 0, which is where p is at most 0.05. Visible from: the smallest true "
    "difference that these seeds, with this spread and at the level of that interval, show with 80 % power."
)

Place = tuple[str, str]
"""Task and column; `ALL` and "All" for the mean over tasks."""


def build(study: Study, records_root: str | Path, out_dir: str | Path) -> list[Path]:
    """Writes the tidy frame, ``<study>_runs.csv``, and every table that the study has; returns the files.

    Raises:
        RecordError: a record is malformed.
    """
    results, out = Results(study, records_root), Path(out_dir)
    runs = write_csv(results.frame, out / f"{study.study}_runs.csv", RUN_DECIMALS)
    return [runs, *(path for table in tables(results) for path in table.write(out))]


def tables(results: Results) -> Iterator[Table]:
    """The study's tables."""
    for name in jobs.tables(results.study):
        yield MADE_BY[name](results)


def show(
    study: Study, records_root: str | Path, which: str | None = None, *, width: int = 120, bold: bool = False
) -> str:
    """The study's tables as text for a terminal.

    Args:
        study: the study.
        records_root: folder of the records.
        which: name of a table, such as `table1` or `cost`; None for all that the study has.
        width: columns of the terminal.
        bold: mark bold entries with ANSI codes.

    Raises:
        ConfigError: the study has no table of that name.
    """
    names = list(jobs.tables(study))
    if which is not None and which not in names:
        raise unknown("--only", which, names)
    results = Results(study, records_root)
    return "\n".join(terminal(MADE_BY[name](results), width, bold) for name in names if which in (None, name))


# ---- Differences between rows


class Difference(NamedTuple):
    """One row minus another, on a task or, with `ALL`, in the mean over tasks."""

    first: Line
    second: Line
    task: str
    summary: Summary
    tested: Tested

    @property
    def title(self) -> str:
        labels = (self.first.label, self.second.label)
        return " − ".join(f"({label})" if "+" in label else label for label in labels)


def compare(
    results: Results, pairs: Iterable[tuple[Line, Line]], tasks: Sequence[str], mean_over: Sequence[str]
) -> dict[tuple[Line, Line, str], Difference]:
    """Differences of pairs of rows on every task and in the mean over some of them.

    P-values are corrected together, those of the paper's tasks apart from those of others, so that a further task
    changes no other number.
    """
    groups = {task: [task] for task in tasks} | ({ALL: list(mean_over)} if len(mean_over) > 1 else {})
    found = [
        (first, second, task, results.scores.difference(*([line.on(t) for t in members] for line in (first, second))))
        for first, second in pairs
        for task, members in groups.items()
    ]
    families = [
        [one for one in found if (one[2] == ALL or TASKS[one[2]].in_all) is of_the_paper]
        for of_the_paper in (True, False)
    ]
    tested = {
        one[:3]: Difference(*one, test)
        for family in families
        for one, test in zip(family, holm([summary.estimate for *_, summary in family]), strict=True)
    }
    return {one[:3]: tested[one[:3]] for one in found}


def _in_full(difference: Difference) -> list[Entry]:
    """A difference with its interval, its p and what would be visible."""
    tested = difference.tested
    interval = Entry(between(tested.interval, 2), bold=tested.sign != 0)
    return [
        score(difference.summary, sign=True),
        interval,
        Entry(probability(tested.p)),
        Entry(fixed(tested.visible, 2)),
    ]


def _full_columns(group: str) -> list[Column]:
    return [Column(title, group) for title in ("difference", "interval", "p", "visible from")]


# ---- Table 1


def table1(results: Results) -> Table:
    """Comparison of methods over the tasks, and of each with the reference at the same budget."""
    tasks, lines = results.main_lines()
    places: list[Place] = [(task, column) for task in tasks for column in TASKS[task].columns]
    in_all = averaged(tasks)
    whole = set(in_all) == set(averaged(TASKS))
    summaries = _summaries(results, lines, places)
    if len(in_all) > 1:
        places.append((ALL, "All"))
        summaries |= {(line, places[-1]): results.scores.over_tasks([line.on(t) for t in in_all]) for line in lines}
    known = {
        (line, place): _published(results, line, place) if place[0] != ALL or whole else []
        for line in lines
        for place in places
    }
    references = {line: reference for line in lines if (reference := reference_of(lines, line)) != line}
    pairs = [(line, reference) for line, reference in references.items() if reference]
    differences = compare(results, pairs, tasks, in_all)
    params = {line: results.mean_over_tasks("trainable", tasks, line) for line in lines}
    printed = {line: published.printed_params(line.published_method, line.published_budget) for line in lines}
    headings = (Column("Method", left=True), Column("#Params"), *map(_heading, places))
    rules = tiers(lines)

    def grid(caption: str, size: Any, entry: Any) -> Grid:
        rows = [(Entry(line.label), Entry(size(line)), *(entry(line, place) for place in places)) for line in lines]
        return Grid(caption, headings, tuple(rows), rules)

    def measured(line: Line, place: Place) -> Entry:
        reference = references.get(line)
        is_better = reference is not None and _favours(differences[line, reference, place[0]])
        return score(summaries[line, place], bold=is_better)

    def minus_published(line: Line, place: Place) -> Entry:
        return Entry(fixed(_minus_published(summaries[line, place], known[line, place]), 2, sign=True))

    study = results.study.study
    grids = [grid(f"Study {study}: measured, mean ± sd over seeds", lambda line: count(params[line]), measured)]
    if pairs:
        grids.append(_to_reference(tasks, pairs, differences, params, len(in_all) > 1))
    if any(known.values()):
        size = lambda line: printed[line] or NOTHING  # noqa: E731
        values = grid(
            f"Published ({published.TITLE}, GLUE development sets)", size, lambda *at: Entry(_value(known[at]))
        )
        grids += [values, grid("Measured − published", size, minus_published)]
    of_all = "the eight tasks" if whole else f"{', '.join(TASKS[t].title for t in in_all)} (the paper's is over eight)"
    notes = [
        "± is the standard deviation over seeds (ddof 1); the CSV has 95 % intervals, Student-t over seeds and for All "
        "with Satterthwaite's degrees of freedom.",
        "#Params: trained parameters, pooler and classifier not counted (a method that trains all weights counts "
        "them too), final count, mean over tasks.",
        f"All: mean over {of_all}{_as_means(in_all)}." if len(in_all) > 1 else "",
        f"Differences to {REFERENCE.title} are paired by seed, at the same budget (methods without a budget: at the "
        f"largest one), on each task's number. A score is bold where its difference, corrected, is one in its favour. "
        f"{_RULE}"
        if pairs
        else "",
    ]
    rows = [
        _row(results, line, place, summaries[line, place], known[line, place], params[line]) for line, place in known
    ]
    rows += [_difference_row(results, one, params, []) for one in differences.values()]
    return _table(results, "table1", "Table 1: comparison of methods", tasks, lines, grids, notes, known, rows)


def _to_reference(
    tasks: Sequence[str],
    pairs: Sequence[tuple[Line, Line]],
    differences: dict[tuple[Line, Line, str], Difference],
    params: dict[Line, float | None],
    has_all: bool,
) -> Grid:
    """Each row minus the reference: the difference on every task, in full in the mean over tasks."""
    brief = tasks if has_all else tasks[:-1]
    last = ALL if has_all else tasks[-1]
    columns = [Column("Method", left=True), Column(f"to {REFERENCE.title}", "#Params")]
    columns += [Column("difference", TASKS[task].title) for task in brief]
    columns += _full_columns("All" if has_all else TASKS[last].title)
    rows = []
    for line, reference in pairs:
        row = [Entry(line.label), Entry(times(_ratio(params, line, reference)))]
        for task in brief:
            one = differences[line, reference, task]
            row.append(score(one.summary, bold=one.tested.sign != 0, sign=True))
        rows.append((*row, *_in_full(differences[line, reference, last])))
    caption = f"Difference to {REFERENCE.title} at the same budget, paired by seed"
    return Grid(caption, tuple(columns), tuple(rows), tiers([line for line, _ in pairs]))


def _favours(difference: Difference) -> bool:
    better = 1 if difference.task == ALL or TASKS[difference.task].higher_is_better else -1
    return difference.tested.sign == better


# ---- Tables 2 and 3, and variants


def table2(results: Results) -> Table:
    """Ablation of a method's components."""
    lines = _rows_at_one_budget(results, "table2")
    parts = {line: results.components(line) for line in lines}
    shown = list(dict.fromkeys(part for line in lines for part in parts[line]))
    ticks = [(Column(part.symbol), [Entry("✓" if parts[line].get(part) else "") for line in lines]) for part in shown]
    meaning = [f"{', '.join(f'{part.symbol}: {part.title}' for part in shown)}."] if shown else []
    return _comparison(results, "table2", "Table 2: ablation", lines, ticks, _stated_pairs(results, "table2"), meaning)


def table3(results: Results) -> Table:
    """Fresh models retrained from saved rank distributions, beside the runs that found them."""
    study, lines = results.study, _rows_at_one_budget(results, "table3")
    ranks: list[Entry] = []
    for line in lines:
        if source := ranks_from(study, line.variant):
            what = {"none": "those of", "uniform": "uniform, size of", "shuffled": "shuffled, those of"}
            ranks.append(Entry(f"{what[source.transform]} {study.title(source.method)}"))
        else:
            found = method_of(study, line.variant).allocates
            ranks.append(Entry("grown or pruned in training" if found else "the same everywhere"))
    meaning = ["Retrained rows start anew with fixed ranks taken from the finished run of the same seed."]
    title = "Table 3: rank distributions retrained from scratch"
    extra = [(Column("Ranks", left=True), ranks)]
    return _comparison(results, "table3", title, lines, extra, _stated_pairs(results, "table3"), meaning)


def variants(results: Results) -> Table:
    """Variants of a method at one budget, each compared with the first."""
    lines = _rows_at_one_budget(results, "variants")
    pairs = {(line, lines[0]): "" for line in lines[1:]}
    return _comparison(results, "variants", "Variants of a method", lines, [], pairs, [])


def _rows_at_one_budget(results: Results, name: str) -> list[Line]:
    wanted = results.study.artefacts.comparisons[name]
    return results.lines(((row, wanted.budget) for row in wanted.rows), name_budget=False)


def _stated_pairs(results: Results, name: str) -> dict[tuple[Line, Line], str]:
    """The pairs of rows that the paper, or this package, compares, and their names among published differences."""
    _, roles = results.roles(name)
    pairs = [pair for pair in published.comparisons(name) if set(pair) <= set(roles)]
    return {(roles[first][0], roles[second][0]): f"{first} - {second}" for first, second in pairs}


def _comparison(
    results: Results,
    name: str,
    title: str,
    lines: Sequence[Line],
    extra: Sequence[tuple[Column, list[Entry]]],
    pairs: Mapping[tuple[Line, Line], str],
    meaning: list[str],
) -> Table:
    """A table of variants at one budget: their scores, then differences between them, paired by seed."""
    wanted = results.study.artefacts.comparisons[name]
    places = [(task, column) for task in wanted.tasks for column in TASKS[task].columns]
    comparable = results.not_comparable is None
    params = {line: results.mean_over_tasks("trainable", wanted.tasks, line) for line in lines}
    summaries = _summaries(results, lines, places)
    known = {(line, place): _published(results, line, place) for line in lines for place in places}
    columns = [Column("Method", left=True), *(column for column, _ in extra), Column("#Params")]
    rows = [
        [Entry(line.label), *(one[i] for _, one in extra), Entry(count(params[line]))] for i, line in enumerate(lines)
    ]
    for place in places:
        heading = _heading(place)
        group = f"{heading.group} {heading.title}"
        columns += (
            [Column(title, group) for title in ("measured", "published", "difference")] if comparable else [heading]
        )
        for row, line in zip(rows, lines, strict=True):
            summary, values = summaries[line, place], known[line, place]
            row.append(score(summary))
            if comparable:
                row += [Entry(_value(values)), Entry(fixed(_minus_published(summary, values), 2, sign=True))]
    caption = f"Study {results.study.study}: mean ± sd over seeds"
    grids = [Grid(caption, tuple(columns), tuple(map(tuple, rows)))]
    tidy = [_row(results, *at, summaries[at], known[at], params[at[0]]) for at in known]
    differences = compare(results, pairs, wanted.tasks, wanted.tasks)
    stated = {at: _stated(results, name, pairs[at[:2]], at[0], at[2]) for at in differences}
    if differences:
        grids.append(_differences(list(pairs), wanted.tasks, differences, params, stated if comparable else {}))
        tidy += [_difference_row(results, one, params, stated[one[:3]]) for one in differences.values()]
    notes = [
        *meaning,
        "± is the standard deviation over seeds (ddof 1).",
        "#Params: final count, pooler and classifier not counted, mean over the tasks shown.",
        f"Differences are paired by seed. {_RULE}"
        + (" The published differences are single numbers without spread." if comparable else ""),
    ]
    at = f"{title}, average rank {wanted.budget}"
    return _table(results, name, at, wanted.tasks, lines, grids, notes, known, tidy)


def _stated(results: Results, name: str, pair: str, line: Line, task: str) -> list[Published]:
    if task == ALL or results.not_comparable:
        return []
    return published.find(name, pair, published.RANK_LABELS.get(line.budget or 0), task, _first(task))


def _differences(
    pairs: Sequence[tuple[Line, Line]],
    tasks: Sequence[str],
    differences: dict[tuple[Line, Line, str], Difference],
    params: dict[Line, float | None],
    stated: dict[tuple[Line, Line, str], list[Published]],
) -> Grid:
    places = [*tasks, *([ALL] if len(tasks) > 1 else [])]
    columns, rows = [Column("Difference", left=True), Column("ratio", "#Params")], []
    for task in places:
        columns += _full_columns("Mean" if task == ALL else TASKS[task].title)
        columns += [Column("published", TASKS[task].title)] if stated and task != ALL else []
    for first, second in pairs:
        row = [Entry(differences[first, second, tasks[0]].title), Entry(times(_ratio(params, first, second)))]
        for task in places:
            row += _in_full(differences[first, second, task])
            row += [Entry(_value(stated[first, second, task]).replace("-", "−"))] if stated and task != ALL else []
        rows.append(tuple(row))
    return Grid("Differences between rows", tuple(columns), tuple(rows))


# ---- What they share


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


def _published(results: Results, line: Line, place: Place) -> list[Published]:
    """The published values of a cell where they may be compared; they stand nowhere else beside measured ones."""
    if results.not_comparable or not line.published_method:
        return []
    return published.find("table1", line.published_method, line.published_budget, *place)


def _value(values: Sequence[Published]) -> str:
    return values[0].value if values and values[0].value else NOTHING


def _minus_published(summary: Summary, values: Sequence[Published]) -> float | None:
    number = values[0].number if values else None
    mean = summary.estimate.mean
    return None if number is None or mean is None else mean - number


def _ratio(params: dict[Line, float | None], line: Line, reference: Line) -> float | None:
    mine, its = params[line], params[reference]
    return mine / its if mine is not None and its else None


def _row(
    results: Results, line: Line, place: Place, summary: Summary, values: Sequence[Published], params: float | None
) -> dict[str, Any]:
    """One row of the tidy CSV."""
    estimate = summary.estimate
    low, high = estimate.interval() or (None, None)
    value = values[0].value if values else ""
    return {
        **{"row": line.label, "method": line.variant, "budget": line.budget, "params_mean": params},
        **{"task": place[0], "column": place[1], "mean": estimate.mean, "sd": estimate.sd},
        **{"ci_low": low, "ci_high": high, "seeds": estimate.n, "seeds_expected": summary.expected},
        "published": value or None,
        "published_source": values[0].source if value else None,
        "minus_published": _minus_published(summary, values),
        "status": summary.status,
        "collapsed": len(summary.collapsed),
        "diverged": len(summary.diverged),
        "note": "; ".join(summary.remarks()) or None,
    }


def _difference_row(
    results: Results, one: Difference, params: dict[Line, float | None], values: Sequence[Published]
) -> dict[str, Any]:
    low, high = one.tested.interval or (None, None)
    return _row(results, one.first, (one.task, "difference"), one.summary, values, params[one.first]) | {
        **{"row": one.title, "method": f"{one.first.variant} - {one.second.variant}"},
        **{"params_ratio": _ratio(params, one.first, one.second), "p": one.summary.estimate.p},
        **{"p_corrected": one.tested.p, "corrected_low": low, "corrected_high": high, "visible": one.tested.visible},
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
    if results.not_comparable and any(row.artefact == name for row in published.load()):
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


MADE_BY: dict[str, Callable[[Results], Table]] = {
    **{"table1": table1, "table2": table2, "table3": table3, "variants": variants, "headroom": extra_tables.headroom},
    **{"claims": claims.table, "selection": extra_tables.selection, "checkpoints": extra_tables.checkpoints},
    "cost": extra_tables.cost,
}
"""Every table by name."""

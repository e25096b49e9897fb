"""Tables 1-3 of the paper, those of variants at one budget and of scores over budgets, and which tables a study has.

Each table is written as CSV (tidy: one row per number), Markdown and LaTeX. Scores are mean ± sd over seeds; "All" is
the mean over the tasks that the paper averages, each with the mean of its columns. Differences between rows are paired
by seed, and the p-values of a table are corrected together (`increlora.report.statistics`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from increlora.errors import unknown
from increlora.glue.tasks import TASKS
from increlora.methods.registry import REFERENCE
from increlora.report import claims, extra_tables, published, render
from increlora.report.published import ALL, Published
from increlora.report.render import NOTHING, Column, Entry, Panel, Table, between, count, fixed, probability, times
from increlora.report.results import DECIMALS as RUN_DECIMALS
from increlora.report.results import (
    Line,
    Results,
    Summary,
    about,
    averaged,
    hindsight,
    legend,
    method_notes,
    reference_of,
    rule_note,
    score,
    tiers,
    what_happened,
)
from increlora.report.statistics import Tested, holm
from increlora.study import jobs
from increlora.study.cells import method_of, ranks_from
from increlora.study.config import Comparison

COLUMNS = (
    "row method budget params_mean params_ratio task column mean sd ci_low ci_high p p_corrected corrected_low "
    "corrected_high visible seeds seeds_expected published published_source minus_published status collapsed diverged "
    "note"
).split()
DECIMALS = {"params_mean": 1, "p": 6, "p_corrected": 6} | dict.fromkeys(
    "params_ratio mean sd ci_low ci_high corrected_low corrected_high visible minus_published".split(), 4
)
_RULE = (
    "Intervals and p are corrected for all differences in this table (Holm; tasks that are not in the paper are a "
    "family of their own); bold ones exclude 0 (p at most 0.05). Visible from: the smallest true difference that this "
    "many seeds with this spread would show, so corrected, with 80 % power."
)

Place = tuple[str, str]
"""Task and column; `ALL` and "All" for the mean over tasks."""


def build(results: Results, out_dir: str | Path) -> list[Path]:
    """Writes the tidy frame, ``<study>_runs.csv``, and every table that the study has; returns the files."""
    out = Path(out_dir)
    runs = render.write_csv(results.frame, out / f"{results.study.study}_runs.csv", RUN_DECIMALS)
    return [runs, *(path for table in tables(results) for path in table.write(out))]


def tables(results: Results) -> Iterator[Table]:
    """The study's tables."""
    for name in jobs.tables(results.study):
        yield MADE_BY[name](results)


def show(results: Results, which: str | None = None, *, width: int = 120, bold: bool = False) -> str:
    """The study's tables as text for a terminal.

    Args:
        results: the study with its records.
        which: name of a table, such as `table1` or `cost`; None for all that the study has.
        width: columns of the terminal.
        bold: mark bold entries with ANSI codes.

    Raises:
        ConfigError: the study has no table of that name.
    """
    names = list(jobs.tables(results.study))
    if which is not None and which not in names:
        raise unknown("--only", which, names)
    return "\n".join(render.terminal(MADE_BY[name](results), width, bold) for name in names if which in (None, name))


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

    @property
    def is_in_favour(self) -> bool:
        """Whether the first row is better, after correction."""
        better = 1 if self.task == ALL or TASKS[self.task].higher_is_better else -1
        return self.tested.sign == better

    def in_full(self) -> list[Entry]:
        """Entries for `_full_columns`."""
        tested = self.tested
        interval = Entry(between(tested.interval, 2), bold=tested.sign != 0)
        p, visible = Entry(probability(tested.p)), Entry(fixed(tested.visible, 2))
        return [score(self.summary, sign=True), interval, p, visible]


def _full_columns(group: str) -> list[Column]:
    return [Column(title, group) for title in ("difference", "interval", "p", "visible from")]


class _Scores:
    """What a table of rows by tasks shows: scores, parameters, published values, differences between rows.

    Args:
        results: the study with its records.
        name: of the table.
        lines: its rows.
        tasks: of its columns.
        mean_over: tasks of the column "All"; without it where there are fewer than two.
    """

    def __init__(
        self, results: Results, name: str, lines: Sequence[Line], tasks: Sequence[str], mean_over: Sequence[str] = ()
    ):
        self.results, self.name, self.lines, self.tasks = results, name, lines, tasks
        self.params = {line: results.mean_over_tasks("trainable", tasks, line) for line in lines}
        self.places: list[Place] = [(task, column) for task in tasks for column in TASKS[task].columns]
        scores = results.scores
        self.summaries = {
            (line, place): scores.column(line.on(place[0]), place[1]) for line in lines for place in self.places
        }
        if len(mean_over) > 1:
            self.places.append((ALL, "All"))
            overall = {line: scores.over_tasks([line.on(task) for task in mean_over]) for line in lines}
            self.summaries |= {(line, self.places[-1]): overall[line] for line in lines}
        is_whole = set(mean_over) == set(averaged(TASKS))
        self.known = {
            (line, place): self._published(line, place) if place[0] != ALL or is_whole else []
            for line in lines
            for place in self.places
        }

    def _published(self, line: Line, place: Place) -> list[Published]:
        """The published values of a cell, where they may be compared with measured ones."""
        if self.results.not_comparable or not line.published_method:
            return []
        return published.find("table1", line.published_method, _label(line), *place)

    def minus_published(self, line: Line, place: Place) -> Entry:
        return Entry(fixed(_minus(self.summaries[line, place], self.known[line, place]), 2, sign=True))

    def ratio(self, first: Line, second: Line) -> float | None:
        """Trained parameters of one row, divided by those of another."""
        mine, its = self.params[first], self.params[second]
        return mine / its if mine is not None and its else None

    def differences(
        self, pairs: Iterable[tuple[Line, Line]], mean_over: Sequence[str]
    ) -> dict[tuple[Line, Line, str], Difference]:
        """Differences of pairs of rows on every task and, with `ALL`, in the mean over some of them.

        P-values are corrected together, those of the paper's tasks apart from those of others, so that a further task
        changes no other number.
        """
        groups = {task: [task] for task in self.tasks} | ({ALL: list(mean_over)} if len(mean_over) > 1 else {})
        subtract = self.results.scores.difference
        found = {
            (first, second, task): subtract([first.on(t) for t in members], [second.on(t) for t in members])
            for first, second in pairs
            for task, members in groups.items()
        }
        tested: dict[tuple[Line, Line, str], Tested] = {}
        for of_the_paper in (True, False):
            family = [at for at in found if (at[2] == ALL or TASKS[at[2]].in_all) is of_the_paper]
            tested |= zip(family, holm([found[at].estimate for at in family]), strict=True)
        return {at: Difference(*at, summary, tested[at]) for at, summary in found.items()}

    def row(self, line: Line, place: Place, summary: Summary, values: Sequence[Published]) -> dict[str, Any]:
        """One row of the tidy CSV."""
        estimate = summary.estimate
        low, high = estimate.interval() or (None, None)
        value = values[0].value if values else ""
        return {
            "row": line.label,
            "method": line.variant,
            "budget": line.budget,
            "params_mean": self.params[line],
            "task": place[0],
            "column": place[1],
            "mean": estimate.mean,
            "sd": estimate.sd,
            "ci_low": low,
            "ci_high": high,
            "seeds": estimate.n,
            "seeds_expected": summary.expected,
            "published": value or None,
            "published_source": values[0].source if value else None,
            "minus_published": _minus(summary, values),
            "status": summary.status,
            "collapsed": len(summary.collapsed),
            "diverged": len(summary.diverged),
            "note": "; ".join(summary.remarks()) or None,
        }

    def difference_row(self, one: Difference, values: Sequence[Published]) -> dict[str, Any]:
        low, high = one.tested.interval or (None, None)
        return self.row(one.first, (one.task, "difference"), one.summary, values) | {
            "row": one.title,
            "method": f"{one.first.variant} - {one.second.variant}",
            "params_ratio": self.ratio(one.first, one.second),
            "p": one.summary.estimate.p,
            "p_corrected": one.tested.p,
            "corrected_low": low,
            "corrected_high": high,
            "visible": one.tested.visible,
        }

    def table(
        self,
        title: str,
        panels: Sequence[Panel],
        meaning: Sequence[str],
        differences: Iterable[tuple[Difference, Sequence[Published]]],
    ) -> Table:
        """The whole table, from its panels, notes on what they mean, and differences with their published values."""
        results, used = self.results, [values for values in self.known.values() if values]
        origin = []
        if results.not_comparable and any(row.artefact == self.name for row in published.load()):
            origin = [f"Published values are in published.md: {results.not_comparable}, so they are not comparable."]
        elif used:
            sources = "; ".join(dict.fromkeys(values[0].source for values in used))
            origin = [f"Published values are those of {published.TITLE} on GLUE ({sources}); {NOTHING}: not known."]
        runs = [
            (line.label, task, results.scores.column(line.on(task), _first(task)))
            for line in self.lines
            for task in self.tasks
        ]
        notes = [about(results), rule_note(results.study), *method_notes(results, self.lines), *filter(None, meaning)]
        notes += [*hindsight(results, self.lines, self.tasks), *origin, *what_happened(runs), *legend(panels)]
        rows = [self.row(*at, self.summaries[at], values) for at, values in self.known.items()]
        rows += [self.difference_row(one, values) for one, values in differences]
        tidy = pd.DataFrame(rows, columns=COLUMNS).astype({"budget": "Int64"})
        return Table(f"{results.study.study}_{self.name}", title, tuple(panels), tuple(notes), tidy, DECIMALS)


def _first(task: str) -> str:
    """First column of a task: runs that go wrong do so in all of its columns."""
    return next(iter(TASKS[task].columns))


def _heading(place: Place) -> Column:
    task, column = place
    return Column("All") if task == ALL else Column(column, TASKS[task].title)


def _label(line: Line) -> str | None:
    """The papers' label of the row's budget."""
    return published.budget_label(line.published_method, line.budget)


def _value(values: Sequence[Published]) -> str:
    return values[0].value if values and values[0].value else NOTHING


def _minus(summary: Summary, values: Sequence[Published]) -> float | None:
    """Measured minus published."""
    number, mean = values[0].number if values else None, summary.estimate.mean
    return None if number is None or mean is None else mean - number


# ---- Table 1


def table1(results: Results) -> Table:
    """Comparison of methods over the tasks, and of each with the reference at the same budget."""
    tasks, lines = results.main_lines()
    in_all = averaged(tasks)
    has_all, is_whole = len(in_all) > 1, set(in_all) == set(averaged(TASKS))
    scores = _Scores(results, "table1", lines, tasks, in_all)
    references = {line: reference for line in lines if (reference := reference_of(lines, line)) != line}
    pairs = [(line, reference) for line, reference in references.items() if reference]
    differences = scores.differences(pairs, in_all)
    headings = (Column("Method", left=True), Column("#Params"), *map(_heading, scores.places))

    def panel(caption: str, size: Callable[[Line], str], entry: Callable[[Line, Place], Entry]) -> Panel:
        rows = [
            (Entry(line.label), Entry(size(line)), *(entry(line, place) for place in scores.places)) for line in lines
        ]
        return Panel(caption, headings, tuple(rows), tiers(lines))

    def measured(line: Line, place: Place) -> Entry:
        reference = references.get(line)
        is_better = reference is not None and differences[line, reference, place[0]].is_in_favour
        return score(scores.summaries[line, place], bold=is_better)

    def printed_size(line: Line) -> str:
        return published.printed_params(line.published_method, _label(line)) or NOTHING

    caption = f"Study {results.study.study}: measured, mean ± sd over seeds"
    panels = [panel(caption, lambda line: count(scores.params[line]), measured)]
    if pairs:
        panels.append(_to_reference(scores, pairs, differences, has_all))
    if any(scores.known.values()):
        caption = f"Published ({published.TITLE}, GLUE development sets)"
        panels.append(panel(caption, printed_size, lambda *at: Entry(_value(scores.known[at]))))
        panels.append(panel("Measured − published", printed_size, scores.minus_published))
    titles = ", ".join(TASKS[task].title for task in in_all)
    of_all = "the eight tasks" if is_whole else f"{titles} (the paper's is over eight)"
    several = [TASKS[task] for task in in_all if len(TASKS[task].columns) > 1]
    means = " and ".join(f"{task.title} as mean({', '.join(task.columns)})" for task in several)
    notes = [
        "± is the standard deviation over seeds (ddof 1); the CSV has 95 % intervals, Student-t over seeds and for All "
        "with Satterthwaite's degrees of freedom.",
        "#Params: trained parameters, pooler and classifier not counted (a method that trains all weights counts "
        "them too), final count, mean over tasks.",
        f"All: mean over {of_all}{', ' if means else ''}{means}." if has_all else "",
        f"Differences to {REFERENCE.title} are paired by seed, at the same budget (methods without a budget: at the "
        f"largest one), on each task's number. Bold scores are better than {REFERENCE.title}'s, so corrected. {_RULE}"
        if pairs
        else "",
    ]
    return scores.table("Table 1: comparison of methods", panels, notes, ((one, []) for one in differences.values()))


def _to_reference(
    scores: _Scores,
    pairs: Sequence[tuple[Line, Line]],
    differences: Mapping[tuple[Line, Line, str], Difference],
    has_all: bool,
) -> Panel:
    """Each row minus the reference: the difference on every task, in full in the mean over tasks."""
    brief, last = (scores.tasks, ALL) if has_all else (scores.tasks[:-1], scores.tasks[-1])
    columns = [Column("Method", left=True), Column(f"to {REFERENCE.title}", "#Params")]
    columns += [Column("difference", TASKS[task].title) for task in brief]
    columns += _full_columns("All" if has_all else TASKS[last].title)
    rows = []
    for pair in pairs:
        row = [Entry(pair[0].label), Entry(times(scores.ratio(*pair)))]
        for one in (differences[*pair, task] for task in brief):
            row.append(score(one.summary, bold=one.tested.sign != 0, sign=True))
        rows.append((*row, *differences[*pair, last].in_full()))
    caption = f"Difference to {REFERENCE.title} at the same budget, paired by seed"
    return Panel(caption, tuple(columns), tuple(rows), tiers([line for line, _ in pairs]))


# ---- Tables 2 and 3, and variants


def table2(results: Results) -> Table:
    """Ablation of a method's components."""
    wanted, lines = _at_one_budget(results, "table2")
    parts = {line: results.components(line) for line in lines}
    shown = list(dict.fromkeys(part for line in lines for part in parts[line]))
    ticks = [(Column(part.symbol), [Entry("✓" if parts[line].get(part) else "") for line in lines]) for part in shown]
    meaning = [f"{', '.join(f'{part.symbol}: {part.title}' for part in shown)}."] if shown else []
    title = f"Table 2: ablation, average rank {wanted.budget}"
    pairs = _stated_pairs(results, "table2")
    return _comparison(results, "table2", title, wanted.tasks, lines, ticks, pairs, meaning)


def table3(results: Results) -> Table:
    """Fresh models retrained from saved rank distributions, beside the runs that found them."""
    study, (wanted, lines) = results.study, _at_one_budget(results, "table3")
    ranks: list[Entry] = []
    for line in lines:
        if source := ranks_from(study, line.variant):
            what = {"none": "those of", "uniform": "uniform, size of", "shuffled": "shuffled, those of"}
            ranks.append(Entry(f"{what[source.transform]} {study.title(source.method)}"))
        else:
            found = method_of(study, line.variant).allocates
            ranks.append(Entry("grown or pruned in training" if found else "the same everywhere"))
    meaning = ["Retrained rows start anew with fixed ranks taken from the finished run of the same seed."]
    title = f"Table 3: rank distributions retrained from scratch, average rank {wanted.budget}"
    extra = [(Column("Ranks", left=True), ranks)]
    return _comparison(results, "table3", title, wanted.tasks, lines, extra, _stated_pairs(results, "table3"), meaning)


def variants(results: Results) -> Table:
    """Variants of a method at one budget, each compared with the first."""
    wanted, lines = _at_one_budget(results, "variants")
    pairs = {(line, lines[0]): "" for line in lines[1:]}
    title = f"Variants of a method, average rank {wanted.budget}"
    return _comparison(results, "variants", title, wanted.tasks, lines, [], pairs, [])


def budgets(results: Results) -> Table:
    """Figure 4 in numbers: each method minus the reference at its budget, and its largest budget minus its smallest."""
    wanted = results.study.artefacts.chosen.figure4
    assert wanted is not None
    lines = results.lines(product(wanted.methods, sorted(wanted.budgets)))
    beside = [(line, other) for line in lines if (other := reference_of(lines, line)) not in (None, line)]
    ends = [[line for line in lines if line.variant == method] for method in wanted.methods]
    pairs = dict.fromkeys([*beside, *((own[-1], own[0]) for own in ends if len(own) > 1)], "")
    return _comparison(results, "budgets", "Scores over budgets", wanted.tasks, lines, [], pairs, [])


def _at_one_budget(results: Results, name: str) -> tuple[Comparison, list[Line]]:
    """What a table of variants at one budget is to show, and its rows."""
    wanted = results.study.artefacts.comparisons[name]
    return wanted, results.lines(((row, wanted.budget) for row in wanted.rows), name_budget=False)


def _stated_pairs(results: Results, name: str) -> dict[tuple[Line, Line], str]:
    """The pairs of rows that the paper, or this package, compares, and their names among published differences."""
    _, roles = results.roles(name)
    pairs = [pair for pair in published.comparisons(name) if set(pair) <= set(roles)]
    return {(roles[first][0], roles[second][0]): f"{first} - {second}" for first, second in pairs}


def _comparison(
    results: Results,
    name: str,
    title: str,
    tasks: Sequence[str],
    lines: Sequence[Line],
    extra: Sequence[tuple[Column, list[Entry]]],
    pairs: Mapping[tuple[Line, Line], str],
    meaning: list[str],
) -> Table:
    """A table of variants: their scores, then differences between them, paired by seed."""
    is_comparable = results.not_comparable is None
    scores = _Scores(results, name, lines, tasks)
    columns = [Column("Method", left=True), *(column for column, _ in extra), Column("#Params")]
    rows = [
        [Entry(line.label), *(one[i] for _, one in extra), Entry(count(scores.params[line]))]
        for i, line in enumerate(lines)
    ]
    for place in scores.places:
        heading = _heading(place)
        group = f"{heading.group} {heading.title}"
        three = [Column(title, group) for title in ("measured", "published", "difference")]
        columns += three if is_comparable else [heading]
        for row, line in zip(rows, lines, strict=True):
            row.append(score(scores.summaries[line, place]))
            if is_comparable:
                row += [Entry(_value(scores.known[line, place])), scores.minus_published(line, place)]
    panels = [Panel(f"Study {results.study.study}: mean ± sd over seeds", tuple(columns), tuple(map(tuple, rows)))]
    differences = scores.differences(pairs, tasks)
    stated = {at: _stated(results, name, pairs[at[:2]], at[0], at[2]) for at in differences}
    if differences:
        panels.append(_differences(scores, list(pairs), differences, stated if is_comparable else {}))
    notes = [
        *meaning,
        "± is the standard deviation over seeds (ddof 1).",
        "#Params: final count, pooler and classifier not counted, mean over the tasks shown.",
        f"Differences are paired by seed. {_RULE}"
        + (" The published differences are single numbers without spread." if is_comparable else ""),
    ]
    with_published = ((one, stated[at]) for at, one in differences.items())
    return scores.table(title, panels, notes, with_published)


def _stated(results: Results, name: str, pair: str, line: Line, task: str) -> list[Published]:
    if task == ALL or results.not_comparable:
        return []
    return published.find(name, pair, published.budget_label(REFERENCE.kind, line.budget), task, _first(task))


def _differences(
    scores: _Scores,
    pairs: Sequence[tuple[Line, Line]],
    differences: Mapping[tuple[Line, Line, str], Difference],
    stated: Mapping[tuple[Line, Line, str], list[Published]],
) -> Panel:
    """Each pair's difference in full, on every task and in the mean over them, with the published ones if any."""
    places = [*scores.tasks, *([ALL] if len(scores.tasks) > 1 else [])]
    columns, rows = [Column("Difference", left=True), Column("ratio", "#Params")], []
    for task in places:
        columns += _full_columns("Mean" if task == ALL else TASKS[task].title)
        columns += [Column("published", TASKS[task].title)] if stated and task != ALL else []
    for pair in pairs:
        row = [Entry(differences[*pair, places[0]].title), Entry(times(scores.ratio(*pair)))]
        for task in places:
            row += differences[*pair, task].in_full()
            row += [Entry(_value(stated[*pair, task]).replace("-", "−"))] if stated and task != ALL else []
        rows.append(tuple(row))
    return Panel("Differences between rows", tuple(columns), tuple(rows))


MADE_BY: dict[str, Callable[[Results], Table]] = {
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "variants": variants,
    "budgets": budgets,
    "claims": claims.table,
    "headroom": extra_tables.headroom,
    "selection": extra_tables.selection,
    "checkpoints": extra_tables.checkpoints,
    "cost": extra_tables.cost,
}
"""The function that makes each table."""

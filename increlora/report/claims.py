"""The paper's claims, each tested on a study's records: supported, contradicted, or not visible in this study.

A claim is a row of `claims.csv`: a quantity of two rows of an artefact (or of one), and which way the paper says that
their difference goes. Every difference is paired by seed and averaged over the artefact's tasks. Rows of the artefact
`variants` are open questions, on which the paper takes no side.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from increlora.errors import unknown
from increlora.glue.tasks import TASKS
from increlora.methods.families import locate
from increlora.report import published
from increlora.report.render import NOTHING, Column, Entry, Panel, Table, between, fixed, probability
from increlora.report.results import Line, Results, about, averaged, rule_note
from increlora.report.statistics import ALPHA, Estimate, Tested, gini, holm, over_tasks, paired
from increlora.study.cells import Cell, method_of
from increlora.training.record import Allocation

COLUMNS = (
    "name claim where place unit sign estimate ci_low ci_high p p_corrected corrected_low corrected_high visible runs "
    "seeds paper paper_effect verdict detail"
).split()
DECIMALS = dict.fromkeys(
    "estimate ci_low ci_high corrected_low corrected_high visible paper_effect p p_corrected".split(), 6
)
PLACES = {"points": 2, "mean norm": 3, "Gini": 3, "ranks": 2, "%": 1}
"""Printed decimals by unit."""
FAVOURED = ("W_v", "W_o", "W_f1")
_OPEN = "variants"


class Claim(NamedTuple):
    """A claim of the paper, or an open question.

    Attributes:
        name: of the claim, as `artefacts.claims` gives it.
        claim: in words.
        where: artefact whose rows and tasks it is about.
        quantity: key of `QUANTITIES`.
        first, second: rows of the artefact by `Results.roles`; without a second the first is compared with 0. Only the
            lowest budget of the first counts, and the claim has to hold against every budget of the second.
        sign: 1 where the paper says that the first is higher, -1 lower, 0 where it takes no side.
        margin: by how much the quantity may exceed 0, for a claim that it does not; None for all others.
        unit: of the quantity.
        published_in, published_as: artefact and name (with ``: column`` where two share it) of the published values.
    """

    name: str
    claim: str
    where: str
    quantity: str
    first: str
    second: str
    sign: int
    margin: float | None
    unit: str
    published_in: str
    published_as: str


class Finding(NamedTuple):
    """What a study says about a claim."""

    claim: Claim
    place: str
    """Tasks and budget."""
    tested: Tested
    runs: int
    paper: str
    """The paper's values as printed; empty where it has none."""
    effect: float | None
    """Mean of the paper's numbers on the tasks of the claim, or of all where it has none on them."""
    verdict: str
    detail: str


@cache
def load() -> tuple[Claim, ...]:
    """Every claim of the paper."""
    text = resources.files(__package__).joinpath("claims.csv").read_text(encoding="utf-8")
    return tuple(map(_claim, csv.DictReader(text.splitlines())))


def _claim(row: dict[str, Any]) -> Claim:
    return Claim(**{**row, "sign": int(row["sign"]), "margin": float(row["margin"]) if row["margin"] else None})


# ---- Quantities: a number for each seed of a cell


def _of_ranks(function: Callable[[Allocation], float | None]) -> Callable[[Results, Cell], dict[int, float]]:
    def by_seed(results: Results, cell: Cell) -> dict[int, float]:
        found = {seed: function(one) for seed, one in results.allocations(cell).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    return by_seed


def _norm_at_the_end(allocation: Allocation) -> float | None:
    points = allocation.orthogonality
    return points[-1].norm if points else None


def _norm_with_reserve(allocation: Allocation) -> float | None:
    """The last one before growth ended: after it there is no reserve."""
    end = max((event.step for event in allocation.events), default=0)
    points = [point for point in allocation.orthogonality if point.step < end]
    return points[-1].norm_with_reserve if points else None


def _favoured_minus_others(allocation: Allocation) -> float | None:
    """Mean rank of the matrices that the paper names, minus that of the others."""
    placed = [(place.matrix in FAVOURED, rank) for name, rank in allocation.ranks.items() if (place := locate(name))]
    groups = [[rank for favoured, rank in placed if favoured is which] for which in (True, False)]
    return float(np.mean(groups[0]) - np.mean(groups[1])) if all(groups) else None


def _over_formula(results: Results, cell: Cell) -> dict[int, float]:
    """By how much the parameters that train at once and two moments of each exceed the paper's formula, in percent."""
    paper, per_rank = method_of(results.study, cell.variant).paper_memory, results.numbers_per_rank
    if paper is None or per_rank is None or cell.budget is None:
        return {}
    runs = results.select([cell.task], cell.variant, cell.budget)
    excess = 100 * (3 * runs["peak_trainable"].astype(float) / paper.numbers(per_rank, cell.budget) - 1)
    return dict(zip(runs["seed"], excess, strict=True))


QUANTITIES: dict[str, Callable[[Results, Cell], dict[int, float]]] = {
    "score": lambda results, cell: results.scores.by_seed(cell),
    "norm": _of_ranks(_norm_at_the_end),
    "norm with reserve": _of_ranks(_norm_with_reserve),
    "concentration": _of_ranks(lambda allocation: gini(allocation.ranks.values())),
    "favour": _of_ranks(_favoured_minus_others),
    "excess over formula": _over_formula,
}


# ---- Findings


class _Contrast(NamedTuple):
    claim: Claim
    tasks: Sequence[str]
    place: str
    estimate: Estimate
    times: int
    """Of how many differences this one was picked as the worst for the claim."""
    runs: int


def findings(results: Results) -> tuple[list[Finding], list[Claim]]:
    """What the study says about each claim that it was asked about, and those whose rows it lacks.

    Raises:
        ConfigError: there is no claim of a name that the config gives.
    """
    wanted = results.study.artefacts.chosen.claims
    names = [claim.name for claim in load()] + [_OPEN]
    chosen = names if wanted is True or wanted is None else wanted
    for name in chosen:
        if name not in names:
            raise unknown("artefacts.claims", name, names)
    asked = [claim for claim in load() if claim.name in chosen]
    answers = {claim: _contrast(results, claim, *results.roles(claim.where)) for claim in asked}
    contrasts = [contrast for contrast in answers.values() if contrast]
    if _OPEN in chosen:
        contrasts += _open_questions(results)
    tested = holm(
        [Estimate(0) if one.claim.margin else one.estimate for one in contrasts], [one.times for one in contrasts]
    )
    return [_finding(one, replace(test, estimate=one.estimate)) for one, test in zip(contrasts, tested, strict=True)], [
        claim for claim in asked if not answers[claim]
    ]


def _contrast(results: Results, claim: Claim, tasks: Sequence[str], roles: dict[str, list[Line]]) -> _Contrast | None:
    firsts, seconds = roles.get(claim.first), roles.get(claim.second)
    if not firsts or (claim.second and not seconds):
        return None
    in_all = averaged(tasks) if claim.where == "table1" else []
    members = in_all or list(tasks)
    first = firsts[0]
    quantity = QUANTITIES[claim.quantity]
    values = {line: [quantity(results, line.on(task)) for task in members] for line in (first, *(seconds or ()))}
    estimate, times = over_tasks(values[first]), 1
    if seconds:
        pairs = [[paired(*both) for both in zip(values[first], values[line], strict=True)] for line in seconds]
        differences = [over_tasks(one) for one in pairs]
        estimate = min(differences, key=lambda one: _favour_of_claim(one, claim.sign))
        if _favour_of_claim(estimate, claim.sign) < 0:  # the worst of several: picked to contradict the claim
            times = len(differences)
    unit = method_of(results.study, first.variant).budget
    where = "All" if len(in_all) > 1 else ", ".join(TASKS[task].title for task in members)
    place = f"{where}; {unit.symbol} = {first.budget}" if unit else where
    runs = sum(len(by_seed) for found in values.values() for by_seed in found)
    return _Contrast(claim, members, place, estimate, times, runs)


def _favour_of_claim(estimate: Estimate, sign: int) -> float:
    """How far, in standard errors, a difference goes the claim's way."""
    if estimate.mean is None:
        return 0.0
    return (sign or 1) * (estimate.mean / estimate.error if estimate.error else estimate.mean)


def _open_questions(results: Results) -> list[_Contrast]:
    wanted = results.study.artefacts.chosen.variants
    if wanted is None:
        return []
    base, *others = results.lines(((row, wanted.budget) for row in wanted.rows), name_budget=False)
    found = []
    for line in others:
        text = f"Open: {line.label}, against {base.label}"
        claim = Claim(line.variant, text, _OPEN, "score", "first", "second", 0, None, "points", "", "")
        contrast = _contrast(results, claim, wanted.tasks, {"first": [line], "second": [base]})
        assert contrast is not None
        found.append(contrast)
    return found


def _finding(contrast: _Contrast, tested: Tested) -> Finding:
    claim = contrast.claim
    values = _published(claim)
    numbers = [row for row in values if row.number is not None]
    numbers = [row for row in numbers if row.task in contrast.tasks] or numbers
    effect = float(np.mean([row.number for row in numbers])) if numbers else None
    others = [TASKS[row.task].title for row in numbers if row.task in TASKS and row.task not in contrast.tasks]
    printed = {row: row.value.replace("-", "−") for row in values}
    paper = ", ".join(
        f"{text} ({TASKS[row.task].title})" if row.task in TASKS else text for row, text in printed.items()
    )
    verdict = _bound(claim, tested) if claim.margin else _direction(claim, tested, effect, others)
    return Finding(claim, contrast.place, tested, contrast.runs, paper, effect, *verdict)


def _published(claim: Claim) -> list[published.Published]:
    name, _, column = claim.published_as.partition(": ")
    rows = [row for row in published.load() if (row.artefact, row.method) == (claim.published_in, name)]
    return [row for row in rows if row.kind != "unpublished" and (not column or row.column == column)]


NOT_VISIBLE = "not visible in this study"


def _direction(claim: Claim, tested: Tested, effect: float | None, others: Sequence[str]) -> tuple[str, str]:
    places = PLACES[claim.unit]
    if tested.estimate.mean is None:
        return "no records", ""
    if tested.visible is None:
        return NOT_VISIBLE, "there is no spread over seeds to hold the difference against"
    if tested.sign and not claim.sign:
        return ("higher" if tested.sign > 0 else "lower"), ""
    if tested.sign:
        return ("supported" if tested.sign == claim.sign else "contradicted"), ""
    visible = fixed(tested.visible, places)
    if effect is None:
        return NOT_VISIBLE, f"a difference of {visible} or more would have shown"
    stated = fixed(abs(effect), places) + (f" on {', '.join(others)}" if others else "")
    if tested.visible > abs(effect):
        return NOT_VISIBLE, f"it could not have seen the paper's {stated}, only {visible} or more"
    return NOT_VISIBLE, f"a difference as large as the paper's {stated} would have shown"


def _bound(claim: Claim, tested: Tested) -> tuple[str, str]:
    interval, margin = tested.estimate.interval(), claim.margin or 0.0
    if tested.estimate.mean is None:
        return "no records", ""
    if interval is None:
        return NOT_VISIBLE, "there is no spread over seeds to hold the number against"
    if interval[1] <= margin:
        return "supported", ""
    if interval[0] > margin:
        return "contradicted", f"it is more than {margin:g} {claim.unit} above"
    return NOT_VISIBLE, f"the interval reaches beyond {margin:g} {claim.unit}"


# ---- Table

_RULES = (
    "Estimates are differences paired by seed, averaged over tasks, first minus second as the claim names them "
    f"(orthogonality: without minus with; {', '.join(FAVOURED)}: their mean rank minus that of the others). Against "
    "every budget: at the budget that favours the claim least; if it contradicts the claim, p times their number.",
    f"Supported: p, corrected for all lines (Holm), is at most {ALPHA:g} and the difference has the sign that is "
    "claimed; contradicted: it has the other one. Intervals are corrected like p. Not visible: no difference was "
    "detected, which does not show that there is none; visible from is the smallest true difference that this many "
    "seeds with this spread would show with 80 % power. The paper's number is the mean of those that it states on the "
    "tasks of the line, or where it states none there, on the tasks that are named.",
    "3m(r+1): supported where the 95 % interval of the excess ends below 10 %. It counts the parameters that train, as "
    "the paper does; what an implementation stores beside them is in the table of costs.",
    "Lines that begin with Open are no claims of the paper; a positive estimate favours the one that is named first.",
)


def table(results: Results) -> Table:
    """Every claim with its estimate, interval, corrected p, runs, smallest visible difference, and verdict."""
    found, lacking = findings(results)
    columns = [Column("Claim", left=True), Column("Where", left=True)]
    columns += [Column(name) for name in ("Estimate", "Interval", "p", "Runs", "Visible from", "Unit")]
    columns += [Column("Paper", left=True), Column("Verdict", left=True)]
    entries, rows = [], []
    for one in found:
        claim, tested, places = one.claim, one.tested, PLACES[one.claim.unit]
        estimate = tested.estimate
        verdict = f"{one.verdict}: {one.detail}" if one.detail else one.verdict
        texts = [claim.claim, one.place, fixed(estimate.mean, places, sign=True), between(tested.interval, places)]
        texts += [probability(tested.p), str(one.runs), fixed(None if claim.margin else tested.visible, places)]
        texts += [claim.unit, one.paper or NOTHING]
        entries.append((*map(Entry, texts), Entry(verdict, bold=one.verdict not in (NOT_VISIBLE, "no records"))))
        low, high = estimate.interval() or (None, None)
        corrected_low, corrected_high = tested.interval or (None, None)
        rows.append(
            {"name": claim.name, "claim": claim.claim, "where": claim.where, "place": one.place, "unit": claim.unit}
            | {"sign": claim.sign, "estimate": estimate.mean, "ci_low": low, "ci_high": high}
            | {"p": None if claim.margin else estimate.p}
            | {"p_corrected": tested.p, "corrected_low": corrected_low, "corrected_high": corrected_high}
            | {"visible": None if claim.margin else tested.visible, "runs": one.runs, "seeds": estimate.n}
            | {"paper": one.paper or None, "paper_effect": one.effect, "verdict": one.verdict}
            | {"detail": one.detail or None}
        )
    study = results.study.study
    verdicts = Counter(one.verdict for one in found)
    left_out = "; ".join(claim.claim for claim in lacking)
    notes = [
        f"{', '.join(f'{number} {verdict}' for verdict, number in verdicts.items())}.",
        about(results),
        rule_note(results.study),
        *_RULES,
        f"The paper's numbers are {published.TITLE} on GLUE"
        + (f"; here {results.not_comparable}" if results.not_comparable else "")
        + ". A verdict is one about the method in this study's setting.",
        *([f"Left out, as the study has no rows for them: {left_out}."] if left_out else []),
    ]
    panel = Panel(f"Study {study}", tuple(columns), tuple(entries))
    tidy = pd.DataFrame(rows, columns=COLUMNS)
    return Table(f"{study}_claims", "Claims of the paper", (panel,), tuple(notes), tidy, DECIMALS)

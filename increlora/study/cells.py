"""From a study's artefacts to its cells: which task, variant and budget each table and figure shows.

Cells are unique over artefacts, so a run that two tables need is trained once. A cell has one run per seed; their
settings are the subject of `increlora.study.settings`.
"""

from __future__ import annotations

from typing import NamedTuple

from increlora.errors import unknown
from increlora.methods.registry import Method, get_method
from increlora.study.config import Artefacts, Study, Variant
from increlora.training.settings import RanksFrom, budget_label


class Cell(NamedTuple):
    """One task, variant and budget."""

    task: str
    variant: str
    budget: int | None

    @property
    def label(self) -> str:
        return f"{self.task}/{self.variant}/{budget_label(self.budget)}"


def lineage(study: Study, name: str) -> dict[str, Variant]:
    """A variant and those that it extends, by name, the most basic first.

    Raises:
        ConfigError: there is no such variant.
    """
    if name not in study.methods:
        raise unknown("method", name, study.methods)
    variant = study.methods[name]
    older = lineage(study, variant.extends) if variant.extends else {}
    return {**older, name: variant}


def kind_of(study: Study, name: str) -> str:
    """Registry name of a variant's method: its own `kind`, its ancestors', or the name of the first of them."""
    family = lineage(study, name)
    kinds = [variant.kind for variant in family.values() if variant.kind]
    return kinds[-1] if kinds else next(iter(family))


def method_of(study: Study, name: str) -> Method:
    """Registry entry of a variant's method."""
    return get_method(kind_of(study, name))


def ranks_from(study: Study, name: str) -> RanksFrom | None:
    """What a variant retrains from, if it does."""
    given = [variant.ranks_from for variant in lineage(study, name).values() if variant.ranks_from]
    return given[-1] if given else None


def make_cell(study: Study, task: str, variant: str, budget: int | None) -> Cell:
    """A cell; a method without a budget has none, also where an artefact states one for all its rows."""
    return Cell(task, variant, budget if method_of(study, variant).budget else None)


def artefact_cells(study: Study) -> dict[str, tuple[Cell, ...]]:
    """The cells that each artefact shows, by the artefact's name."""
    return {
        name: tuple(dict.fromkeys(make_cell(study, *one) for one in wanted))
        for name, wanted in _shown(study.artefacts.chosen).items()
    }


def _shown(artefacts: Artefacts) -> dict[str, list[tuple[str, str, int | None]]]:
    """Task, variant and stated budget of everything that each artefact shows."""
    shown: dict[str, list[tuple[str, str, int | None]]] = {}
    if table := artefacts.table1:
        rows = [(row.method, budget) for row in table.rows for budget in (row.budgets or (None,))]
        shown["table1"] = [(task, *row) for row in rows for task in table.tasks]
    for name, rows_at in artefacts.comparisons.items():
        shown[name] = [(task, method, rows_at.budget) for method in rows_at.rows for task in rows_at.tasks]
    if room := artefacts.headroom:
        shown["headroom"] = [(task, method, None) for method in (room.full, room.head) for task in room.tasks]
        if over := room.over_budgets:
            shown["headroom"] += [(task, over.method, budget) for budget in over.budgets for task in over.tasks]
    if curve := artefacts.figure4:
        points = [(method, budget) for method in curve.methods for budget in curve.budgets]
        shown["figure4"] = [(task, *point) for point in points for task in curve.tasks]
    if pair := artefacts.figure5:
        shown["figure5"] = [(pair.task, name, pair.budget) for name in (pair.with_advance, pair.without_advance)]
    if maps := artefacts.figure6:
        shown["figure6"] = [(maps.task, method, maps.budget) for method in maps.methods]
    if growth := artefacts.rank_growth:
        shown["rank_growth"] = [(growth.task, growth.method, growth.budget)]
    if curves := artefacts.training:
        shown["training"] = [(curves.task, name, curves.budget) for name in (curves.method, curves.reference)]
    return shown


def all_cells(study: Study) -> tuple[Cell, ...]:
    """The cells of all artefacts in their order, each after those whose final ranks it starts from."""
    shown = dict.fromkeys(cell for cells in artefact_cells(study).values() for cell in cells)
    return tuple(dict.fromkeys(cell for one in shown for cell in _with_source(study, one)))


def _with_source(study: Study, cell: Cell) -> tuple[Cell, ...]:
    source = ranks_from(study, cell.variant)
    return (cell._replace(variant=source.method), cell) if source else (cell,)

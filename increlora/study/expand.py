"""From a study to its runs: which cells the artefacts need, and the settings of each run.

A *cell* is a task, a method variant and a budget; it has one run per seed. Cells are unique over artefacts, so a run
that two tables need is trained once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from increlora.errors import unknown
from increlora.study.config import Method, Overrides, config_error
from increlora.training.settings import Backbone, RanksFrom, RunSettings, Training, budget_label

if TYPE_CHECKING:
    from increlora.study.config import Artefacts, Study

_STRONGER = {"warmup_ratio": "warmup_steps", "epochs": "max_steps"}
"""Fields of `Training` that are overruled by another one whenever that is set."""


class Cell(NamedTuple):
    """One task, method variant and budget, with the seeds of its runs."""

    task: str
    method: str
    budget: int | None
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.task}/{self.method}/{budget_label(self.budget)}"


class Variant(NamedTuple):
    """A method variant with what it inherits."""

    name: str
    kind: str
    ranks_from: RanksFrom | None
    layers: tuple[Method, ...]
    """The variant and those it extends, the most basic first."""

    @property
    def takes_budget(self) -> bool:
        from increlora.methods import registry

        return registry.METHODS[self.kind].budget is not None


def variant(study: Study, name: str) -> Variant:
    """Resolves `extends`. The kind defaults to that of the parent, or to the variant's own name.

    Raises:
        ConfigError: if there is no such variant.
    """
    if name not in study.methods:
        raise unknown("method", name, study.methods)
    method = study.methods[name]
    if method.extends is None:
        return Variant(name, method.kind or name, method.ranks_from, (method,))
    parent = variant(study, method.extends)
    return Variant(name, method.kind or parent.kind, method.ranks_from or parent.ranks_from, (*parent.layers, method))


def artefact_cells(study: Study) -> dict[str, tuple[Cell, ...]]:
    """The cells that each artefact shows, by the artefact's name."""
    return {
        name: tuple(dict.fromkeys(cell(study, *one) for one in wanted))
        for name, wanted in _wanted(study.artefacts).items()
    }


def cell(study: Study, task: str, method: str, budget: int | None) -> Cell:
    """A cell; a method without a budget has none, also where an artefact states one for all its rows."""
    return Cell(task, method, budget if variant(study, method).takes_budget else None, study.seeds)


def _wanted(artefacts: Artefacts) -> dict[str, list[tuple[str, str, int | None]]]:
    """Task, method and stated budget of everything that each artefact shows."""
    wanted: dict[str, list[tuple[str, str, int | None]]] = {}
    if table := artefacts.table1:
        wanted["table1"] = [
            (task, row.method, budget)
            for row in table.rows
            for budget in (row.budgets or (None,))
            for task in table.tasks
        ]
    for name, rows in (("table2", artefacts.table2), ("table3", artefacts.table3)):
        if rows:
            wanted[name] = [(task, method, rows.budget) for method in rows.rows for task in rows.tasks]
    if curve := artefacts.figure4:
        wanted["figure4"] = [
            (task, method, budget) for method in curve.methods for budget in curve.budgets for task in curve.tasks
        ]
    if pair := artefacts.figure5:
        wanted["figure5"] = [(pair.task, name, pair.budget) for name in (pair.with_advance, pair.without_advance)]
    if maps := artefacts.figure6:
        wanted["figure6"] = [(maps.task, method, maps.budget) for method in maps.methods]
    if growth := artefacts.growth:
        wanted["growth"] = [(growth.task, growth.method, growth.budget)]
    return wanted


def all_cells(study: Study) -> tuple[Cell, ...]:
    """The cells of all artefacts, and those whose final ranks another one starts from."""
    shown = dict.fromkeys(one for cells in artefact_cells(study).values() for one in cells)
    return tuple(dict.fromkeys(one for chosen in shown for one in (*sources(study, chosen), chosen)))


def sources(study: Study, chosen: Cell) -> tuple[Cell, ...]:
    """The cells whose records a cell needs before it can be trained: those named by `ranks_from`."""
    ranks_from = variant(study, chosen.method).ranks_from
    return (chosen._replace(method=ranks_from.method),) if ranks_from else ()


def resolve(study: Study, task: str, method: str, budget: int | None, seed: int) -> RunSettings:
    """The settings of one run.

    Training settings, later ones win: ``training`` < ``tasks[t]`` < ``methods[m]`` < ``methods[m].budgets[b]``
    < ``methods[m].tasks[t]`` < ``methods[m].tasks[t].budgets[b]``. Options follow the same order from ``methods[m]``
    on. With `extends`, all layers of the parent come before all layers of the child. A layer that sets
    ``warmup_ratio`` also clears the ``warmup_steps`` of the layers below, and ``epochs`` clears ``max_steps``.

    Raises:
        ConfigError: if a setting is missing or an option is not one of the method's.
    """
    from increlora.methods import registry

    chosen = variant(study, method)
    own = list(_overrides(chosen, task, budget))
    layers = [study.training, study.tasks[task].training, *(layer.training for layer in own)]
    merged: dict[str, Any] = {}
    for layer in layers:
        values = layer.model_dump(exclude_unset=True)
        for weaker, stronger in _STRONGER.items():
            if weaker in values:
                merged.pop(stronger, None)
        merged.update(values)
    try:
        training = Training(**merged)
    except ValidationError as error:
        raise config_error(error, Training, f"methods.{method}.training") from None
    options = {key: value for layer in own for key, value in layer.options.items()}
    ranks_source = None
    if chosen.ranks_from:
        ranks_source = resolve(study, task, chosen.ranks_from.method, budget, seed).digest
    return RunSettings(
        study=study.study,
        task=task,
        method=method,
        kind=chosen.kind,
        budget=budget,
        seed=seed,
        options=registry.validate_options(chosen.kind, options, f"methods.{method}.options").model_dump(mode="json"),
        backbone=_located(study.backbone),
        data=study.data,
        training=training,
        ranks_from=chosen.ranks_from,
        ranks_source=ranks_source,
    )


def cell_settings(study: Study, chosen: Cell) -> dict[str, Any]:
    """The settings of a cell's runs as plain data: without the seed, and with ``ranks_source`` by seed.

    This is what the workflow passes to a training job, and watches for changes.
    """
    runs = {seed: resolve(study, chosen.task, chosen.method, chosen.budget, seed) for seed in chosen.seeds}
    settings = runs[chosen.seeds[0]].model_dump(mode="json", exclude={"seed"})
    if settings["ranks_source"] is not None:
        settings["ranks_source"] = {str(seed): run.ranks_source for seed, run in runs.items()}
    return settings


def backbone_path(backbone: Backbone) -> str | None:
    """Folder of the backbone; one that the workflow pretrains itself is kept by the digest of its settings."""
    if backbone.pretrain is None:
        return backbone.path
    digest = hashlib.sha256(json.dumps(backbone.pretrain, sort_keys=True).encode()).hexdigest()[:12]
    return f".increlora/backbones/{backbone.name.replace('/', '--')}-{digest}"


def _located(backbone: Backbone) -> Backbone:
    """The backbone with its folder; its pretraining settings in one order, whatever that of the config."""
    pretrain = backbone.pretrain and dict(sorted(backbone.pretrain.items()))
    return backbone.model_copy(update={"path": backbone_path(backbone), "pretrain": pretrain})


def _overrides(chosen: Variant, task: str, budget: int | None) -> Iterator[Overrides]:
    for layer in chosen.layers:
        yield layer
        if budget in layer.budgets:
            yield layer.budgets[budget]
        if on_task := layer.tasks.get(task):
            yield on_task
            if budget in on_task.budgets:
                yield on_task.budgets[budget]

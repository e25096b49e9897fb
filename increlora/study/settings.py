"""From a cell and a seed to the settings of one run, which decide its result and hence its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from increlora.glue.data import Data
from increlora.methods.registry import validate_options
from increlora.model import parsed
from increlora.study.cells import Cell, all_cells, kind_of, lineage, ranks_from
from increlora.study.config import Overrides, Study
from increlora.training.settings import OVERRULED, Backbone, RunSettings, Training


def all_runs(study: Study) -> list[RunSettings]:
    """The settings of every run: cells in their order, seeds within a cell."""
    return cell_runs(study, all_cells(study))


def cell_runs(study: Study, cells: Iterable[Cell]) -> list[RunSettings]:
    """The settings of the runs of some cells, one per seed."""
    return [run_settings(study, cell, seed) for cell in cells for seed in study.seeds]


def run_settings(study: Study, cell: Cell, seed: int) -> RunSettings:
    """The settings of one run.

    Training settings, later ones win: ``training`` < ``tasks[t]`` < ``methods[m]`` < ``methods[m].budgets[b]``
    < ``methods[m].tasks[t]`` < ``methods[m].tasks[t].budgets[b]``. Options follow the same order from ``methods[m]``
    on. With `extends`, all layers of the parent come before all layers of the child. A layer that sets
    ``warmup_ratio`` also clears the ``warmup_steps`` of the layers below, and ``epochs`` clears ``max_steps``.

    Raises:
        ConfigError: a setting is missing, or an option is not one of the method's.
    """
    field, own = f"methods.{cell.variant}", list(_layers(study, cell))
    merged: dict[str, Any] = {}
    for layer in (study.training, study.tasks[cell.task].training, *(layer.training for layer in own)):
        values = layer.model_dump(exclude_unset=True)
        for weaker, stronger in OVERRULED.items():
            if weaker in values:
                merged.pop(stronger, None)
        merged.update(values)
    kind = kind_of(study, cell.variant)
    options = {key: value for layer in own for key, value in layer.options.items()}
    source = ranks_from(study, cell.variant)
    return RunSettings(
        study=study.study,
        task=cell.task,
        method=cell.variant,
        kind=kind,
        budget=cell.budget,
        seed=seed,
        options=validate_options(kind, options, f"{field}.options").model_dump(mode="json"),
        backbone=_located(study.backbone),
        data=_drawn(study.data, seed),
        training=parsed(Training, merged, f"{field}.training"),
        ranks_from=source,
        ranks_source=run_settings(study, cell._replace(variant=source.method), seed).digest if source else None,
    )


def _drawn(data: Data, seed: int) -> Data:
    """The data with the draw of the built-in corpus that a run sees."""
    is_open = data.source == "builtin" and data.seed is None
    return data.model_copy(update={"seed": seed}) if is_open else data


def _layers(study: Study, cell: Cell) -> Iterator[Overrides]:
    for layer in lineage(study, cell.variant).values():
        yield layer
        if cell.budget in layer.budgets:
            yield layer.budgets[cell.budget]
        if on_task := layer.tasks.get(cell.task):
            yield on_task
            if cell.budget in on_task.budgets:
                yield on_task.budgets[cell.budget]


def backbone_path(backbone: Backbone) -> str | None:
    """Folder of the backbone; one that the workflow pretrains itself is kept by the digest of its settings."""
    if backbone.pretrain is None:
        return backbone.path
    digest = hashlib.sha256(json.dumps(backbone.pretrain, sort_keys=True).encode()).hexdigest()[:12]
    return f".increlora/backbones/{backbone.name.replace('/', '--')}-{digest}"


def _located(backbone: Backbone) -> Backbone:
    """The backbone with its folder, and its pretraining settings sorted: their order in the config is irrelevant."""
    pretrain = backbone.pretrain and dict(sorted(backbone.pretrain.items()))
    return backbone.model_copy(update={"path": backbone_path(backbone), "pretrain": pretrain})

"""Checks before training that need the backbone: whether every budget fits its real shapes.

The backbone is built on the meta device from its config alone: no weights, and no download for those in ``shapes/``.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from torch import nn
from transformers import AutoConfig, PretrainedConfig

from increlora.errors import ConfigError
from increlora.glue.data import Data
from increlora.glue.loading import load_task
from increlora.glue.tasks import TASKS
from increlora.methods.base import target_shapes
from increlora.methods.families import position_limit, target_modules
from increlora.methods.registry import check_budget, meta_model, validate_options
from increlora.study.cells import all_cells
from increlora.study.checks import pretrain_settings
from increlora.study.config import Study
from increlora.study.settings import run_settings
from increlora.training.backbone import load_config
from increlora.training.pretrain import backbone_config
from increlora.training.settings import RunSettings


def check_budgets(study: Study, config: PretrainedConfig | None = None) -> None:
    """Checks every budget, with its options and number of steps, against the real shapes of the backbone.

    Data in a local folder are read as well: their number of rows can be anything.

    Args:
        study: the study.
        config: of the backbone as its repository has it; without it the shape is that of `backbone_of`.

    Raises:
        ConfigError: a budget does not fit, or the backbone's shape is not available.
        IncreLoraError: local data are malformed.
    """
    config, model = backbone_of(study, config)
    shapes = target_shapes(model, target_modules(config.model_type, study.backbone.target_modules))
    rows = {task: _train_rows(task, study.data) for task in dict.fromkeys(cell.task for cell in all_cells(study))}
    for cell in all_cells(study):
        settings = run_settings(study, cell, study.seeds[0])
        _check_training(settings, rows[cell.task], config)
        field = f"methods.{cell.variant}"
        options = validate_options(settings.kind, settings.options, f"{field}.options")
        recipe = settings.recipe(rows[cell.task])
        try:
            check_budget(settings.kind, cell.budget, options, recipe, shapes, f"{field}.options")
        except ConfigError as error:
            name = error.field if error.field.startswith(field) else f"{field} ({error.field})"
            raise ConfigError(name, f"{str(error).partition(': ')[2]} [{cell.label}]") from None


def _train_rows(task: str, data: Data) -> int:
    """Training rows: of a local folder those that are there, otherwise as far as the config tells."""
    if data.source == "local":
        return len(load_task(task, data).train)
    return data.rows(TASKS[task])[0]


def _check_training(settings: RunSettings, rows: int, config: PretrainedConfig) -> None:
    """Refuse a training that never reaches its learning rate, and sequences that the backbone has no positions for."""
    training, field = settings.training, f"methods.{settings.method}.training"
    steps = training.steps(rows)
    if steps.warmup >= steps.total:
        raise ConfigError(
            f"{field}.warmup_steps", f"{steps.warmup} leave none of the {steps.total} training steps [{settings.label}]"
        )
    longest = position_limit(config)
    if longest and training.max_length > longest:
        allowed = f"allowed: up to {longest}, the positions of {settings.backbone.name!r}"
        raise ConfigError(f"{field}.max_length", f"got {training.max_length}; {allowed} [{settings.label}]")


def backbone_of(study: Study, config: PretrainedConfig | None = None) -> tuple[PretrainedConfig, nn.Module]:
    """The backbone's Transformers config, with two labels, and its model without weights.

    Raises:
        ConfigError: there is no such config, or no model can be built from it.
    """
    config = _architecture(study) if config is None else config
    config.num_labels = 2
    try:
        return config, meta_model(config)
    except Exception as error:  # a broken config.json raises errors of any type
        raise _unusable(study, "no model can be built from its config", error) from None


def _architecture(study: Study) -> PretrainedConfig:
    backbone = study.backbone
    if backbone.pretrain is not None:
        settings = pretrain_settings(study)
        return backbone_config(settings, settings.vocab_size)
    shape = resources.files("increlora.study") / "shapes" / f"{backbone.name.replace('/', '--')}.json"
    if backbone.path is None and shape.is_file():
        known: dict[str, Any] = json.loads(shape.read_text(encoding="utf-8"))
        return AutoConfig.for_model(**known)
    return load_config(backbone, TASKS[next(iter(study.tasks))])


def _unusable(study: Study, what: str, error: Exception) -> ConfigError:
    backbone = study.backbone
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    field, given = ("backbone.path", backbone.path) if backbone.path else ("backbone.name", backbone.name)
    return ConfigError(field, f"got {given!r}: {what} ({reason})")

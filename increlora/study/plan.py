"""What a study will cost, and whether its budgets fit the backbone, before anything is trained.

Parameters are counted on the backbone's real shapes, built on the meta device (no weights, no download for the
backbones in ``shapes/``). Hours are an estimate from a deliberately simple model:

    step = overhead * max(batch * tokens * passes * active parameters / sustained FLOP/s, layers * seconds per layer)
    evaluation = rows * tokens * 2 * active parameters / sustained FLOP/s
    seconds = steps * step + evaluations * evaluation

- *active parameters*: all but the embedding tables, whose lookups cost nothing.
- *passes*: 6 per token and parameter where everything trains (2 forward, 2 for activations, 2 for weights), 4 where
  the matrices are frozen.
- *tokens*: mean of an example, special tokens included, as measured on GLUE with the padding of length-grouped batches
  left out; never above ``max_length``.
- *overhead*: AdaLoRA took 1.09 times LoRA's step when measured; IncreLoRA scores (+43 % of a step) in the 64 steps
  before each growth event, about a sixth of the steps, and carries one more rank.
- *sustained FLOP/s*: see `GPU` and `CPU_CORE`; a third of what big matrix products reach, since fine-tuning batches
  of short sentences are small.

Read it as "hours or days", not to the minute; records hold what a run really took.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from increlora.errors import ConfigError
from increlora.glue.tasks import TASKS
from increlora.methods.families import position_limit
from increlora.methods.registry import METHODS
from increlora.study.config import Study, pretrain_settings
from increlora.study.expand import Cell, artefact_cells
from increlora.training.settings import Backbone, Data, RunSettings

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Machine(NamedTuple):
    """What the estimate assumes of one device."""

    name: str
    flops: float
    """Sustained FLOP/s."""
    seconds_per_layer: float
    """Least time of a training step per encoder layer: launching the work costs this much however small it is."""


GPU = Machine("GPU", 30e12, 6e-3)
"""A current data-centre GPU in bfloat16."""
CPU_CORE = Machine("CPU core", 30e9, 2e-3)
"""One core of a current server or laptop in float32."""


class Size(NamedTuple):
    """What the plan needs to know of a backbone."""

    config: PretrainedConfig
    active: int
    """Parameters outside of the embedding tables."""
    layers: int


@dataclass(frozen=True)
class PlanRow:
    """One method at one budget, over all its tasks and seeds."""

    method: str
    title: str
    budget: int | None
    artefacts: str
    """Tables and figures that show it."""
    tasks: int
    runs: int
    steps: int
    """Optimizer steps of all runs."""
    parameters: int
    """Trainable parameters at the budget, the head not counted (Full FT counts everything)."""
    hours: float
    """Estimated hours of all runs on one device."""
    machine: str
    """The device that `hours` is about."""


def plan(study: Study) -> list[PlanRow]:
    """One row per method and budget, in the order in which artefacts first show them.

    Raises:
        ConfigError: if a budget does not fit the backbone, or the backbone's shape cannot be had.
    """
    check(study)
    shown = artefact_cells(study)
    rows: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in study.cells():
        rows.setdefault((cell.method, cell.budget), []).append(cell)
    machine = GPU if study.execution.gpu else CPU_CORE
    size = _size(study.backbone)
    return [_row(study, cells, shown, size, machine) for cells in rows.values()]


def check(study: Study) -> None:
    """Checks every budget, with its options and number of steps, against the real shapes of the backbone.

    Data in a local folder are read as well, since they are at hand and may be anything.

    Raises:
        ConfigError: if a budget does not fit, or the backbone's shape cannot be had.
        IncreLoraError: if local data are malformed.
    """
    from increlora.methods import registry
    from increlora.methods.base import target_shapes
    from increlora.methods.families import target_modules
    from increlora.methods.registry import meta_model

    config = architecture(study.backbone)
    shapes = target_shapes(meta_model(config), target_modules(config.model_type, study.backbone.target_modules))
    rows = {task: _train_rows(task, study.data) for task in dict.fromkeys(cell.task for cell in study.cells())}
    for cell in study.cells():
        settings = study.settings(cell.task, cell.method, cell.budget, cell.seeds[0])
        recipe = settings.recipe(rows[cell.task])
        _check_training(settings, recipe.total_steps, config)
        field = f"methods.{cell.method}"
        options = registry.validate_options(settings.kind, settings.options, f"{field}.options")
        try:
            registry.check_budget(settings.kind, cell.budget, options, recipe, shapes, f"{field}.options")
        except ConfigError as error:
            name = error.field if error.field.startswith(field) else f"{field} ({error.field})"
            raise ConfigError(name, f"{str(error).partition(': ')[2]} [{cell.label}]") from None


def _train_rows(task: str, data: Data) -> int:
    """Training rows: of a local folder those that are there, otherwise as far as the config tells."""
    if data.source != "local":
        return data.rows(TASKS[task])[0]
    from increlora.glue.loading import load_task

    return len(load_task(task, **data.model_dump()).train)


def _check_training(settings: RunSettings, steps: int, config: PretrainedConfig) -> None:
    """Refuse a training that never reaches its learning rate, and sequences that the backbone has no positions for."""
    training, field = settings.training, f"methods.{settings.method}.training"
    warmup = settings.recipe(_train_rows(settings.task, settings.data)).warmup_steps
    if warmup >= steps:
        raise ConfigError(
            f"{field}.warmup_steps", f"{warmup} leave none of the {steps} training steps [{settings.label}]"
        )
    longest = position_limit(config)
    if longest and training.max_length > longest:
        allowed = f"allowed: up to {longest}, the positions of {settings.backbone.name!r}"
        raise ConfigError(f"{field}.max_length", f"got {training.max_length}; {allowed} [{settings.label}]")


def architecture(backbone: Backbone) -> PretrainedConfig:
    """The backbone's Transformers config, with two labels: built, shipped with this package, from a folder or the Hub.

    Raises:
        ConfigError: if there is none.
    """
    config = _architecture(backbone)
    config.num_labels = 2
    return config


def _architecture(backbone: Backbone) -> PretrainedConfig:
    from transformers import AutoConfig

    if backbone.pretrain is not None:
        from increlora.training.pretrain import backbone_config

        settings = pretrain_settings(backbone.pretrain)
        return backbone_config(settings, settings.vocab_size)
    shape = resources.files("increlora.study") / "shapes" / f"{backbone.name.replace('/', '--')}.json"
    if backbone.path is None and shape.is_file():
        known: dict[str, Any] = json.loads(shape.read_text(encoding="utf-8"))
        return AutoConfig.for_model(**known)
    try:
        return AutoConfig.from_pretrained(backbone.path or backbone.name, revision=backbone.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("backbone.name", f"got {backbone.name!r}: its config cannot be read ({reason})") from None


def estimate_seconds(settings: RunSettings, size: Size, machine: Machine) -> float:
    """Estimated seconds of one run on a device (see the module's docstring)."""
    training = settings.training
    task, method = TASKS[settings.task], METHODS[settings.kind]
    train_rows, eval_rows = settings.data.rows(task)
    steps = training.steps(train_rows).total
    tokens = min(task.tokens, training.max_length)
    step = max(
        method.passes * size.active * tokens * training.batch_size / machine.flops,
        size.layers * machine.seconds_per_layer,
    )
    evaluations = steps // training.eval_steps if training.eval_steps else math.ceil(training.epochs)
    evaluation = 2 * size.active * tokens * eval_rows / machine.flops
    return steps * step * method.overhead + evaluations * evaluation


def write_csv(rows: Iterable[PlanRow], path: str | Path) -> None:
    """Writes the plan; hours with two decimals."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PlanRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**asdict(row), "hours": f"{row.hours:.2f}"} for row in rows)


def as_text(rows: list[PlanRow]) -> str:
    """The plan as an aligned table with a line of totals."""
    head = ("method", "budget", "tasks", "runs", "steps", "parameters", "hours")
    lines = [head]
    for row in rows:
        budget = "-" if row.budget is None else str(row.budget)
        counts = f"{row.tasks}", f"{row.runs}", f"{row.steps:,}", f"{row.parameters:,}", f"{row.hours:.1f}"
        lines.append((row.method, budget, *counts))
    runs, steps, hours = (sum(getattr(row, name) for row in rows) for name in ("runs", "steps", "hours"))
    lines.append(("total", "", "", f"{runs}", f"{steps:,}", "", f"{hours:.1f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    ]
    return "\n".join([*text, f"hours: estimate for one {rows[0].machine}"])


def _size(backbone: Backbone) -> Size:
    from increlora.methods.registry import meta_model

    config = architecture(backbone)
    parameters = meta_model(config).named_parameters()
    active = sum(parameter.numel() for name, parameter in parameters if ".embeddings." not in name)
    return Size(config, active, config.num_hidden_layers)


def _row(study: Study, cells: list[Cell], shown: dict[str, tuple[Cell, ...]], size: Size, machine: Machine) -> PlanRow:
    from increlora.methods.registry import count

    method, budget = cells[0].method, cells[0].budget
    runs = [study.settings(cell.task, method, budget, seed) for cell in cells for seed in cell.seeds]
    return PlanRow(
        method=method,
        title=study.title(method),
        budget=budget,
        artefacts=" ".join(name for name, members in shown.items() if set(members) & set(cells)),
        tasks=len(cells),
        runs=len(runs),
        steps=sum(run.training.steps(run.data.rows(TASKS[run.task])[0]).total for run in runs),
        parameters=count(runs[0].kind, budget, size.config, study.backbone.target_modules).trainable,
        hours=sum(estimate_seconds(run, size, machine) for run in runs) / 3600,
        machine=machine.name,
    )

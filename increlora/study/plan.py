"""What a study will cost, before anything is trained.

Parameters are counted on the backbone's real shapes. Hours come from a table of measured speeds where there is one
(`increlora.study.speed`), and otherwise from a deliberately simple model:

    step = overhead * max(batch * tokens * passes * active parameters / sustained FLOP/s, layers * seconds per layer)
    evaluation = rows * tokens * 2 * active parameters / sustained FLOP/s
    seconds = steps * step + evaluations * evaluation

- *active parameters*: all but the embedding tables, whose lookups cost nothing.
- *passes* and *overhead* are the method's (`increlora.methods.method.Method`), *tokens* and *rows* the task's; there
  are never more tokens than ``max_length``.
- *sustained FLOP/s*: see `GPU` and `CPU_CORE`; a third of what big matrix products reach, since fine-tuning batches
  of short sentences are small.

Read it as "hours or days", not to the minute; records hold what a run really took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tabulate import tabulate

from increlora.glue.tasks import TASKS
from increlora.methods.registry import count, get_method
from increlora.study.budgets import backbone_of, check_budgets
from increlora.study.cells import Cell, all_cells, artefact_cells
from increlora.study.config import Study
from increlora.study.settings import cell_runs
from increlora.study.speed import Speeds
from increlora.training.settings import RunSettings


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
    """What the estimate needs to know of a backbone."""

    active: int
    """Parameters outside of the embedding tables."""
    layers: int


@dataclass(frozen=True)
class PlanRow:
    """One variant at one budget, over all its tasks and seeds."""

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
    """Trainable parameters at the budget, the head not counted (a method that trains all weights counts them too)."""
    hours: float
    """Estimated hours of all runs on one device."""
    machine: str
    """The device that `hours` is about; for a measured one, its name."""


def plan(study: Study, speeds: Speeds | None = None) -> list[PlanRow]:
    """One row per variant and budget, in the order in which artefacts first show them.

    Args:
        study: what is to be trained.
        speeds: measured on the machine that is to train it; what they lack is estimated.

    Raises:
        ConfigError: a budget does not fit the backbone, or the backbone's shape is not available.
    """
    check_budgets(study)
    cells: dict[tuple[str, int | None], list[Cell]] = {}
    for cell in all_cells(study):
        cells.setdefault((cell.variant, cell.budget), []).append(cell)
    config, model = backbone_of(study)
    size = Size(
        sum(p.numel() for name, p in model.named_parameters() if ".embeddings." not in name), config.num_hidden_layers
    )
    machine, shown = GPU if study.execution.gpu else CPU_CORE, artefact_cells(study)
    rows = []
    for (variant, budget), own in cells.items():
        runs = cell_runs(study, own)
        kind, options, modules = runs[0].kind, runs[0].options, study.backbone.target_modules
        measured = speeds is not None and all(speeds.has(run) for run in runs)
        rows.append(
            PlanRow(
                method=variant,
                title=study.title(variant),
                budget=budget,
                artefacts=" ".join(name for name, members in shown.items() if set(members) & set(own)),
                tasks=len(own),
                runs=len(runs),
                steps=sum(run.work()[0] for run in runs),
                parameters=count(kind, budget, config, options=options, target_modules=modules).trainable,
                hours=sum(
                    speeds.seconds(run) if speeds and measured else estimate_seconds(run, size, machine) for run in runs
                )
                / 3600,
                machine=speeds.machine if speeds and measured else machine.name,
            )
        )
    return rows


def estimate_seconds(settings: RunSettings, size: Size, machine: Machine) -> float:
    """Estimated seconds of one run on a device (see the module's docstring)."""
    training, task, method = settings.training, TASKS[settings.task], get_method(settings.kind)
    tokens = min(task.tokens, training.max_length)
    products = method.passes * size.active * tokens * training.batch_size / machine.flops
    step = method.overhead * max(products, size.layers * machine.seconds_per_layer)
    steps, rows = settings.work()
    return steps * step + rows * 2 * size.active * tokens / machine.flops


def write_csv(rows: Iterable[PlanRow], path: str | Path) -> None:
    """Writes the plan; hours with two decimals."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows).astype({"budget": "Int64"})
    frame.to_csv(path, index=False, float_format="%.2f", lineterminator="\n")


def as_text(rows: list[PlanRow]) -> str:
    """The plan as an aligned table with a line of totals."""
    names = ("method", "budget", "tasks", "runs", "steps", "parameters", "hours")
    lines = []
    for row in rows:
        counts = (str(row.tasks), str(row.runs), f"{row.steps:,}", f"{row.parameters:,}", f"{row.hours:.1f}")
        lines.append((row.method, "-" if row.budget is None else str(row.budget), *counts))
    runs, steps, hours = (sum(getattr(row, name) for row in rows) for name in ("runs", "steps", "hours"))
    lines.append(("total", "", "", str(runs), f"{steps:,}", "", f"{hours:.1f}"))
    sides = ("left", *["right"] * (len(names) - 1))
    text = tabulate(lines, names, tablefmt="plain", disable_numparse=True, colalign=sides)
    return f"{text}\nhours: {_sources(rows)}"


def _sources(rows: list[PlanRow]) -> str:
    """Where the hours come from; a machine that was measured has a name of its own."""
    estimated = [row for row in rows if row.machine in (GPU.name, CPU_CORE.name)]
    measured = sorted({row.machine for row in rows} - {GPU.name, CPU_CORE.name})
    words = [f"measured on {machine}" for machine in measured]
    if estimated:
        share = f" ({len(estimated)} of {len(rows)} rows)" if measured else ""
        words.append(f"estimate for one {estimated[0].machine}{share}")
    return "; ".join(words)

"""The resolved settings of one run: all that decides its result, and nothing else.

A run is a function of its settings, so their digest is the run's identity: it names the checkpoint, the entry in the
store of finished runs and the record. Fields that only say *where* something lies (a local path) stay out of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from increlora.glue.data import Data, Seed
from increlora.glue.tasks import TASKS
from increlora.methods.method import Recipe
from increlora.methods.registry import get_method
from increlora.model import Block


class Steps(NamedTuple):
    """Optimizer steps."""

    total: int
    per_epoch: int
    warmup: int


class Backbone(Block):
    """The pretrained model."""

    name: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    """Hub name, or the name under which a built-in backbone is cached."""
    path: str | None = None
    """Local folder in Hub layout that is used instead of the Hub."""
    revision: str | None = None
    """Hub revision; the commit makes a run reproducible."""
    target_modules: str | None = None
    """Regular expression over full module names: the matrices that low-rank methods adapt. Null: the six matrices of
    every layer, where `increlora.methods.families` knows the architecture."""
    pretrain: dict[str, Any] | None = None
    """Settings of the workflow's own pretraining (`increlora.training.pretrain_settings`); null for the Hub."""


OVERRULED = {"warmup_ratio": "warmup_steps", "epochs": "max_steps"}
"""Fields of `Training`, and for each the one that overrules it when it is set."""


class Training(Block):
    """How one run is trained."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the training set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; overrides `epochs`."""
    batch_size: int = Field(default=32, ge=1)
    """Examples per optimizer step over all processes (the effective batch)."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Micro-batches into which an optimizer step is split."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warmup; overrides `warmup_ratio`."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Warmup as a fraction of all steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Clip the global gradient norm; null for no clipping."""
    max_length: int = Field(default=128, ge=8)
    """Tokens per example, longer ones are truncated."""
    eval_steps: int | None = Field(default=None, ge=1)
    """Evaluate every so many steps; null for once an epoch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bfloat16 autocast on CUDA, float32 on the CPU."""
    classifier_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout before the classifier; null keeps the backbone's."""
    length_grouping: bool = True
    """Batch examples of similar length together."""

    def steps(self, examples: int) -> Steps:
        """Steps of a run on so many training examples: in all, per epoch, and of the warmup."""
        per_epoch = math.ceil(examples / self.batch_size)
        total = self.max_steps or math.ceil(self.epochs * per_epoch)
        warmup = self.warmup_steps if self.warmup_steps is not None else math.ceil(self.warmup_ratio * total)
        return Steps(total, per_epoch, warmup)


class RanksFrom(Block):
    """The finished run whose rank distribution a retraining run starts from (Table 3)."""

    method: str
    """Method variant of the source run; task, budget and seed are the run's own."""
    transform: Literal["none", "uniform", "shuffled"] = "none"
    """`none` keeps the distribution, `uniform` levels it at the same number of parameters, `shuffled` permutes it over
    modules of one shape."""


class RunSettings(Block):
    """Everything that decides the result of one run."""

    study: str
    task: str
    method: str
    """Name of the method variant in the study's config."""
    kind: str
    """Registry name of the method (`increlora.methods`)."""
    budget: int | None = None
    """Average rank per module, or bottleneck width for the adapters; null where a method has no budget."""
    seed: Seed = 0
    options: dict[str, Any] = Field(default={})
    """Options of the method, checked by its registry entry."""
    backbone: Backbone
    data: Data
    training: Training
    ranks_from: RanksFrom | None = None
    ranks_source: str | None = None
    """Digest of the run named by `ranks_from`, so that a change there is a change here."""
    protocol: int = Field(default_factory=lambda given: get_method(given["kind"]).protocol)
    """`Method.protocol` when the run was made."""

    def work(self) -> tuple[int, int]:
        """Optimizer steps, and examples over all evaluations of the development splits."""
        train_rows, evaluation_rows = self.data.rows(TASKS[self.task])
        steps = self.training.steps(train_rows)
        return steps.total, math.ceil(steps.total / (self.training.eval_steps or steps.per_epoch)) * evaluation_rows

    def recipe(self, examples: int) -> Recipe:
        """What a method may know of this run on so many training examples."""
        steps, training = self.training.steps(examples), self.training
        return Recipe(
            total_steps=steps.total,
            warmup_steps=steps.warmup,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            seed=self.seed,
            gradient_accumulation=training.gradient_accumulation,
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that identify the run by what decides its result."""
        content = self.model_dump(mode="json", exclude={"study", "method"})
        for block in ("backbone", "data"):
            content[block].pop("path")
        if content["data"]["source"] == "local":  # a copy of what the Hub has under that name
            content["data"]["source"] = "hub"
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        return f"{self.task}/{self.method}/{budget_label(self.budget)}/seed{self.seed}"

    def record_path(self, root: str | Path = "results/runs") -> Path:
        """Where the run's record lies: ``<root>/<study>/<task>/<method>/<budget>/seed<seed>.json``."""
        return Path(root) / self.study / f"{self.label}.json"

    def source_path(self, root: str | Path = "results/runs") -> Path | None:
        """Where the record of the run named by `ranks_from` lies."""
        source = self.ranks_from
        return self.model_copy(update={"method": source.method}).record_path(root) if source else None


def budget_label(budget: int | None) -> str:
    """Name of a budget in paths: the number, or ``all`` for a method without one."""
    return "all" if budget is None else str(budget)

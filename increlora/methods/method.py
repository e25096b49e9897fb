"""What a method is: its registry entry, its options, and what it may know about a training run.

Every method's file is imported whenever a config is read, so none may import torch (two seconds) or PEFT (five) at
module level, directly or indirectly; functions that need them import them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from increlora.errors import ConfigError
from increlora.methods.ranks import Shapes
from increlora.model import Block

if TYPE_CHECKING:
    from increlora.methods.base import Adaptation, Setup


class Options(Block):
    """Options of one method: what a config may set under `methods.<variant>.options`. The base class has none."""

    def check(self, budget: int | None, recipe: Recipe, shapes: Shapes, field: str = "options") -> None:
        """Raise `ConfigError` if this budget is impossible with this recipe on matrices of these shapes.

        Args:
            budget: rank per module or bottleneck width, at least 1 (the registry checks that).
            recipe: the training to come.
            shapes: the adapted matrices.
            field: dotted path of these options, for the message.
        """


class RankOptions(Options):
    """Options that all methods with a low-rank update share."""

    lora_alpha: int = Field(default=16, ge=1)
    """Numerator of the update's scale, alpha / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the low-rank branch."""

    def check(self, budget: int | None, recipe: Recipe, shapes: Shapes, field: str = "options") -> None:
        check_rank(budget, shapes, "budget")


@dataclass(frozen=True)
class Recipe:
    """The part of a run's training settings that methods depend on.

    Attributes:
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warmup, part of `total_steps`.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay of AdamW.
        seed: seeds the initialisation of everything that a method adds.
        gradient_accumulation: micro-batches (forward and backward passes) per optimizer step.
    """

    total_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    seed: int
    gradient_accumulation: int = 1


class Budget(NamedTuple):
    """What a method's budget measures."""

    name: Literal["rank", "bottleneck"]
    symbol: str
    """How tables abbreviate it: r = 8, d = 32."""
    is_common: bool
    """Whether equal budgets of this kind are comparable between methods."""


RANK = Budget("rank", "r", is_common=True)
"""Average rank per adapted matrix."""
BOTTLENECK = Budget("bottleneck", "d", is_common=False)
"""Width of each adapter's bottleneck."""


class Look(NamedTuple):
    """Colour and marker in every figure."""

    colour: str
    marker: str


class PaperMemory(NamedTuple):
    """The paper's count of the values that training keeps: each trainable parameter and AdamW's two moments of it."""

    formula: str
    """In terms of m, the parameters that one rank adds over all adapted matrices, and r, the average rank."""
    numbers: Callable[[float, int], float]
    """The formula as a function of m and r."""
    note: str = ""
    """Why measured numbers differ from it, for the table of costs."""


class Component(NamedTuple):
    """A part of a method that its options can switch off, for the ablation in Table 2."""

    name: str
    """As in the published differences of Table 2."""
    symbol: str
    title: str
    is_on: Callable[[Mapping[str, Any]], bool]
    """Whether a run with these options has it."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to fine-tune: everything that a config, plan, table or figure needs to know about it.

    Attributes:
        kind: its name in configs.
        title: how tables print it.
        budget: what a budget of it is; None if it has none.
        parameters: trainable parameters, without the head, from the shapes of the adapted matrices, the budget and the
            options; ``"build"`` for a method that is counted by adapting a model without weights.
        prepare: adapts ``setup.model`` in place, leaves ``requires_grad`` on exactly what trains, the head included.
        look: in figures.
        options: model of its options.
        allocates: whether training decides the rank of each module.
        needs_ranks: whether it starts from such a distribution of a finished run.
        passes: floating-point operations per token and parameter of a training step: 2 forward, 2 for the gradients of
            the activations, and 2 more where every matrix trains.
        overhead: time of its training step as a multiple of LoRA's, for the plan.
        paper_memory: None where the paper gives no formula.
        components: what Table 2 ablates.
        note: sentence for a table's notes on the options of its runs.
        protocol: raise it with every change to what the same settings train: finished runs of this method then no
            longer count, those of all others still do.
    """

    kind: str
    title: str
    budget: Budget | None
    parameters: Callable[[Shapes, int, Options], int] | Literal["build"]
    prepare: Callable[[Setup[Any]], Adaptation]
    look: Look
    options: type[Options] = Options
    allocates: bool = False
    needs_ranks: bool = False
    passes: Literal[4, 6] = 4
    overhead: float = 1.0
    paper_memory: PaperMemory | None = None
    components: tuple[Component, ...] = ()
    note: Callable[[list[Mapping[str, Any]]], str] | None = None
    protocol: int = 1


def check_rank(rank: int | None, shapes: Shapes, field: str) -> None:
    """Raise `ConfigError` for a rank above that of one of the matrices."""
    for name, (rows, columns) in shapes.items():
        if rank is not None and rank > min(rows, columns):
            raise ConfigError(field, f"rank {rank} exceeds that of {name}, a {rows} x {columns} matrix")

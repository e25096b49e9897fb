"""An adapted model as the training loop sees it, whatever the method.

The loop calls the model, adds `Adaptation.penalty` to its loss, calls the two step hooks and asks for counts, ranks and
state. A method overrides what differs from the plain case, AdamW on everything that requires a gradient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from increlora.errors import ConfigError, IncreLoraError
from increlora.methods.families import head_modules
from increlora.methods.method import Options, Recipe
from increlora.methods.ranks import Shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim.lr_scheduler import LRScheduler

OptionsT = TypeVar("OptionsT", bound=Options)

_NOT_IN_USE = re.compile(r"\.(original_module|ranknum)\.")
"""PEFT's frozen copy of a wrapped head and AdaLoRA's constants: `Parameter`s, but not parameters of the model."""


class AllocationError(IncreLoraError):
    """A method that allocates ranks moved none, or exceeded its budget: the run is not what its name says."""


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters a model has, counted as scalars.

    Attributes:
        trainable: those that train and are active now; without the head, except for full fine-tuning.
        head: those of pooler and classifier, which train in every method.
        total: the whole adapted model, head included.
    """

    trainable: int
    head: int
    total: int


@dataclass(frozen=True)
class Setup(Generic[OptionsT]):
    """What a method is given to prepare a model.

    Attributes:
        model: a Transformers sequence classification model, which the method changes in place.
        recipe: the training to come.
        options: the method's own options, checked.
        budget: rank per module or bottleneck width, checked; None for a method without one.
        target_modules: regular expression over full module names: the matrices of low-rank methods.
        shapes: these matrices.
        ranks: a finished run's rank per module, for retraining (Table 3).
    """

    model: nn.Module
    recipe: Recipe
    options: OptionsT
    budget: int | None = None
    target_modules: str = ""
    shapes: Shapes = field(default_factory=dict)
    ranks: Mapping[str, int] | None = None

    @property
    def size(self) -> int:
        """The budget of a method that has one."""
        if self.budget is None:
            raise ConfigError("budget", "this method needs one")
        return self.budget


class Orthogonality(NamedTuple):
    """Deviation of low-rank factors from orthogonality (Figure 5)."""

    A: float
    """Mean over modules of ||A A^T - I||_F^2 over the active components."""
    B: float
    """Mean over modules of ||B^T B - I||_F^2 over the active components."""
    A_with_reserve: float
    """As `A`, a method's reserve included."""
    B_with_reserve: float
    norm: float
    """Mean over all A and B of the norm, not squared, over the active components."""
    norm_with_reserve: float
    """As `norm`, the reserve included: what IncreLoRA's authors log."""


class Adaptation:
    """A backbone prepared by one method at one budget.

    Attributes:
        model: called as ``model(**batch)``, returns an output with ``.logits`` and, given labels, the task's ``.loss``.
        recipe: the training to come.
        head: names of the head's parameters in `model`.
        budget_parameters: trainable parameters at the nominal budget, which `parameters` is compared with; set by
            `increlora.methods.registry.prepare`.
        counts_head: whether `parameters` counts the head as trainable (full fine-tuning only).
    """

    counts_head: bool = False
    budget_parameters: int

    def __init__(self, model: nn.Module, recipe: Recipe):
        self.model = model
        self.recipe = recipe
        self.head = frozenset(head_parameters(model))

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains now, the head included."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """AdamW with its schedule: linear warmup, then linear decay to 0 at the last step.

        Biases and LayerNorm weights are not decayed, as in Transformers' Trainer.
        """
        from torch.optim import AdamW
        from transformers import get_linear_schedule_with_warmup

        from increlora.tuner.decay import decay_groups

        recipe = self.recipe
        groups = decay_groups(self.model)
        optimizer = AdamW(groups, recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
        return optimizer, get_linear_schedule_with_warmup(optimizer, recipe.warmup_steps, recipe.total_steps)

    def penalty(self) -> Tensor | None:
        """Scalar that is added to the training loss of every micro-batch, and never to an evaluation loss."""
        return None

    def before_step(self, step: int) -> None:
        """Called after backward and clipping, before ``optimizer.step()``. Steps count from 1."""

    def after_step(self, step: int) -> None:
        """Called after ``optimizer.step()`` and ``scheduler.step()``, while gradients are still there."""

    def parameters(self) -> ParameterCount:
        """What trains now, the head, and everything."""
        head = sum(p.numel() for name, p in self.model.named_parameters() if name in self.head)
        total = sum(p.numel() for name, p in self.model.named_parameters() if not _NOT_IN_USE.search(name))
        return ParameterCount(trainable=self.peak_trainable(), head=head, total=total)

    def peak_trainable(self) -> int:
        """Largest number of parameters with a gradient at any point of training; the head counts as in `parameters`."""
        trainable = self.named_trainable()
        return sum(p.numel() for name, p in trainable.items() if self.counts_head or name not in self.head)

    def ranks(self) -> dict[str, int] | None:
        """Active rank per module, by the backbone's own names; None where a method allocates no ranks."""
        return None

    def events(self) -> list[dict[str, Any]]:
        """Changes of the total rank so far: ``{"step", "grown": {module: ranks added}, "total_rank"}``."""
        return []

    def orthogonality(self) -> Orthogonality | None:
        """How far the factors are from orthogonal; None where there are none."""
        return None

    def regularisation(self) -> float | None:
        """The weighted regulariser at the current weights; None for a method without one."""
        return None

    def weights(self) -> dict[str, Tensor]:
        """A copy of everything that training has changed, on the CPU: what the best checkpoint holds."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.named_trainable().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Restore what `weights` returned.

        Raises:
            IncreLoraError: the weights belong to another method, budget or backbone.
        """
        import torch

        trainable = self.named_trainable()
        if mismatch := weights.keys() ^ trainable.keys():
            raise IncreLoraError(f"these weights do not fit this model; only one of them has {sorted(mismatch)[0]}")
        with torch.no_grad():
            for name, parameter in trainable.items():
                if parameter.shape != weights[name].shape:
                    given, own = tuple(weights[name].shape), tuple(parameter.shape)
                    raise IncreLoraError(f"these weights do not fit this model: {name} is {given}, not {own}")
                parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything an interrupted run needs to continue exactly, apart from optimizer, scheduler and random state.

        Tensors, numbers, strings and containers of them only, so that ``torch.load(weights_only=True)`` reads it.
        """
        return {"weights": self.weights(), "method": self._method_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.load_weights(state["weights"])
        self._load_method_state(state["method"])

    def finish(self) -> None:
        """Called once after training.

        Raises:
            AllocationError: the method allocates ranks but moved none, or the budget is exceeded.
        """

    def _method_state(self) -> dict[str, Any]:
        """What a method has to remember besides its weights."""
        return {}

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `_method_state` returned."""


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of `head_modules`, before or after PEFT has wrapped them."""
    prefixes = tuple(f"{name}." for name in head_modules(model))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefixes) and not _NOT_IN_USE.search(name)
    }


def train_only(model: nn.Module, names: set[str]) -> None:
    """Let exactly these parameters and the head train."""
    names = names | head_parameters(model).keys()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def target_shapes(model: nn.Module, target_modules: str) -> dict[str, tuple[int, int]]:
    """The linear layers whose full name matches, as ``{name: (out_features, in_features)}``.

    Args:
        model: a model that no method has changed yet.
        target_modules: regular expression, matched against the whole name as PEFT does.

    Raises:
        ConfigError: no module matches, one that matches is not a linear layer, or it belongs to the head.
    """
    from torch import nn

    try:
        pattern = re.compile(target_modules)
    except re.error as error:
        raise ConfigError(
            "backbone.target_modules", f"{target_modules!r} is not a valid regular expression: {error}"
        ) from None
    head = tuple(f"{name}." for name in head_modules(model))
    shapes = {}
    for name, module in model.named_modules():
        if not pattern.fullmatch(name):
            continue
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                "backbone.target_modules",
                f"matches {name or 'the model itself'}, a {type(module).__name__}, not a Linear",
            )
        if f"{name}.".startswith(head):
            raise ConfigError("backbone.target_modules", f"matches {name} of the head, which trains in full")
        shapes[name] = (module.out_features, module.in_features)
    if not shapes:
        raise ConfigError("backbone.target_modules", f"{target_modules!r} matches no module of {type(model).__name__}")
    return shapes

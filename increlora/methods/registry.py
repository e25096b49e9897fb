"""Every method by name: what its budget means, which options it has and where its code is.

To add a method, write three things and every table has its row:

1. options: a subclass of `increlora.methods.options.Options` (or `Options` itself if there are none); its `check` says
   which budgets are impossible;
2. a function from a `increlora.methods.base.Setup` to an `Adaptation`, which changes ``setup.model`` in place, leaves
   ``requires_grad`` on exactly what trains (the head included) and overrides of `Adaptation` what differs from plain
   AdamW training;
3. an entry in `METHODS` with the ``"module:function"`` of that function. It is imported when the first model is
   prepared, so that reading a config costs neither torch nor PEFT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from increlora.errors import ConfigError, unknown
from increlora.methods.options import (
    AdaLoraOptions,
    HoulsbyOptions,
    IncreLoraOptions,
    LoraOptions,
    Options,
    PfeifferOptions,
    SvdLoraOptions,
)
from increlora.methods.plan import TrainingPlan
from increlora.methods.ranks import Shapes

if TYPE_CHECKING:
    from torch import nn

    from increlora.methods.base import Adaptation, Setup
    from increlora.training.settings import RunSettings


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        kind: its name in configs.
        title: how tables print it.
        budget_name: what a budget of this method is; None if it has none.
        options: model of its options.
        entry: ``"module:function"`` of its `prepare`.
        allocates: whether its runs end with a rank per module that was found in training.
        needs_ranks: whether it starts from such a distribution of a finished run.
    """

    kind: str
    title: str
    budget_name: Literal["rank", "bottleneck"] | None
    options: type[Options]
    entry: str
    allocates: bool = False
    needs_ranks: bool = False

    @property
    def prepare(self) -> Callable[[Setup[Any]], Adaptation]:
        """The function that prepares a model; imports its module."""
        module, _, function = self.entry.partition(":")
        return getattr(import_module(module), function)


_HERE = "increlora.methods"

METHODS: dict[str, Method] = {
    method.kind: method
    for method in (
        Method("full_ft", "Full FT", None, Options, f"{_HERE}.full:prepare_full_ft"),
        Method("bitfit", "BitFit", None, Options, f"{_HERE}.full:prepare_bitfit"),
        Method("hadapter", "HAdapter", "bottleneck", HoulsbyOptions, f"{_HERE}.adapters:prepare_hadapter"),
        Method("padapter", "PAdapter", "bottleneck", PfeifferOptions, f"{_HERE}.adapters:prepare_padapter"),
        Method("lora", "LoRA", "rank", LoraOptions, f"{_HERE}.lora:prepare_lora"),
        Method("adalora", "AdaLoRA", "rank", AdaLoraOptions, f"{_HERE}.adalora:prepare_adalora", allocates=True),
        Method(
            "increlora", "IncreLoRA", "rank", IncreLoraOptions, f"{_HERE}.increlora:prepare_increlora", allocates=True
        ),
        Method("svd_lora", "SVD-LoRA", "rank", SvdLoraOptions, f"{_HERE}.increlora:prepare_svd_lora", needs_ranks=True),
    )
}
"""Every method by kind, in the order of the paper's Table 1."""


def get_method(kind: str, field: str = "kind") -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the closest name is suggested.
    """
    if kind not in METHODS:
        raise unknown(field, kind, METHODS)
    return METHODS[kind]


def validate_options(kind: str, options: Mapping[str, Any], field_prefix: str = "options") -> Options:
    """The options of a method, defaults filled in.

    Args:
        kind: name of the method.
        options: what the config says.
        field_prefix: dotted path of the options in the config.

    Raises:
        ConfigError: names the first option that is unknown or wrong, and what is allowed.
    """
    model = get_method(kind).options
    try:
        return model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"{field_prefix}.{name}", name, model.model_fields) from None
        raise ConfigError(f"{field_prefix}.{name}", f"{first['msg']}, not {first['input']!r}") from None


def check_budget(
    kind: str,
    budget: int | None,
    options: Options,
    plan: TrainingPlan,
    shapes: Shapes,
    field_prefix: str = "options",
) -> None:
    """Refuse a budget that a method cannot have on this backbone in this training.

    Args:
        kind: name of the method.
        budget: rank per module, bottleneck width, or None.
        options: of that method.
        plan: the training to come.
        shapes: the matrices that low-rank methods adapt, from `increlora.methods.base.target_shapes`.
        field_prefix: dotted path of the options in the config.

    Raises:
        ConfigError: names the field to change.
    """
    method = get_method(kind)
    if method.budget_name is None:
        if budget is not None:
            raise ConfigError("budget", f"{budget} given, but {method.title} has no budget")
        return
    if budget is None or budget < 1:
        raise ConfigError("budget", f"{method.title} needs a {method.budget_name} of at least 1, not {budget}")
    options.check(budget, plan, shapes, field_prefix)


def prepare(
    settings: RunSettings, model: nn.Module, plan: TrainingPlan, ranks: Mapping[str, int] | None = None
) -> Adaptation:
    """Prepare a model for one run.

    What a method adds is initialised from ``plan.seed`` alone, whatever random numbers were drawn before; the caller's
    random state stays as it was.

    Args:
        settings: kind, options, budget and target modules of the run.
        model: a fresh Transformers sequence classification model; it is changed in place.
        plan: the training to come.
        ranks: a finished run's rank per module, for methods that retrain from one.

    Raises:
        ConfigError: options or budget are wrong, or the model is of a kind that the method does not support.
    """
    import torch

    from increlora.methods.base import Setup, target_shapes

    method = get_method(settings.kind)
    options = validate_options(settings.kind, settings.options)
    target_modules = settings.backbone.target_modules
    shapes = target_shapes(model, target_modules) if method.budget_name == "rank" else {}
    check_budget(settings.kind, settings.budget, options, plan, shapes)
    if method.needs_ranks and ranks is None:
        raise ConfigError("ranks_from", f"{method.title} needs the rank distribution of a finished run")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(plan.seed)
        return method.prepare(Setup(model, plan, options, settings.budget, target_modules, ranks))

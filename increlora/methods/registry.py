"""Every method by name.

To add a method, write one file that ends with ``METHOD = Method(...)`` and add the file's name to `_FILES`. Every
table, figure, plan and check reads the rest from that entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from increlora.errors import ConfigError, unknown
from increlora.methods.method import Method, Options, Recipe
from increlora.methods.ranks import Shapes
from increlora.model import parsed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from increlora.methods.base import Adaptation, ParameterCount

_FILES = (
    "full_ft",
    "head",
    "bitfit",
    "hadapter",
    "padapter",
    "lora",
    "adalora",
    "increlora",
    "svd_lora",
)

METHODS: dict[str, Method] = {
    method.kind: method for method in (import_module(f"increlora.methods.{file}").METHOD for file in _FILES)
}
"""Every method by kind, in the order of the paper's Table 1."""

REFERENCE = METHODS["lora"]
"""Costs are given as multiples of this method's."""


def get_method(kind: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the closest name is suggested.
    """
    if kind not in METHODS:
        raise unknown("kind", kind, METHODS)
    return METHODS[kind]


def validate_options(kind: str, options: Mapping[str, Any], field_prefix: str = "options") -> Options:
    """The options of a method, defaults filled in.

    Args:
        kind: name of the method.
        options: what the config says.
        field_prefix: dotted path of the options in the config.

    Raises:
        ConfigError: names the first option that is unknown or wrong, and what is allowed. Options of IncreLoRA are
            checked by `check_budget` only, which imports PEFT.
    """
    found: Options = parsed(get_method(kind).options, options, field_prefix)
    return found


def check_budget(
    kind: str,
    budget: int | None,
    options: Options,
    recipe: Recipe,
    shapes: Shapes,
    field_prefix: str = "options",
) -> None:
    """Refuse a budget that is impossible for a method on this backbone in this training.

    Args:
        kind: name of the method.
        budget: rank per module, bottleneck width, or None.
        options: of that method.
        recipe: the training to come.
        shapes: the matrices that low-rank methods adapt, from `increlora.methods.base.target_shapes`.
        field_prefix: dotted path of the options in the config.

    Raises:
        ConfigError: names the field to change.
    """
    method = get_method(kind)
    if method.budget is None:
        if budget is not None:
            raise ConfigError("budget", f"{budget} given, but {method.title} has no budget")
        return
    if budget is None or budget < 1:
        raise ConfigError("budget", f"{method.title} needs a {method.budget.name} of at least 1, not {budget}")
    options.check(budget, recipe, shapes, field_prefix)


def prepare(
    kind: str,
    model: nn.Module,
    recipe: Recipe,
    *,
    budget: int | None = None,
    options: Mapping[str, Any] | None = None,
    target_modules: str | None = None,
    ranks: Mapping[str, int] | None = None,
) -> Adaptation:
    """Prepare a model for one run.

    What a method adds is initialised from ``recipe.seed`` alone; the caller's random state does not matter and is left
    unchanged.

    Args:
        kind: name of the method.
        model: a fresh Transformers sequence classification model; it is changed in place.
        recipe: the training to come.
        budget: rank per module, bottleneck width, or None.
        options: of the method.
        target_modules: regular expression for the adapted matrices; None for those of the architecture's family.
        ranks: a finished run's rank per module, for methods that retrain from one.

    Raises:
        ConfigError: options or budget are wrong, or the model is of a kind that the method does not support.
    """
    import torch

    from increlora.methods.base import Setup, target_shapes
    from increlora.methods.families import target_modules as chosen_modules

    method = get_method(kind)
    chosen = validate_options(kind, options or {})
    shapes, pattern = {}, ""
    if method.budget is not None and method.budget.name == "rank":
        pattern = chosen_modules(model.config.model_type, target_modules)  # type: ignore[union-attr,arg-type]
        shapes = target_shapes(model, pattern)
    check_budget(kind, budget, chosen, recipe, shapes)
    if method.needs_ranks and ranks is None:
        raise ConfigError("ranks_from", f"{method.title} needs the rank distribution of a finished run")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        setup = Setup(model, recipe, chosen, budget, pattern, shapes, ranks)
        adaptation = method.prepare(setup)
    if method.parameters == "build":
        adaptation.budget_parameters = adaptation.parameters().trainable
    else:
        adaptation.budget_parameters = method.parameters(shapes, setup.size, chosen)
    return adaptation


def meta_model(config: PretrainedConfig) -> nn.Module:
    """The sequence classification model of a config, without memory; ``config.num_labels`` sizes its head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def count(
    kind: str,
    budget: int | None,
    config: PretrainedConfig,
    *,
    options: Mapping[str, Any] | None = None,
    target_modules: str | None = None,
) -> ParameterCount:
    """Parameters of a method at its nominal budget, without weights: what a plan prints before anything is trained.

    Args:
        kind: name of the method.
        budget: rank per module, bottleneck width, or None.
        config: of the backbone, with ``num_labels``.
        options: as in `prepare`.
        target_modules: as in `prepare`.

    Returns:
        Counts at the budget: methods that allocate may end elsewhere, as modules differ in size.

    Raises:
        ConfigError: the method, the modules or the backbone's architecture are not known.
    """
    from increlora.methods.base import ParameterCount, Setup, head_parameters, target_shapes
    from increlora.methods.families import target_modules as chosen_modules

    method, model = get_method(kind), meta_model(config)
    setup = Setup(model, _ANY_RECIPE, validate_options(kind, options or {}), budget)
    if method.parameters == "build":
        return method.prepare(setup).parameters()
    shapes = target_shapes(model, chosen_modules(config.model_type, target_modules))
    trainable = method.parameters(shapes, setup.size, setup.options)
    backbone = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    return ParameterCount(trainable, head, backbone + trainable)


_ANY_RECIPE = Recipe(total_steps=1, warmup_steps=0, learning_rate=1e-3, weight_decay=0.0, seed=0)

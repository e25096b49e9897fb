"""Parameter counts without weights: what `increlora plan` prints before anything is downloaded or trained.

Models are built on the meta device, from their config alone. Low-rank methods are counted from the shapes of their
target modules at a uniform rank; the others are prepared and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from increlora.methods.base import ParameterCount, Setup, TrainingPlan, head_parameters, target_shapes
from increlora.methods.ranks import lora_parameters, svd_parameters, uniform_ranks
from increlora.methods.registry import get_method

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_ANY_PLAN = TrainingPlan(total_steps=1, warmup_steps=0, learning_rate=1e-3, weight_decay=0.0, seed=0)


def meta_model(config: PretrainedConfig) -> nn.Module:
    """The sequence classification model of a config, without memory; ``config.num_labels`` sizes its head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def count(kind: str, budget: int | None, config: PretrainedConfig, target_modules: str) -> ParameterCount:
    """Parameters of a method at its nominal budget.

    Args:
        kind: name of the method.
        budget: rank per module, bottleneck width, or None.
        config: of the backbone, with ``num_labels``.
        target_modules: regular expression over full module names, for low-rank methods.

    Returns:
        Counts at the budget: dynamic methods may end elsewhere, as modules differ in size.

    Raises:
        ConfigError: the method, the modules or the backbone's architecture are not known.
    """
    method = get_method(kind)
    model = meta_model(config)
    if method.budget_name != "rank":
        setup = Setup(model, _ANY_PLAN, method.options(), budget, target_modules)
        return method.prepare(setup).parameters()
    shapes = target_shapes(model, target_modules)
    ranks = uniform_ranks(shapes, Setup(model, _ANY_PLAN, method.options(), budget).size)
    trainable = lora_parameters(shapes, ranks) if kind == "lora" else svd_parameters(shapes, ranks)
    backbone = sum(parameter.numel() for parameter in model.parameters())
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    return ParameterCount(trainable, head, backbone + trainable)

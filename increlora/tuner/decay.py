"""Which parameters weight decay leaves alone."""

from __future__ import annotations

from typing import Any

from torch import nn


def normalisation_and_bias_names(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: biases and everything in a normalisation layer."""
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if isinstance(module, nn.ParameterDict):  # the names in it are those of adapters
                continue
            if "bias" in name or "norm" in type(module).__name__.lower():
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """What trains, as parameter groups of an optimizer: what decays, and what does not."""
    exempt = normalisation_and_bias_names(model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in trainable if name not in exempt]},
        {"params": [parameter for name, parameter in trainable if name in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

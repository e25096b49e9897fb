"""What HAdapter and PAdapter share: f(z) = W_up act(W_down z + b_down) + b_up, put into every layer of an encoder.

As in the baselines of AdaLoRA (arXiv 2303.10512, section 4.1), no LayerNorm of the backbone trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from increlora.errors import ConfigError
from increlora.methods.base import Adaptation, Setup, train_only
from increlora.methods.families import FAMILIES, Family

_ACTIVATIONS = {"swish": nn.SiLU, "relu": nn.ReLU}


class Bottleneck(nn.Module):
    """f(z) = W_up act(W_down z + b_down) + b_up, without a skip connection.

    Args:
        hidden_size: size of the last dimension of input and output.
        width: size of the bottleneck.
        activation: nonlinearity.
        init_std: standard deviation of both matrices' Gaussian initialisation; biases start at 0.
    """

    def __init__(self, hidden_size: int, width: int, activation: Literal["swish", "relu"], init_std: float):
        super().__init__()
        self.down = nn.Linear(hidden_size, width)
        self.activation = _ACTIVATIONS[activation]()
        self.up = nn.Linear(width, hidden_size)
        for projection in (self.down, self.up):
            nn.init.normal_(projection.weight, std=init_std)
            nn.init.zeros_(projection.bias)

    def forward(self, z: Tensor) -> Tensor:  # (..., hidden_size) -> (..., hidden_size)
        return self.up(self.activation(self.down(z)))


class AfterSublayer(nn.Module):
    """HAdapter: o + f(o) for the sublayer's result o, before the residual connection."""

    def __init__(self, module: nn.Module, adapter: Bottleneck):
        super().__init__()
        self.module = module
        self.adapter = adapter

    def forward(self, *arguments: Any) -> Tensor:
        output = self.module(*arguments)
        return output + self.adapter(output)


class AroundLayerNorm(nn.Module):
    """PAdapter: LayerNorm(o + f(LayerNorm(o + x)) + x), the same frozen LayerNorm twice.

    Takes the place of the block that ends a BERT layer, LayerNorm(o + x) with o = dropout(dense(h)); the block's own
    modules keep their names.
    """

    def __init__(self, block: nn.Module, adapter: Bottleneck):
        super().__init__()
        self.dense = block.get_submodule("dense")
        self.dropout = block.get_submodule("dropout")
        self.LayerNorm = block.get_submodule("LayerNorm")
        self.adapter = adapter

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        output = self.dropout(self.dense(hidden_states))
        adapted = output + self.adapter(self.LayerNorm(output + input_tensor))
        return self.LayerNorm(adapted + input_tensor)


def insert(
    setup: Setup[Any], places: Callable[[Family], set[str | None]], adapted: type[AfterSublayer | AroundLayerNorm]
) -> Adaptation:
    """Put a bottleneck of width `budget` into every layer, and let bottlenecks and head train.

    Args:
        setup: what the method was asked for.
        places: paths inside a layer of the modules to replace, by the architecture's family.
        adapted: their replacement.

    Raises:
        ConfigError: the architecture has no such place, or none that is known.
    """
    model, options = setup.model, setup.options
    config: Any = model.config
    known: dict[str, Any] = {name: paths for name, family in FAMILIES.items() if None not in (paths := places(family))}
    if config.model_type not in known:
        raise ConfigError(
            "backbone.name",
            f"no place for this method's adapters is known in {type(model).__name__}; allowed: {', '.join(known)}",
        )
    weight = next(model.parameters())
    for name, module in FAMILIES[config.model_type].modules(model, known[config.model_type]).items():
        adapter = Bottleneck(config.hidden_size, setup.size, options.activation, options.init_std)
        model.set_submodule(name, adapted(module, adapter.to(weight.device, weight.dtype)))
    train_only(model, {name for name, _ in model.named_parameters() if ".adapter." in name})
    return Adaptation(model, setup.recipe)

"""Bottleneck adapters: HAdapter (Houlsby et al., arXiv 1902.00751) and PAdapter (Pfeiffer et al., arXiv 2005.00247).

Both sit in the output blocks of a BERT-like layer. Such a block maps ``h`` (the sublayer's result) and ``x`` (the
sublayer's input) to ``LayerNorm(dropout(dense(h)) + x)``. With ``o = dropout(dense(h))``:

    HAdapter, in both blocks of a layer:    LayerNorm(o + f(o) + x)
    PAdapter, in the FFN's block only:      LayerNorm(o + f(LayerNorm(o + x)) + x), the same frozen LayerNorm twice

where ``f(z) = W_up act(W_down z + b_down) + b_up``. HAdapter's inner skip is the term ``o``. As in the baselines of
AdaLoRA (arXiv 2303.10512, section 4.1), no LayerNorm of the backbone trains.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from increlora.errors import ConfigError
from increlora.methods.base import Adaptation, Setup, train_only
from increlora.methods.options import AdapterOptions

ATTENTION_OUTPUTS = {"DebertaV2SelfOutput", "BertSelfOutput"}
"""Blocks after the attention. By name, as importing the classes would load both architectures."""
FFN_OUTPUTS = {"DebertaV2Output", "BertOutput"}
"""Blocks after the second matrix of the FFN."""

_ACTIVATIONS = {"swish": nn.SiLU, "relu": nn.ReLU}


class Bottleneck(nn.Module):
    """f(z) = W_up act(W_down z + b_down) + b_up, without a skip.

    Args:
        hidden_size: size of the last dimension of input and output.
        width: size of the bottleneck.
        activation: nonlinearity.
        init_std: standard deviation of both matrices' Gaussian init; biases start at 0.
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


class AdaptedOutput(nn.Module):
    """An output block with an adapter; its own modules keep their names."""

    def __init__(self, block: nn.Module, adapter: Bottleneck):
        super().__init__()
        self.dense = block.get_submodule("dense")
        self.dropout = block.get_submodule("dropout")
        self.LayerNorm = block.get_submodule("LayerNorm")
        self.adapter = adapter


class HoulsbyOutput(AdaptedOutput):
    """Adapter after the block's dropout, before its residual connection."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        output = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(output + self.adapter(output) + input_tensor)


class PfeifferOutput(AdaptedOutput):
    """Adapter that reads what the block would have returned and adds to the sublayer's output."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        output = self.dropout(self.dense(hidden_states))
        adapted = output + self.adapter(self.LayerNorm(output + input_tensor))
        return self.LayerNorm(adapted + input_tensor)


def prepare_hadapter(setup: Setup[AdapterOptions]) -> Adaptation:
    """HAdapter: two adapters of width `budget` per layer."""
    return _prepare(setup, ATTENTION_OUTPUTS | FFN_OUTPUTS, HoulsbyOutput)


def prepare_padapter(setup: Setup[AdapterOptions]) -> Adaptation:
    """PAdapter: one adapter of width `budget` per layer."""
    return _prepare(setup, FFN_OUTPUTS, PfeifferOutput)


def _prepare(setup: Setup[AdapterOptions], blocks: set[str], output: type[AdaptedOutput]) -> Adaptation:
    places = [(name, module) for name, module in setup.model.named_modules() if type(module).__name__ in blocks]
    if not places:
        raise ConfigError(
            "backbone.name",
            f"adapters do not know where to go in {type(setup.model).__name__}; they support DeBERTa-v2/v3 and BERT",
        )
    for name, block in places:
        weight = block.get_parameter("dense.weight")
        adapter = Bottleneck(weight.shape[0], setup.size, setup.options.activation, setup.options.init_std)
        setup.model.set_submodule(name, output(block, adapter.to(weight.device, weight.dtype)))
    added = {name for name, _ in setup.model.named_parameters() if ".adapter." in name}
    train_only(setup.model, added)
    return Adaptation(setup.model, setup.plan)

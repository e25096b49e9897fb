"""Encoder families: where each architecture has the six matrices of a layer, and how many tokens it can read.

An entry of `FAMILIES` is everything that the package knows about an architecture. To add one, add an entry; then a
config needs no `target_modules` for it. A config may still give an expression of its own, also for an architecture that
has no entry. Nothing here imports torch: the report reads layers and matrices off the module names in a record.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from increlora.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

MATRICES = ("W_q", "W_k", "W_v", "W_qkv", "W_o", "W_f1", "W_f2")
"""The paper's names: attention's query, key, value and output, and the two matrices of the feed-forward network.

``W_qkv`` is the one matrix that ModernBERT has for the first three.
"""


class Place(NamedTuple):
    """Where an adapted matrix is."""

    layer: int
    """Index of the layer, from 0."""
    matrix: str
    """One of `MATRICES`."""


@dataclass(frozen=True)
class Family:
    """One encoder architecture.

    Attributes:
        model_type: as in the model's ``config.json``.
        layers: path of the list of layers inside the backbone.
        matrices: the adapted linear layers by the paper's names, as paths inside a layer.
        attention_output: path of the module whose result is the attention's, before the residual connection.
        ffn_output: the same for the feed-forward network.
        ffn_block: module with ``dense``, ``dropout`` and ``LayerNorm`` that ends a layer as BERT's does, with LayerNorm
            after the residual connection. None where there is no such module.
        reserved_positions: rows of the table of position embeddings that no token uses.
    """

    model_type: str
    layers: str
    matrices: Mapping[str, str]
    attention_output: str
    ffn_output: str
    ffn_block: str | None
    reserved_positions: int = 0

    @property
    def target_modules(self) -> str:
        """Regular expression for the full names of all adapted matrices, as PEFT takes it."""
        paths = "|".join(re.escape(path) for path in self.matrices.values())
        return rf".*\.{re.escape(self.layers)}\.\d+\.({paths})"

    def locate(self, name: str) -> Place | None:
        """Layer and matrix of a module by its full name; None if it is none of the adapted ones."""
        for matrix, path in self.matrices.items():
            if match := re.fullmatch(rf"(?:.*\.)?{re.escape(self.layers)}\.(\d+)\.{re.escape(path)}", name):
                return Place(int(match[1]), matrix)
        return None

    def modules(self, model: nn.Module, paths: Collection[str]) -> dict[str, nn.Module]:
        """The modules at these paths in every layer of a model, by full name, in the model's order."""
        ends = "|".join(map(re.escape, paths))
        pattern = re.compile(rf".*\.{re.escape(self.layers)}\.\d+\.({ends})")
        return {name: module for name, module in model.named_modules() if pattern.fullmatch(name)}


def _bert_like(
    model_type: str,
    *,
    attention: Mapping[str, str],
    attention_output: str = "attention.output.dropout",
    reserved_positions: int = 0,
) -> Family:
    return Family(
        model_type,
        layers="encoder.layer",
        matrices={**attention, "W_f1": "intermediate.dense", "W_f2": "output.dense"},
        attention_output=attention_output,
        ffn_output="output.dropout",
        ffn_block="output",
        reserved_positions=reserved_positions,
    )


_BERT = {
    "W_q": "attention.self.query",
    "W_k": "attention.self.key",
    "W_v": "attention.self.value",
    "W_o": "attention.output.dense",
}
_DEBERTA = {**_BERT, **{name: f"{_BERT[name]}_proj" for name in ("W_q", "W_k", "W_v")}}
_MPNET = {f"W_{letter}": f"attention.attn.{letter}" for letter in "qkvo"}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        _bert_like("deberta-v2", attention=_DEBERTA),  # and v3
        _bert_like("bert", attention=_BERT),
        _bert_like(
            "roberta", attention=_BERT, reserved_positions=2
        ),  # positions count from 2, behind the padding index 1
        _bert_like("electra", attention=_BERT),
        _bert_like("mpnet", attention=_MPNET, attention_output="attention.dropout", reserved_positions=2),
        Family(
            "distilbert",
            layers="transformer.layer",
            matrices={
                **{f"W_{letter}": f"attention.{letter}_lin" for letter in "qkv"},
                "W_o": "attention.out_lin",
                "W_f1": "ffn.lin1",
                "W_f2": "ffn.lin2",
            },
            attention_output="attention.out_lin",
            ffn_output="ffn.dropout",
            ffn_block=None,
        ),
        Family(
            "modernbert",
            layers="layers",
            matrices={"W_qkv": "attn.Wqkv", "W_o": "attn.Wo", "W_f1": "mlp.Wi", "W_f2": "mlp.Wo"},
            attention_output="attn.out_drop",
            ffn_output="mlp.Wo",
            ffn_block=None,
        ),
    )
}
"""Every family by ``model_type``."""


def target_modules(model_type: str, given: str | None = None) -> str:
    """The expression of a config if it gives one, otherwise that of the architecture's family.

    Raises:
        ConfigError: neither is there.
    """
    if given is not None:
        return given
    if model_type not in FAMILIES:
        raise ConfigError(
            "backbone.target_modules",
            f"is required for a {model_type} model; without it the six matrices are known in {', '.join(FAMILIES)}",
        )
    return FAMILIES[model_type].target_modules


def locate(name: str) -> Place | None:
    """Layer and matrix of a module by its full name, whatever the architecture; None if it is no adapted matrix.

    >>> locate("deberta.encoder.layer.3.attention.output.dense")
    Place(layer=3, matrix='W_o')
    """
    return next((place for family in FAMILIES.values() if (place := family.locate(name))), None)


def position_limit(config: Any) -> int | None:
    """Most tokens that a model can read, by its Transformers config; None if positions are relative only."""
    table = getattr(config, "max_position_embeddings", None)
    if not table or not getattr(config, "position_biased_input", True):
        return None
    family = FAMILIES.get(config.model_type)
    return table - (family.reserved_positions if family else 0)


def head_modules(model: nn.Module) -> list[str]:
    """The task head: every top-level module beside the backbone that has parameters, and the backbone's pooler.

    DeBERTa has its pooler beside the backbone, BERT has it inside (``bert.pooler``), RoBERTa and MPNet have none.

    Raises:
        ConfigError: the model does not say which of its modules is the backbone, or has nothing beside it.
    """
    backbone = getattr(model, "base_model_prefix", "")
    children = dict(model.named_children())
    if backbone not in children:
        raise ConfigError("backbone.name", f"{type(model).__name__} is not a Transformers model with a task head")
    inner = [f"{backbone}.pooler"] if getattr(children[backbone], "pooler", None) is not None else []
    outer = [name for name, child in children.items() if name != backbone and any(True for _ in child.parameters())]
    if not outer:
        raise ConfigError("backbone.name", f"{type(model).__name__} has no head beside {backbone!r}")
    return inner + outer

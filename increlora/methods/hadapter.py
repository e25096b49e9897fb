"""HAdapter (Houlsby et al., arXiv 1902.00751): a bottleneck after the attention and after the feed-forward network.

A layer computes ``LayerNorm(o + x)`` from the result ``o`` of each sublayer and its input ``x``; with the adapter it is
``LayerNorm(o + f(o) + x)``. Houlsby's inner skip connection is the first ``o``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from increlora.methods.base import Adaptation, Setup
from increlora.methods.method import BOTTLENECK, Look, Method, Options


class HAdapterOptions(Options):
    """HAdapter: swish by default."""

    activation: Literal["swish", "relu"] = "swish"
    """Nonlinearity between the two projections."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the projections' Gaussian initialisation; biases start at 0."""


def prepare(setup: Setup[HAdapterOptions]) -> Adaptation:
    """Two adapters of width `budget` per layer."""
    from increlora.methods.bottleneck import AfterSublayer, insert

    return insert(setup, lambda family: {family.attention_output, family.ffn_output}, AfterSublayer)


METHOD = Method(
    kind="hadapter",
    title="HAdapter",
    budget=BOTTLENECK,
    parameters="build",
    prepare=prepare,
    look=Look("#E69F00", "v"),
    options=HAdapterOptions,
)

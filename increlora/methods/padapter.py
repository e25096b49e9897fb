"""PAdapter (Pfeiffer et al., arXiv 2005.00247): one bottleneck per layer, after the feed-forward network.

A layer ends with ``LayerNorm(o + x)``; with the adapter it is ``LayerNorm(o + f(LayerNorm(o + x)) + x)``.
"""

from __future__ import annotations

from typing import Literal

from increlora.methods.base import Adaptation, Setup
from increlora.methods.hadapter import HAdapterOptions
from increlora.methods.method import BOTTLENECK, Look, Method


class PAdapterOptions(HAdapterOptions):
    """PAdapter: ReLU by default."""

    activation: Literal["swish", "relu"] = "relu"
    """Nonlinearity between the two projections."""


def prepare(setup: Setup[PAdapterOptions]) -> Adaptation:
    """One adapter of width `budget` per layer."""
    from increlora.methods.bottleneck import AroundLayerNorm, insert

    return insert(setup, lambda family: {family.ffn_block}, AroundLayerNorm)


METHOD = Method(
    kind="padapter",
    title="PAdapter",
    budget=BOTTLENECK,
    parameters="build",
    prepare=prepare,
    look=Look("#56B4E9", "<"),
    options=PAdapterOptions,
)

"""Rank distributions as pure data: how many parameters they cost, and the controls of Table 3.

A distribution maps module names to ranks, a shape map gives each module's ``(out_features, in_features)``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

Shapes = Mapping[str, tuple[int, int]]
"""``{module: (out_features, in_features)}`` of the adapted matrices, in the order of the model."""

Transform = Literal["none", "uniform", "shuffled"]


def uniform_ranks(shapes: Shapes, rank: int) -> dict[str, int]:
    """Every module at the same rank."""
    return dict.fromkeys(shapes, rank)


def lora_parameters(shapes: Shapes, ranks: Mapping[str, int]) -> int:
    """Numbers in LoRA's factors: ``rank * (out + in)`` over all modules."""
    return sum(rank * sum(shapes[name]) for name, rank in ranks.items())


def svd_parameters(shapes: Shapes, ranks: Mapping[str, int]) -> int:
    """Numbers in the SVD form B diag(lambda) A: LoRA's and one lambda per rank."""
    return lora_parameters(shapes, ranks) + sum(ranks.values())


def transform_ranks(ranks: Mapping[str, int], transform: Transform, seed: int = 0) -> dict[str, int]:
    """The distribution itself, or a control that keeps its total rank (Table 3).

    Args:
        ranks: rank per module.
        transform: ``none`` returns the distribution; ``uniform`` spreads the total evenly, the remainder going one each
            to the first modules; ``shuffled`` permutes the ranks over the modules.
        seed: decides the permutation; unused otherwise.

    Returns:
        A new distribution over the same modules, in the same order, with the same total.
    """
    if transform == "none":
        return dict(ranks)
    if transform == "uniform":
        share, remainder = divmod(sum(ranks.values()), len(ranks)) if ranks else (0, 0)
        return {name: share + (position < remainder) for position, name in enumerate(ranks)}
    if transform == "shuffled":
        values = list(ranks.values())
        random.Random(seed).shuffle(values)
        return dict(zip(ranks, values, strict=True))
    raise ValueError(f"transform {transform!r} is unknown; allowed: none, uniform, shuffled")

"""Rank distributions as pure data: how many parameters they cost, and the controls of Table 3.

A distribution maps module names to ranks, a shape map gives each module's ``(out_features, in_features)``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from increlora.errors import ConfigError

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


def check_modules(ranks: Mapping[str, int], shapes: Shapes) -> None:
    """Raise `ConfigError` for a distribution over other modules than those of a backbone."""
    if difference := ranks.keys() ^ shapes.keys():
        raise ConfigError("ranks_from", f"the saved ranks do not fit this backbone: {min(difference)}")


def transform_ranks(ranks: Mapping[str, int], transform: Transform, shapes: Shapes, seed: int = 0) -> dict[str, int]:
    """The distribution itself, or a control with its number of parameters (Table 3).

    Args:
        ranks: rank per module.
        transform: ``none`` returns the distribution; ``shuffled`` permutes the ranks of modules of equal shape, so the
            parameters are exactly the same; ``uniform`` gives every module one rank or the one above it, so that the
            parameters (`svd_parameters`) differ by no more than half of the largest module's at rank 1.
        shapes: of the same modules.
        seed: decides the permutation; unused otherwise.

    Returns:
        A new distribution over the same modules, in the same order.

    Raises:
        ConfigError: the shapes are those of other modules.
    """
    check_modules(ranks, shapes)
    if transform == "none":
        return dict(ranks)
    if transform == "uniform":
        one = {name: svd_parameters(shapes, {name: 1}) for name in ranks}
        share, remainder = divmod(svd_parameters(shapes, ranks), sum(one.values())) if ranks else (0, 0)
        higher = _closest_subset(one, remainder)
        return {name: share + (name in higher) for name in ranks}
    if transform == "shuffled":
        shuffled, generator = dict(ranks), random.Random(seed)
        for shape in dict.fromkeys(shapes[name] for name in ranks):
            names = [name for name in ranks if shapes[name] == shape]
            values = [ranks[name] for name in names]
            generator.shuffle(values)
            shuffled.update(zip(names, values, strict=True))
        return shuffled
    raise ValueError(f"transform {transform!r} is unknown; allowed: none, uniform, shuffled")


def _closest_subset(numbers: Mapping[str, int], total: int) -> set[str]:
    """Names of positive numbers whose sum is as close to a total as that of any subset."""
    last: dict[int, str] = {0: ""}  # every sum that can be reached, and the number that reached it first
    for name, number in numbers.items():
        for reached in list(last):
            last.setdefault(reached + number, name)
    found, chosen = min(last, key=lambda reached: abs(reached - total)), set()
    while found:
        chosen.add(last[found])
        found -= numbers[last[found]]
    return chosen

"""Orthogonality of the components: ``||A A^T - I||_F`` and ``||B^T B - I||_F`` of every module at once.

Matrices of one shape are stacked, so the cost is a few batched products instead of a loop over components.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def gram_deviation(matrices: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """``M M^T - diag(mask)`` for each matrix.

    Args:
        matrices: components as rows, each (capacity, width).
        masks: 1 for rows that count and 0 for the others, each (capacity,).

    Returns:
        One tensor (matrices of this shape, capacity, capacity) per distinct shape.
    """
    groups: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        groups[matrix.shape, matrix.device].append(index)
    deviations = []
    for members in groups.values():
        stacked = torch.stack([matrices[i] for i in members])
        mask = torch.stack([masks[i] for i in members]).to(stacked.dtype)
        with torch.autocast(stacked.device.type, enabled=False):  # a difference from I does not survive bfloat16
            products = torch.bmm(stacked, stacked.transpose(1, 2)) * (mask.unsqueeze(1) * mask.unsqueeze(2))
        deviations.append(products - torch.diag_embed(mask))
    return deviations


def orthogonality_loss(a: Sequence[Tensor], b: Sequence[Tensor], masks: Sequence[Tensor], kind: str) -> Tensor:
    """The regulariser without its coefficient.

    Args:
        a: A of every module, each (capacity, in).
        b: B of every module, each (out, capacity).
        masks: rows (of A; columns of B) that count, each (capacity,).
        kind: ``"squared"`` (paper), ``"frobenius"`` or ``"component"``, see :class:`IncreLoraConfig`.
    """
    matrices = [*a, *(matrix.T for matrix in b)]
    deviations = gram_deviation(matrices, [*masks, *masks])
    device = deviations[0].device
    if kind == "squared":
        return torch.stack([deviation.square().sum().to(device) for deviation in deviations]).sum()
    if kind == "frobenius":
        # the norm's gradient at 0 is NaN for an exactly orthogonal matrix; the clamp makes it 0 there
        norms = [d.square().sum((1, 2)).clamp_min(1e-24).sqrt() for d in deviations]
        return torch.cat([norm.to(device) for norm in norms]).mean()
    diagonals = torch.cat([d.diagonal(dim1=1, dim2=2).abs().flatten().to(device) for d in deviations])
    return diagonals.sum() / (2 * sum(mask.sum().to(device) for mask in masks))


@torch.no_grad()
def orthogonality(matrices: Sequence[Tensor], masks: Sequence[Tensor]) -> float:
    """Mean over modules of ``||M M^T - I||_F^2``: the curves of the paper's Figure 5."""
    deviations = gram_deviation(matrices, masks)
    return sum(float(d.square().sum()) for d in deviations) / len(matrices)

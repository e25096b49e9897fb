"""The update as the authors' code computes it: every module materialises ``dW`` and multiplies by it."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 2.0


class MaterialisedLinear(nn.Module):
    """``y = W0 x + (s B diag(lambda) A) x`` with one parameter per component, as lists grow without reallocation.

    Args:
        base: the frozen layer.
        rank: components.
    """

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        device = base.weight.device
        self.a = nn.ParameterList(torch.randn(1, base.in_features, device=device) * 0.02 for _ in range(rank))
        self.b = nn.ParameterList(torch.randn(base.out_features, 1, device=device) * 0.02 for _ in range(rank))
        self.lam = nn.ParameterList(torch.zeros(1, 1, device=device) for _ in range(rank))
        self.update: Tensor = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (..., in) to (..., out); keeps ``dW`` (out, in) and asks for its gradient."""
        a, b, lam = (torch.cat(list(parts), dim) for parts, dim in ((self.a, 0), (self.b, 1), (self.lam, 0)))
        self.update = b @ (a * lam) * SCALE
        if self.update.requires_grad:
            self.update.retain_grad()
        return self.base(x) + F.linear(x, self.update)

    def score(self) -> Tensor:
        """``mean |dW * grad(dW)|`` of the last backward pass."""
        assert self.update.grad is not None
        return (self.update * self.update.grad).abs().mean()

    def regulariser(self) -> Tensor:
        """``sum over components of | |a|^2 - 1 | + | |b|^2 - 1 |``, one by one."""
        terms = [((p * p).sum() - 1).abs() for parts in (self.a, self.b) for p in parts]
        return torch.stack(terms).sum()


def inject(model: nn.Module, targets: str, rank: int) -> list[MaterialisedLinear]:
    """Replace every linear layer whose name matches ``targets``; the rest of the encoder is frozen."""
    model.requires_grad_(False)
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name):
            parent, _, leaf = name.rpartition(".")
            layer = MaterialisedLinear(module, rank)
            setattr(model.get_submodule(parent), leaf, layer)
            layers.append(layer)
    return layers

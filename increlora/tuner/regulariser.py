"""The orthogonality regulariser: its value, and its gradient where the gradients are.

The regulariser depends on A and B alone, so its gradient is known in closed form and needs no graph:
``4 (M M^T - I) M`` for ``||M M^T - I||_F^2`` and ``2 (M M^T - I) M / ||M M^T - I||_F`` for the norm itself, components
being the rows of ``M``. `Regulariser` adds it to ``.grad`` in the backward pass, when the gradient of the loss has been
accumulated there, once per optimizer step. It therefore acts whatever the loss is and whoever computes it, before
gradients are clipped, and is neither in a training nor in an evaluation loss.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .config import IncreLoraConfig
    from .layer import Components, IncreLoraLayer

Key = tuple[str, str]
"""Module name and ``"A"`` or ``"B"``."""


@dataclass
class Stack:
    """Matrices of one width, their components as rows.

    Attributes:
        keys: which matrices, one per entry of the batch.
        matrices: (batch, rows, width).
        counted: 1 for rows that the regulariser counts (batch, rows).
        trained: 1 for those that train (batch, rows).
    """

    keys: list[Key]
    matrices: Tensor
    counted: Tensor
    trained: Tensor

    @staticmethod
    def product(one: Tensor, other: Tensor) -> Tensor:
        """``one @ other`` in full precision: a difference from I does not survive bfloat16."""
        with torch.autocast(one.device.type, enabled=False):
            return torch.bmm(one, other)

    def deviation(self) -> Tensor:
        """``M M^T - I`` over the rows that count, 0 elsewhere (batch, rows, rows)."""
        products = self.product(self.matrices, self.matrices.transpose(1, 2))
        return products * (self.counted.unsqueeze(1) * self.counted.unsqueeze(2)) - torch.diag_embed(self.counted)


MEAN_WEIGHT = 0.1
"""The paper's coefficient, of a mean over all A and B."""

Rows = Literal["counted", "used", "rank"]
"""Which rows count: those of the regulariser, active components and reserve, or active components alone."""


def stacks(layers: Mapping[str, IncreLoraLayer], adapter: str, rows: Rows = "counted") -> Iterator[Stack]:
    """All A and B of an adapter, those of one width and device together; modules of rank 0 are left out."""
    groups: dict[tuple[int, torch.device], list[tuple[Key, Tensor, Components]]] = defaultdict(list)
    for name, layer in layers.items():
        part = layer.components[adapter]
        if part.rank:
            a, b = layer.increlora_A[adapter].detach(), layer.increlora_B[adapter].detach().T
            groups[a.shape[1], a.device].append(((name, "A"), a, part))
            groups[b.shape[1], b.device].append(((name, "B"), b, part))
    for (_, device), members in groups.items():
        counts = tuple(getattr(part, rows) for *_, part in members)
        height = max(counts)
        # storage may differ in height, and rows beyond those that count take no part
        stacked = _stack([matrix[:height] for _, matrix, _ in members], height)
        precise = torch.promote_types(stacked.dtype, torch.float32)
        counted = _below(counts, height, device, precise)
        trained = _below(tuple(part.trained for *_, part in members), height, device, precise)
        yield Stack([key for key, *_ in members], stacked.to(precise), counted, trained)


def _stack(matrices: list[Tensor], height: int) -> Tensor:
    """Matrices of one width, with zeros below those that have fewer rows (batch, height, width)."""
    if all(len(matrix) == height for matrix in matrices):
        return torch.stack(matrices)
    stacked = matrices[0].new_zeros(len(matrices), height, matrices[0].shape[1])
    torch._foreach_copy_([rows[: len(matrix)] for rows, matrix in zip(stacked, matrices, strict=True)], matrices)
    return stacked


@functools.lru_cache(maxsize=64)
def _below(limits: tuple[int, ...], height: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 in the first so many entries of each row, 0 in the rest (len(limits), height)."""
    index = torch.arange(height, device=device)
    return (index < torch.tensor(limits, device=device).unsqueeze(1)).to(dtype)


def orthogonality_loss(groups: list[Stack], kind: str) -> Tensor:
    """The regulariser without its coefficient (a scalar), ``kind`` as in `IncreLoraConfig`."""
    deviations = [group.deviation() for group in groups]
    device = deviations[0].device
    if kind == "squared":
        return torch.stack([d.square().sum().to(device) for d in deviations]).sum()
    if kind == "frobenius":
        return torch.cat([d.square().sum((1, 2)).sqrt().to(device) for d in deviations]).mean()
    diagonals = torch.stack([d.diagonal(dim1=1, dim2=2).abs().sum().to(device) for d in deviations])
    return diagonals.sum() / sum(group.counted.sum().to(device) for group in groups)


def orthogonality_gradients(groups: list[Stack], kind: str) -> dict[Key, Tensor]:
    """The gradient of `orthogonality_loss` with respect to the rows that train, each (rows, width)."""
    matrices = sum(len(group.keys) for group in groups)
    components = sum(float(group.counted.sum()) for group in groups) if kind == "component" else 0.0
    gradients: dict[Key, Tensor] = {}
    for group in groups:
        deviation = group.deviation()
        if kind == "squared":
            factor: Tensor | float = 4.0
        elif kind == "frobenius":  # 0 where the norm is, for an exactly orthogonal matrix
            norm = deviation.square().sum((1, 2), keepdim=True).sqrt()
            factor = torch.where(norm > 0, 2 / (matrices * norm), 0.0)
        else:
            deviation = torch.diag_embed(deviation.diagonal(dim1=1, dim2=2).sign())
            factor = 2 / components
        whole = group.product(deviation, group.matrices) * factor * group.trained.unsqueeze(2)
        gradients.update(zip(group.keys, whole, strict=True))
    return gradients


class Deviation(NamedTuple):
    """How far A and B are from orthonormal rows and columns: the curves of the paper's Figure 5."""

    A: float
    """Mean over modules of ``||A A^T - I||_F^2``."""
    B: float
    """Mean over modules of ``||B^T B - I||_F^2``."""
    norm: float
    """Mean over all A and B of the norm, not squared (what the authors' code logs)."""


@torch.no_grad()
def orthogonality(layers: Mapping[str, IncreLoraLayer], adapter: str, *, reserve: bool = True) -> Deviation:
    """The deviation of the active components, or of these and the reserve."""
    squares: dict[str, list[float]] = {"A": [], "B": []}
    for group in stacks(layers, adapter, "used" if reserve else "rank"):
        for (_, kind), value in zip(group.keys, group.deviation().square().sum((1, 2)).tolist(), strict=True):
            squares[kind].append(value)
    a, b = sum(squares["A"]) / len(layers), sum(squares["B"]) / len(layers)
    return Deviation(a, b, sum(map(math.sqrt, squares["A"] + squares["B"])) / (2 * len(layers)))


class Regulariser:
    """Adds the weighted gradient of the regulariser to ``A.grad`` and ``B.grad``, once per optimizer step.

    A step is over when the parameter has changed, its gradient has been cleared, or `next_step` says so.

    Args:
        layers: by module name.
        adapter: name of the adapter.
        config: of the adapter.
        on_step: called in the first backward pass of every optimizer step.

    Attributes:
        scaler: the ``GradScaler`` that multiplies the loss, if any; the regulariser's gradient is scaled as it scales.
    """

    def __init__(
        self,
        layers: Mapping[str, IncreLoraLayer],
        adapter: str,
        config: IncreLoraConfig,
        on_step: Callable[[], None],
    ):
        self.layers, self.adapter, self.on_step = layers, adapter, on_step
        self.kind = config.orth_reg
        mean_weight = MEAN_WEIGHT / (2 * len(layers)) if self.kind == "squared" else MEAN_WEIGHT
        self.weight = mean_weight if config.orth_reg_weight == "auto" else config.orth_reg_weight
        self.scaler: torch.amp.GradScaler | None = None
        self.steps = 0
        self._start()

    def _start(self) -> None:
        self._hooked: dict[Key, Tensor] = {}
        self._pending: dict[Key, tuple[tuple[int, int], Tensor | None]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:  # copied parameters have lost their hooks
        self.__dict__.update(state)
        self._start()

    def watch(self, name: str, layer: IncreLoraLayer) -> None:
        """Hook into the gradients of a module's A and B; cheap if that has happened before."""
        for kind, parameter in (("A", layer.increlora_A[self.adapter]), ("B", layer.increlora_B[self.adapter])):
            key = name, kind
            if parameter.requires_grad and self._hooked.get(key) is not parameter:
                parameter.register_post_accumulate_grad_hook(partial(self._add, layer, key))
                self._hooked[key] = parameter

    def loss_scale(self) -> float:
        """What the `scaler` multiplies the loss with, and its gradients."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def next_step(self) -> None:
        """The optimizer step is over, although no parameter may have changed."""
        self.steps += 1

    def value(self) -> float:
        """The weighted regulariser now."""
        groups = list(stacks(self.layers, self.adapter))
        return self.weight * float(orthogonality_loss(groups, self.kind)) if groups and self.weight else 0.0

    @torch.no_grad()
    def _add(self, layer: IncreLoraLayer, key: Key, parameter: Tensor) -> None:
        """Runs when a backward pass has accumulated the gradient of one matrix."""
        target = parameter.grad
        if target is None or not cast(nn.Module, layer).training:
            return
        stamp = (self.steps, parameter._version)
        if getattr(target, "_increlora_regularised", None) == stamp:
            return  # a further pass of the same optimizer step
        target._increlora_regularised = stamp  # type: ignore[attr-defined]
        if self._pending.get(key, (None,))[0] != stamp:
            self._compute()
        _, gradient = self._pending.pop(key)
        if gradient is not None:
            if gradient.shape != target.shape:  # storage has spare rows
                target = target.narrow(*((0, 0, gradient.shape[0]) if key[1] == "A" else (1, 0, gradient.shape[1])))
            target.add_(gradient, alpha=self._factor)

    def _compute(self) -> None:
        """The gradients of all matrices, for the hooks of this step to hand out, as they are stored."""
        self.on_step()
        self._factor = self.weight * self.loss_scale()  # asked once a step: a GPU's scaler has it on the device
        groups = list(stacks(self.layers, self.adapter)) if self.weight else []
        gradients = orthogonality_gradients(groups, self.kind)
        for name, layer in self.layers.items():
            a, b = layer.increlora_A[self.adapter], layer.increlora_B[self.adapter]
            of_a, of_b = gradients.get((name, "A")), gradients.get((name, "B"))
            self._pending[name, "A"] = (self.steps, a._version), None if of_a is None else of_a[: a.shape[0]]
            self._pending[name, "B"] = (self.steps, b._version), None if of_b is None else of_b[: b.shape[1]].T

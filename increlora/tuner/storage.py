"""Changing the size of a Parameter in place, and of what an optimizer keeps for it.

Growth itself changes no size (see ``layer``). It is needed where a module outgrows its storage, where growth has ended
and the spare rows go, and where saved ranks are loaded.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PER_COMPONENT = {"step", "birth"}
"""Entries in the state of `IncreLoraAdamW` that are vectors over components."""


def resize(parameter: nn.Parameter, dim: int, size: int) -> None:
    """Cut a Parameter or pad it with zeros along ``dim``, and its gradient with it; it stays the same object."""
    gradient, parameter.grad = parameter.grad, None
    new = resized(parameter.detach(), dim, size)
    # autograd remembers a leaf's shape as long as a graph with it is alive, but not across a change of dtype
    parameter.data = new.new_empty(0, dtype=torch.float32 if new.dtype == torch.float64 else torch.float64)
    parameter.data = new
    if gradient is not None:
        parameter.grad = resized(gradient, dim, size)


def can_resize(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether an optimizer's state of a parameter has the parameter's layout, or is one number per component."""
    return all(
        value.shape == parameter.shape or name in PER_COMPONENT
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor) and value.dim() > 0
    )


def resize_state(optimizer: Optimizer, parameter: nn.Parameter, shape: torch.Size, dim: int) -> None:
    """Cut or pad with zeros what an optimizer keeps per entry of a parameter, or per component.

    Args:
        optimizer: with a state that `can_resize` allows.
        parameter: in its new size.
        shape: its old one.
        dim: the dimension of components.
    """
    state = optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            state[name] = resized(value, dim if value.shape == shape else 0, parameter.shape[dim])


def resized(old: Tensor, dim: int, size: int) -> Tensor:
    """A tensor cut or padded with zeros along ``dim``."""
    shape = list(old.shape)
    shape[dim] = size
    new, keep = old.new_zeros(shape), min(size, old.shape[dim])
    new.narrow(dim, 0, keep).copy_(old.narrow(dim, 0, keep))
    return new

"""Peak memory of training, as measured by the allocator on a GPU, elsewhere by tracking every tensor of one step."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MIB = 2**20


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all live tensors: those given, and those created inside the ``with`` block.

    The resident memory of a process that trains many runs cannot be split between them, and the CPU allocator keeps no
    statistics. What an operator allocates and frees internally is not counted.

    Args:
        resident: tensors that exist already.

    Attributes:
        live: bytes of the tensors that are alive now.
        peak: the largest value of `live`.
    """

    def __init__(self, resident: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()
        for tensor in resident:
            self._follow(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._release, size).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def _release(self, size: int) -> None:
        self.live -= size


def resident_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters, buffers, gradients and optimizer state."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    state = [leaf for leaf in tree_leaves(optimizer.state_dict()) if isinstance(leaf, Tensor)]
    return [*parameters, *model.buffers(), *gradients, *state]

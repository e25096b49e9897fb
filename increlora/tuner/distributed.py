"""Scores under data parallelism: all processes have to choose the same modules.

The adapter's gradients are averaged by whatever wraps the model, as those of any other parameter. What is left is
``grad(dW)``, whose sum over processes has to be complete before its absolute value is taken, and the random draws.

All processes issue the same collectives in the same order: they never depend on which modules a process happens to
use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import IncreLoraError

if TYPE_CHECKING:
    from .layer import IncreLoraLayer


def world_size() -> int:
    """Processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """Which flags are set in at least one process."""
    counts = torch.tensor(flags, dtype=torch.int32, device=device)
    dist.all_reduce(counts)
    return [count > 0 for count in counts.tolist()]


def sum_in(process: int) -> Callable[[Tensor], object]:
    """Adds up a tensor over all processes in one of them; what the others then hold means nothing."""
    return lambda tensor: dist.reduce(tensor, dst=process)


def share_scores(scores: Tensor) -> None:
    """Complete scores of summed gradients (modules,), of which module i's was computed by process ``i % world_size``.

    Every module's gradient is summed in one process, half the traffic of having the sum everywhere. Each process holds
    the gradient of its own mean loss, so the sum is divided by their number.
    """
    foreign = torch.arange(len(scores), device=scores.device) % world_size() != dist.get_rank()
    scores.masked_fill_(foreign, 0)
    average(scores)


def average(values: Tensor) -> None:
    """The mean over processes, in place."""
    dist.all_reduce(values)
    values.div_(world_size())


def check_equal(adapter: str, layers: Sequence[IncreLoraLayer]) -> None:
    """Take over the first process's seeds, from which all later components are drawn.

    Raises:
        IncreLoraError: in all processes, if the adapter's ranks or values differ in one of them.
    """
    parts = [layer.components[adapter] for layer in layers]
    device = layers[0].increlora_A[adapter].device
    tensors = [tensor for layer in layers for tensor in layer.tensors(adapter).values()]
    sums = [float(tensor.detach().double().abs().sum()) for tensor in tensors]
    own = [float(part.rank) for part in parts] + [float(part.reserve) for part in parts] + sums
    first = torch.tensor(own, dtype=torch.float64, device=device)
    dist.broadcast(first, src=0)
    mine = torch.tensor(own, dtype=torch.float64, device=device)
    (differs,) = anywhere([not torch.allclose(first, mine, rtol=1e-6)], device)
    if differs:
        raise IncreLoraError(
            f"adapter {adapter!r} does not have the same ranks and values in all processes: load the same adapter in "
            "each of them, or wrap the model in DistributedDataParallel, which starts them equal"
        )
    seeds = torch.tensor([part.seed for part in parts], device=device)
    dist.broadcast(seeds, src=0)
    for part, seed in zip(parts, seeds.tolist(), strict=True):
        part.seed = seed

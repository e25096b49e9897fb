"""Data-parallel training of tensors that grow, with or without ``DistributedDataParallel``.

``DistributedDataParallel`` (DDP) fixes the shape of every gradient when it wraps the model, so it leaves the adapter's
tensors alone (the tuner lists them in ``_ddp_params_and_buffers_to_ignore``) and they are averaged here at the end of
every backward pass, in one flat message. Averaging an accumulated gradient again leaves the part that is already equal
in all processes as it is, so this also holds under gradient accumulation; passes inside DDP's ``no_sync`` send nothing.

Messages have to be the same in all processes and in the same order. They therefore never depend on which tensors a
process happens to use: a gradient that is missing in one process counts as 0 there. What every process needs is a
backward pass that reaches the adapter whenever another process has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from increlora.errors import IncreLoraError

if TYPE_CHECKING:
    from increlora.tuner.layer import IncreLoraLayer


def world_size() -> int:
    """Processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def ddp_wrapper() -> DistributedDataParallel | None:
    """The wrapper whose forward pass is running, if there is one."""
    return getattr(DistributedDataParallel, "_active_ddp_module", None)


def in_one_message(tensors: Sequence[Tensor], send: Callable[[Tensor], object]) -> None:
    """Let ``send`` change all tensors in place, as one flat tensor."""
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    send(flat)
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def average(tensor: Tensor) -> None:
    """Average a tensor over all processes, in place."""
    dist.all_reduce(tensor)
    tensor.div_(world_size())


def from_first(tensor: Tensor) -> None:
    """Overwrite a tensor with that of the first process."""
    dist.broadcast(tensor, src=0)


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

    Every module's gradient is summed in one process, half the traffic of having the sum everywhere, and all processes
    decide from bit for bit the same scores.
    """
    foreign = torch.arange(len(scores), device=scores.device) % world_size() != dist.get_rank()
    average(scores.masked_fill_(foreign, 0))


def start_equal(adapter: str, layers: Sequence[IncreLoraLayer]) -> None:
    """Take over the first process's values, and the seeds from which all later ones are drawn.

    Raises:
        IncreLoraError: in all processes, if the adapter has other ranks in one of them, or a wrapper holds its tensors.
    """
    tensors = [getattr(layer, f"increlora_{kind}")[adapter] for layer in layers for kind in ("A", "B", "lambda")]
    wrapper = ddp_wrapper()
    if wrapper is not None and any(parameter is tensors[0] for parameter in wrapper._module_parameters):
        raise IncreLoraError(
            "DistributedDataParallel cannot follow ranks that grow: wrap the PEFT model itself, or give the module "
            "that is wrapped a `_ddp_params_and_buffers_to_ignore`, the list of all names with 'increlora_' in them"
        )
    parts = [layer.components[adapter] for layer in layers]
    sizes = [[tensor.shape[0], part.rank, part.reserve] for tensor, part in zip(tensors[2::3], parts, strict=True)]
    first = torch.tensor(
        [[*size, part.seed] for size, part in zip(sizes, parts, strict=True)], device=tensors[0].device
    )
    from_first(first)
    (differs,) = anywhere([first[:, :3].tolist() != sizes], first.device)
    if differs:
        raise IncreLoraError(
            f"adapter {adapter!r} has not the same ranks in all processes: load the same adapter in each of them"
        )
    for part, seed in zip(parts, first[:, 3].tolist(), strict=True):
        part.seed = seed
    in_one_message(tensors, from_first)


class GradientAverage:
    """Averages the gradients of ``parameters()`` over all processes when a backward pass ends."""

    def __init__(self, parameters: Callable[[], list[nn.Parameter]]):
        self.parameters = parameters
        self._deferred = False
        self._task = -1

    def watch(self) -> None:
        """Prepare for the backward pass of the forward pass that begins; growth may have brought new parameters."""
        wrapper = ddp_wrapper()
        self._deferred = wrapper is not None and not wrapper.require_backward_grad_sync
        for parameter in self.parameters():
            if not getattr(parameter, "_increlora_averaged", False):
                parameter.register_post_accumulate_grad_hook(self._queue)
                parameter._increlora_averaged = True  # type: ignore[attr-defined]

    def _queue(self, _: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task and not self._deferred:
            self._task = task
            torch.autograd.Variable._execution_engine.queue_callback(self._run)

    def _run(self) -> None:
        parameters = self.parameters()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        in_one_message([parameter.grad for parameter in parameters if parameter.grad is not None], average)

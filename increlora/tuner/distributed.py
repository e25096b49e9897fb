"""Gradients of growing tensors in data-parallel training.

``DistributedDataParallel`` fixes the size of every gradient when it wraps the model, so it leaves the adapter's tensors
alone (the tuner lists them in ``_ddp_params_and_buffers_to_ignore``) and they are averaged here at the end of every
backward pass, in one flat message. Averaging an accumulated gradient again leaves the part that is already equal in all
processes as it is, so this also holds under gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average(tensor: Tensor) -> None:
    """Average a tensor over all processes, in place."""
    dist.all_reduce(tensor)
    tensor.div_(world_size())


class GradientAverage:
    """Averages the gradients of ``parameters()`` over all processes when a backward pass ends."""

    def __init__(self, parameters: Callable[[], list[nn.Parameter]]):
        self.parameters = parameters
        self._queued = False

    def watch(self) -> None:
        """Hook parameters that are not hooked yet, and start them from the first process's values."""
        for parameter in self.parameters():
            if not getattr(parameter, "_increlora_averaged", False):
                dist.broadcast(parameter.data, src=0)
                parameter.register_post_accumulate_grad_hook(self._queue)
                parameter._increlora_averaged = True  # type: ignore[attr-defined]

    def _queue(self, _: Tensor) -> None:
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._run)

    def _run(self) -> None:
        self._queued = False
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        average(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

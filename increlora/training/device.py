"""Where a run computes: device, precision, processes, and the share of a GPU that jobs agree on through file locks."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from increlora.errors import ConfigError

logger = logging.getLogger(__name__)


def device_name(device: torch.device) -> str:
    """The model of a GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextlib.contextmanager
def device_slot(folder: Path = Path(".increlora/slots")) -> Iterator[torch.device]:
    """The device of one run, held until the block ends.

    On a machine with GPUs each run holds a lock file; ``INCRELORA_RUNS_PER_GPU`` (default 1) runs share a GPU. If all
    are taken, wait. Snakemake limits how many jobs start (``resources: gpu=1``) but does not choose a GPU. Under
    torchrun the GPU is that of ``LOCAL_RANK``.
    """
    if not torch.cuda.is_available():
        yield torch.device("cpu")
        return
    if "LOCAL_RANK" in os.environ:
        yield torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return
    given = os.environ.get("INCRELORA_RUNS_PER_GPU", "1")
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError("INCRELORA_RUNS_PER_GPU", f"got {given!r}; allowed: a whole number from 1")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").replace("/", "-").split(",")
    # with the machine's name, as the nodes of a cluster share the folder but not their GPUs
    slots = [
        (gpu, FileLock(folder / f"{platform.node()}.gpu{visible[gpu] if visible[0] else gpu}.{place}"))
        for place in range(int(given))
        for gpu in range(torch.cuda.device_count())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    gpu, lock = _wait_for_slot(slots)
    try:
        yield torch.device("cuda", gpu)
    finally:
        lock.release()


def _wait_for_slot(slots: list[tuple[int, FileLock]]) -> tuple[int, FileLock]:
    waiting = False
    while True:
        for gpu, lock in slots:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                return gpu, lock
        if not waiting:
            logger.info("all %d GPU slots are taken; waiting", len(slots))
            waiting = True
        time.sleep(1.0)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the settings and the device call for it; master weights stay float32."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


class ProcessGroup:
    """Data parallelism under ``torchrun``; a group of one otherwise."""

    def __init__(self, device: torch.device):
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def average_gradients(self, model: nn.Module, loss: float) -> float:
        """Average every gradient over the processes, in one message; returns the averaged loss."""
        if self.size == 1:
            return loss
        parameters = [p for p in model.parameters() if p.requires_grad]
        pieces = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
        flat = torch.cat([*pieces, pieces[0].new_tensor([loss])])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        *gradients, averaged = flat.split([*(p.numel() for p in parameters), 1])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        return float(averaged)

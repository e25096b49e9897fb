"""Where a run computes: device, precision, and the share of a GPU that several jobs agree on through file locks."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from increlora.errors import ConfigError

logger = logging.getLogger(__name__)


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
    per_gpu = int(given)
    slots = [(gpu, place) for place in range(per_gpu) for gpu in range(torch.cuda.device_count())]
    folder.mkdir(parents=True, exist_ok=True)
    gpu, lock = _wait_for_slot(folder, slots)
    with lock:
        yield torch.device("cuda", gpu)


def _wait_for_slot(folder: Path, slots: list[tuple[int, int]]) -> tuple[int, IO[str]]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").replace("/", "-").split(",")
    waited = False
    while True:
        for gpu, place in slots:
            # the machine's name: nodes of a cluster share the folder, not their GPUs
            name = f"{platform.node()}.gpu{visible[gpu] if visible[0] else gpu}.{place}"
            lock = open(folder / name, "w")  # noqa: SIM115 - held by the caller
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
            else:
                return gpu, lock
        if not waited:
            logger.info("all %d GPU slots are taken; waiting", len(slots))
            waited = True
        time.sleep(1.0)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """bfloat16 autocast where the settings and the device call for it; master weights stay float32."""
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()

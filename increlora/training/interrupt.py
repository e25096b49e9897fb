"""How a training process ends: on SIGTERM after the current step, and together with the Snakemake that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PARENT = "INCRELORA_PARENT"
"""Environment variable with the process id of the Snakemake that started this job."""


class Interrupt:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.has_come = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True


@contextlib.contextmanager
def noting_sigterm() -> Iterator[Interrupt]:
    """Within the block SIGTERM is only recorded. SLURM sends it at a job's time limit, before SIGKILL."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield interrupt
        return
    before = signal.signal(signal.SIGTERM, interrupt._note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """Send this process SIGTERM when Snakemake ends, also when it is killed.

    A Snakemake that is killed leaves its jobs running: the shell between them survives, so neither the parent's process
    id nor the kernel's parent-death signal reveals it.
    """
    parent = os.environ.get(PARENT, "")
    if not parent.isdecimal():
        return
    import psutil

    try:
        snakemake = psutil.Process(int(parent))
    except psutil.NoSuchProcess:
        raise SystemExit(128 + signal.SIGTERM) from None

    def end_after_it() -> None:
        snakemake.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_after_it, daemon=True).start()

"""The end of a process that trains: on SIGTERM after the step at hand, and with the program that has started it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PARENT = "INCRELORA_PARENT"
"""Environment variable with the process id of the Snakemake that has started this job."""


class Interrupt:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.has_come = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True


@contextlib.contextmanager
def noting_sigterm() -> Iterator[Interrupt]:
    """Within the block SIGTERM is noted and ends nothing. SLURM sends it at a job's time limit, before SIGKILL."""
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
    """Send this process SIGTERM when Snakemake ends, also when it is killed (on Linux).

    A killed Snakemake takes nothing along: the shell between it and its job lives on, so neither the parent's id nor
    the kernel's parent-death signal tells.
    """
    parent = os.environ.get(PARENT, "")
    if not parent.isdecimal() or not hasattr(os, "pidfd_open"):
        return
    try:
        descriptor = os.pidfd_open(int(parent))
    except ProcessLookupError:
        raise SystemExit(128 + signal.SIGTERM) from None
    except OSError:
        return
    threading.Thread(target=_wait_for, args=(descriptor,), daemon=True).start()


def _wait_for(descriptor: int) -> None:
    watch = select.poll()  # unlike select(), takes descriptors of any size
    watch.register(descriptor, select.POLLIN)
    watch.poll()
    os.kill(os.getpid(), signal.SIGTERM)

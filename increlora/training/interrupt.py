"""How a training process ends: on SIGTERM after the current step, and together with the Snakemake that started it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

PARENT = "INCRELORA_PARENT"
"""Environment variable with the process id of the Snakemake that started this job."""
POLL_SECONDS = 1.0
"""Polling interval on systems that do not report the end of another process."""


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
    if not _exists(int(parent)):
        raise SystemExit(128 + signal.SIGTERM)
    threading.Thread(target=_end_after, args=(int(parent),), daemon=True).start()


def _end_after(parent: int) -> None:
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        pass
    except (AttributeError, OSError):  # not Linux, or a kernel that has or allows none
        while _exists(parent):
            time.sleep(POLL_SECONDS)
    else:
        watch = select.poll()  # unlike select(), takes descriptors of any size
        watch.register(descriptor, select.POLLIN)
        watch.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

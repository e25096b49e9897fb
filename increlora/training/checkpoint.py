"""Checkpoints of an unfinished run: one file per digest, replaced atomically: a kill at any moment leaves a valid one.

Written by hand, and not by Transformers or accelerate, because a resumed run has to give the same bits: the file holds
the state of every random generator and of a method's allocation beside weights and optimizer.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from increlora.files import whole_file
from increlora.training import places

logger = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoint file of one run.

    Args:
        digest: of the run's settings.
        root: where checkpoints lie; `places.checkpoints` if left out.
    """

    def __init__(self, digest: str, root: str | Path | None = None):
        self.digest = digest
        self.path = Path(root or places.checkpoints()) / f"{digest}.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state atomically, together with the state of every random generator.

        If that fails, a warning says why, training goes on, and the previous checkpoint stays.
        """
        try:
            with whole_file(self.path) as file:
                torch.save({"digest": self.digest, "random": random_state(), **state}, file)
        except FileNotFoundError:  # another process has finished this run and cleaned up
            pass
        except (OSError, RuntimeError) as error:
            cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch's writer hides it
            if not isinstance(cause, OSError):
                raise
            logger.warning("%s could not be written (%s); training goes on", self.path, cause.strerror)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or ``None`` if there is none. Random generators wait for :func:`set_random_state`."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            return state if state["digest"] == self.digest else None
        except Exception as error:  # of many types; none may stop the run
            logger.warning("%s is not a valid checkpoint (%s); starting anew", self.path, type(error).__name__)
            return None

    def delete(self) -> None:
        """Remove it, and what a kill left half-written; the run is finished and its record is safe."""
        for path in (self.path, *self.path.parent.glob(f".{self.path.name}.*.tmp")):
            path.unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, in types that a weights-only load accepts."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore :func:`random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

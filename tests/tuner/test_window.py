"""Scoring only the steps before an event chooses the modules that scoring every step chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from increlora import IncreLoraConfig
from increlora.tuner.allocation import score_window
from increlora.tuner.importance import smooth

RECORDINGS = sorted((Path(__file__).parent / "authors").glob("authors_*.npz"))


def picks(scores: torch.Tensor, top_h: int) -> list[int]:
    importance = torch.zeros(scores.shape[1], 2, dtype=scores.dtype)
    for row in scores:
        importance = smooth(importance, row, 0.85, 0.85)
    return importance.prod(dim=1).topk(top_h).indices.sort().values.tolist()


def agreement(path: Path, window: int) -> tuple[int, int]:
    """Steps of the growth at which the window chooses like the whole history, and all of them, were there an event."""
    recorded = np.load(path)
    scores, top_h = torch.tensor(recorded["score"]), int(recorded["hyper"][9])
    last = int(np.flatnonzero(np.diff(recorded["rank"].sum(1)))[-1]) + 1
    steps = range(window, last + 1)
    same = sum(picks(scores[: t + 1], top_h) == picks(scores[t + 1 - window : t + 1], top_h) for t in steps)
    return same, len(steps)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_default_window_chooses_what_every_step_chooses(path: Path) -> None:
    window = score_window(IncreLoraConfig())
    assert window == 64
    same, steps = agreement(path, window)
    assert same == steps > 90


def test_a_much_shorter_window_does_not() -> None:
    found = [agreement(path, 16) for path in RECORDINGS]
    assert sum(same for same, _ in found) < sum(steps for _, steps in found)

"""Scored steps: those before an event choose the modules that scoring every step chooses; what they keep in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

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


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_scored_step_under_autocast_keeps_one_copy_of_its_inputs(dropout: float) -> None:
    kept = {}
    for window in (1, "all"):
        config = IncreLoraConfig(
            target_modules=["0", "1"], target_r=2, deltaT=4, total_step=20, lora_dropout=dropout, score_window=window
        )
        model = get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), config).train()
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = model(torch.randn(500, 8)).square().sum()
        loss.backward()
        kept[window] = sum(saved.values())
    assert kept["all"] == kept[1]

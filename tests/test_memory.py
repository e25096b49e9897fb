"""Peak memory by following tensors, against sizes counted by hand and against the allocator as the profiler sees it."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from increlora.training.memory import LiveTensors, resident_tensors

FLOAT = 4


def test_counts_what_lives_at_once() -> None:
    resident = torch.zeros(100)
    with LiveTensors([resident, resident[:50]]) as tensors:
        assert tensors.live == 100 * FLOAT
        one = resident + 1
        view = one[10:]
        two = one * 2
        assert tensors.live == 300 * FLOAT
        del one, two
        assert tensors.live == 200 * FLOAT  # the view keeps its storage
        del view
        resident.add_(1)
    assert (tensors.live, tensors.peak) == (100 * FLOAT, 300 * FLOAT)


def test_agrees_with_the_allocator_on_a_training_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(32, 64)

    def step() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    resident = resident_tensors(model, optimizer)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    with LiveTensors(resident) as tensors:
        start = tensors.live
        step()
    assert start == FLOAT * (3 * numbers + len(list(model.parameters())))  # weights, two moments, step counts
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocator:
        step()
    events = [event for event in allocator.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    # a scalar or two of the loss's gradient are made without an operator
    assert abs(tensors.peak - start - peak) <= 64

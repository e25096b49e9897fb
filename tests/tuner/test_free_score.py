"""``score="taylor"``: the sum of lambda times its gradient is that of the entries of ``dW * grad(dW)``, and is free."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from increlora import create_optimizer, find_allocator
from increlora.errors import IncreLoraError
from tests.tuner.conftest import adapter, deberta, tokens, train

STEPS = 40


def growing(steps: int, passes: int = 1, **changes: Any) -> tuple[PeftModel, Any, Any]:
    """A model in float64 and without dropout, after so many steps."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_dropout": 0.0}
    base = deberta(**still).double()
    torch.manual_seed(1)
    fields = {"score": "taylor", "lora_dropout": 0.0, "target_r": 4, **changes}
    model = get_peft_model(base, adapter(**fields)).train()
    parts = create_optimizer(
        model, lr=1e-2, total_steps=STEPS, warmup_steps=4, gradient_accumulation_steps=passes, weight_decay=0.01
    )
    train(model, *parts, range(1, steps + 1))
    return model, *parts


@pytest.mark.parametrize("passes", [1, 2])
def test_it_is_the_absolute_value_of_the_signed_sum(passes: int) -> None:
    """Before clipping, and over all passes of the step."""
    model, _, _ = growing(9, passes)
    allocator = find_allocator(model)
    before = allocator.importance
    assert (before[:, 0] > 0).all() and max(model.rank_distribution().values()) > 1
    for layer in allocator.layers.values():
        layer.record("default", hold=True)  # the exact path beside it
    for part in range(passes):
        model(**tokens(100 + part)).loss.backward()
    expected = []
    for layer in allocator.layers.values():
        gradient = layer.components["default"].recorder.receiver.grad
        expected.append((layer.get_delta_weight("default") * gradient).sum().abs())
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    model.update_and_allocate(10)
    found = (allocator.importance[:, 0] - 0.85 * before[:, 0]) / 0.15
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=0)


def test_a_scored_step_is_an_unscored_one() -> None:
    def operations(**changes: Any) -> int:
        model, _, _ = growing(8, deltaT=30, target_r=2, **changes)
        assert all(part.recorder is None for part in parts(model)) == (changes.get("score") != "exact")
        counter = FlopCounterMode(display=False)
        with counter:
            model(**tokens(9)).loss.backward()
        model.update_and_allocate(9)
        return counter.get_total_flops()

    assert operations(score_window="all") == operations(score_window=1)
    assert operations(score_window="all") < operations(score_window="all", score="exact")


def parts(model: PeftModel) -> list[Any]:
    return [layer.components["default"] for layer in find_allocator(model).layers.values()]


def test_a_scaled_loss_gives_the_same_score() -> None:
    found = []
    for scale in (1.0, 1024.0):
        model, _, _ = growing(5)
        allocator = find_allocator(model)
        allocator.regulariser.loss_scale = lambda scale=scale: scale
        (model(**tokens(6)).loss * scale).backward()
        model.update_and_allocate(6)
        found.append(allocator.importance)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=0)


def test_a_copy_scores_itself_and_saliency_does_not_count() -> None:
    model, optimizer, _ = growing(5)
    other = copy.deepcopy(model)
    model.eval()
    model(**tokens(50)).loss.backward()
    optimizer.zero_grad()
    for one in (model, other):
        one.train()
        one(**tokens(6)).loss.backward()
        one.update_and_allocate(6)
    assert torch.equal(find_allocator(model).importance, find_allocator(other).importance)


def test_a_step_without_gradients_is_an_error() -> None:
    model, _, _ = growing(5)
    with pytest.raises(IncreLoraError, match="no gradient reached 12 of 12 modules"):
        model.update_and_allocate(6)


def test_growth_ends_at_the_budget() -> None:
    model, _, _ = growing(STEPS)
    ranks = model.rank_distribution()
    assert sum(ranks.values()) == 4 * 12 and len(set(ranks.values())) > 1

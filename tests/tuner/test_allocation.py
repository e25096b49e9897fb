"""When and where ranks grow: pure functions."""

from __future__ import annotations

import math

import pytest

from increlora.errors import ConfigError
from increlora.tuner.allocation import (
    GrowthSchedule,
    allocate,
    component_costs,
    nominal_budget,
    resolve_schedule,
    score_window,
)
from increlora.tuner.config import IncreLoraConfig


def test_the_default_window_is_what_smoothing_remembers() -> None:
    assert score_window(IncreLoraConfig()) == 64
    assert score_window(IncreLoraConfig(beta1=0.9, beta2=0.8)) == 99
    assert score_window(IncreLoraConfig(score_window=7)) == 7
    assert score_window(IncreLoraConfig(score_window="all")) is None
    assert score_window(IncreLoraConfig.from_preset("code")) is None


def gains(scores: list[float], ranks: list[int], **changes: object) -> dict[int, int]:
    arguments = {"max_ranks": [9] * len(scores), "top_h": 2, "ranks_per_event": 1, "budget": 20, **changes}
    return allocate(scores, ranks, **arguments)  # type: ignore[arg-type]


def test_highest_scores_grow() -> None:
    assert gains([0.1, 0.9, 0.5, 0.7], [1, 1, 1, 1]) == {1: 1, 3: 1}


def test_ties_go_to_the_first_modules() -> None:
    assert gains([0.5, 0.5, 0.5], [1, 1, 1]) == {0: 1, 1: 1}


def test_nan_is_lowest() -> None:
    assert gains([math.nan, 0.0, -1.0], [1, 1, 1]) == {1: 1, 2: 1}


@pytest.mark.parametrize("missing", range(1, 9))
def test_last_event_reaches_the_budget_exactly(missing: int) -> None:
    chosen = gains([4, 3, 2, 1], [1, 1, 1, 1], top_h=3, ranks_per_event=3, budget=4 + missing)
    assert sum(chosen.values()) == min(missing, 9)


def test_full_modules_are_passed_over() -> None:
    assert gains([3, 2, 1], [9, 8, 1], ranks_per_event=4, budget=99) == {1: 1, 2: 4}


def test_nothing_grows_beyond_the_budget() -> None:
    assert gains([1, 2], [10, 10]) == {}


def test_the_authors_rule_overshoots_on_ties() -> None:
    scores, ranks = [0.5, 0.5, 0.5, 0.1], [1, 1, 1, 1]
    assert gains(scores, ranks, top_h=1, ranks_per_event=4, budget=6, allow_overshoot=True) == {0: 4, 1: 4, 2: 4}
    assert sum(gains(scores, ranks, top_h=1, ranks_per_event=4, budget=6).values()) == 2


def schedule(**changes: object) -> GrowthSchedule:
    config = IncreLoraConfig.from_preset(changes.pop("preset", "paper"), **changes)  # type: ignore[arg-type]
    return resolve_schedule(config, total_step=1000, warmup_steps=50, costs=[1] * 72, initial=72, budget=144)


def test_interval_is_the_warmup_by_default_and_the_first_event_follows_the_preset() -> None:
    paper, code = schedule(target_r=2), schedule(preset="code", target_r=2, growth_end=1.0)
    assert (paper.first, paper.interval) == (50, 50)
    assert (code.first, code.interval) == (101, 50)
    assert [step for step in range(1, 210) if code.is_event(step)] == [101, 151, 201]


def test_presets_follow_their_sources() -> None:
    fields = ("score_reduction", "scaling", "orth_reg", "tinit", "step_origin", "ranks_per_event", "allow_overshoot")
    paper, code = (IncreLoraConfig.from_preset(preset) for preset in ("paper", "code"))  # type: ignore[arg-type]
    assert [getattr(paper, name) for name in fields] == ["mean", "constant", "squared", 0, 1, 1, False]
    assert [getattr(code, name) for name in fields] == ["sum_sqrt", "active_rank", "frobenius", "deltaT", 0, 4, False]
    gains = [IncreLoraConfig.from_preset("code", target_r=target).ranks_per_event for target in (2, 4, 6, 8)]
    assert gains == [1, 2, 3, 4]
    for config in (paper, code):
        assert (config.init_r, config.beta1, config.beta2, config.reserve_lambda) == (1, 0.85, 0.85, 1e-5)
        assert config.advance_learning and config.restart_warmup


def totals(schedule: GrowthSchedule, costs: list[int], initial: int, budget: int, steps: int) -> dict[int, int]:
    """Total after every event, when scores favour the modules in turn."""
    ranks, found = [initial] * len(costs), {}
    for step in range(1, steps + 1):
        if schedule.is_event(step):
            gains = allocate(
                [float((i * 7 + step) % len(costs)) for i in range(len(costs))],
                ranks,
                [999] * len(costs),
                top_h=schedule.top_h,
                ranks_per_event=schedule.ranks_per_event,
                budget=budget,
                target=schedule.target(step, initial * sum(costs), budget),
                costs=costs,
            )
            for i, gain in gains.items():
                assert gain <= schedule.ranks_per_event
                ranks[i] += gain
            found[step] = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    return found


@pytest.mark.parametrize("target_r", [2, 3, 8])
@pytest.mark.parametrize("ranks_per_event", [1, 4])
@pytest.mark.parametrize(
    ("deltaT", "growth_end", "last"),
    [(50, 0.5, 500), (30, 0.5, 510), (35, 0.5, 490), (40, 0.5, 480), (90, 0.97, 990), (300, 1.0, 900), (600, 0.5, 600)],
)
def test_the_total_rises_linearly_and_ends_at_the_event_nearest_to_growth_end(
    deltaT: int, growth_end: float, last: int, ranks_per_event: int, target_r: int
) -> None:
    modules, steps = 36, 1000
    budget, n = modules * target_r, last // deltaT
    gain = max(ranks_per_event, math.ceil((target_r - 1) / n))
    config = IncreLoraConfig(target_r=target_r, deltaT=deltaT, growth_end=growth_end, ranks_per_event=gain)
    costs = [1] * modules
    found = totals(
        resolve_schedule(config, total_step=steps, warmup_steps=0, costs=costs, initial=modules, budget=budget),
        costs, 1, budget, steps,
    )  # fmt: skip
    line = {deltaT * k: round(modules + (budget - modules) * k / n) for k in range(1, n + 1)}
    assert list(line)[-1] == last
    assert {step: total for step, total in found.items() if step <= last} == line
    assert max(found.values()) == budget


@pytest.mark.parametrize("ranks_per_event", [1, 3])
def test_a_budget_of_parameters_is_filled_along_the_same_line(ranks_per_event: int) -> None:
    config = IncreLoraConfig(target_r=4, deltaT=50, budget_by="parameters", ranks_per_event=ranks_per_event)
    widths = [1536, 1536, 1536, 1536, 3840, 3840] * 4
    costs, budget = component_costs(config, widths), nominal_budget(config, widths)
    assert costs[:5:4] == [1537, 3841]
    assert budget == 4 * sum(widths)
    resolved = resolve_schedule(config, total_step=1000, warmup_steps=0, costs=costs, initial=sum(costs), budget=budget)
    found = totals(resolved, costs, 1, budget, 1000)
    for k in range(1, 10):
        line = sum(costs) + (budget - sum(costs)) * k / 10
        assert line - max(costs) < found[50 * k] <= line + 0.5
    assert budget - min(costs) < found[500] <= budget


def test_the_rest_waits_for_the_module_whose_turn_it_is() -> None:
    """A cheaper module is not preferred for fitting below the line; once the budget itself is due, what fits grows."""
    arguments = {"ranks": [1, 1], "budget": 30, "costs": [10, 2], "max_ranks": [9, 9]}
    assert gains([2, 1], **arguments, target=20) == {}
    assert gains([1, 2], **arguments, target=20) == {1: 1}
    assert gains([2, 1], **arguments, target=23) == {0: 1}
    assert gains([2, 1], **{**arguments, "budget": 20}) == {1: 1}
    assert gains([2, 1], **{**arguments, "budget": 20}, target=14) == {1: 1}  # the first one can never grow again


def test_the_authors_rule_follows_the_line_too() -> None:
    scores = [0.4, 0.3, 0.2, 0.1]
    chosen = gains(scores, [1] * 4, top_h=None, ranks_per_event=2, budget=20, target=7, allow_overshoot=True)
    assert chosen == {0: 2, 1: 2}


def test_window_scores_the_steps_before_each_event() -> None:
    windowed = GrowthSchedule(first=10, interval=10, top_h=1, ranks_per_event=1, window=3)
    assert [step for step in range(1, 31) if windowed.is_scored(step)] == [8, 9, 10, 18, 19, 20, 28, 29, 30]
    assert all(GrowthSchedule(10, 10, 1, 1, None).is_scored(step) for step in range(1, 31))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"target_r": 2, "top_h": 1}, "top_h"),
        ({"target_r": 2, "deltaT": 1001}, "growth_end"),
        ({"target_r": 2, "deltaT": 200, "growth_end": 0.1}, "growth_end"),
        ({"target_r": 2, "deltaT": 450, "growth_end": 0.9, "top_h": None}, None),
        ({"target_r": 2, "deltaT": 499, "growth_end": 0.5, "ranks_per_event": 1}, None),
    ],
)
def test_unreachable_budgets_are_refused(changes: dict[str, object], field: str | None) -> None:
    if field is None:
        schedule(**changes)
        return
    with pytest.raises(ConfigError) as caught:
        schedule(**changes)
    assert caught.value.field == field


def test_unknown_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="deltaT: is the number of warmup steps"):
        resolve_schedule(IncreLoraConfig(), total_step=1000, warmup_steps=0, costs=[1] * 72, initial=72, budget=144)


def test_too_few_events_ask_for_more_ranks_per_event() -> None:
    config = IncreLoraConfig(target_r=4, deltaT=400)
    with pytest.raises(ConfigError, match="raise ranks_per_event to 3"):
        resolve_schedule(config, total_step=1000, warmup_steps=0, costs=[1] * 72, initial=72, budget=288)
    budget = {"costs": [1537, 3841], "initial": 2 * 5378, "budget": 9 * 5376}
    config = IncreLoraConfig(target_r=9, deltaT=250, budget_by="parameters")
    with pytest.raises(ConfigError, match=r"37628 parameters are missing .* raise ranks_per_event to 4"):
        resolve_schedule(config, total_step=1000, warmup_steps=0, **budget)
    config = IncreLoraConfig(target_r=9, deltaT=125, top_h=1, budget_by="parameters")
    with pytest.raises(ConfigError, match=r"total of 41484 parameters.* raise top_h to 2"):
        resolve_schedule(config, total_step=1000, warmup_steps=0, **budget)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_r", 0),
        ("beta1", 1.0),
        ("target_r", 0),
        ("score_reduction", "median"),
        ("score", "free"),
        ("budget_by", "bytes"),
        ("scaling", "rank"),
        ("orth_reg", "l1"),
        ("growth_end", 0),
        ("tinit", "never"),
        ("lora_dropout", 1.0),
        ("bias", "lora_only"),
        ("max_r", 4),
        ("lambda_lr_ratio", "depth"),
        ("lambda_lr_ratio", 0),
        ("lora_alpha", math.inf),
        ("orth_reg_weight", math.nan),
        ("deltaT", True),
        ("target_parameters", ["experts.down_proj"]),
        ("init_std", 0.0),
        ("reserve_lambda", -1.0),
        ("rank_pattern", {"a": 0}),
        ("advance_learning", "no"),
    ],
)
def test_config_errors_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        IncreLoraConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field
    assert repr(value) in str(caught.value)

"""When to grow and which modules grow: pure functions of step numbers and scores.

Nothing here knows a model, a module name or a tensor on a device. The paper's section 3: every ``nu`` steps the ``h``
modules with the highest score gain rank until the total reaches the budget. The total is one of ranks, or of parameters
(``budget_by``); what a component adds to it is its *cost*.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .config import IncreLoraConfig
from .errors import ConfigError

FORGOTTEN = 0.85**64
"""Weight in the smoothed importance (3e-5) below which a step does not change which modules are chosen: 64 steps of
smoothing with 0.85 chose what scoring every step chose in all recorded runs (tests/tuner/test_window.py)."""


@dataclass(frozen=True)
class GrowthSchedule:
    """The steps at which ranks grow, and by how much.

    Attributes:
        first: step of the first event (steps count from 1).
        interval: steps between two events, ``nu``.
        top_h: modules chosen per event; ``None``: as many as the line asks for.
        ranks_per_event: ranks that a chosen module gains.
        window: steps scored before each event; ``None`` scores all.
        events: number of the event at which the line reaches the budget; ``None`` without a line (constant ``top_h``).
    """

    first: int
    interval: int
    top_h: int | None
    ranks_per_event: int
    window: int | None
    events: int | None = None

    def is_event(self, step: int) -> bool:
        """Whether ranks grow at ``step``, provided that the budget is not reached."""
        return step >= self.first and (step - self.first) % self.interval == 0

    def is_scored(self, step: int) -> bool:
        """Whether ``step`` updates the importance scores."""
        if self.window is None:
            return True
        next_event = self.first + max(0, math.ceil((step - self.first) / self.interval)) * self.interval
        return next_event - step < self.window

    def events_within(self, steps: int) -> int:
        """Events in the first ``steps`` optimizer steps."""
        return max(0, (steps - self.first) // self.interval + 1)

    def target(self, step: int, initial: int, budget: int) -> int:
        """Total to which the event at ``step`` leads: at event k of n ``round(initial + (budget - initial) * k / n)``.

        With a constant ``top_h`` it is the budget at every event.
        """
        if self.events is None:
            return budget
        passed = min(self.events, self.events_within(step))
        return round(initial + (budget - initial) * passed / self.events)


def component_costs(config: IncreLoraConfig, widths: Sequence[int]) -> list[int]:
    """What a component of each module counts in the budget: 1, or its parameters, lambda included.

    Args:
        config: the adapter's config.
        widths: ``in + out`` of every module.
    """
    return [width + 1 if config.budget_by == "parameters" else 1 for width in widths]


def nominal_budget(config: IncreLoraConfig, widths: Sequence[int]) -> int:
    """Total at which growth ends: ``target_r`` in every module, in ranks or in the parameters that LoRA has then."""
    return (config.target_r or 0) * (sum(widths) if config.budget_by == "parameters" else len(widths))


def highest_rank(config: IncreLoraConfig, inputs: int, outputs: int) -> int:
    """The highest rank that growth may give a matrix (outputs, inputs)."""
    limit = min(inputs, outputs)
    return min(limit, config.max_r or limit)


def score_window(config: IncreLoraConfig) -> int | None:
    """Steps that are scored before each event, ``None`` for all: what is older has a weight below `FORGOTTEN`."""
    if config.score_window == "all":
        return None
    if config.score_window is not None:
        return config.score_window
    return math.ceil(math.log(FORGOTTEN) / math.log(max(config.beta1, config.beta2)) - 1e-9)


def resolve_schedule(
    config: IncreLoraConfig, *, total_step: int, warmup_steps: int, costs: Sequence[int], initial: int, budget: int
) -> GrowthSchedule:
    """Fill in what the config leaves open: the interval from the warmup, the line from ``growth_end``.

    Without ``top_h`` the budget is reached at the event nearest to ``growth_end`` (of two the earlier one).

    Args:
        config: the adapter's config.
        total_step: optimizer steps of the whole training.
        warmup_steps: steps of linear warmup; the default of ``deltaT`` (paper: ``nu`` is the number of warmup steps).
        costs: what a component of every module counts in the budget (`component_costs`).
        initial: total at the start.
        budget: total at the end, in the paper ``r_final``.

    Raises:
        ConfigError: the interval is unknown, or the budget cannot be reached within ``total_step`` steps.
    """
    interval = config.deltaT or max(1, warmup_steps)
    first = interval + (interval if config.tinit == "deltaT" else config.tinit) + 1 - config.step_origin
    missing = budget - initial
    if missing > 0 and config.deltaT is None and warmup_steps < 1:
        raise ConfigError(
            "deltaT", "is the number of warmup steps by default, and there are none: set deltaT or a warmup"
        )
    gain, window = config.ranks_per_event, score_window(config)
    schedule = GrowthSchedule(first, interval, config.top_h, gain, window)
    if missing <= 0:
        return schedule
    events = schedule.events_within(total_step)
    if config.top_h is None:
        nearest = math.ceil((config.growth_end * total_step - first) / interval - 0.5) + 1
        events = min(events, nearest)
        if events < 1:
            raise ConfigError(
                "growth_end",
                f"no growth fits into the first {config.growth_end:.0%} of {total_step} steps: the first event is at "
                f"step {first} (tinit + deltaT, by default the warmup steps); set deltaT, now {interval}, to "
                f"{max(1, int(config.growth_end * total_step) // 2)} or less, or train longer",
            )
        if events * gain * sum(costs) < missing:
            raise ConfigError(
                "ranks_per_event",
                f"with {events} {'event' if events == 1 else 'events'} until growth_end ({config.growth_end:.0%} of "
                f"{total_step} steps) {len(costs)} modules gain {gain} ranks each at most, and {missing} {config.unit} "
                f"are missing to the budget of {budget}; raise ranks_per_event to "
                f"{math.ceil(missing / (events * sum(costs)))} or growth_end, or lower deltaT ({interval})",
            )
        return GrowthSchedule(first, interval, None, gain, window, events)
    top_h = min(config.top_h, len(costs))
    reachable = [events * gain * cost for cost in accumulate(sorted(costs, reverse=True))]  # by number of modules
    if reachable[top_h - 1] < missing:
        raise ConfigError(
            "top_h",
            f"{events} events of {top_h} modules x {gain} ranks reach a total of {initial + reachable[top_h - 1]} "
            f"{config.unit}, not the budget of {budget}; raise top_h to {bisect_left(reachable, missing) + 1} (of "
            f"{len(costs)} modules), or lower deltaT ({interval})",
        )
    return schedule


def allocate(
    scores: Sequence[float],
    ranks: Sequence[int],
    max_ranks: Sequence[int],
    *,
    top_h: int | None,
    ranks_per_event: int,
    budget: int,
    target: int | None = None,
    costs: Sequence[int] | None = None,
    allow_overshoot: bool = False,
) -> dict[int, int]:
    """Choose the modules that grow at one event, and how many ranks each of them gains.

    In the order of their scores modules gain ``ranks_per_event`` each until the total is at the target. What is left
    for the last one may be fewer ranks. Where components differ in cost and the next rank of the module whose turn it
    is does not fit below the target, the rest is kept for the next event rather than given to a cheaper module; once
    the target is the budget itself, the modules that still fit take it.

    Args:
        scores: smoothed importance per module, higher is more important; NaN counts as lowest.
        ranks: active rank per module.
        max_ranks: highest rank per module, ``min(in, out)``.
        top_h: most modules to choose; ``None``: as many as it takes.
        ranks_per_event: ranks that each chosen module gains, fewer where a module or the budget is nearly full.
        budget: total that may not be exceeded.
        target: total to which this event leads, the budget by default.
        costs: what a component of each module counts in these totals, 1 by default.
        allow_overshoot: the authors' rule instead: every module whose score reaches the ``k``-th highest gains all of
            ``ranks_per_event``, ``k = min(top_h, ranks missing)``, so ties and large gains exceed the budget.

    Returns:
        ``{module index: ranks gained}`` in the order of choice. Equal scores are taken in the order of the modules, so
        the choice is deterministic.
    """
    costs = [1] * len(ranks) if costs is None else costs
    total = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    waits = target is not None and target < budget
    missing = (budget if target is None else target) - total
    if missing <= 0:
        return {}
    room = [highest - rank for highest, rank in zip(max_ranks, ranks, strict=True)]
    key = [-math.inf if math.isnan(score) else float(score) for score in scores]
    fits = (i for i in range(len(key)) if room[i] > 0 and total + costs[i] <= budget)
    order = sorted(fits, key=lambda i: (-key[i], i))
    if allow_overshoot:
        chosen = order[: min(math.ceil(missing / ranks_per_event) if top_h is None else top_h, missing)]
        if not chosen:
            return {}
        threshold = key[chosen[-1]]
        return {i: min(ranks_per_event, room[i]) for i in range(len(key)) if room[i] > 0 and key[i] >= threshold}
    gains: dict[int, int] = {}
    for i in order[:top_h]:
        wanted = min(ranks_per_event, room[i])
        gain = min(wanted, missing // costs[i])
        if gain:
            gains[i] = gain
            missing -= gain * costs[i]
        if gain < wanted and waits:
            break
    return gains

"""When to grow and which modules grow: pure functions of step numbers and scores.

Nothing here knows a model, a module name or a tensor on a device. The paper's section 3: every ``nu`` steps the ``h``
modules with the highest score gain rank until the total reaches the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        top_h: modules chosen per event.
        ranks_per_event: ranks that a chosen module gains.
        window: steps scored before each event; ``None`` scores all.
    """

    first: int
    interval: int
    top_h: int
    ranks_per_event: int
    window: int | None

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


def score_window(config: IncreLoraConfig) -> int | None:
    """Steps that are scored before each event, ``None`` for all: what is older has a weight below `FORGOTTEN`."""
    if config.score_window == "all":
        return None
    if config.score_window is not None:
        return config.score_window
    return math.ceil(math.log(FORGOTTEN) / math.log(max(config.beta1, config.beta2)) - 1e-9)


def resolve_schedule(
    config: IncreLoraConfig, *, total_step: int, warmup_steps: int, modules: int, initial_rank: int, budget: int
) -> GrowthSchedule:
    """Fill in what the config leaves open: the interval from the warmup, ``top_h`` from ``growth_end``.

    Args:
        config: the adapter's config.
        total_step: optimizer steps of the whole training.
        warmup_steps: steps of linear warmup; the default of ``deltaT`` (paper: ``nu`` is the number of warmup steps).
        modules: number of adapted modules; no event can choose more.
        initial_rank: total rank at the start.
        budget: total rank at the end, ``r_final``.

    Raises:
        ConfigError: the interval is unknown, or the budget cannot be reached within ``total_step`` steps.
    """
    interval = config.deltaT or max(1, warmup_steps)
    first = interval + (interval if config.tinit == "deltaT" else config.tinit) + 1 - config.step_origin
    missing = budget - initial_rank
    if missing > 0 and config.deltaT is None and warmup_steps < 1:
        raise ConfigError(
            "deltaT", "is the number of warmup steps by default, and there are none: set deltaT or a warmup"
        )
    window = score_window(config)
    schedule = GrowthSchedule(first, interval, config.top_h or 1, config.ranks_per_event, window)
    if missing <= 0:
        return schedule
    if config.top_h is None:
        events = schedule.events_within(math.floor(config.growth_end * total_step))
        if events == 0:
            raise ConfigError(
                "growth_end",
                f"no growth fits into the first {config.growth_end:.0%} of {total_step} steps: the first event is at "
                f"step {first} (tinit + deltaT); lower deltaT ({interval}) or tinit, or train longer",
            )
        top_h = math.ceil(missing / (events * config.ranks_per_event))
        if top_h > modules:
            raise ConfigError(
                "ranks_per_event",
                f"{events} events until growth_end ({config.growth_end:.0%} of {total_step} steps) give {modules} "
                f"modules {config.ranks_per_event} ranks each, {missing} are missing to the budget of {budget}; raise "
                f"ranks_per_event to {math.ceil(missing / (events * modules))} or growth_end, or lower deltaT "
                f"({interval})",
            )
        schedule = GrowthSchedule(first, interval, top_h, config.ranks_per_event, window)
    else:
        events = schedule.events_within(total_step)
        top_h = min(config.top_h, modules)
        reachable = events * top_h * config.ranks_per_event
        if reachable < missing:
            raise ConfigError(
                "top_h",
                f"{events} events of {top_h} modules x {config.ranks_per_event} ranks reach a total rank of "
                f"{initial_rank + reachable}, not the budget of {budget}; raise top_h to "
                f"{math.ceil(missing / max(1, events * config.ranks_per_event))} (of {modules} modules), or lower "
                f"deltaT ({interval})",
            )
    return schedule


def allocate(
    scores: Sequence[float],
    ranks: Sequence[int],
    max_ranks: Sequence[int],
    *,
    top_h: int,
    ranks_per_event: int,
    budget: int,
    allow_overshoot: bool = False,
) -> dict[int, int]:
    """Choose the modules that grow at one event.

    Args:
        scores: smoothed importance per module, higher is more important; NaN counts as lowest.
        ranks: active rank per module.
        max_ranks: highest rank per module, ``min(in, out)``.
        top_h: modules to choose.
        ranks_per_event: ranks that each chosen module gains, fewer where a module or the budget is nearly full.
        budget: total rank that may not be exceeded.
        allow_overshoot: the authors' rule instead: every module whose score reaches the ``k``-th highest gains all of
            ``ranks_per_event``, ``k = min(top_h, ranks missing)``, so ties and large gains exceed the budget.

    Returns:
        ``{module index: ranks gained}`` in the order of choice. Equal scores are taken in the order of the modules, so
        the choice is deterministic.
    """
    missing = budget - sum(ranks)
    if missing <= 0:
        return {}
    room = [highest - rank for highest, rank in zip(max_ranks, ranks, strict=True)]
    key = [-math.inf if math.isnan(score) else float(score) for score in scores]
    order = sorted((i for i in range(len(key)) if room[i] > 0), key=lambda i: (-key[i], i))
    if allow_overshoot:
        chosen = order[: min(top_h, missing)]
        if not chosen:
            return {}
        threshold = key[chosen[-1]]
        return {i: min(ranks_per_event, room[i]) for i in range(len(key)) if room[i] > 0 and key[i] >= threshold}
    gains: dict[int, int] = {}
    for i in order[:top_h]:
        gain = min(ranks_per_event, room[i], missing)
        if gain <= 0:
            break
        gains[i] = gain
        missing -= gain
    return gains

"""What some seeds say about a number, a difference, and a whole table of differences.

- One value has a mean and nothing else: a single seed says nothing about spread.
- The interval of a mean is Student's t over seeds (normal errors, unknown variance); differences are paired by seed.
- A mean over tasks adds the tasks' variances: the set of tasks is fixed, and the degrees of freedom of the sum are
  Satterthwaite's (Biometrics Bulletin 2, 1946).
- The p-values of a table are corrected together by Holm's procedure (Scandinavian Journal of Statistics 6, 1979), which
  tests each of them at a level that follows from the others. Corrected intervals and smallest visible differences stand
  at that same level, so that an interval excludes 0 exactly where the corrected p is at most 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """What some seeds say about one number.

    Attributes:
        n: number of values; of a mean over tasks the fewest of a task.
        mean: None without values.
        sd: standard deviation with ddof 1; None for fewer than two values.
        error: standard error of the mean; None where `sd` is.
        degrees: degrees of freedom of `error`.
    """

    n: int
    mean: float | None = None
    sd: float | None = None
    error: float | None = None
    degrees: float | None = None

    def interval(self, level: float = ALPHA) -> tuple[float, float] | None:
        """The interval of confidence ``1 - level``; None where nothing is known about spread."""
        if self.mean is None or self.error is None:
            return None
        half = float(stats.t.isf(level / 2, self.degrees)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """Two-sided p-value of "the mean is 0"; None without a spread to compare the mean with."""
        if self.mean is None or not self.error:
            return None
        return float(2 * stats.t.sf(abs(self.mean) / self.error, self.degrees))

    def visible(self, level: float = ALPHA) -> float | None:
        """The smallest true difference from 0 that seeds of this spread show with 80 % power at this level."""
        if not self.error:
            return None
        bound = stats.t.isf(level / 2, self.degrees)
        return self.error * float(special.nctdtrinc(self.degrees, 1 - POWER, bound))


def estimate(values: Iterable[float | None]) -> Estimate:
    """Mean, sd (ddof 1) and error of the mean of `values`; None and NaN are not values."""
    data = _numbers(values)
    n = len(data)
    if n < 2:
        return Estimate(n, float(data[0]) if n else None)
    return Estimate(n, float(data.mean()), float(data.std(ddof=1)), float(stats.sem(data)), n - 1)


def mean_of(groups: Sequence[Iterable[float | None]]) -> Estimate:
    """The mean over groups of the mean within each, its error by Welch and Satterthwaite; `sd` is left out.

    Args:
        groups: the values of each task, one per seed. Without a value in one of them there is no mean, with a single
            one no error.
    """
    found = [estimate(values) for values in groups]
    n = min((one.n for one in found), default=0)
    if n == 0:
        return Estimate(0)
    mean = float(np.mean([one.mean for one in found]))
    if n == 1:
        return Estimate(n, mean)
    variances = np.array([one.error for one in found]) ** 2
    weights = variances**2 / np.array([one.degrees for one in found])
    total = variances.sum()
    return Estimate(n, mean, None, math.sqrt(total) / len(found), float(total**2 / weights.sum()) if total else 1.0)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """The difference at each seed that both have."""
    return {seed: one[seed] - other[seed] for seed in one if seed in other}


def over_tasks(values: Sequence[Mapping[int, float]]) -> Estimate:
    """The mean over tasks of each task's values by seed.

    The sd is that of the per-seed means over tasks (seeds that every task has), `n` the fewest seeds of a task.
    """
    if len(values) == 1:
        return estimate(values[0].values())
    common = set.intersection(*map(set, values)) if values else set()
    per_seed = estimate(float(np.mean([found[seed] for found in values])) for seed in sorted(common))
    return replace(mean_of([found.values() for found in values]), sd=per_seed.sd)


@dataclass(frozen=True)
class Tested:
    """A difference as one of a table's.

    Attributes:
        estimate: the difference.
        p: Holm-corrected; None where there is no spread to test against.
        level: the level at which Holm's procedure tests it, given the others.
    """

    estimate: Estimate
    p: float | None
    level: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The corrected interval."""
        return self.estimate.interval(self.level)

    @property
    def visible(self) -> float | None:
        """The smallest difference that would show, with 80 % power."""
        return self.estimate.visible(self.level)

    @property
    def sign(self) -> int:
        """1 or -1 where the corrected interval excludes 0, else 0."""
        if self.p is None or self.p > ALPHA or self.estimate.mean is None:
            return 0
        return 1 if self.estimate.mean > 0 else -1


def holm(estimates: Sequence[Estimate], times: Sequence[int] | None = None) -> list[Tested]:
    """The differences of a table with their p-values corrected together.

    Args:
        estimates: the differences; those without a p-value are no part of the correction.
        times: of how many comparisons each one was picked as the most extreme (Bonferroni); 1 throughout if left out.
    """
    factors = [1] * len(estimates) if times is None else list(times)
    single = {
        i: min(1.0, factor * one.p)
        for i, (one, factor) in enumerate(zip(estimates, factors, strict=True))
        if one.p is not None
    }
    order = sorted(single, key=lambda i: single[i])
    sorted_p, number = np.array([single[i] for i in order]), len(order)
    corrected = np.minimum(1, np.maximum.accumulate(sorted_p * np.arange(number, 0, -1)))
    tested = [Tested(one, None, ALPHA / factor) for one, factor in zip(estimates, factors, strict=True)]
    for place, i in enumerate(order):
        others = np.delete(sorted_p, place) <= ALPHA / np.arange(number, 1, -1)
        rejected = number - 1 if others.all() else int(others.argmin())
        level = ALPHA / (number - rejected) / factors[i]
        tested[i] = Tested(estimates[i], float(corrected[place]), level)
    return tested


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """The mean for ratios; None without positive values."""
    data = _numbers(values)
    return float(stats.gmean(data[data > 0])) if (data > 0).any() else None


def gini(values: Iterable[float]) -> float:
    """Half the mean difference of two values over their mean: 0 where all are equal, near 1 where one has all."""
    data = _numbers(values)
    return float(np.abs(data[:, None] - data).mean() / (2 * data.mean()))


def evenness(values: Iterable[float]) -> float:
    """Entropy of the values' shares of their sum, as a part of the most there is: 1 where all are equal."""
    data = _numbers(values)
    return float(stats.entropy(data) / math.log(len(data)))


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    data = np.array([math.nan if value is None else float(value) for value in values], dtype=float)
    return data[~np.isnan(data)]

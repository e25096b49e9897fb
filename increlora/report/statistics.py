"""Mean, spread and intervals over seeds.

- One value has a mean and nothing else: a single seed says nothing about spread.
- The interval of a mean is Student's t over seeds (normal errors, unknown variance). With three seeds its half-width is
  2.5 standard deviations: that is what three seeds can say.
- A mean over tasks has an interval of its own: each task's seeds give that task's variance, the set of tasks is fixed,
  and the degrees of freedom of the sum are Satterthwaite's (Biometrics Bulletin 2, 1946).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """What some seeds say about one number.

    Attributes:
        n: number of values.
        mean: None without values.
        sd: standard deviation with ddof 1; None for fewer than two values.
        low, high: 95 % interval of the mean; None where it is not defined.
    """

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Iterable[float | None]) -> Estimate:
    """Mean, sd (ddof 1) and Student-t interval of `values`; None and NaN are not values."""
    data = _numbers(values)
    n = len(data)
    if n < 2:
        return Estimate(n, float(data[0]) if n else None)
    mean, sd = float(data.mean()), float(data.std(ddof=1))
    return Estimate(n, mean, sd, *_interval(mean, sd / math.sqrt(n), n - 1))


def mean_interval(groups: Sequence[Iterable[float | None]]) -> tuple[float, float] | None:
    """95 % interval of the mean over groups of the mean within each, by Welch and Satterthwaite.

    Args:
        groups: the values of each task, one per seed.

    Returns:
        (low, high); None if a group has fewer than two values, since nothing is known about its variance then.
    """
    arrays = [_numbers(values) for values in groups]
    if not arrays or min(map(len, arrays)) < 2:
        return None
    variances = np.array([data.var(ddof=1) / len(data) for data in arrays])  # of each group's mean
    total = variances.sum()
    degrees = total**2 / sum(v**2 / (len(data) - 1) for v, data in zip(variances, arrays, strict=True)) if total else 1
    mean = float(np.mean([data.mean() for data in arrays]))
    return _interval(mean, math.sqrt(total) / len(arrays), float(degrees))


def _interval(mean: float, error: float, degrees: float) -> tuple[float, float]:
    half = float(stats.t.ppf(0.5 + LEVEL / 2, degrees)) * error
    return mean - half, mean + half


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """The mean for ratios; None without positive values."""
    data = _numbers(values)
    return float(stats.gmean(data[data > 0])) if (data > 0).any() else None


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    data = np.array([math.nan if value is None else float(value) for value in values], dtype=float)
    return data[~np.isnan(data)]

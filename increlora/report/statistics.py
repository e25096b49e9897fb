"""Mean, spread and intervals over seeds.

- One value has a mean and nothing else: no spread is invented for a single seed.
- The interval of a mean is Student's t over seeds (normal errors, unknown variance). With three seeds its half-width is
  2.5 standard deviations: that is what three seeds can say.
- "All" averages over tasks that differ far more than seeds do, so its interval resamples seeds *within* each task
  (stratified bootstrap, Agarwal et al. 2021) and leaves the set of tasks fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000


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
    if n == 0:
        return Estimate(0)
    mean = float(data.mean())
    if n == 1:
        return Estimate(1, mean)
    sd = float(data.std(ddof=1))
    half = student_t(n - 1) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, mean - half, mean + half)


def student_t(degrees: int, level: float = LEVEL) -> float:
    """Two-sided critical value of Student's t, e.g. 4.303 for 2 degrees of freedom at 95 %."""
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees))


def stratified_bootstrap(
    strata: Sequence[Iterable[float | None]], level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Percentile interval of the mean over strata of the mean over seeds.

    Args:
        strata: the values of each task. Seeds are resampled with replacement within a task, tasks are kept.
        level: coverage.
        resamples: number of bootstrap samples; the generator's seed is fixed, so the interval is reproducible.

    Returns:
        (low, high), or None if a task has fewer than two values: a task without spread would pass for a certain one.
        With n seeds the interval is about sqrt((n - 1) / n) too narrow, as every percentile bootstrap.
    """
    arrays = [_numbers(values) for values in strata]
    if not arrays or min(len(array) for array in arrays) < 2:
        return None
    generator = np.random.default_rng(0)
    means = [array[generator.integers(len(array), size=(resamples, len(array)))].mean(axis=1) for array in arrays]
    low, high = np.quantile(np.mean(means, axis=0), [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Mean of ratios: the exponential of the mean logarithm, None without positive values."""
    data = _numbers(values)
    data = data[data > 0]
    return float(np.exp(np.log(data).mean())) if len(data) else None


def _numbers(values: Iterable[float | None]) -> np.ndarray:
    data = np.array([math.nan if value is None else float(value) for value in values], dtype=float)
    return data[~np.isnan(data)]

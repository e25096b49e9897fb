"""What seeds say about numbers and differences, held against SciPy, simulation and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from increlora.report import statistics
from increlora.report.statistics import Estimate, estimate, holm, mean_of


def test_an_estimate_is_students() -> None:
    values = [80.0, 82.0, 87.0]
    found = estimate([*values, None, float("nan")])
    half = 4.302652729911275 * np.std(values, ddof=1) / np.sqrt(3)
    assert found.n == 3
    assert found.mean == pytest.approx(83.0)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.interval() == pytest.approx((83 - half, 83 + half))
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_a_paired_difference_has_the_p_of_scipy() -> None:
    one, other = np.array([81.0, 84.0, 80.5, 83.0]), np.array([80.0, 82.5, 80.7, 81.0])
    assert estimate(one - other).p == pytest.approx(stats.ttest_rel(one, other).pvalue)


def test_one_seed_has_no_spread() -> None:
    assert estimate([80.0]) == Estimate(1, 80.0)
    assert estimate([]) == Estimate(0)
    for found in (estimate([80.0]), mean_of([[50.0, 51.0], [90.0]])):
        assert (found.interval(), found.p, found.visible()) == (None, None, None)


def test_the_interval_of_a_mean_over_tasks_keeps_the_tasks_apart() -> None:
    low, high = mean_of([[50.0, 51.0, 52.0], [90.0, 91.0, 92.0]]).interval() or (0, 0)
    half = 2.7764451051977987 * np.sqrt(2 / 3) / 2  # equal variances: 2 + 2 degrees of freedom
    assert (low, high) == pytest.approx((71 - half, 71 + half))
    # one task without any spread leaves the degrees of freedom of the other
    low, high = mean_of([[50.0, 50.0, 50.0], [90.0, 91.0, 92.0]]).interval() or (0, 0)
    half = 4.302652729911275 * np.sqrt(1 / 3) / 2
    assert (low, high) == pytest.approx((70.5 - half, 70.5 + half))
    assert mean_of([[50.0, 50.0], [90.0, 90.0]]).interval() == (70.0, 70.0)
    # two groups: the degrees of freedom of Welch's test
    one, other = [1.0, 2.0, 4.0, 3.0], [5.0, 9.0, 2.0]
    welch = stats.ttest_ind(one, other, equal_var=False)
    assert mean_of([one, other]).degrees == pytest.approx(welch.df)


def test_the_interval_of_a_mean_over_tasks_covers() -> None:
    """Three seeds of normal noise on tasks of very different spread: about 95 % of the intervals hold the truth."""
    random, truth, spread = np.random.default_rng(0), np.array([50.0, 70.0, 90.0]), np.array([[1.0], [2.0], [6.0]])
    held = 0
    for _ in range(1000):
        low, high = mean_of(list(truth[:, None] + spread * random.normal(size=(3, 3)))).interval() or (0, 0)
        held += low <= truth.mean() <= high
    assert 930 <= held <= 985


@pytest.mark.parametrize("level", [0.05, 0.05 / 20])
def test_the_smallest_visible_difference_is_seen_in_four_of_five_studies(level: float) -> None:
    """Five seeds of spread 2, and a true difference as large as what they are said to show."""
    random, found = np.random.default_rng(0), Estimate(5, 0.0, 2.0, 2.0 / np.sqrt(5), 4)
    visible = found.visible(level)
    assert visible is not None
    draws = visible + 2.0 * random.normal(size=(20_000, 5))
    # the true spread is not what a study of five seeds measures: its t has the noncentral distribution
    seen = stats.ttest_1samp(draws, 0, axis=1).pvalue <= level
    assert seen.mean() == pytest.approx(0.8, abs=0.01)


def test_holm_corrects_a_table() -> None:
    """By hand: 4 x 0.01, 3 x 0.013, 2 x 0.03 and 0.2, made monotone; one without spread is no part of it."""
    given = [0.03, 0.01, 0.2, 0.013]
    tested = holm([*map(_with_p, given), Estimate(1, 5.0)])
    assert [one.p for one in tested] == [*map(pytest.approx, (0.06, 0.04, 0.2, 0.04)), None]
    # each one's level follows from how many others are rejected without it: two, none, two, one
    assert [one.level for one in tested[:4]] == pytest.approx([0.05 / 2, 0.05 / 4, 0.05 / 2, 0.05 / 3])
    assert [one.sign for one in tested] == [0, 1, 0, 1, 0]


def test_corrected_intervals_exclude_0_where_corrected_p_is_significant() -> None:
    random = np.random.default_rng(0)
    seen = 0
    for _ in range(200):
        effects = random.choice([0.0, 2.0, 5.0], size=12)
        for one in holm([estimate(effect + random.normal(size=4)) for effect in effects]):
            low, high = one.interval or (0, 0)
            assert one.p is not None
            assert (one.p <= 0.05) == (low > 0 or high < 0) == (one.sign != 0)
            seen += one.sign != 0
    assert 300 < seen < 1500


def test_the_worst_of_several_is_corrected_for_the_choice() -> None:
    (alone,), (picked,) = holm([_with_p(0.02)]), holm([_with_p(0.02)], [3])
    assert (alone.p, picked.p) == (pytest.approx(0.02), pytest.approx(0.06))
    assert picked.level == pytest.approx(0.05 / 3)


def _with_p(p: float) -> Estimate:
    return Estimate(5, float(stats.t.isf(p / 2, 4)), 1.0, 1.0, 4)


def test_concentration() -> None:
    assert statistics.gini([2, 2, 2, 2]) == 0
    assert statistics.gini([0, 0, 0, 8]) == pytest.approx(0.75)
    assert statistics.gini([1, 3]) == pytest.approx(0.25)
    assert statistics.evenness([2, 2, 2, 2]) == pytest.approx(1)
    assert statistics.evenness([0, 0, 4, 4]) == pytest.approx(0.5)


def test_ratios_have_a_geometric_mean() -> None:
    assert statistics.geometric_mean([2.0, 0.5, None, 8.0]) == pytest.approx(2.0)
    assert statistics.geometric_mean([None]) is None

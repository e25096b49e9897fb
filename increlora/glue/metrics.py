"""GLUE's metrics. Training goes through `evaluate` and the module `glue_metric` beside this file, which calls
`of_split`; reading a record, which recomputes every score in it, calls `of_split` directly.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from increlora.glue.tasks import TASKS

Labels = Mapping[str, Sequence[float]]
"""Labels, or scores for a regression task, per evaluation split."""


def of_split(task: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """The task's metrics on one split, as fractions; a correlation with a constant is NaN.

    Equal to those of scikit-learn and SciPy (tested), in a hundredth of the time: the tables of a study recompute tens
    of thousands of them.
    """
    guess, gold = np.asarray(predictions), np.asarray(references)
    return {name: float(_METRICS[name](guess, gold)) for name in TASKS[task].measures}


def _accuracy(guess: np.ndarray, gold: np.ndarray) -> float:
    return float(np.mean(guess == gold))


def _f1(guess: np.ndarray, gold: np.ndarray) -> float:
    """Of class 1; 0 where neither predictions nor labels have it."""
    hits, either = np.sum((guess == 1) & (gold == 1)), np.sum(guess == 1) + np.sum(gold == 1)
    return 2 * hits / either if either else 0.0


def _matthews(guess: np.ndarray, gold: np.ndarray) -> float:
    """Of the classes 0 and 1; 0 where one of the two is constant."""
    return 0.0 if np.ptp(guess) == 0 or np.ptp(gold) == 0 else _pearson(guess, gold)


def _pearson(guess: np.ndarray, gold: np.ndarray) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):  # constant input
        return float(np.corrcoef(guess, gold)[0, 1])


def _spearman(guess: np.ndarray, gold: np.ndarray) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(guess), rankdata(gold))


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
}


@functools.cache
def _module(task: str) -> Any:
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # the module is local: do not wait for a network
    import evaluate

    return evaluate.load(str(Path(__file__).with_name("glue_metric.py")), task, keep_in_memory=True)


def compute(task: str, predictions: Labels, references: Labels) -> dict[str, float]:
    """Metrics of one task through `evaluate`, as fractions over all evaluation splits, by the keys of `Task.metrics`.

    A correlation that is undefined because predictions or labels are constant counts as 0.
    """
    return _over_splits(
        task, predictions, references, lambda guess, gold: _module(task).compute(predictions=guess, references=gold)
    )


def recompute(task: str, predictions: Labels, references: Labels) -> dict[str, float]:
    """What `compute` returns, without `evaluate`."""
    return _over_splits(task, predictions, references, functools.partial(of_split, task))


def _over_splits(task: str, predictions: Labels, references: Labels, function: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    for split in TASKS[task].eval_splits:
        found = function(predictions[split], references[split])
        values |= {key: float(found[name]) for name, key in TASKS[task].metric_keys(split).items()}
    return {key: 0.0 if math.isnan(value) else value for key, value in values.items()}


def baseline(task: str, references: Labels) -> float:
    """Score in percent of the best constant prediction: the majority class; 0 for correlations."""
    spec = TASKS[task]
    if spec.is_regression:
        return 0.0
    constant = ({split: [label] * len(gold) for split, gold in references.items()} for label in range(spec.num_labels))
    return max(spec.score(recompute(task, guess, references)) for guess in constant)

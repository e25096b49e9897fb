"""GLUE's metrics, by scikit-learn and SciPy. Training goes through `evaluate` and the module `glue_metric` beside this
file, which calls `of_split`; checking a finished record calls it directly, without importing `evaluate`.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from increlora.glue.tasks import TASKS

Labels = Mapping[str, Sequence[float]]
"""Labels, or scores for a regression task, per evaluation split."""


def of_split(task: str, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """The task's metrics on one split, as fractions; a correlation with a constant is NaN."""
    from scipy import stats
    from sklearn import metrics

    functions = {
        "accuracy": metrics.accuracy_score,
        "f1": functools.partial(metrics.f1_score, zero_division=0.0),
        "matthews_correlation": metrics.matthews_corrcoef,
        "pearson": lambda gold, guess: stats.pearsonr(gold, guess).statistic,
        "spearmanr": lambda gold, guess: stats.spearmanr(gold, guess).statistic,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant input and absent classes
        return {name: float(functions[name](references, predictions)) for name in TASKS[task].measures}


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
    constant = ({split: [label] * len(gold) for split, gold in references.items()} for label in range(spec.num_labels))
    return max(spec.score(recompute(task, guess, references)) for guess in constant)

"""Metrics of a task through the `evaluate` library and the metric module that lies beside this file."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from increlora.glue.tasks import TASKS


@functools.cache
def _module(task: str) -> Any:
    os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")  # the module is local: do not wait for a network
    import evaluate

    return evaluate.load(str(Path(__file__).with_name("glue_metric.py")), task, keep_in_memory=True)


def compute(
    task: str, predictions: Mapping[str, Sequence[float]], references: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """Metrics of one task as fractions.

    Args:
        task: name of the task.
        predictions: labels, or scores for the regression task, per evaluation split.
        references: gold labels per evaluation split.

    Returns:
        The task's metrics; MNLI's mismatched accuracy is ``accuracy_mm``. NaN where a correlation is undefined.
    """
    first, *others = TASKS[task].eval_splits
    metrics = _module(task).compute(predictions=predictions[first], references=references[first])
    for split in others:
        more = _module(task).compute(predictions=predictions[split], references=references[split])
        metrics |= {f"{name}_mm": value for name, value in more.items()}
    return {name: float(value) for name, value in metrics.items()}


def baseline(task: str, references: Mapping[str, Sequence[float]]) -> float:
    """Score in percent of the best constant prediction: the majority class; 0 for correlations."""
    spec = TASKS[task]
    if spec.is_regression or spec.metrics == ("matthews_correlation",):
        return 0.0
    labels = range(spec.num_labels)
    constant = ({split: [label] * len(gold) for split, gold in references.items()} for label in labels)
    return max(spec.score(compute(task, guess, references)) for guess in constant)

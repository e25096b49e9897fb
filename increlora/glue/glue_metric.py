"""GLUE's metrics as an `evaluate` module that lies in the package, so that no network is needed to load it.

``evaluate.load(<this file>, "rte")`` gives what ``evaluate.load("glue", "rte")`` gives. The formulas are in plain
NumPy; tests hold them against scikit-learn and SciPy.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Metrics of the GLUE benchmark (Wang et al. 2018, arXiv 1804.07461)."
_REGRESSION = "stsb"


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Fraction of equal labels."""
    return float(np.mean(predictions == references))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; 0 where nothing is predicted or present."""
    hits = np.sum((predictions == 1) & (references == 1))
    found = np.sum(predictions == 1) + np.sum(references == 1)
    return float(2 * hits / found) if found else 0.0


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation of two classes; 0 for constant predictions or references."""
    true, guess = references == 1, predictions == 1
    both, neither = np.sum(true & guess), np.sum(~true & ~guess)
    false_positive, false_negative = np.sum(~true & guess), np.sum(true & ~guess)
    margins = [
        float(m)
        for m in (both + false_positive, both + false_negative, neither + false_positive, neither + false_negative)
    ]
    if not all(margins):
        return 0.0
    return float((both * neither - false_positive * false_negative) / np.sqrt(np.prod(margins)))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation; NaN for constant input."""
    x, y = predictions - np.mean(predictions), references - np.mean(references)
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / norm) if norm > 0 else float("nan")


def spearmanr(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson correlation of the ranks, ties sharing their mean rank; NaN for constant input."""
    return pearson(_ranks(predictions), _ranks(references))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


_METRICS = {
    "cola": (matthews_correlation,),
    "sst2": (accuracy,),
    "mrpc": (accuracy, f1),
    "qqp": (accuracy, f1),
    "stsb": (pearson, spearmanr),
    "mnli": (accuracy,),
    "qnli": (accuracy,),
    "rte": (accuracy,),
}


class Glue(evaluate.Metric):
    """The metrics of the task that is the module's configuration name."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in _METRICS:
            raise KeyError(f"unknown GLUE task {self.config_name!r}; allowed: {', '.join(_METRICS)}")
        kind = datasets.Value("float64" if self.config_name == _REGRESSION else "int64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references: labels, or scores for stsb",
            features=datasets.Features({"predictions": kind, "references": kind}),
            format="numpy",
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        predictions, references = np.asarray(predictions), np.asarray(references)
        return {metric.__name__: metric(predictions, references) for metric in _METRICS[self.config_name]}

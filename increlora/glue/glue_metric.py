"""GLUE's metrics as an `evaluate` module inside the package, so that no network is needed to load it.

``evaluate.load(<this file>, "rte")`` gives what ``evaluate.load("glue", "rte")`` gives.
"""

from typing import Any

import datasets
import evaluate

from increlora.glue.metrics import of_split
from increlora.glue.tasks import TASKS


class Glue(evaluate.Metric):
    """The metrics of the task that is the module's configuration name.

    In float64: with ``format="numpy"``, `evaluate` would round scores to float32 first.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in TASKS:
            raise KeyError(f"unknown GLUE task {self.config_name!r}; allowed: {', '.join(TASKS)}")
        kind = datasets.Value("float64" if TASKS[self.config_name].is_regression else "int64")
        return evaluate.MetricInfo(
            description="Metrics of the GLUE benchmark (Wang et al. 2018, arXiv 1804.07461).",
            citation="",
            inputs_description="predictions and references: labels, or scores for a regression task",
            features=datasets.Features({"predictions": kind, "references": kind}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return of_split(self.config_name, predictions, references)

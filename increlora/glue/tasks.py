"""The eight GLUE tasks of the paper: columns, labels, splits, metrics and how each becomes one number.

Columns, label integers and split names are those of the ``nyu-mll/glue`` data set; which metric a table shows follows
the paper (Table 1). Training-set sizes are the official ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: configuration name in ``nyu-mll/glue``.
        title: how tables print it.
        text_columns: one column, or two for sentence pairs.
        labels: class names in the order of the label integers; empty for the regression task.
        eval_splits: development splits, in the order in which tables print them.
        metrics: metric keys that the evaluation returns, as fractions.
        columns: the table's columns of this task, as ``{heading: metric key(s) averaged}``.
        train_rows: official number of training examples.
    """

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    train_rows: int
    eval_splits: tuple[str, ...] = ("validation",)

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, 1 for regression."""
        return len(self.labels) or 1

    def column_scores(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values of this task's table columns, in percent."""
        return {heading: 100 * sum(metrics[key] for key in keys) / len(keys) for heading, keys in self.columns.items()}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The task's single number in percent: the mean of its columns (MNLI m/mm, QQP acc/F1)."""
        scores = self.column_scores(metrics)
        return sum(scores.values()) / len(scores)


_NLI = ("entailment", "not_entailment")
_ALL = (
    Task(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy", "accuracy_mm"),
        {"m": ("accuracy",), "mm": ("accuracy_mm",)},
        392_702,
        ("validation_matched", "validation_mismatched"),
    ),
    Task("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), {"Acc": ("accuracy",)}, 67_349),
    Task(
        "cola",
        "CoLA",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        {"Mcc": ("matthews_correlation",)},
        8_551,
    ),
    Task(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        {"Acc": ("accuracy",), "F1": ("f1",)},
        363_846,
    ),
    Task("qnli", "QNLI", ("question", "sentence"), _NLI, ("accuracy",), {"Acc": ("accuracy",)}, 104_743),
    Task("rte", "RTE", ("sentence1", "sentence2"), _NLI, ("accuracy",), {"Acc": ("accuracy",)}, 2_490),
    Task(
        "mrpc",
        "MRPC",
        ("sentence1", "sentence2"),
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        {"Acc": ("accuracy",)},
        3_668,
    ),
    Task(
        "stsb",
        "STS-B",
        ("sentence1", "sentence2"),
        (),
        ("pearson", "spearmanr"),
        {"Corr": ("pearson", "spearmanr")},
        5_749,
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Every task by name, in the order of the paper's Table 1."""

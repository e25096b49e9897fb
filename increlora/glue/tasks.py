"""The GLUE tasks of the paper. An entry of `TASKS` is everything that the package knows about a task.

Columns, label integers and split names are those of the ``nyu-mll/glue`` data set, row counts are the official ones,
and the metric that a table shows is the paper's (Table 1). To add a task, add an entry: it gets columns of its own in
every table, and with ``in_all=False`` no other number changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric as GLUE reports it, a fraction; `increlora.glue.metrics` computes it."""

    title: str
    low: float
    high: float = 1.0


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("Accuracy", 0.0),
    "f1": Metric("F1", 0.0),
    "matthews_correlation": Metric("Matthews correlation", -1.0),
    "pearson": Metric("Pearson correlation", -1.0),
    "spearmanr": Metric("Spearman correlation", -1.0),
}
"""Every metric by the key that `evaluate` returns it under."""


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: configuration name in ``nyu-mll/glue``.
        title: how tables and figures print it.
        text_columns: one column, or two for sentence pairs.
        labels: class names in the order of the label integers; empty for a regression task.
        measures: keys of `METRICS`, computed on every evaluation split.
        columns: the task's columns in a table, as ``{heading: keys of `metrics` averaged}``.
        axis: label of a figure's axis that shows `score`.
        train_rows: official number of training examples.
        eval_rows: official number of examples in all evaluation splits.
        tokens: mean tokens of a training example, special tokens included: words and punctuation marks times 1.15.
        generator: ``module:function`` below `increlora.glue.corpus` that draws an example; None if the built-in corpus
            does not have the task.
        eval_splits: development splits, in the order in which tables print them.
        in_all: whether the task is one of the eight in the paper's "All".
        higher_is_better: direction of `score`.
    """

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    measures: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    axis: str
    train_rows: int
    eval_rows: int
    tokens: int
    generator: str | None = None
    eval_splits: tuple[str, ...] = ("validation",)
    in_all: bool = False
    higher_is_better: bool = True

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def test_splits(self) -> tuple[str, ...]:
        """The test split that belongs to each of `eval_splits`; only the built-in corpus has their labels."""
        return tuple(split.replace("validation", "test") for split in self.eval_splits)

    @property
    def num_labels(self) -> int:
        """Outputs of the classifier: one per class, 1 for regression."""
        return len(self.labels) or 1

    def metric_keys(self, split: str) -> dict[str, str]:
        """``{measure: key of its value}`` on a split: ``accuracy`` on the first, ``accuracy_mm`` on MNLI's second."""
        suffix = "" if split == self.eval_splits[0] else "_mm"
        return {measure: f"{measure}{suffix}" for measure in self.measures}

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that an evaluation returns, by their keys, over all evaluation splits."""
        return {key: METRICS[name] for split in self.eval_splits for name, key in self.metric_keys(split).items()}

    def column_scores(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The values of this task's table columns, in percent."""
        return {heading: 100 * sum(metrics[key] for key in keys) / len(keys) for heading, keys in self.columns.items()}

    def score(self, metrics: Mapping[str, float]) -> float:
        """The task's single number in percent: the mean of its columns (MNLI m/mm, QQP acc/F1)."""
        scores = self.column_scores(metrics)
        return sum(scores.values()) / len(scores)

    def is_better(self, score: float, than: float) -> bool:
        """Whether one value of `score` beats another; ties do not."""
        return score > than if self.higher_is_better else score < than


_NLI = ("entailment", "not_entailment")
_ACCURACY = {"Acc": ("accuracy",)}
_ALL = (
    Task(
        name="mnli",
        title="MNLI",
        text_columns=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        measures=("accuracy",),
        columns={"m": ("accuracy",), "mm": ("accuracy_mm",)},
        axis="Accuracy, mean of m/mm (%)",
        train_rows=392_702,
        eval_rows=19_647,
        tokens=43,
        generator="entailment:mnli_row",
        eval_splits=("validation_matched", "validation_mismatched"),
        in_all=True,
    ),
    Task(
        name="sst2",
        title="SST-2",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        measures=("accuracy",),
        columns=_ACCURACY,
        axis="Accuracy (%)",
        train_rows=67_349,
        eval_rows=872,
        tokens=14,
        generator="sentiment:sst2_row",
        in_all=True,
    ),
    Task(
        name="cola",
        title="CoLA",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        measures=("matthews_correlation",),
        columns={"Mcc": ("matthews_correlation",)},
        axis="Matthews correlation (%)",
        train_rows=8_551,
        eval_rows=1_043,
        tokens=13,
        generator="acceptability:cola_row",
        in_all=True,
    ),
    Task(
        name="qqp",
        title="QQP",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        measures=("accuracy", "f1"),
        columns={"Acc": ("accuracy",), "F1": ("f1",)},
        axis="Mean of accuracy and F1 (%)",
        train_rows=363_846,
        eval_rows=40_430,
        tokens=33,
        generator="questions:qqp_row",
        in_all=True,
    ),
    Task(
        name="qnli",
        title="QNLI",
        text_columns=("question", "sentence"),
        labels=_NLI,
        measures=("accuracy",),
        columns=_ACCURACY,
        axis="Accuracy (%)",
        train_rows=104_743,
        eval_rows=5_463,
        tokens=52,
        generator="questions:qnli_row",
        in_all=True,
    ),
    Task(
        name="rte",
        title="RTE",
        text_columns=("sentence1", "sentence2"),
        labels=_NLI,
        measures=("accuracy",),
        columns=_ACCURACY,
        axis="Accuracy (%)",
        train_rows=2_490,
        eval_rows=277,
        tokens=75,
        generator="entailment:rte_row",
        in_all=True,
    ),
    Task(
        name="mrpc",
        title="MRPC",
        text_columns=("sentence1", "sentence2"),
        labels=("not_equivalent", "equivalent"),
        measures=("accuracy", "f1"),
        columns=_ACCURACY,
        axis="Accuracy (%)",
        train_rows=3_668,
        eval_rows=408,
        tokens=57,
        generator="paraphrase:mrpc_row",
        in_all=True,
    ),
    Task(
        name="stsb",
        title="STS-B",
        text_columns=("sentence1", "sentence2"),
        labels=(),
        measures=("pearson", "spearmanr"),
        columns={"Corr": ("pearson", "spearmanr")},
        axis="Mean correlation (%)",
        train_rows=5_749,
        eval_rows=1_500,
        tokens=31,
        generator="paraphrase:stsb_row",
        in_all=True,
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every task by name, in the order of the paper's Table 1."""

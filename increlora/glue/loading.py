"""The examples of a task: generated, from the Hub, or from a local folder in the Hub's layout."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from increlora import hub
from increlora.errors import ConfigError, IncreLoraError
from increlora.glue.data import Data
from increlora.glue.tasks import TASKS, Task


@dataclass(frozen=True)
class Examples:
    """Examples of one split: texts per column and labels (class index, or score for regression)."""

    texts: tuple[list[str], ...]
    labels: list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> Examples:
        """Some of them, in the given order."""
        return Examples(tuple([text[row] for row in rows] for text in self.texts), [self.labels[row] for row in rows])


@dataclass(frozen=True)
class TaskData:
    """Training and evaluation examples of one task.

    Attributes:
        evaluation: by the task's evaluation splits: what chooses a checkpoint.
        test: by the same splits, what a chosen checkpoint is shown on; empty where there is no labelled test split.
        fingerprint: 16 hexadecimal digits of the content.
        revision: commit of the Hub data set.
    """

    task: Task
    train: Examples
    evaluation: Mapping[str, Examples]
    test: Mapping[str, Examples] = field(default_factory=dict)
    fingerprint: str = field(default="")
    revision: str | None = None


def load_task(task: str, data: Data) -> TaskData:
    """Load one task and check every example.

    Raises:
        IncreLoraError: a split, a column or a label is missing or wrong; the message names it.
    """
    spec = TASKS[task]
    if data.source == "builtin":
        from increlora.glue.corpus import generate

        try:
            splits = generate(
                task,
                seed=data.seed or 0,
                train_rows=data.train_rows,
                eval_rows=data.eval_rows,
                test_rows=data.test_rows,
            )
        except ValueError as error:
            raise ConfigError("data", str(error)) from None
        return _task_data(spec, splits, data)
    where = data.name if data.source == "hub" else str(data.path)
    try:
        return _task_data(spec, _load_dataset(task, where, data.revision), data)
    except IncreLoraError:
        raise
    except Exception as error:  # `datasets` raises errors of many types, some only while rows are read
        if data.source == "hub":
            raise hub.unavailable("data", where, error, f"the data of {task} in ") from error
        reason = " ".join(str(error).split())
        raise IncreLoraError(
            f"data of {task}: {where} could not be loaded ({type(error).__name__}: {reason})"
        ) from error


def _task_data(spec: Task, splits: Mapping[str, Any], data: Data) -> TaskData:
    missing = [split for split in ("train", *spec.eval_splits) if split not in splits]
    if missing:
        raise IncreLoraError(f"data of {spec.name}: split {missing[0]!r} is missing; there are {', '.join(splits)}")
    test: dict[str, Examples] = {}
    if data.evaluate_on == "held_out":
        train, evaluation = _hold_out(spec, _examples(spec, "train", splits["train"], None), data)
    else:
        train = _examples(spec, "train", splits["train"], data.train_rows)
        evaluation = {split: _examples(spec, split, splits[split], data.eval_rows) for split in spec.eval_splits}
        if isinstance(splits["train"], list):  # generated; the labels of GLUE's own test splits are not public
            pairs = zip(spec.eval_splits, spec.test_splits, strict=True)
            test = {split: _examples(spec, name, splits[name], None) for split, name in pairs}
    fingerprint = _fingerprint([train, *evaluation.values(), *test.values()])
    return TaskData(spec, train, evaluation, test, fingerprint, _commit(splits["train"]))


def _hold_out(spec: Task, train: Examples, data: Data) -> tuple[Examples, dict[str, Examples]]:
    """A training split without a fifth of its rows, always the same, and that fifth shared among the evaluation splits.

    Of every five rows one is held out, so that no limit, not even one on the rows that are generated, brings it into
    training.
    """
    rng = random.Random(f"{spec.name}/held_out")
    held = [first + rng.randrange(5) for first in range(0, len(train) - 4, 5)]
    rest = sorted(set(range(len(train))) - set(held))
    parts = {name: held[at :: len(spec.eval_splits)][: data.eval_rows] for at, name in enumerate(spec.eval_splits)}
    if not all(parts.values()):
        raise IncreLoraError(f"data of {spec.name}: {len(train)} training examples are too few to hold a fifth out")
    return train.select(rest[: data.train_rows]), {name: train.select(rows) for name, rows in parts.items()}


def _commit(rows: Any) -> str | None:
    """The Hub's commit, after which `datasets` names the folder of its cache."""
    files = getattr(rows, "cache_files", None)
    folder = Path(files[0]["filename"]).parent.name if files else ""
    return folder if re.fullmatch(r"[0-9a-f]{40}", folder) else None


def _load_dataset(task: str, where: str, revision: str | None) -> Mapping[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    if Path(where).is_dir():
        # streamed: the cache of `datasets` goes by file names and would not notice changed content
        return datasets.load_dataset(str(Path(where).resolve()), task, streaming=True)
    return datasets.load_dataset(where, task, revision=revision)


def _examples(spec: Task, split: str, rows: Any, limit: int | None) -> Examples:
    columns = _columns(rows, (*spec.text_columns, "label"), f"data of {spec.name}, split {split}", limit)
    *texts, labels = columns
    if not labels:
        raise IncreLoraError(f"data of {spec.name}, split {split}: no examples")
    for column, values in zip(spec.text_columns, texts, strict=True):
        for row, value in enumerate(values):
            if not isinstance(value, str):  # QQP's training split has two empty questions
                raise IncreLoraError(
                    f"data of {spec.name}, split {split}, row {row}: {column} is {value!r}, not a text"
                )
    for row, label in enumerate(labels):
        if not _is_label(spec, label):
            allowed = "a score from 0 to 5" if spec.is_regression else f"0 to {spec.num_labels - 1}"
            raise IncreLoraError(
                f"data of {spec.name}, split {split}, row {row}: label is {label!r}; allowed: {allowed}"
            )
    return Examples(tuple(texts), labels)


def _is_label(spec: Task, label: Any) -> bool:
    if isinstance(label, bool) or not isinstance(label, int | float) or math.isnan(label):
        return False
    return 0 <= label <= 5 if spec.is_regression else label in range(spec.num_labels)


def _columns(rows: Any, names: Iterable[str], where: str, limit: int | None) -> list[list[Any]]:
    """Columns as lists, from a list of rows or a `datasets.Dataset`."""
    if not hasattr(rows, "select"):  # rows as dictionaries
        rows = list(itertools.islice(rows, limit))
        have = set(rows[0]) if rows else set(names)
    else:
        rows = rows.select(range(min(limit, len(rows)))) if limit else rows
        have = set(rows.column_names)
    missing = [name for name in names if name not in have]
    if missing:
        raise IncreLoraError(f"{where}: column {missing[0]!r} is missing; there are {', '.join(sorted(have))}")
    if isinstance(rows, list):
        return [[row[name] for row in rows] for name in names]
    return [list(rows[name]) for name in names]


def _fingerprint(parts: Iterable[Examples]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.texts, part.labels], ensure_ascii=False).encode())
    return digest.hexdigest()[:16]

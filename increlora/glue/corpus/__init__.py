"""A small GLUE-shaped corpus that needs no download: eight tasks with GLUE's columns, labels and split names.

Sentences come from a grammar (`grammar.py`) over a lexicon (`lexicon.py`); labels are computed from what the sentences
mean. It is synthetic: scores on it are comparable with one another, not with scores on the real GLUE.

    >>> rows = generate("rte", train_rows=100)
    >>> sorted(rows)
    ['test', 'train', 'validation']
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path

from increlora.glue.corpus.discourse import ASKED, CONNECTIVES, document
from increlora.glue.corpus.grammar import Genre, Split
from increlora.glue.tasks import TASKS, Task

TRAIN_ROWS, EVAL_ROWS, TEST_ROWS = 1200, 400, 2000
"""Rows of a task's training split, of each of its evaluation splits, and of each of its test splits."""

LABEL_NOISE = 0.04
"""Fraction of the rows of a classification task, in every split, whose label is replaced by another one."""

PATIENCE = 2000
"""Consecutive repeated rows after which the grammar counts as exhausted."""


def names() -> tuple[str, ...]:
    """The tasks that the corpus contains."""
    return tuple(name for name, task in TASKS.items() if task.generator is not None)


def _task(name: str) -> Task:
    if name not in names():
        raise ValueError(f"task: {name!r} is not in the built-in corpus; allowed: {', '.join(names())}")
    return TASKS[name]


def _row_maker(task: Task, split_name: str) -> Callable[[random.Random, Split], dict]:
    module, _, function = str(task.generator).partition(":")
    make_row = getattr(import_module(f"{__name__}.{module}"), function)
    return partial(make_row, genre=Genre.MISMATCHED) if split_name.endswith("mismatched") else make_row


def _rows(task: Task, split_name: str, split: Split, count: int, seed: int, others: Iterable[dict] = ()) -> list[dict]:
    """``count`` distinct rows, none of them among ``others``.

    Rows are drawn one after the other, so fewer rows are a prefix of more rows.
    """
    rng = random.Random(f"{task.name}/{split_name}/{seed}")
    make_row = _row_maker(task, split_name)
    rows: list[dict] = []
    seen = {_text(task, row) for row in others}
    repeats = 0
    while len(rows) < count:
        row = make_row(rng, split)
        text = _text(task, row)
        if text in seen:
            repeats += 1
            if repeats > PATIENCE:
                raise ValueError(f"{task.name}: got {count} rows for {split_name}; the grammar gives about {len(rows)}")
            continue
        repeats = 0
        seen.add(text)
        if task.labels and rng.random() < LABEL_NOISE:
            row["label"] = (row["label"] + rng.randrange(1, task.num_labels)) % task.num_labels
        row["idx"] = len(rows)
        rows.append(row)
    return rows


def _text(task: Task, row: dict) -> tuple[str, ...]:
    return tuple(row[column] for column in task.text_columns)


def generate(
    task: str,
    *,
    seed: int = 0,
    train_rows: int | None = None,
    eval_rows: int | None = None,
    test_rows: int | None = None,
) -> dict[str, list[dict]]:
    """The rows of one task by split name, with GLUE's column names.

    Args:
        task: one of `names`.
        seed: another seed gives other rows of the same task.
        train_rows: number of training rows; fewer rows are a prefix of more rows. Default: `TRAIN_ROWS`.
        eval_rows: the same for each evaluation split; default `EVAL_ROWS`.
        test_rows: the same for each test split; default `TEST_ROWS`.

    Returns:
        ``train``, ``validation`` and ``test`` (MNLI: ``validation_matched`` and ``validation_mismatched``, and two test
        splits named in the same way). No event of an evaluation or test split occurs in a training split or in
        `documents`, and no row of a test split in the evaluation split that it belongs to.

    Raises:
        ValueError: the task is unknown, or a number of rows is negative or more than the grammar gives.
    """
    known = _task(task)
    train = TRAIN_ROWS if train_rows is None else train_rows
    evaluation = EVAL_ROWS if eval_rows is None else eval_rows
    test = TEST_ROWS if test_rows is None else test_rows
    for name, value in (("train_rows", train), ("eval_rows", evaluation), ("test_rows", test)):
        if value < 0:
            raise ValueError(f"{name}: {value} given; must be 0 or more")
    rows = {"train": _rows(known, "train", Split.TRAIN, train, seed)}
    for name, test_name in zip(known.eval_splits, known.test_splits, strict=True):
        rows[name] = _rows(known, name, Split.EVALUATION, evaluation, seed)
        rows[test_name] = _rows(known, test_name, Split.EVALUATION, test, seed, rows[name])
    return rows


def documents(*, seed: int = 0, count: int) -> list[list[str]]:
    """``count`` documents to pretrain on, each a list of one or two related sentences (see `discourse.py`).

    Fewer documents are a prefix of more documents. No sentence of an evaluation split occurs.
    """
    rng = random.Random(f"documents/{seed}")
    return [document(rng) for _ in range(count)]


def write_folder(path: str | Path, *, seed: int) -> None:
    """Write all tasks to ``path`` as parquet, so that ``datasets.load_dataset(path, "rte")`` works.

    Raises:
        FileExistsError: ``path`` exists.
    """
    from increlora.glue.corpus.folder import write

    write(Path(path), seed=seed)


__all__ = [
    "ASKED",
    "CONNECTIVES",
    "EVAL_ROWS",
    "LABEL_NOISE",
    "TEST_ROWS",
    "TRAIN_ROWS",
    "documents",
    "generate",
    "names",
    "write_folder",
]

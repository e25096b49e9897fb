"""A small GLUE-shaped corpus that needs no download: eight tasks with GLUE's columns, labels and split names.

Sentences come from a grammar (`grammar.py`) over a lexicon (`lexicon.py`); labels are computed from what the sentences
mean. It is synthetic: scores on it are comparable with one another, not with scores on the real GLUE.

    >>> rows = generate("rte", train_rows=100)
    >>> sorted(rows)
    ['train', 'validation']
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from increlora.glue.corpus import acceptability, entailment, paraphrase, questions, sentiment
from increlora.glue.corpus.discourse import CONNECTIVES, document
from increlora.glue.corpus.grammar import Genre, Split

DEFAULT_ROWS: dict[str, tuple[int, int]] = {
    "cola": (1200, 300),
    "sst2": (1200, 300),
    "mrpc": (1200, 300),
    "stsb": (1200, 300),
    "qqp": (1200, 300),
    "mnli": (1200, 300),
    "qnli": (1200, 300),
    "rte": (1200, 300),
}
"""Rows per task: (train, each evaluation split)."""

LABEL_NOISE = 0.04
"""Fraction of the rows of a classification task, in every split, whose label is replaced by another one."""

PATIENCE = 2000
"""Rows in succession that there were already, after which the grammar counts as exhausted."""

LABEL_COUNTS = {"cola": 2, "sst2": 2, "mrpc": 2, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2}

_ROWS: dict[str, Callable[[random.Random, Split], dict]] = {
    "cola": acceptability.cola_row,
    "sst2": sentiment.sst2_row,
    "mrpc": paraphrase.mrpc_row,
    "stsb": paraphrase.stsb_row,
    "qqp": questions.qqp_row,
    "qnli": questions.qnli_row,
    "rte": entailment.rte_row,
}


def _row_maker(task: str, split_name: str) -> Callable[[random.Random, Split], dict]:
    if task != "mnli":
        return _ROWS[task]
    genre = Genre.MISMATCHED if split_name.endswith("mismatched") else Genre.MATCHED
    return lambda rng, split: entailment.mnli_row(rng, split, genre)


def _rows(task: str, split_name: str, split: Split, count: int, seed: int) -> list[dict]:
    """``count`` distinct rows. Rows are drawn one after the other, so fewer rows are a prefix of more rows."""
    rng = random.Random(f"{task}/{split_name}/{seed}")
    make_row = _row_maker(task, split_name)
    rows: list[dict] = []
    seen: set[tuple] = set()
    repeats = 0
    while len(rows) < count:
        row = make_row(rng, split)
        text = tuple(row.values())[:-1]
        if text in seen:
            repeats += 1
            if repeats > PATIENCE:
                raise ValueError(f"{task}: got {count} rows for {split_name}; the grammar gives about {len(rows)}")
            continue
        repeats = 0
        seen.add(text)
        if task in LABEL_COUNTS and rng.random() < LABEL_NOISE:
            row["label"] = (row["label"] + rng.randrange(1, LABEL_COUNTS[task])) % LABEL_COUNTS[task]
        row["idx"] = len(rows)
        rows.append(row)
    return rows


def generate(
    task: str, *, seed: int = 0, train_rows: int | None = None, eval_rows: int | None = None
) -> dict[str, list[dict]]:
    """The rows of one task by split name, with GLUE's column names.

    Args:
        task: one of `DEFAULT_ROWS`.
        seed: another seed gives other rows of the same task.
        train_rows: number of training rows; fewer rows are a prefix of more rows. Default: `DEFAULT_ROWS`.
        eval_rows: the same for each evaluation split.

    Returns:
        ``train`` and ``validation`` (MNLI: ``validation_matched`` and ``validation_mismatched``). No sentence of an
        evaluation split occurs in a training split or in `documents`.

    Raises:
        ValueError: the task is unknown, or a number of rows is negative or more than the grammar gives.
    """
    if task not in DEFAULT_ROWS:
        raise ValueError(f"task: {task!r} is not in the built-in corpus; allowed: {', '.join(DEFAULT_ROWS)}")
    train = DEFAULT_ROWS[task][0] if train_rows is None else train_rows
    evaluation = DEFAULT_ROWS[task][1] if eval_rows is None else eval_rows
    for name, value in (("train_rows", train), ("eval_rows", evaluation)):
        if value < 0:
            raise ValueError(f"{name}: {value} given; must be 0 or more")
    validation = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    rows = {"train": _rows(task, "train", Split.TRAIN, train, seed)}
    for name in validation:
        rows[name] = _rows(task, name, Split.EVALUATION, evaluation, seed)
    return rows


def documents(*, seed: int = 0, count: int) -> list[list[str]]:
    """``count`` documents to pretrain on, each a list of one or two related sentences (see `discourse.py`).

    Fewer documents are a prefix of more documents. No sentence of an evaluation split occurs.
    """
    rng = random.Random(f"documents/{seed}")
    return [document(rng) for _ in range(count)]


def noise_ceiling(task: str) -> float:
    """The best main metric, in percent, that a perfect model can expect, given the label noise that was put in.

    Accuracy: ``1 - LABEL_NOISE``. Matthews for labels flipped at rate e with a fraction p of positives is
    ``(1 - 2e) sqrt(p (1 - p) / (q (1 - q)))`` with ``q = p + e - 2 p e``. STS-B: the correlation of the noise-free
    similarity, uniform on [0, 5], with what the noisy annotators wrote.
    """
    if task not in DEFAULT_ROWS:
        raise ValueError(f"task: {task!r} is not in the built-in corpus; allowed: {', '.join(DEFAULT_ROWS)}")
    if task == "stsb":
        variance = 25 / 12
        return 100 * (variance / (variance + paraphrase.SIMILARITY_NOISE**2)) ** 0.5
    if task == "cola":
        p = acceptability.ACCEPTABLE_FRACTION
        q = p + LABEL_NOISE - 2 * p * LABEL_NOISE
        return 100 * (1 - 2 * LABEL_NOISE) * (p * (1 - p) / (q * (1 - q))) ** 0.5
    return 100 * (1 - LABEL_NOISE)


def write_folder(path: str | Path, *, seed: int) -> None:
    """Write all tasks to ``path`` as parquet, so that ``datasets.load_dataset(path, "rte")`` works.

    Raises:
        FileExistsError: ``path`` exists.
    """
    from increlora.glue.corpus.folder import write

    write(Path(path), seed=seed)


__all__ = ["CONNECTIVES", "DEFAULT_ROWS", "LABEL_NOISE", "documents", "generate", "noise_ceiling", "write_folder"]

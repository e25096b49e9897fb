"""What the tests of study, store, command line and workflow share."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from increlora.glue.loading import load_task
from increlora.glue.metrics import baseline, recompute
from increlora.glue.tasks import TASKS, Task
from increlora.training.record import Record
from increlora.training.settings import RunSettings

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "config" / "smoke.yaml"
ROWS = 1000

SEVERAL = """
import contextlib, io, json, sys
from increlora.cli import main
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
"""Script for one process that answers several command lines, each a JSON list: exit code, output and errors of each."""


def copy_project(folder: Path) -> Path:
    """What Snakemake needs of the project, without any result."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("workflow", "profiles", "config", "increlora"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "local.yaml"))
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


Splits = Mapping[str, Sequence[float]]
"""Labels or predictions by development split."""


def gold_labels(task: Task, rows: int = ROWS) -> dict[str, list[float]]:
    """All classes, or scores from 0 to 5, equally often on every development split."""
    labels = [round(5 * at / rows, 4) for at in range(rows)] if task.is_regression else None
    return {split: labels or [at % task.num_labels for at in range(rows)] for split in task.eval_splits}


def predictions_at(task: Task, score: float, rows: int = ROWS) -> dict[str, list[float]]:
    """Predictions that `Task.score` puts at `score` percent, held against `gold_labels`.

    Exact to 100 / `rows`. Errors are as frequent in one class as in another; those of a regression task are noise. Two
    scores differ in as few rows as they can.
    """
    return {split: list(_guess(task.name, score, rows)) for split in task.eval_splits}


@functools.cache
def _guess(name: str, score: float, rows: int) -> tuple[float, ...]:
    task = TASKS[name]
    gold = np.array(gold_labels(task, rows)[task.eval_splits[0]])
    if not task.is_regression:
        accuracy = (score + 100) / 2 if task.measures == ("matthews_correlation",) else score  # both classes as often
        wrong = round(rows * (1 - accuracy / 100))
        at = np.arange(rows)
        return tuple(np.where(at >= rows - wrong, (gold + 1) % task.num_labels, gold).astype(int).tolist())
    noise = np.random.default_rng(0).permutation(gold)

    def mixed(share: float) -> list[float]:
        return [round(value, 4) for value in share * gold + (1 - share) * noise]

    low, high = -1.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        metrics = recompute(name, dict.fromkeys(task.eval_splits, mixed(share)), gold_labels(task, rows))
        low, high = (share, high) if task.score(metrics) < score else (low, share)
    return tuple(mixed((low + high) / 2))


def record_on_corpus(settings: RunSettings) -> Record:
    """A `fake_record` that `verify` has nothing against: on the labels of the built-in corpus."""
    data = load_task(settings.task, settings.data)
    labels = {split: examples.labels for split, examples in data.evaluation.items()}
    rows = {split: len(gold) for split, gold in labels.items()}
    origin = {"source": "builtin", "revision": None, "fingerprint": data.fingerprint, "rows": rows}
    return fake_record(settings, [labels], labels=labels, provenance={"data": origin})


def fake_record(
    settings: RunSettings,
    scores: float | Sequence[float | Splits] = 50.0,
    *,
    test: float | None = None,
    test_last: float | None = None,
    labels: Splits | None = None,
    **blocks: dict[str, Any],
) -> Record:
    """A valid record without a training: labels and predictions that give the wanted scores.

    ``fake_record(settings, [70.1, 69.0], test=71.3)`` is a run that scores 70.1 best, 69.0 last and 71.3 on test. The
    numbers are exact to 0.1; to compare, ask the record for what it shows.

    Args:
        settings: of the run.
        scores: of every evaluation, in percent, or its predictions by development split.
        test: score of the best checkpoint on the test splits; None for a run without test splits.
        test_last: of the last checkpoint; `test` if left out.
        labels: of the development splits, for predictions of one's own; `gold_labels` if left out.
        blocks: fields that replace those of a block, e.g. ``run={"status": "collapsed"}``.
    """
    task = TASKS[settings.task]
    labels = labels or gold_labels(task)
    given = [scores] if isinstance(scores, int | float) else scores
    guesses: list[Splits] = [one if isinstance(one, Mapping) else predictions_at(task, one) for one in given]
    history = []
    for number, guess in enumerate(guesses, 1):
        metrics = recompute(task.name, guess, labels)
        entry = {"step": 10 * number, "epoch": 1.0 * number, "train_loss": 0.5, "penalty": None, "metrics": metrics}
        history.append({**entry, "score": task.score(metrics), "total_rank": 2, "trainable": 100})
    best = max(history, key=lambda entry: entry["score"] * (1 if task.higher_is_better else -1), default={"step": None})
    rows = {split: len(gold) for split, gold in labels.items()}
    tested: dict[str, Any] = {"test": None, "test_labels": {}, "test_predictions": {}}
    if test is not None:
        gold = gold_labels(task)
        pair = [predictions_at(task, score) for score in (test, test if test_last is None else test_last)]
        tested = {
            "test": dict(zip(("best", "last"), (recompute(task.name, one, gold) for one in pair), strict=True)),
            "test_labels": {split: [values] for split, values in gold.items()},
            "test_predictions": {split: [one[split] for one in pair] for split in gold},
        }
        rows |= dict.fromkeys(task.test_splits, ROWS)
    names = ("study", "task", "method", "kind", "budget", "seed", "digest", "protocol")
    record: dict[str, dict[str, Any]] = {
        "run": {
            **{name: getattr(settings, name) for name in names},
            **{"status": "completed", "reason": None, "settings": settings},
        },
        "score": {
            **{"baseline": baseline(task.name, labels), "best_step": best["step"], "history": history},
            "labels": {split: [gold] for split, gold in labels.items()},
            "predictions": {split: [guess[split] for guess in guesses] for split in labels},
            **tested,
        },
        "parameters": {"trainable": 100, "head": 10, "total": 1000, "budget": 100, "deviation": 0.0},
        "cost": {
            **{"wall_seconds": 2.0, "train_seconds": 1.0, "step_ms": 50.0, "peak_memory_mb": 8.0},
            **{"optimizer_state": 220, "peak_trainable": 100, "device": "cpu", "threads": 1, "processes": 1},
            **{"steps": 10 * len(history), "examples": 96},
        },
        "allocation": {
            **{"events": [], "ranks": {"module": 2}, "total_rank": 2, "budget_rank": 2, "modules": ["module"]},
            **{"growth": [{"step": 0, "ranks": [2]}], "orthogonality": []},
        },
        "provenance": {
            **{"versions": {}, "commit": None, "dirty": None, "started": "", "finished": ""},
            "data": {"source": settings.data.source, "revision": None, "fingerprint": "0" * 16, "rows": rows},
            "backbone": {"name": settings.backbone.name, "revision": None, "fingerprint": "0" * 16},
        },
    }
    return Record.model_validate({name: {**block, **blocks.get(name, {})} for name, block in record.items()})

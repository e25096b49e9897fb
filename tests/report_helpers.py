"""Records without training, for the tests of the report: a small study, and how good each of its runs is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from increlora.glue.tasks import TASKS
from increlora.study.config import Study
from increlora.study.load import load_study
from increlora.study.settings import all_runs
from increlora.training.record import Record, write_record
from increlora.training.settings import RunSettings
from tests.study_helpers import fake_record

LAYERS = 2
MODULES = [
    f"deberta.encoder.layer.{layer}.{name}"
    for layer in range(LAYERS)
    for name in (
        *("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
]
PER_RANK, HEAD, TOTAL = 1000, 40, 50_000
ROWS = 100


def make_study(
    backbone: str = "tiny", source: str = "builtin", only: tuple[str, ...] | None = None, **changes: Any
) -> Study:
    """Every artefact, or only some."""
    off = {"orth_reg_weight": 0.0, "advance_learning": False, "restart_warmup": False}
    config: dict[str, Any] = {
        "study": "fake",
        "seeds": [0, 1, 2],
        "report": {"checkpoint": "best"},
        "backbone": {"name": backbone, "target_modules": ".*"},
        "data": {"source": source},
        "training": {"learning_rate": 1e-3},
        "tasks": {task: {} for task in TASKS},
        "methods": {
            "full_ft": {"title": "Full FT"},
            "head": {"title": "Head only"},
            "hadapter": {"title": "HAdapter"},
            "lora": {"title": "LoRA"},
            "adalora": {"title": "AdaLoRA"},
            "increlora": {"title": "IncreLoRA"},
            "raw": {"title": "Raw & bare", "extends": "increlora", "options": off},
            "orth": {"title": "+ OrthReg", "extends": "raw", "options": {"orth_reg_weight": 0.1}},
            "orth_advance": {"title": "+ both", "extends": "increlora", "options": {"restart_warmup": False}},
            "sqrt": {"title": "IncreLoRA, sqrt score", "extends": "increlora"},
            "svd": {"title": "SVD", "kind": "svd_lora", "ranks_from": {"method": "increlora"}},
            "svd_ada": {"title": "SVD (AdaLoRA)", "kind": "svd_lora", "ranks_from": {"method": "adalora"}},
        },
        "artefacts": {
            "table1": {
                "tasks": list(TASKS),
                "rows": [
                    {"method": "full_ft"},
                    {"method": "hadapter", "budgets": [32, 8]},
                    {"method": "lora", "budgets": [4, 2]},
                    {"method": "increlora", "budgets": [4, 2]},
                ],
            },
            "table2": {
                "tasks": ["rte", "stsb"],
                "budget": 2,
                "rows": ["lora", "raw", "orth", "orth_advance", "increlora"],
            },
            "table3": {"tasks": ["sst2"], "budget": 2, "rows": ["increlora", "adalora", "svd", "svd_ada"]},
            "variants": {"tasks": ["rte", "cola"], "budget": 2, "rows": ["increlora", "sqrt"]},
            "headroom": {
                "tasks": ["rte", "cola"],
                "full": "full_ft",
                "head": "head",
                "over_budgets": {"tasks": ["rte"], "method": "lora", "budgets": [2, 4]},
            },
            "claims": True,
            "figure4": {"tasks": ["rte", "stsb"], "methods": ["increlora", "lora"], "budgets": [2, 4]},
            "figure5": {"task": "rte", "budget": 2, "with_advance": "orth_advance", "without_advance": "orth"},
            "figure6": {"task": "sst2", "budget": 2, "methods": ["adalora", "increlora"]},
            "rank_growth": {"task": "sst2", "budget": 2, "method": "increlora"},
            "training": {"task": "rte", "budget": 2, "method": "increlora", "reference": "lora"},
        },
    }
    config["artefacts"]["only"] = only
    return load_study({**config, **changes})


def quality(settings: RunSettings) -> float:
    """Part of the right answers of a run's best checkpoint, drawn from its settings alone."""
    name = f"{settings.task}{settings.method}"
    drawn = np.random.default_rng([sum(map(ord, name)), settings.budget or 0, settings.seed])
    return float(drawn.uniform(0.6, 0.95))


def make_record(settings: RunSettings, good: float | None = None, concentrated: bool = False) -> dict[str, Any]:
    """A record whose numbers depend on the settings, and on how good the run is.

    Args:
        settings: of the run.
        good: part of right answers of the best checkpoint; that of `quality` if left out.
        concentrated: give W_v, W_o and W_f1 all ranks beyond the first, and more of them.
    """
    good = quality(settings) if good is None else good
    (best, gold), (last, _) = (_answers(settings.task, settings.seed, good - loss) for loss in (0.0, 0.01))
    trainable = PER_RANK * settings.budget if settings.budget else 0 if settings.kind == "head" else TOTAL
    state = 2 * (trainable + (0 if settings.kind == "full_ft" else HEAD))
    step_ms = 15.0 if settings.kind == "increlora" else 10.0
    record = fake_record(
        settings,
        [best, last],
        labels=gold,
        parameters={"trainable": trainable, "head": HEAD, "total": TOTAL, "budget": trainable},
        cost={"step_ms": step_ms, "peak_memory_mb": 100.0, "optimizer_state": state, "peak_trainable": trainable},
    ).model_dump(mode="json")
    allocation = _allocation(settings, concentrated) if settings.kind not in _WITHOUT_RANKS else None
    seen = {"penalty": 0.1, "total_rank": allocation["total_rank"]} if allocation else {"total_rank": None}
    score = record["score"]
    score["history"] = [{**entry, **seen, "trainable": trainable} for entry in score["history"]]
    tested = dict(zip(("best", "last"), (entry["metrics"] for entry in score["history"]), strict=True))
    score |= {"test": tested, "test_labels": score["labels"], "test_predictions": score["predictions"]}
    record["provenance"]["data"]["rows"] |= dict.fromkeys(TASKS[settings.task].test_splits, ROWS)
    return {**record, "allocation": allocation}


_WITHOUT_RANKS = ("full_ft", "head", "hadapter", "lora")


def _answers(task: str, seed: int, good: float) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Predictions and labels by split, of which so many are right; of scores so much is not noise."""
    guesses, gold, noise = {}, {}, np.random.default_rng(seed)
    for split in TASKS[task].eval_splits:
        if TASKS[task].is_regression:
            labels = np.linspace(0, 5, ROWS)
            guess = good * labels + (1 - good) * noise.permutation(labels)
        else:
            labels = np.arange(ROWS) % TASKS[task].num_labels
            wrong = np.arange(ROWS) < round(ROWS * (1 - good))
            guess = np.where(wrong, (labels + 1) % TASKS[task].num_labels, labels)
        guesses[split], gold[split] = guess.tolist(), labels.tolist()
    return guesses, gold


def _allocation(settings: RunSettings, concentrated: bool) -> dict[str, Any]:
    rng = np.random.default_rng([settings.seed, sum(map(ord, settings.method))])
    start = np.ones(len(MODULES), dtype=int)
    named = [name.rpartition("layer.")[2][2:] for name in MODULES]
    few = ("attention.self.value_proj", "attention.output.dense", "intermediate.dense")
    weights = np.array([1.0 if name in few or not concentrated else 0.1 for name in named])
    final = start + rng.multinomial(len(MODULES) * (4 if concentrated else 1), weights / weights.sum())
    advance = settings.options.get("advance_learning", True)
    points = [
        {"step": step, "A": 10.0 / (step + 1 + settings.seed), "B": 5.0 / (step + 1)}
        | {"A_with_reserve": 12.0 / (step + 1), "B_with_reserve": 6.0 / (step + 1)}
        | {"norm": 0.01 * (settings.seed + 1), "norm_with_reserve": 0.02 + (not advance) + 0.01 * settings.seed}
        for step in (0, 8, 10, 20)
    ]
    return {
        "events": [{"step": 10 + settings.seed, "grown": {}, "total_rank": int(final.sum())}],
        "ranks": dict(zip(MODULES, final.tolist(), strict=True)),
        "total_rank": int(final.sum()),
        "budget_rank": 2 * len(MODULES),
        "modules": MODULES,
        "growth": [{"step": 0, "ranks": start.tolist()}, {"step": 10 + settings.seed, "ranks": final.tolist()}],
        "orthogonality": points,
    }


def write(
    study: Study,
    root: Path,
    change: Callable[[RunSettings, dict[str, Any]], dict[str, Any] | None] = lambda settings, record: record,
) -> None:
    """Write the record of every run of a study, after a change; None leaves it out."""
    for settings in all_runs(study):
        record = change(settings, make_record(settings))
        if record is not None:
            write_record(settings.record_path(root), Record.model_validate(record))

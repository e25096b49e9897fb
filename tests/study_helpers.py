"""What the tests of study, store, command line and workflow share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from increlora.glue.tasks import TASKS
from increlora.training.record import Record
from increlora.training.settings import RunSettings

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "config" / "smoke.yaml"
ROWS = 4


def fake_record(settings: RunSettings, metrics: dict[str, float] | None = None, **blocks: dict[str, Any]) -> Record:
    """A valid record without a training, whose data nobody has: its predictions cannot be held against labels.

    Args:
        settings: of the run.
        metrics: of its only evaluation; 0.5 throughout if left out.
        blocks: fields that replace those of a block, e.g. ``run={"status": "collapsed"}``.
    """
    task = TASKS[settings.task]
    metrics = metrics or dict.fromkeys(task.metrics, 0.5)
    evaluation = {"step": 20, "epoch": 1.0, "train_loss": 0.5, "score": task.score(metrics), "metrics": metrics}
    evaluation |= {"total_rank": 2, "trainable": 100}
    predictions = {split: [0] * ROWS for split in task.eval_splits}
    names = ("study", "task", "method", "kind", "budget", "seed", "digest", "protocol")
    record: dict[str, dict[str, Any]] = {
        "run": {
            **{name: getattr(settings, name) for name in names},
            **{"status": "completed", "reason": None, "settings": settings},
        },
        "score": {
            **{"best": evaluation, "last": evaluation, "baseline": 50.0, "history": [evaluation]},
            "predictions": {"best": predictions, "last": predictions},
        },
        "parameters": {"trainable": 100, "head": 10, "total": 1000, "budget": 100, "deviation": 0.0},
        "cost": {
            **{"wall_seconds": 2.0, "train_seconds": 1.0, "step_ms": 50.0, "peak_memory_mb": 8.0},
            **{"optimizer_state": 220, "peak_trainable": 100, "device": "cpu", "threads": 1, "processes": 1},
            **{"steps": 20, "examples": 96},
        },
        "allocation": {
            **{"events": [], "ranks": {"module": 2}, "total_rank": 2, "budget_rank": 2, "modules": ["module"]},
            **{"growth": [{"step": 0, "ranks": [2]}], "orthogonality": []},
        },
        "provenance": {
            **{"versions": {}, "commit": None, "dirty": None, "started": "", "finished": ""},
            "data": {"source": settings.data.source, "fingerprint": "0" * 16, "rows": dict.fromkeys(predictions, ROWS)},
            "backbone": {"name": settings.backbone.name, "fingerprint": None},
        },
    }
    return Record.model_validate({name: {**block, **blocks.get(name, {})} for name, block in record.items()})

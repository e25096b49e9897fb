"""What the tests of study, store, command line and workflow share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from increlora.training.settings import RunSettings

ROOT = Path(__file__).parent.parent
SMOKE = ROOT / "config" / "smoke.yaml"


def fake_record(settings: RunSettings) -> dict[str, Any]:
    """What the workflow looks at in a record, without a training."""
    stored = settings.model_dump(mode="json")
    names = ("study", "task", "method", "kind", "budget", "seed", "protocol")
    run = {**{name: stored[name] for name in names}, "digest": settings.digest, "status": "completed", "reason": None}
    return {"run": {**run, "settings": stored}, "score": {}, "allocation": {"ranks": {"module": 2}}}

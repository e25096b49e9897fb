from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub import repositories
from tests.hub.server import Hub, serving
from tests.study_helpers import ROOT

MODEL = "microsoft/deberta-v3-base"
SAFETENSORS = "example/deberta-v3-safetensors"
DATA = "nyu-mll/glue"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The content of the three repositories."""
    pytest.importorskip("sentencepiece")
    root = tmp_path_factory.mktemp("repositories")
    model = repositories.deberta_v3(root / "deberta")
    return {
        MODEL: model,
        SAFETENSORS: repositories.with_safetensors(root / "safetensors", model),
        DATA: repositories.glue(root / "glue"),
    }


@pytest.fixture
def hub(folders: dict[str, Path]) -> Iterator[Hub]:
    with serving() as running:
        for name, folder in folders.items():
            running.push("datasets" if name == DATA else "models", name, folder)
        yield running


Ask = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stranger(hub: Hub, tmp_path: Path) -> Ask:
    """Runs a command as on a machine that has never seen the Hub: caches of its own, the local Hub for the real one."""

    def run(*command: str, folder: Path = ROOT, offline: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "INCRELORA_"))}
        environment = {
            **kept,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        line = [sys.executable, *command]
        return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)

    return run

"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.study_helpers import ROOT


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trainer(tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = example("trainer").main(["--model", str(tiny_backbone), "--out", str(tmp_path), "--steps", "40"])
    assert 0 <= score <= 1
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
    assert "ranks [" in capsys.readouterr().out


def test_plain_loop(tiny_backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = example("plain_loop").main(["--model", str(tiny_backbone), "--steps", "40"])
    assert 0 <= score <= 1
    assert "gained rank" in capsys.readouterr().out

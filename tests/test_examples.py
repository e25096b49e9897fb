"""The examples, and what README shows of the method, run as they stand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
from torch.utils.data import DataLoader
from transformers import default_data_collator

from increlora import find_allocator
from tests.conftest import TARGETS
from tests.study_helpers import ROOT


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_trainer(tiny_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = example("trainer").main(["--model", str(tiny_backbone), "--out", str(tmp_path), "--steps", "40"])
    assert 0 <= score <= 1
    assert (tmp_path / "lora" / "adapter_model.safetensors").exists()
    assert "ranks [" in capsys.readouterr().out


def test_plain_loop(tiny_backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = example("plain_loop").main(["--model", str(tiny_backbone), "--steps", "40"])
    assert 0 <= score <= 1
    assert "gained rank" in capsys.readouterr().out


def test_find_ranks(tiny_backbone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three distributions of one budget, and what they took."""
    found = example("find_ranks").main(["--model", str(tiny_backbone), "--steps", "10", "--search-steps", "40"])
    printed = capsys.readouterr().out
    for name, ranks in found.items():
        assert name in printed
        assert sum(ranks.values()) == 2 * 12
    assert set(found["uniform"].values()) == {2} != set(found["growth"].values())
    assert list(found) == ["uniform", "growth", "EVA"]


@pytest.mark.slow
def test_readme(tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to train, one after the other, on another backbone."""
    monkeypatch.chdir(tmp_path)
    with_trainer, in_a_loop = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rows = [{"input_ids": [1, 5 + i % 40, 2], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(160)]
    names: dict[str, Any] = {"dataset": rows}
    exec(with_trainer.replace("microsoft/deberta-v3-base", str(tiny_backbone)), names)
    ranks = names["model"].rank_distribution()
    assert sum(ranks.values()) == 2 * len(ranks) == 2 * 12
    base = names["AutoModelForSequenceClassification"].from_pretrained(str(tiny_backbone), num_labels=2)
    peft.PeftModel.from_pretrained(base, tmp_path / "adapter")

    config = names["IncreLoraConfig"](target_modules=TARGETS, target_r=2, task_type="SEQ_CLS")
    names["model"] = peft.get_peft_model(names["AutoModelForSequenceClassification"].from_config(base.config), config)
    names["total"] = 300
    loader = DataLoader(rows, batch_size=8, collate_fn=default_data_collator)
    names["batches"] = (batch for _ in range(15) for batch in loader)
    exec(in_a_loop, names)
    assert find_allocator(names["model"]).finished

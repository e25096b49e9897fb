"""The QLoRA example runs, and what it exports needs only PEFT."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.integration.conftest import MODULES, llama, logits, sentences, tokens

EXAMPLE = Path(__file__).parents[2] / "examples" / "qlora_trl.py"


def test_qlora_with_trl(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    spec = importlib.util.spec_from_file_location("qlora_trl", EXAMPLE)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    data = tmp_path / "data"
    data.mkdir()
    rows = [json.dumps({"text": text}) for text in sentences(64)]
    (data / "train.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    arguments = ["--model", str(folder / "llama"), "--data", str(data), "--out", str(out), "--steps", "40"]
    loss = example.main(arguments)
    assert loss < 0.97 * llama(folder)(**tokens(1)).loss.item()
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("ranks"))
    ranks = json.loads(printed.removeprefix("ranks "))
    assert len(ranks) == MODULES
    assert sum(ranks) == 8 * MODULES
    exported = PeftModel.from_pretrained(llama(folder), out / "lora")
    assert torch.isfinite(logits(exported)).all()
    assert (logits(exported) - logits(llama(folder))).abs().max() > 1e-2

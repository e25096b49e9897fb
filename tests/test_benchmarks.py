"""The benchmark runs as it stands, on the smallest input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.study_helpers import ROOT


def test_step_time(tmp_path: Path) -> None:
    smallest = {"device": "cpu", "layers": 1, "batch": 2, "length": 8, "rounds": 1, "steps": 1, "out": tmp_path}
    options = [text for name, value in smallest.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks/step_time.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cpu_length8.json").read_text())
    assert (tmp_path / "cpu_length8.md").read_text() in done.stdout
    lora, authors = result["sides"]["LoRA"], result["sides"]["IncreLoRA, authors' layer"]
    assert lora["to_lora"] == 1
    # six update matrices of (12 * 768 * 768) numbers in all, their gradients and products are alive at once
    assert authors["peak_mib"] - lora["peak_mib"] > 12 * 768 * 768 * 4 / 2**20
    scored = {name: side["scored_modules"] for name, side in result["sides"].items() if side["scored_modules"]}
    assert scored == {"IncreLoRA, scored step": 6}
    # while a step is scored: the reserve (a tenth of a MiB a row) and no more than one update matrix of a module
    growing = result["sides"]["IncreLoRA, scored step"]["peak_mib"] - lora["peak_mib"]
    assert growing < 3072 * 768 * 4 / 2**20 + 1
    assert result["sides"]["IncreLoRA, after growth"]["peak_mib"] - lora["peak_mib"] < 3

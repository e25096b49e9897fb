"""The benchmark runs as it stands, on the smallest input."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from increlora.methods.registry import METHODS
from tests.study_helpers import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: importlib.import_module(name).main


def test_step_time(benchmark: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smallest = {"device": "cpu", "layers": 1, "batch": 2, "length": 8, "rounds": 1, "steps": 1, "out": tmp_path}
    options = [text for name, value in smallest.items() for text in (f"--{name}", str(value))]
    benchmark("step_time")(options)
    result = json.loads((tmp_path / "cpu_length8.json").read_text())
    assert (tmp_path / "cpu_length8.md").read_text() in capsys.readouterr().out
    lora, authors = result["sides"]["LoRA"], result["sides"]["IncreLoRA, authors' layer"]
    assert lora["to_lora"] == 1
    # six update matrices of (12 * 768 * 768) numbers in all, their gradients and products are alive at once
    assert authors["peak_mib"] - lora["peak_mib"] > 12 * 768 * 768 * 4 / 2**20
    scored = {name: side["scored_modules"] for name, side in result["sides"].items() if side["scored_modules"]}
    assert scored == {"IncreLoRA, scored step": 6}
    # while ranks grow: storage for 40 components in place of 8 (parameter, gradient and two moments), and while a step
    # is scored no more than one update matrix of a module
    growing = result["sides"]["IncreLoRA, scored step"]["peak_mib"] - lora["peak_mib"]
    widths = 4 * (768 + 768) + 2 * (768 + 3072)
    assert growing < ((40 - 8) * widths * 4 + 3072 * 768) * 4 / 2**20 + 1
    assert result["sides"]["IncreLoRA, after growth"]["peak_mib"] - lora["peak_mib"] < 3


def test_learning_speed(benchmark: Callable[[str], Any], tmp_path: Path) -> None:
    """LoRA's update is ahead of the triplet's; a rate of its own for lambda closes the gap."""
    benchmark("learning_speed")(["--layers", "1", "--steps", "4", "--out", str(tmp_path)])
    last = (tmp_path / "learning_speed.csv").read_text().splitlines()[-1]
    _, lora, plain, _, width = map(float, last.split(","))
    assert plain < width < 2 * lora
    assert plain < lora / 5


def test_rank_search(
    benchmark: Callable[[str], Any], tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way is a run of the same study; a second call takes them from the store."""
    monkeypatch.chdir(tmp_path)
    own = {"backbone": {"pretrain": None, "path": str(tiny_backbone)}, "execution": {"gpu": 0}}
    call = [str(ROOT / "config/smoke.yaml"), json.dumps(own), "--seed", "0", "1", "--out", str(tmp_path / "found.csv")]
    before = set(METHODS)
    rows = benchmark("rank_search")(call)
    assert set(METHODS) == before
    assert list(rows.ranks) == ["lora", "found", "eva", "increlora"] * 2
    assert rows.score.between(0, 100).all()
    first = rows[rows.seed == 0].set_index("ranks")
    assert first.largest["found"] > 2
    assert first.largest["eva"] > 2
    assert len(first.loc[["lora", "found", "eva"], ["parameters", "largest", "gini"]].drop_duplicates()) == 3
    assert (tmp_path / "found.md").read_text().count("\n") == 6
    pd.testing.assert_frame_equal(benchmark("rank_search")(call), rows)

"""The guides in CONTRIBUTING.md, followed on a copy of the tree: their code blocks are all that is added."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study_helpers import ROOT, SEVERAL

pytestmark = pytest.mark.slow

BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def guide(title: str) -> Iterator[tuple[str, str, str]]:
    """Language, file and content of the blocks of one section that name a file."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert section, title
    for match in BLOCK.finditer(section):
        yield match[1], match[2], match[3]


def follow(title: str, tree: Path) -> dict[str, set[str]]:
    """Do what a section says, and return the files of the package that it made and changed."""
    touched: dict[str, set[str]] = {"new": set(), "changed": set()}
    for language, name, content in guide(title):
        path = tree / name
        if language == "diff":
            lines = content.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            new = "".join(line[1:] for line in lines if line[0] in " +")
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{name} has not exactly one place for {title!r}"
            path.write_text(text.replace(old, new), encoding="utf-8")
        else:
            assert not path.exists(), name
            path.write_text(content, encoding="utf-8")
        if name.startswith("increlora/"):
            touched["changed" if language == "diff" else "new"].add(name)
    return touched


class Tree:
    """A copy of the package and its configs, with the backbone of the study `smoke`."""

    def __init__(self, path: Path):
        self.path = path
        for name in ("increlora", "config"):
            shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def increlora(self, *commands: tuple[str, ...]) -> list[str]:
        """What each of these commands prints, one after the other in one process."""
        lines = [json.dumps(["--quiet", *command]) for command in commands]
        answers = [json.loads(line) for line in self.run("-c", SEVERAL, *lines).splitlines()]
        assert [code for code, *_ in answers] == [0] * len(commands), answers
        return [printed for _, printed, _ in answers]

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.path / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


SMOKE = "config/smoke.yaml"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_add_a_method(tree: Tree) -> None:
    touched = follow("Add a method", tree.path)
    assert touched == {"new": {"increlora/methods/lora_fa.py"}, "changed": {"increlora/methods/registry.py"}}
    study = (SMOKE, "config/overlays/lora_fa.yaml")

    planned, *_ = tree.increlora(*((command, *study) for command in ("plan", "pretrain", "run", "tables", "figures")))
    plan = {(words[0], words[1]): words for words in map(str.split, planned.splitlines())}
    assert plan["lora_fa", "2"][5] == str(2 * 2 * (4 * 16 + 32 + 16))  # layers x rank x rows of the six matrices
    assert plan["lora_fa", "2"][3:5] == plan["lora", "2"][3:5]  # runs and steps
    runs = [row for row in tree.rows("results/with_lora_fa_runs.csv") if row["method"] == "lora_fa"]
    assert {row["deviation"] for row in runs} == {"0.0000"}  # what trains is what the entry counts
    for name in ("table1", "table2", "table3", "cost"):
        rows = [row for row in tree.rows(f"results/with_lora_fa_{name}.csv") if row["method"] == "lora_fa"]
        assert rows, name
        assert "LoRA-FA" in (tree.path / f"results/with_lora_fa_{name}.md").read_text(encoding="utf-8")
    points = [row for row in tree.rows("figures/with_lora_fa_figure4.csv") if row["method"] == "lora_fa"]
    assert {row["budget"] for row in points} == {"2", "3"}


def test_add_a_task(tree: Tree) -> None:
    rows = "[{method: bitfit}, {method: lora, budgets: [2]}]"
    before = SMOKE, f"{{study: with_wnli, artefacts: {{only: [table1], table1: {{rows: {rows}}}}}}}"
    study = SMOKE, "config/overlays/wnli.yaml"
    tree.increlora(("pretrain", SMOKE), ("run", *before), ("tables", *before))
    old = {(row["row"], row["task"], row["column"]): row for row in tree.rows("results/with_wnli_table1.csv")}

    touched = follow("Add a task", tree.path)
    assert touched == {"new": set(), "changed": {"increlora/glue/tasks.py"}}
    tree.increlora(("run", *study, "--task", "wnli"), ("tables", *study))
    new = {(row["row"], row["task"], row["column"]): row for row in tree.rows("results/with_wnli_table1.csv")}
    added = {key for key in new if key[1] == "wnli"}
    assert len(added) == 3, "two rows, and their difference"
    assert all(new[key]["mean"] for key in added)
    assert new.keys() - added == old.keys()
    for number in ("mean", "p_corrected", "corrected_low", "visible"):
        assert {key: new[key][number] for key in old} == {key: old[key][number] for key in old}
    assert "WNLI" in (tree.path / "results/with_wnli_table1.md").read_text(encoding="utf-8")


ENCODER = """
from transformers import XLMRobertaConfig

from increlora.methods.base import Recipe, target_shapes
from increlora.methods.families import locate, position_limit, target_modules
from increlora.methods.registry import meta_model, prepare

config = XLMRobertaConfig(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=34, num_labels=2,
)
shapes = target_shapes(meta_model(config), target_modules(config.model_type))
print(len(shapes), len({locate(name).matrix for name in shapes}), position_limit(config))
recipe = Recipe(total_steps=10, warmup_steps=1, learning_rate=1e-3, weight_decay=0.0, seed=0)
from transformers import XLMRobertaForSequenceClassification as Model
for kind in ("hadapter", "padapter", "lora"):
    print(kind, prepare(kind, Model(config), recipe, budget=2).parameters().trainable)
"""


def test_add_an_encoder(tree: Tree) -> None:
    touched = follow("Add an encoder", tree.path)
    assert touched == {"new": set(), "changed": {"increlora/methods/families.py"}}
    found, *counts = tree.run("-c", ENCODER).splitlines()
    assert found == "12 6 32"  # two layers of six matrices; of 34 positions two are reserved
    bottleneck = 2 * 16 * 2 + 2 + 16
    attention, ffn = 2 * (16 + 16), 2 * (16 + 32)
    lora = 2 * (4 * attention + 2 * ffn)
    assert counts == [f"hadapter {4 * bottleneck}", f"padapter {2 * bottleneck}", f"lora {lora}"]

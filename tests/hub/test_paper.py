"""`config/paper.yaml` through the local Hub: every method on RTE and CoLA at the low budget, on a tiny DeBERTa-v3.

Everything is as in the paper's study but what `SHORT` shortens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub.conftest import DATA, MODEL, Ask
from tests.hub.server import Hub
from tests.study_helpers import copy_project

pytest.importorskip("snakemake")
pytestmark = [pytest.mark.slow, pytest.mark.workflow]

TASKS = ("rte", "cola")
SCHEDULE = {"max_steps": 22, "warmup_steps": 1, "eval_steps": 11}
"""IncreLoRA's interval is the warmup, so that growth takes two thirds of the steps, as in the paper's schedule."""
METHODS: dict[str, Any] = {
    "adalora": {"tasks": {task: {"options": {"tinit": 4, "tfinal": 8, "deltaT": 1}} for task in TASKS}},
    "increlora": {"tasks": {"cola": {"options": {"top_h": 9}}}},
}
BUDGETS = {"full_ft": None, "bitfit": None, "hadapter": 8, "padapter": 16, "lora": 2, "adalora": 2, "increlora": 2}
ROWS = [
    {"method": method, **({"budgets": [budget]} if budget is not None else {})} for method, budget in BUDGETS.items()
]
SHORT: dict[str, Any] = {
    "seeds": [41],
    "execution": {"job": "method", "gpu": 0, "threads": 1},
    "tasks": {task: {"training": SCHEDULE} for task in TASKS},
    "methods": METHODS,
    "artefacts": {
        "table1": {"tasks": list(TASKS), "rows": ROWS},
        **dict.fromkeys(("table2", "table3", "figure4", "figure5", "figure6", "rank_growth")),
    },
}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = copy_project(tmp_path / "clone")
    (folder / "short.yaml").write_text(yaml.safe_dump(SHORT))
    return folder


def test_the_paper_study_runs_from_the_hub_and_then_from_the_cache(hub: Hub, stranger: Ask, clone: Path) -> None:
    """All methods but one are trained from the command line; Snakemake does what is missing."""
    run = ("-m", "increlora", "--quiet", "run", "config/paper.yaml", "short.yaml", "--method")
    done = stranger(*run, *(method for method in BUDGETS if method != "increlora"), folder=clone, PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr[-4000:]
    command = ("-m", "snakemake", "--cores", "1", "--configfile", "config/paper.yaml", "short.yaml")
    done = stranger(*command, folder=clone, PYTHONPATH=str(clone))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    records = sorted((clone / "results/runs/paper").rglob("*.json"))
    assert len(records) == len(TASKS) * len(ROWS)
    assert (clone / "results/paper_table1.csv").is_file()

    hub.requests.clear()
    scores = {path: json.loads(path.read_text())["score"] for path in records if path.parts[-3] == "increlora"}
    assert len(scores) == len(TASKS)
    for folder in ("results", ".increlora"):
        shutil.rmtree(clone / folder)
    done = stranger(*command, "--until", "train_increlora", folder=clone, offline=True, PYTHONPATH=str(clone))
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert not hub.requests
    assert {path: json.loads(path.read_text())["score"] for path in scores} == scores


def test_a_record_names_the_commits_that_it_saw(hub: Hub, stranger: Ask, clone: Path) -> None:
    """Model and data may move on at the Hub under the same name."""
    run = ("config/paper.yaml", "short.yaml", "--method", "bitfit", "--task", "rte")
    done = stranger("-m", "increlora", "--quiet", "run", *run, folder=clone, PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr[-4000:]
    (record,) = (clone / "results/runs/paper").rglob("*.json")
    provenance = json.loads(record.read_text())["provenance"]
    assert provenance["backbone"]["revision"] == hub.repositories["models", MODEL].refs["main"]
    assert provenance["data"]["revision"] == hub.repositories["datasets", DATA].refs["main"]
    assert provenance["backbone"]["fingerprint"]

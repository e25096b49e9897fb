"""What is committed in results/: records belong to the configs, tables come from the records, and everything learns."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from increlora.report import frame, tables
from increlora.study.config import Study, load_study
from increlora.study.expand import variant
from increlora.study.verify import verify
from tests.study_helpers import ROOT

RECORDS = ROOT / "results/runs"


DEFAULT = ROOT / "config/config.yaml"
STUDIES = {
    "mini": [DEFAULT],
    "selection": [DEFAULT, ROOT / "config/overlays/selection.yaml"],
    "minilm": [ROOT / "config/minilm.yaml"],
}


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest) -> Study:
    return load_study(*STUDIES[request.param])


def test_records_belong_to_the_config(study: Study) -> None:
    assert {finding.status for finding in verify(study, RECORDS)} == {"ok"}


def test_tables_come_from_the_records(study: Study, tmp_path: Path) -> None:
    built = [frame.write_runs(RECORDS, study, tmp_path), *tables.build(study, RECORDS, tmp_path)]
    assert len(built) > 4
    for path in map(Path, built):
        assert path.read_bytes() == (ROOT / "results" / path.name).read_bytes(), path.name


def test_everything_learns_in_the_default_study() -> None:
    """Full fine-tuning beats the best constant answer by 15 points, every other method by 5, on every task."""
    study = load_study(DEFAULT)
    gains: dict[tuple[str, str, int | None], list[float]] = defaultdict(list)
    for run in study.runs():
        score = json.loads(run.record_path(RECORDS).read_text())["score"]
        gains[run.task, run.method, run.budget].append(score["best"]["score"] - score["baseline"])
    assert {len(seeds) for seeds in gains.values()} == {3}
    for (task, method, budget), seeds in gains.items():
        assert statistics.fmean(seeds) >= (15 if method == "full_ft" else 5), (task, method, budget, seeds)
    assert len({task for task, *_ in gains}) == 8


def test_the_default_study_uses_the_best_trial_of_the_selection() -> None:
    """Learning rate and alpha are those of the trial with the highest "All", mean over the method's budgets."""
    shown, trials = load_study(DEFAULT), load_study(*STUDIES["selection"])
    table = pd.read_csv(ROOT / "results/mini_selection_table1.csv")
    scores = table[table["column"] == "All"].groupby("method")["mean"].mean()
    for kind in {variant(trials, name).kind for name in scores.index}:
        best = scores[[variant(trials, name).kind == kind for name in scores.index]].idxmax()
        found = {
            (run.training.learning_rate, run.options.get("lora_alpha")) for run in shown.runs() if run.method == kind
        }
        chosen = {
            (run.training.learning_rate, run.options.get("lora_alpha")) for run in trials.runs() if run.method == best
        }
        assert found == chosen, (kind, best)

"""What is committed in results/: records belong to the configs, tables come from the records, and everything learns."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from increlora.report import frame, tables
from increlora.study.config import Study, load_study
from increlora.study.verify import verify
from tests.study_helpers import ROOT

RECORDS = ROOT / "results/runs"


@pytest.fixture(scope="module", params=["config", "minilm"])
def study(request: pytest.FixtureRequest) -> Study:
    return load_study(ROOT / f"config/{request.param}.yaml")


def test_records_belong_to_the_config(study: Study) -> None:
    assert {finding.status for finding in verify(study, RECORDS)} == {"ok"}


def test_tables_come_from_the_records(study: Study, tmp_path: Path) -> None:
    built = [frame.write_runs(RECORDS, study, tmp_path), *tables.build(study, RECORDS, tmp_path)]
    assert len(built) > 4
    for path in map(Path, built):
        assert path.read_bytes() == (ROOT / "results" / path.name).read_bytes(), path.name


def test_everything_learns_in_the_default_study() -> None:
    """Full fine-tuning beats the best constant answer by 15 points, every other method by 5, on every task."""
    study = load_study(ROOT / "config/config.yaml")
    gains: dict[tuple[str, str, int | None], list[float]] = defaultdict(list)
    for run in study.runs():
        score = json.loads(run.record_path(RECORDS).read_text())["score"]
        gains[run.task, run.method, run.budget].append(score["best"]["score"] - score["baseline"])
    assert {len(seeds) for seeds in gains.values()} == {3}
    for (task, method, budget), seeds in gains.items():
        assert statistics.fmean(seeds) >= (15 if method == "full_ft" else 5), (task, method, budget, seeds)
    assert len({task for task, *_ in gains}) == 8

"""The smoke study through Snakemake, from nothing to every table and figure, with all methods."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from increlora.cli import main
from increlora.methods.registry import METHODS
from increlora.study import jobs
from increlora.study.load import load_study
from increlora.study.settings import all_runs
from increlora.training.record import read_record
from tests.study_helpers import SMOKE, copy_project

pytest.importorskip("snakemake")
pytestmark = pytest.mark.slow


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "INCRELORA_STORE"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def snakemake(folder: Path) -> subprocess.CompletedProcess[str]:
    job = ("--config", "execution={job: method, gpu: 0}")
    return command(folder, "-m", "snakemake", "--cores", "2", "--configfile", "config/smoke.yaml", *job)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp("study"))
    result = snakemake(folder)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


def test_every_run_has_a_valid_record(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(SMOKE)
    for settings in all_runs(study):
        record = read_record(settings.record_path(done / "results/runs"))
        assert record.run.digest == settings.digest
        if METHODS[settings.kind].allocates:
            assert record.allocation.events
            assert record.allocation.total_rank <= record.allocation.budget_rank
    monkeypatch.chdir(done)
    assert main(["verify", str(SMOKE)]) == 0


def test_every_table_and_figure_is_there(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load_study(SMOKE)
    for stem in jobs.tables(study).values():
        for suffix in ("csv", "md", "tex"):
            assert (done / f"{stem}.{suffix}").stat().st_size > 100, stem
    for stem in jobs.figures(study).values():
        for suffix in ("png", "pdf", "csv"):
            assert (done / f"{stem}.{suffix}").stat().st_size > 100, stem
    with (done / "results/smoke_table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} <= {"complete", "collapsed", "ok"}, {row["status"] for row in rows}
    monkeypatch.chdir(done)
    assert main(["show", str(SMOKE)]) == 0
    assert "IncreLoRA" in capsys.readouterr().out


def test_run_again_has_nothing_to_do(done: Path) -> None:
    result = snakemake(done)
    assert "Nothing to be done" in result.stdout + result.stderr

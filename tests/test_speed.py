"""Hours of the plan from measured speeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from increlora.cli import main
from increlora.study import speed
from increlora.study.load import load_study
from increlora.study.plan import GPU, as_text, plan
from increlora.study.settings import all_runs
from tests.study_helpers import ROOT, SMOKE


def test_measured_hours_take_the_place_of_estimates() -> None:
    study = load_study(ROOT / "config" / "paper.yaml")
    tasks = {run.task for run in all_runs(study)}
    rows = [
        speed.SpeedRow(task=task, kind=kind, budget=2, step_seconds=0.5, row_seconds=0.25, machine="H100")
        for task in tasks
        for kind in ("lora", "increlora")
    ]
    before = {(row.method, row.budget): row for row in plan(study)}
    planned = plan(study, speed.Speeds(rows))
    after = {(row.method, row.budget): row for row in planned}

    work = [run.work() for run in all_runs(study) if (run.method, run.budget) == ("lora", 2)]
    cola = next(run for run in all_runs(study) if (run.task, run.method, run.budget) == ("cola", "lora", 2))
    assert cola.work() == (25 * 268, 67 * 1043)  # epochs x steps; every 100 steps and after the last, x rows
    assert after["lora", 2].hours == pytest.approx(sum(0.5 * steps + 0.25 * rows for steps, rows in work) / 3600)
    assert after["lora", 2].machine == after["increlora", 2].machine == "H100"
    assert after["lora", 8] == before["lora", 8]
    assert after["lora", 8].machine == GPU.name
    estimated = sum(row.machine == GPU.name for row in planned)
    assert as_text(planned).endswith(
        f"hours: measured on H100; estimate for one GPU ({estimated} of {len(planned)} rows)"
    )


@pytest.mark.slow
def test_a_study_is_measured_on_this_machine(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    inline = f"{{backbone: {{pretrain: null, path: {tiny_backbone}}}, artefacts: {{only: [table1]}}}}"
    assert main(["--quiet", "plan", str(SMOKE), inline, "--measure"]) == 0
    study = load_study(SMOKE, inline)
    table = pd.read_csv(".increlora/speed/smoke.csv")
    assert len(table) == len({(run.task, run.kind, run.budget) for run in all_runs(study) if run.ranks_from is None})
    assert (table[["step_seconds", "row_seconds"]] > 0).all(axis=None)
    assert "hours: measured on" in capsys.readouterr().out
    short = "{training: {max_steps: 2, warmup_steps: 0}, artefacts: {table1: {rows: [{method: bitfit}]}}}"
    (bitfit,) = (row for row in speed.measure(load_study(SMOKE, inline, short), progress=False) if row.task == "rte")
    assert 0 < bitfit.step_seconds < 60
    assert main(["plan", str(SMOKE), inline]) == 0  # and is kept
    assert "hours: measured on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ".increlora/speed/smoke.csv: is no table of speeds"),
        ("task,kind\nrte,lora\n", ".increlora/speed/smoke.csv, line 2.budget: is required"),
        (
            "task,kind,budget,step_seconds,row_seconds,machine\nrte,lora,2,inf,1,x\n",
            ".increlora/speed/smoke.csv, line 2.step_seconds: got inf",
        ),
    ],
)
def test_a_wrong_table_is_one_line(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".increlora/speed").mkdir(parents=True)
    Path(".increlora/speed/smoke.csv").write_text(content)
    assert main(["plan", str(SMOKE)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1

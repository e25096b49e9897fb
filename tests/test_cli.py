"""The command line: exit codes, one-line errors, and jobs that survive a failing run."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from increlora.cli import main
from increlora.study.config import load_study
from increlora.study.expand import cell, cell_settings
from increlora.training.settings import RunSettings
from increlora.training.store import Store, read_record
from tests.study_helpers import ROOT, SMOKE, fake_record


class Trainer(types.ModuleType):
    """Stands in for `increlora.training.run`."""

    def __init__(self) -> None:
        super().__init__("increlora.training.run")
        self.trained: list[tuple[str, int, object]] = []
        self.broken_seeds: set[int] = set()

    def run(self, settings: RunSettings, *, ranks: object, progress: bool, tensorboard: str | None) -> dict:
        self.trained.append((settings.method, settings.seed, ranks))
        if settings.seed in self.broken_seeds:
            raise RuntimeError("out of memory")
        return fake_record(settings)

    def discard_checkpoint(self, settings: RunSettings) -> None:
        pass


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    found = Trainer()
    monkeypatch.setitem(sys.modules, "increlora.training.run", found)
    monkeypatch.setenv("INCRELORA_STORE", str(tmp_path / "store"))
    return found


def train(tmp_path: Path, method: str = "lora", *more: str) -> tuple[int, list[Path]]:
    study = load_study(SMOKE)
    settings = json.dumps(cell_settings(study, cell(study, "rte", method, 2)))
    records = [tmp_path / method / f"seed{seed}.json" for seed in (0, 1)]
    code = main(["train", "--settings", settings, "--seeds", "0", "1", "--records", *map(str, records), *more])
    return code, records


def test_train_writes_records_and_restores_finished_runs(trainer: Trainer, tmp_path: Path) -> None:
    code, records = train(tmp_path)
    assert code == 0
    assert [read_record(path)["run"]["seed"] for path in records] == [0, 1]
    records[0].unlink()
    assert train(tmp_path)[0] == 0
    assert [seed for _, seed, _ in trainer.trained] == [0, 1], "nothing is trained twice"
    assert records[0].exists()


def test_a_failing_run_leaves_the_others_alone(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer.broken_seeds = {0}
    code, records = train(tmp_path)
    assert code == 1
    assert [path.exists() for path in records] == [False, True]
    assert "rte/lora/2/seed0 failed" in caplog.text
    trainer.broken_seeds = set()
    assert train(tmp_path)[0] == 0
    assert [seed for _, seed, _ in trainer.trained] == [0, 1, 0]


def test_under_torchrun_a_failing_process_ends(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it went on to the next seed, it would average that one's gradients with those of the others."""
    monkeypatch.setenv("RANK", "1")
    trainer.broken_seeds = {0}
    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path)


def test_ranks_are_read_from_the_source_records(trainer: Trainer, tmp_path: Path) -> None:
    _, sources = train(tmp_path, "increlora")
    code, _ = train(tmp_path, "svd_shuffled", "--ranks-from", *map(str, sources))
    assert code == 0
    assert trainer.trained[-1] == ("svd_shuffled", 1, {"module": 2})
    assert train(tmp_path, "svd_increlora", "--ranks-from", *map(str, sources[::-1]))[0] == 1


def test_run_by_name(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ["--records", str(tmp_path)]
    assert main(["run", str(SMOKE), "--task", "rte", "--method", "lora", "--budget", "2", "--seed", "0", *records]) == 0
    assert (tmp_path / "smoke/rte/lora/2/seed0.json").exists()
    assert main(["run", str(SMOKE), "--task", "rte", "--method", "lora", "--budget", "9", "--seed", "0", *records]) == 2
    assert "--budget: 9 is unknown; allowed: 2, 3" in capsys.readouterr().err
    assert main(["run", str(SMOKE), "--task", "rte", "--method", "lorra", "--seed", "0"]) == 2
    assert "did you mean 'lora'" in capsys.readouterr().err


def test_verify_fails_unless_all_is_well(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = dict.fromkeys(("table1", "table2", "table3", "figure4", "figure5", "figure6"))
    one = json.dumps({"seeds": [0], "artefacts": others})
    arguments = [str(SMOKE), one, "--records", str(tmp_path)]
    assert main(["verify", *arguments]) == 1
    assert "missing" in capsys.readouterr().out
    assert (
        main(
            [
                "run",
                *arguments[:2],
                "--task",
                "rte",
                "--method",
                "increlora",
                "--budget",
                "2",
                "--seed",
                "0",
                *arguments[2:],
            ]
        )
        == 0
    )
    assert main(["verify", *arguments]) == 0
    assert capsys.readouterr().out == "smoke: 1 ok\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "no/such/file.yaml"],
        ["verify", str(SMOKE), "--records", "no/such/folder"],
        ["show", str(SMOKE), "--records", "no/such/folder"],
        ["show", str(SMOKE), "--only", "tabel1"],
        ["verify", str(SMOKE), "{seeds: [1, 1]}"],
        ["train", "--settings", "{", "--seeds", "0", "--records", "x"],
        ["train", "--settings", "{}", "--seeds", "0", "--records", "x"],
        ["pretrain", str(SMOKE), "{backbone: {pretrain: null}}"],
    ],
)
def test_mistakes_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m increlora schema | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


def test_a_finished_run_is_not_that_of_other_local_data(
    trainer: Trainer, tmp_path: Path, glue_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from increlora.glue.loading import load_task

    local = {"source": "local", "path": str(glue_folder)}
    settings = load_study(SMOKE, {"data": local}).settings("rte", "lora", 2, 0)
    content = load_task("rte", **settings.data.model_dump()).fingerprint
    arguments = ["run", str(SMOKE), json.dumps({"data": local}), "--task", "rte", "--method", "lora", "--budget", "2"]
    for fingerprint, code in ((content, 0), ("0" * 16, 1)):
        provenance = {"data": {"fingerprint": fingerprint}, "backbone": {"fingerprint": None}}
        Store().put({**fake_record(settings), "provenance": provenance})
        assert main([*arguments, "--seed", "0", "--records", str(tmp_path)]) == code
    assert not trainer.trained
    assert "is not what the finished run of these settings used" in caplog.text
    assert "`data.name`" in caplog.text


def test_adopt_and_schema(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    assert main(["store", "adopt", str(tmp_path)]) == 0
    assert "0 finished runs" in capsys.readouterr().out
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Study"

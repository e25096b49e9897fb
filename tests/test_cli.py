"""The command line: exit codes, one-line errors, and jobs that survive a failing run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from increlora.cli import main
from increlora.hub import unavailable
from increlora.study.cells import Cell
from increlora.study.load import load_study
from increlora.study.settings import all_runs, run_settings
from increlora.training.record import Record, read_record
from increlora.training.settings import RunSettings
from increlora.training.store import Store
from tests.study_helpers import ROOT, SMOKE, fake_record, record_on_corpus


class Trainer(types.ModuleType):
    """Stands in for `increlora.training.run`."""

    def __init__(self) -> None:
        super().__init__("increlora.training.run")
        self.trained: list[tuple[str, int, object]] = []
        self.broken_seeds: set[int] = set()

    def run(self, settings: RunSettings, *, ranks: object, progress: bool, tensorboard: str | None) -> Record:
        self.trained.append((settings.method, settings.seed, ranks))
        if settings.seed in self.broken_seeds:
            raise RuntimeError("out of memory")
        return record_on_corpus(settings)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    found = Trainer()
    monkeypatch.setitem(sys.modules, "increlora.training.run", found)
    monkeypatch.setenv("INCRELORA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("INCRELORA_CHECKPOINTS", str(tmp_path / "checkpoints"))
    return found


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pretraining: whatever the settings name counts as there."""
    monkeypatch.setattr("increlora.training.job._need_backbone", lambda backbone, progress: None)


def train(tmp_path: Path, method: str = "lora", *more: str) -> tuple[int, list[Path]]:
    command = ["run", str(SMOKE), "--task", "rte", "--method", method, "--budget", "2", "--records", str(tmp_path)]
    return main([*command, *more]), [tmp_path / f"smoke/rte/{method}/2/seed{seed}.json" for seed in (0, 1)]


pytestmark = pytest.mark.usefixtures("backbone")


def test_run_writes_records_and_restores_finished_runs(trainer: Trainer, tmp_path: Path) -> None:
    code, records = train(tmp_path)
    assert code == 0
    assert [read_record(path).run.seed for path in records] == [0, 1]
    records[0].unlink()
    assert train(tmp_path)[0] == 0
    assert [seed for _, seed, _ in trainer.trained] == [0, 1], "nothing is trained twice"
    assert records[0].exists()


def test_a_failing_run_leaves_the_others_alone(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.broken_seeds = {0}
    code, records = train(tmp_path)
    assert code == 1
    assert [path.exists() for path in records] == [False, True]
    assert "rte/lora/2/seed0 failed: RuntimeError: out of memory" in caplog.text
    assert capsys.readouterr().err.endswith("1 of 2 runs failed: rte/lora/2/seed0\n")
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
    assert train(tmp_path, "svd_shuffled")[0] == 2, "at once, where a single process would go on to the next seed"


def test_under_torchrun_ranks_may_come_from_the_store(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes the record of a run that is restored, and may be slower."""
    for path in train(tmp_path, "increlora")[1]:
        path.unlink()
    monkeypatch.setenv("RANK", "1")
    assert train(tmp_path, "svd_shuffled")[0] == 0


def test_under_torchrun_the_others_wait_for_a_record(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run may start from its ranks."""
    there, record = [], tmp_path / "smoke/rte/lora/2/seed0.json"
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: there.append(record.exists()))
    assert train(tmp_path)[0] == 0
    assert there == [True, True]


@pytest.mark.parametrize("command", ["show", "run"])
def test_a_missing_package_of_the_study_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")

    monkeypatch.setattr("increlora.cli._study", gone)
    assert main([command, str(SMOKE)]) == 2
    error = capsys.readouterr().err
    assert error == "error: this needs pandas, one of the study's packages: pip install -e '.[study]'\n"

    def broken(*_: object) -> None:
        raise ModuleNotFoundError("please install something")

    monkeypatch.setattr("increlora.cli._study", broken)
    with pytest.raises(ModuleNotFoundError, match="please install something"):
        main([command, str(SMOKE)])


def test_nothing_is_trained_without_evaluate(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train(tmp_path)[0] == 2
    assert "this needs evaluate" in capsys.readouterr().err
    assert not trainer.trained


def test_quiet_may_come_before_or_after_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("increlora.cli._plan", lambda options: seen.append(options.quiet))
    for command in (["plan"], ["--quiet", "plan"], ["plan", "--quiet"], ["plan", str(SMOKE), "--quiet"]):
        main(command)
    assert seen == [False, True, True, True]


def test_ranks_are_read_from_the_source_records(trainer: Trainer, tmp_path: Path) -> None:
    assert train(tmp_path, "svd_shuffled")[0] == 1, "the source is not there"
    assert not trainer.trained
    _, sources = train(tmp_path, "increlora")
    assert train(tmp_path, "svd_shuffled")[0] == 0
    assert trainer.trained[-1] == ("svd_shuffled", 1, {"module": 2})
    sources[0].write_bytes(sources[1].read_bytes())
    assert train(tmp_path, "svd_increlora")[0] == 1, "the record of another seed"


def test_progress_is_that_of_the_study(trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(tmp_path)
    said = [record.getMessage() for record in caplog.records if "here" in record.getMessage()]
    assert [re.sub(r"\d:\d\d:\d\d", "0:00:00", line) for line in said] == [
        "rte/lora/2/seed0  100.00  (1 of 2 here, 0:00:00 left; study smoke: 1 of 46, 0:00:00 left)",
        "rte/lora/2/seed1  100.00  (2 of 2 here; study smoke: 2 of 46, 0:00:00 left)",
    ]


def test_progress_counts_no_record_of_other_settings(
    trainer: Trainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path)
    trainer.trained.clear()
    caplog.set_level("INFO")
    of_one_cell = ("--method", "lora", "--budget", "2", "--records", str(tmp_path))
    main(["run", str(SMOKE), "{training: {batch_size: 8}}", *of_one_cell])
    assert trainer.trained
    first, *_ = (line for line in caplog.messages if "here" in line)
    assert "study smoke: 1 of 46" in first


def test_run_by_name(trainer: Trainer, tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return main(["run", str(SMOKE), *arguments, "--records", str(tmp_path)])

    assert run("--task", "rte", "--method", "lora", "--budget", "2", "--seed", "0") == 0
    assert run("--task", "rte", "--method", "bitfit", "--budget", "all", "--seed", "0") == 0
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("seed*.json")]
    assert sorted(found) == ["smoke/rte/bitfit/all/seed0.json", "smoke/rte/lora/2/seed0.json"]


@pytest.mark.parametrize("threads", [2, 3])
def test_a_process_takes_as_many_cores_as_the_study_says(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Not all of the machine's: jobs run beside one another, and the last bits of scores follow the number."""
    before = torch.get_num_threads()
    try:
        arguments = (f"{{execution: {{threads: {threads}}}}}", "--method", "lora", "--records", str(tmp_path))
        assert main(["run", str(SMOKE), *arguments]) == 0
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        monkeypatch.setattr("increlora.training.pretrain.pretrain", lambda *given, **options: None)
        assert main(["pretrain", str(SMOKE), arguments[0], "--out", str(tmp_path / "backbone")]) == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "9"], "--budget: '9' is unknown; allowed: 2, 3, 4, 8, all"),
        (["--method", "lorra"], "--method: 'lorra' is unknown (did you mean 'lora'?)"),
        (["--method", "bitfit", "--budget", "2"], "no run of study smoke has all of these"),
        (["--seed", "-1"], "--seed.0: got '-1': input should be greater than or equal to 0"),
        (["--seed", "4294967296"], "--seed.0: got '4294967296': input should be less than 4294967296"),
        (["--seed", "1", "1"], "--seed: 1 is given more than once"),
        (["--seed", "x"], "--seed.0: got 'x'"),
    ],
)
def test_names_that_are_not_there(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(SMOKE), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_verify_fails_unless_all_is_well(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(SMOKE), "{seeds: [0], artefacts: {only: [rank_growth]}}", "--records", str(tmp_path)]
    assert main(["verify", *arguments]) == 1
    assert "missing" in capsys.readouterr().out
    assert main(["run", *arguments]) == 0
    assert main(["verify", *arguments]) == 0
    assert capsys.readouterr().out == "smoke: 1 ok\n"


def test_failures_say_which_why_where_and_what_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs/smoke/train/rte/lora/2/seed1.log"
    log.parent.mkdir(parents=True)
    log.write_text("10:00:00 ERROR x: rte/lora/2/seed1 failed: RuntimeError: out of memory\nTraceback ...\n  ...\n")
    assert main(["failures", str(SMOKE)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "1 run failed:",
        "  rte/lora/2/seed1: RuntimeError: out of memory",
        "    log: logs/smoke/train/rte/lora/2/seed1.log",
    ]
    runs = len(all_runs(load_study(SMOKE)))
    assert said[3] == f"{runs - 1} others are not trained yet."
    assert f"increlora run {SMOKE} --task rte --method lora --budget 2 --seed 1" in said[4]
    log.write_text("")
    assert main(["failures", str(SMOKE)]) == 0
    assert capsys.readouterr().out.startswith(f"{runs} runs are not finished; none of them failed")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert re.fullmatch(r"increlora \d+\.\d+\.\d+\n", capsys.readouterr().out)


MISTAKES: list[tuple[list[str], str]] = [
    (["verify", "no/such/file.yaml"], "no/such/file.yaml: cannot be read (No such file or directory)"),
    (["verify", "x" * 300], "cannot be read (File name too long)"),
    (["verify", str(SMOKE), "--records", "no/such/folder"], "--records: got 'no/such/folder': no such folder"),
    (["show", str(SMOKE), "--records", "no/such/folder"], "--records: got 'no/such/folder': no such folder"),
    (["show", str(SMOKE), "--only", "tabel1"], "--only: 'tabel1' is unknown (did you mean 'table1'?)"),
    (["verify", str(SMOKE), "{seeds: [1, 1]}"], "seeds: 1 is given more than once; each may occur once"),
    (["verify", str(SMOKE), "{seeds: [1], seeds: [2]}"], "'seeds' is given twice"),
    (["verify", str(SMOKE), "{study: %s}" % ("x" * 300)], "study: got 'xxx"),
    (["verify", "{latin1}"], "is not UTF-8 text (byte 9)"),
    (["check", str(SMOKE), "{backbone: {pretrain: null, path: {broken}}}"], "broken/config.json is not JSON"),
    (["check", str(SMOKE), "{backbone: {pretrain: null, path: {list}}}"], "list/config.json must hold a JSON object"),
    (["pretrain", str(SMOKE), "{backbone: {pretrain: null}}"], "backbone.pretrain: is not set"),
    (["corpus", "{file}"], "a_file"),
    (["corpus", "x", "--seed", "-1"], "--seed.0: got '-1'"),
    (["schema", "--out", "/nowhere/x"], "/nowhere/x: No such file or directory"),
    (["plan", str(SMOKE), "--csv", "{file}/plan.csv"], "a_file"),
    (["tables", str(SMOKE), "--out", "{file}/out"], "a_file"),
    (["published", "--out", "{file}/out"], "a_file"),
    (["run", str(SMOKE), "--budget", "99"], "--budget: '99' is unknown; allowed: 2, 3, 4, 8, all"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(one[0])[:60] for one in MISTAKES])
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"{file}": tmp_path / "a_file", "{latin1}": tmp_path / "latin1.yaml"}
    places["{file}"].write_text("")
    places["{latin1}"].write_bytes(b"study: caf\xe9"[:9] + b"\xe9")
    for name, content in (("broken", "{"), ("list", "[]")):
        places[f"{{{name}}}"] = tmp_path / name
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
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
    settings = run_settings(load_study(SMOKE, {"data": local}), Cell("rte", "lora", 2), 0)
    content = load_task("rte", settings.data).fingerprint
    arguments = ["run", str(SMOKE), json.dumps({"data": local}), "--task", "rte", "--method", "lora", "--budget", "2"]
    for fingerprint, code in ((content, 0), ("0" * 16, 1)):
        data = fake_record(settings).provenance.data.model_dump() | {"fingerprint": fingerprint}
        Store().put(fake_record(settings, provenance={"data": data}))
        assert main([*arguments, "--seed", "0", "--records", str(tmp_path)]) == code
    assert not trainer.trained
    assert "is not what the finished run of these settings used" in caplog.text
    assert "`data.name`" in caplog.text


def test_adopt_and_schema(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path)
    assert main(["store", "adopt", str(tmp_path / "smoke")]) == 0
    assert "0 finished runs" in capsys.readouterr().out
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Study"


def test_the_plan_says_how_much_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "config/mpnet.yaml")
    assert main(["plan", config, "--records", str(ROOT / "results/runs")]) == 0
    assert "15 of 15 runs have a record" in capsys.readouterr().out
    assert main(["plan", config, "--records", str(tmp_path)]) == 0
    assert "0 of 15 runs have a record" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("block", "remedy"), [("backbone", "backbone.path"), ("data", "data.source to local and data.p")]
)
def test_without_a_network_the_folder_is_named(block: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    error = unavailable(block, "some/repository", ConnectionError("no route"))
    assert error.field == f"{block}.name"
    assert remedy in str(error)

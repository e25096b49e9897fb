"""The workflow: which jobs there are, and what makes a finished run start again (hardly anything)."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from increlora.study.cells import all_cells, kind_of
from increlora.study.jobs import jobs as jobs_of
from increlora.study.load import load_study, merge, read_config
from increlora.study.settings import all_runs
from increlora.training import backbone as backbones
from increlora.training.record import write_record
from tests.study_helpers import ROOT, SMOKE, copy_project, fake_record

pytest.importorskip("snakemake")
pytestmark = pytest.mark.workflow
RUNS = 46  # of config/smoke.yaml, two in each cell


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "INCRELORA_STORE"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def jobs(folder: Path, *configs: str, more: tuple[str, ...] = ()) -> dict[str, int]:
    """How often each rule would run."""
    done = snakemake(folder, "-n", *(("--configfile", *configs) if configs else ()), *more)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    return {rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE)}


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without any result."""
    return copy_project(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone of the project with committed records, and time stamps in any order."""
    origin = copy_project(tmp_path_factory.mktemp("origin"))
    for settings in all_runs(load_study(SMOKE)):
        write_record(settings.record_path(origin / "results" / "runs"), fake_record(settings))
    git(origin, "init", "--quiet")
    git(origin, "add", ".")
    git(origin, "commit", "--quiet", "-m", "results")
    folder = tmp_path_factory.mktemp("clones") / "clone"
    git(origin, "clone", "--quiet", ".", str(folder))
    shake(folder)
    return folder


def shake(folder: Path) -> None:
    chance = random.Random(0)
    for path in folder.rglob("*.*"):
        age = 1.7e9 - chance.randrange(10**6)
        os.utime(path, (age, age))


def test_the_whole_study_is_planned(bare: Path) -> None:
    found = jobs(bare, "config/smoke.yaml")
    assert found == {
        "backbone": 1,
        "check": 1,
        "plan": 1,
        "published": 1,
        "train": RUNS,
        "tables": 1,
        "figures": 1,
        "all": 1,
        "total": RUNS + 7,
    }


def test_the_default_study_is_config_yaml(bare: Path) -> None:
    default = load_study(ROOT / "config/config.yaml")
    found = jobs(bare)
    kinds = {kind_of(default, cell.variant) for cell in all_cells(default)}
    assert {rule.removeprefix("train_") for rule in found if rule.startswith("train")} == kinds
    by_run = jobs(bare, more=("--config", "execution={job: run}"))
    assert by_run["train"] == len(all_runs(default))


def test_the_paper_is_planned(bare: Path) -> None:
    found = jobs(bare, "config/paper.yaml")
    assert found["train"] == 620
    assert "backbone" not in found


@pytest.mark.parametrize("job", ["run", "method"])
def test_every_run_is_in_one_job_after_those_that_it_starts_from(job: str) -> None:
    study = load_study(SMOKE, {"execution": {"job": job}})
    made = jobs_of(study)
    paths = [path for one in made.values() for path in one.records]
    assert sorted(paths) == sorted(str(run.record_path()) for run in all_runs(study))
    retrained = made["svd_lora" if job == "method" else "rte/svd_shuffled/2/seed1"]
    assert set(retrained.sources) == {
        f"results/runs/smoke/rte/increlora/2/seed{seed}.json" for seed in ((0, 1) if job == "method" else (1,))
    }


def test_a_clone_trains_nothing(clone: Path) -> None:
    found = jobs(clone, "config/smoke.yaml")
    assert not {"train", "backbone", "check"} & set(found)
    (clone / "README.md").write_text("edited")
    git(clone, "add", "README.md")
    git(clone, "commit", "--quiet", "-m", "readme")
    assert jobs(clone, "config/smoke.yaml") == found


def test_an_edited_config_reruns_the_method_that_it_changes(clone: Path) -> None:
    lora, increlora = clone / "lora.yaml", clone / "increlora.yaml"
    lora.write_text("methods: {lora: {training: {learning_rate: 1.0e-4}}}")
    increlora.write_text("methods: {increlora: {training: {learning_rate: 1.0e-4}}}")
    found = jobs(clone, "config/smoke.yaml", str(lora))
    assert (found["train"], found["check"], found["backbone"]) == (2 * 3, 1, 1)
    # IncreLoRA at two budgets on one task and one on the other, its four variants, and the two runs from its ranks
    assert jobs(clone, "config/smoke.yaml", str(increlora))["train"] == 2 * 9
    by_method = ("--config", "execution={job: method}")
    assert not [rule for rule in jobs(clone, "config/smoke.yaml", more=by_method) if rule.startswith("train")]
    found = jobs(clone, "config/smoke.yaml", str(lora), more=by_method)
    assert [rule for rule in found if rule.startswith("train")] == ["train_lora"]


def test_finished_tables_do_not_hide_what_is_missing_or_outdated(clone: Path, tmp_path: Path) -> None:
    """All tables and figures are there and newest, as in a clone in which only the records or the config changed."""
    folder = tmp_path / "finished"
    shutil.copytree(clone, folder)
    done = snakemake(folder, "--configfile", "config/smoke.yaml", "--summary")
    shown = [
        line.split("\t")[0]
        for line in done.stdout.splitlines()
        if line.startswith(("results/smoke", "results/published", "figures/"))
    ]
    assert len(shown) > 20
    for name in shown:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert jobs(folder, "config/smoke.yaml") == {}
    records = sorted((folder / "results/runs").rglob("*.json"))
    records[0].unlink()
    assert jobs(folder, "config/smoke.yaml")["train"] == 1
    shutil.copy(clone / records[0].relative_to(folder), records[0])
    other = folder / "other.yaml"
    other.write_text("methods: {lora: {training: {learning_rate: 1.0e-4}}}")
    os.utime(other, (0, 0))
    assert jobs(folder, "config/smoke.yaml", str(other))["train"] == 2 * 3


def test_finished_runs_are_restored_and_then_watched(clone: Path) -> None:
    """Snakemake deletes outputs before a job; the records that came with the clone survive that."""
    before = {path: path.read_bytes() for path in (clone / "results/runs").rglob("*.json")}
    again = [f"results/runs/smoke/rte/{run}/seed0.json" for run in ("lora/2", "increlora/2", "svd_increlora/2")]
    done = snakemake(clone, *again, "--configfile", "config/smoke.yaml", "--forcerun", *again)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert f"{RUNS} finished runs taken into" in text
    assert re.search(rf"^train +{len(again)}$", text, re.MULTILINE)
    assert {path: path.read_bytes() for path in (clone / "results/runs").rglob("*.json")} == before
    assert len(before) == RUNS
    assert "train" not in jobs(clone, "config/smoke.yaml")
    rate = ("--config", "methods={lora: {training: {learning_rate: 1.0e-4}}}")
    assert jobs(clone, "config/smoke.yaml", more=rate)["train"] == 2 * 3, (
        "without an edited file: by the job's parameters"
    )
    assert jobs(clone, "config/smoke.yaml", more=("--config", "seeds=[0, 1, 2]"))["train"] == RUNS // 2


def test_a_mistake_is_one_readable_error(bare: Path) -> None:
    done = snakemake(bare, "--configfile", "config/smoke.yaml", "--config", "tasks={rtee: {}}")
    assert done.returncode == 1
    text = done.stdout + done.stderr
    assert text.count("tasks: 'rtee' is unknown (did you mean 'rte'?)") == 1
    assert "Traceback" not in text
    assert not (bare / "results").exists()


def test_an_impossible_budget_stops_before_training(bare: Path) -> None:
    impossible = "methods={increlora: {options: {growth_end: 0.01}}}"
    done = snakemake(bare, "--configfile", "config/smoke.yaml", "--config", impossible)
    assert done.returncode == 1
    assert "error: methods.increlora.options.growth_end: no growth fits" in done.stdout + done.stderr
    assert not (bare / "results/runs").exists()
    assert not list((bare / ".increlora/backbones").rglob("*.safetensors")), "the backbone is training too"


@pytest.fixture
def two_methods(tmp_path: Path) -> Path:
    """Two methods in one job each, with finished runs on a backbone that cannot be loaded."""
    folder = copy_project(tmp_path / "two")
    rows = [{"method": "bitfit"}, {"method": "lora", "budgets": [2]}]
    (folder / "backbone").mkdir()
    (folder / "backbone/config.json").write_text(
        '{"model_type": "deberta-v2", "hidden_size": 16, "num_attention_heads": 2}'
    )
    (folder / "backbone/model.safetensors").write_text("no weights")
    config = {
        "execution": {"job": "method"},
        "artefacts": {"only": ["table1"], "table1": {"rows": rows, "tasks": ["rte"]}},
        "backbone": {"pretrain": None, "path": "backbone"},
    }
    merged = merge(read_config(SMOKE), config)
    (folder / "two.yaml").write_text(json.dumps(merged))
    study = load_study(merged | {"backbone": merged["backbone"] | {"path": str(folder / "backbone")}})
    for settings in all_runs(study):
        seen = {
            "name": settings.backbone.name,
            "revision": None,
            "fingerprint": backbones.fingerprint(settings.backbone),
        }
        record = fake_record(settings, provenance={"backbone": seen})
        write_record(settings.record_path(folder / "results/runs"), record)
    return folder


def test_a_failed_run_takes_no_finished_one_with_it(two_methods: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = two_methods / "results/runs/smoke/rte/lora/2"
    (place / "seed1.json").unlink()
    monkeypatch.chdir(two_methods)
    checked = Path(f".increlora/checked/smoke-{load_study('two.yaml').digest}")
    checked.parent.mkdir(parents=True)
    checked.touch()  # what is wrong with the backbone came after the check
    done = snakemake(two_methods, "--configfile", "two.yaml", "--until", "train_lora")
    text = done.stdout + done.stderr
    assert done.returncode == 1
    assert "rte/lora/2/seed1 failed: " in text
    assert "CalledProcessError" in text and "MissingOutput" not in text, "the command's own failure, through `tee`"
    assert [path.name for path in place.iterdir()] == ["seed0.json"]
    # the end says which, why, where and what next; the reason stands there and in the log, without a traceback
    end = text[text.index("1 run failed:") :]
    assert "\n  rte/lora/2/seed1: " in end
    assert "    log: logs/smoke/train/lora.log" in end
    assert "increlora run two.yaml --task rte --method lora --budget 2 --seed 1" in end
    assert "Traceback" not in text


def test_a_cancelled_job_still_says_where_it_stopped(bare: Path) -> None:
    """SIGTERM to every process of a job, as SLURM sends it."""
    script = """
include: "workflow/rules/common.smk"
rule last_words:
    output: "never"
    shell: "{{ trap 'sleep 1; echo at step 9; exit 143' TERM; touch started; sleep 60 & wait; }} 2>&1 | tee last.log"
"""
    (bare / "cancelled.smk").write_text(script)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--snakefile", "cancelled.smk"]
    run = subprocess.Popen([*command, "--configfile", "config/smoke.yaml", "--", "never"], cwd=bare)
    try:
        deadline = time.monotonic() + 60
        while not (bare / "started").exists():
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        for process in psutil.Process(run.pid).children(recursive=True):
            process.terminate()
        assert run.wait(60) == 1
    finally:
        run.kill()
    assert (bare / "last.log").read_text() == "at step 9\n"


def test_one_method_alone_runs_again_also_from_the_command_line(two_methods: Path) -> None:
    done = snakemake(
        two_methods,
        "--configfile",
        "two.yaml",
        "--forcerun",
        "train_bitfit",
        "train_lora",
        "--until",
        "train_lora",
        "train_bitfit",
    )
    assert done.returncode == 0, done.stderr
    found = jobs(two_methods, "two.yaml", more=("--config", "methods={lora: {training: {learning_rate: 1.0e-4}}}"))
    assert [rule for rule in found if rule.startswith("train")] == ["train_lora"]


def test_no_string_of_a_config_reaches_a_shell(bare: Path, tmp_path: Path) -> None:
    """Quotes, substitutions, separators and braces arrive as they are wherever a config may have them."""
    folder = tmp_path / "copy"
    shutil.copytree(bare, folder)
    evil = "$(touch X) `touch X` '; touch X; ' \"; touch X; \" && touch X {params} {0} {{ ../x"
    name = evil.replace("/", "|")
    for path in (folder / f"model {name}", folder / f"data\n{name}"):
        path.mkdir()
    (folder / f"model {name}/config.json").write_text('{"model_type": "bert", "hidden_size": 16}')
    accepted = {
        "backbone": {
            "pretrain": None,
            "path": f"model {name}",
            "revision": f"{evil}\ntouch X",
            "target_modules": re.escape(evil),
        },
        "data": {"source": "local", "path": f"data\n{name}", "name": f"{evil}\ntouch X"},
        "methods": {"lora": {"title": evil[:80]}},
    }
    (folder / f"study {name}.yaml").write_text(json.dumps(merge(read_config(SMOKE), accepted)))
    inline = ("--config", f"methods={json.dumps({'adalora': {'title': evil[:80]}})}")
    done = snakemake(folder, "--configfile", f"study {name}.yaml", *inline, "--until", "plan", "published")
    said = done.stdout + done.stderr
    assert "error: backbone.path: got 'model $(touch X)" in said, (
        said
    )  # the command had the whole config, and refused it
    assert "Traceback" not in said
    assert (folder / "results/published.md").exists()
    assert not list(folder.rglob("X"))


@pytest.mark.parametrize("config", ["config/config.yaml", "config/paper.yaml"])
def test_lint(bare: Path, config: str) -> None:
    done = snakemake(bare, "--lint", "--configfile", config)
    assert "Congratulations" in done.stdout + done.stderr, done.stderr

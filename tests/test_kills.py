"""What a kill leaves behind: no trainer without its Snakemake, no lost GPU slot, the same records."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from increlora.study.load import load_study
from increlora.study.settings import all_runs
from increlora.training import device
from increlora.training.checkpoint import Checkpoint
from increlora.training.interrupt import PARENT
from tests.study_helpers import ROOT, SMOKE, copy_project
from tests.test_training import run, settings

WATCHING = "import time; from increlora.training.interrupt import end_with_parent; end_with_parent(); time.sleep(300)"
ELSEWHERE = f"import os; del os.pidfd_open; {WATCHING}"
"""As on a system other than Linux."""


@pytest.mark.slow
@pytest.mark.parametrize("code", [WATCHING, ELSEWHERE], ids=["Linux", "elsewhere"])
def test_a_job_ends_when_its_snakemake_is_killed(code: str) -> None:
    """Not the job's parent is killed, but the program that has started the shell between them."""
    snakemake = subprocess.Popen(["sleep", "300"])
    environment = {**os.environ, PARENT: str(snakemake.pid), "PYTHONPATH": str(ROOT)}
    job = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(3)
        snakemake.kill()
        snakemake.wait()
        assert job.wait(60) == -signal.SIGTERM
        late = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60)
        assert late.returncode == 128 + signal.SIGTERM, "it was started, and then Snakemake was gone"
    finally:
        for process in (job, snakemake):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_run_goes_on_from_there(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from increlora.training.run import _Run

    monkeypatch.chdir(tmp_path)
    chosen = settings(tiny_backbone, "increlora", 2, {"deltaT": 3})
    whole = run(chosen, progress=False)
    step, steps = _Run._step, 0

    def step_and_signal(self: _Run, *arguments: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_Run, "_step", step_and_signal)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        run(chosen, progress=False)
    assert signal.getsignal(signal.SIGTERM) is before
    state = Checkpoint(chosen.digest).load()
    assert state is not None and state["progress"]["step"] == 9
    resumed = run(chosen, progress=False)
    assert steps == 20
    assert (resumed["score"], resumed["allocation"]) == (whole["score"], whole["allocation"])


def _hold_slots(folder: Path, number: int, until_killed: bool) -> None:
    """Takes a slot again and again; a lock that the kernel drops with the process tells the others who holds one."""
    torch.cuda.is_available = lambda: True  # type: ignore[method-assign]
    torch.cuda.device_count = lambda: 1  # type: ignore[method-assign]
    sleep = time.sleep
    time.sleep = lambda _: sleep(0.002)
    os.environ["INCRELORA_RUNS_PER_GPU"] = "3"
    mine = (folder / f"holder{number}").open("w")  # opened before the slot's file, so it is closed before it at a kill
    for _ in itertools.count() if until_killed else range(20):
        with device.device_slot(folder / "slots"):
            with FileLock(folder / "counting"):  # nobody comes or leaves while it counts
                fcntl.flock(mine, fcntl.LOCK_EX)
                holders = sum(_is_locked(path) for path in folder.glob("holder*"))
            if holders > 3:
                (folder / "too many").write_text(str(holders))
            sleep(0.01)
            with FileLock(folder / "counting"):
                fcntl.flock(mine, fcntl.LOCK_UN)


def _is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_no_slot_is_lost_and_none_is_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty processes want three slots of one GPU, and some of them are killed."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    doomed = chance.sample(range(20), 8)
    processes = [context.Process(target=_hold_slots, args=(tmp_path, number, number in doomed)) for number in range(20)]
    for process in processes:
        process.start()
    for number in doomed:
        time.sleep(chance.random() / 10)
        processes[number].kill()
    for process in processes:
        process.join(120)
    assert all(
        process.exitcode == (-signal.SIGKILL if number in doomed else 0) for number, process in enumerate(processes)
    )
    assert not (tmp_path / "too many").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits: a slot is lost"))
    monkeypatch.setenv("INCRELORA_RUNS_PER_GPU", "3")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(device.device_slot(tmp_path / "slots"))


PLAN = ("corpus", "corpus", "pretraining", "backbone", "checkpoint", "resume", "record", "checkpoint", "resume", "step")
"""In what the ten kills of a round fall."""
PHASES = {
    "increlora/glue/corpus/folder.py": {"write": "corpus"},
    "increlora/training/pretrain.py": {"_train": "pretraining", "_write": "backbone"},
    "increlora/training/checkpoint.py": {"Checkpoint.save": "checkpoint"},
    "increlora/training/store.py": {"Store.put": "record"},
    "increlora/training/run.py": {"_Run._resume": "resume", "_Run._step": "step"},
}
MARK = """

def _marked(function, phase):
    import functools, os, pathlib

    @functools.wraps(function)
    def call(*arguments, **options):
        mark = pathlib.Path({folder!r}, f"{{phase}}.{{os.getpid()}}")
        if phase != "resume" or arguments[0].checkpoint.path.exists():
            mark.touch()
        try:
            return function(*arguments, **options)
        finally:
            mark.unlink(missing_ok=True)

    return call

"""
"""Code for the copy of the package: a file says that a process is at something; it stays when the process is killed."""


@pytest.mark.soak
def test_thirty_kills_change_no_record(tmp_path: Path) -> None:
    """Snakemake is killed while the smoke study does each of these things, alone or with its jobs, and started again.

    The study writes its corpus too, and a checkpoint at every step. Three rounds of ten kills, each from nothing; half
    an hour.
    """
    chance, hits = random.Random(0), Counter[str]()
    expected = _study(tmp_path / "undisturbed", (), chance, hits)
    equal = 0
    for number in range(1, 4):
        found = _study(tmp_path / f"round{number}", PLAN, chance, hits)
        assert found.keys() == expected.keys()
        equal += sum(found[name] == expected[name] for name in expected)
        kills = number * len(PLAN)
        print(f"{equal} of {number * len(expected)} records equal after {kills} kills, in {dict(hits)}", flush=True)
    assert equal == 3 * len(expected) > 0
    assert hits.keys() >= set(PLAN) - {"step"}


def _study(
    folder: Path, plan: Sequence[str], chance: random.Random, hits: Counter[str]
) -> dict[str, tuple[object, ...]]:
    """Runs the smoke study to its end; the parts of its records that do not depend on the clock.

    Args:
        folder: where to; not there yet.
        plan: what the study is to be killed in, kill by kill.
        chance: decides the moment within that, and whether the jobs are killed with Snakemake.
        hits: counts in what processes were killed.
    """
    copy_project(folder)
    marks = folder / "marks"
    marks.mkdir()
    for name, functions in PHASES.items():
        lines = [f"{function} = _marked({function}, {phase!r})\n" for function, phase in functions.items()]
        with (folder / name).open("a") as source:
            source.write(MARK.format(folder=str(marks)) + "".join(lines))
    source = folder / "increlora/training/run.py"
    source.write_text(source.read_text().replace("CHECKPOINT_SECONDS = 60.0", "CHECKPOINT_SECONDS = 0.0"))
    changes = {
        "execution": {"job": "method"},
        "data": {"source": "local", "path": "corpus", "train_rows": 96, "eval_rows": 32},
        "backbone": {"pretrain": {"steps": 60}},
    }
    (folder / "soak.yaml").write_text(json.dumps(changes))
    study = load_study(SMOKE, {**changes, "data": {}})
    wanted = [str(run.record_path()) for run in all_runs(study)]
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "config/smoke.yaml", "soak.yaml"]
    corpus = shlex.join([sys.executable, "-m", "increlora", "corpus", "corpus"])
    command = f"test -d corpus || {corpus}; exec {shlex.join([*snakemake, '--', *wanted])}"
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[bytes]:
        with (folder / "out.txt").open("a") as out:
            shell = ["sh", "-c", command]
            return subprocess.Popen(shell, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)

    def said() -> str:
        return (folder / "out.txt").read_text()[-3000:]

    for phase in plan:
        if phase == "resume" and not any(folder.glob(".increlora/checkpoints/*.pt")):
            phase = "checkpoint"  # the kill before fell when nothing was saved yet
        process = start()
        count, deadline = chance.randint(1, 40) if phase in ("checkpoint", "step") else 1, time.monotonic() + 600
        while count:
            assert process.poll() is None and time.monotonic() < deadline, f"{phase} was never reached: {said()}"
            count -= any(marks.glob(f"{phase}.*"))
            time.sleep(0.001)
        # To resume or to write a record takes milliseconds.
        longest = {"corpus": 0.5, "pretraining": 0.5, "resume": 0.0, "record": 0.0}.get(phase, 0.005)
        time.sleep(chance.uniform(0, longest))
        if phase == "corpus" or chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        hits.update(mark.name.partition(".")[0] for mark in _left(marks))
        subprocess.run([*snakemake, "--unlock", "--quiet", "all"], cwd=folder, env=environment, capture_output=True)
    assert start().wait() == 0, said()
    records = {
        str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("results/**/seed*.json")
    }
    assert len(records) == len(wanted)
    return {
        name: tuple(record[block] for block in ("run", "score", "parameters", "allocation"))
        for name, record in records.items()
    }


def _left(marks: Path) -> Iterator[Path]:
    """Takes the marks of processes that are gone, those of the killed ones."""
    time.sleep(3)  # jobs whose Snakemake alone was killed end by themselves
    for mark in marks.iterdir():
        if not Path("/proc", mark.suffix[1:]).exists():
            mark.unlink()
            yield mark

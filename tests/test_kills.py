"""What a kill leaves behind: no trainer without its Snakemake, no lost GPU slot, the same records."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from increlora.training import device
from increlora.training.checkpoint import Checkpoint
from increlora.training.interrupt import PARENT
from tests.study_helpers import ROOT
from tests.test_training import run, settings

WATCHING = "import time; from increlora.training.interrupt import end_with_parent; end_with_parent(); time.sleep(300)"
ELSEWHERE = f"import os; del os.pidfd_open; {WATCHING}"
"""As on a system other than Linux."""


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


def _hold_slots(folder: Path, number: int) -> None:
    """Takes a slot again and again; a lock that the kernel drops with the process tells the others who holds one."""
    torch.cuda.is_available = lambda: True  # type: ignore[method-assign]
    torch.cuda.device_count = lambda: 1  # type: ignore[method-assign]
    sleep = time.sleep
    time.sleep = lambda _: sleep(0.002)
    os.environ["INCRELORA_RUNS_PER_GPU"] = "3"
    mine = (folder / f"holder{number}").open("w")  # opened before the slot's file, so it is closed before it at a kill
    for _ in range(20):
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
    processes = [context.Process(target=_hold_slots, args=(tmp_path, number)) for number in range(20)]
    for process in processes:
        process.start()
    for process in chance.sample(processes, 8):
        time.sleep(chance.random() / 10)
        process.kill()
    for process in processes:
        process.join(120)
    assert {process.exitcode for process in processes} == {0, -signal.SIGKILL}
    assert not (tmp_path / "too many").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits: a slot is lost"))
    monkeypatch.setenv("INCRELORA_RUNS_PER_GPU", "3")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(device.device_slot(tmp_path / "slots"))


KILLS = 30


@pytest.mark.soak
def test_thirty_kills_change_no_record(tmp_path: Path) -> None:
    """Snakemake is killed at random moments of the smoke study, alone or with all its jobs, and started again.

    The copy of the package writes a checkpoint at every step, so that kills fall into the writing too. Three rounds of
    ten kills, each from nothing; half an hour.
    """
    chance = random.Random(0)
    expected = _study(tmp_path / "undisturbed", chance, kills=0)
    equal = 0
    for number in range(3):
        found = _study(tmp_path / f"round{number}", chance, kills=KILLS // 3)
        assert found.keys() == expected.keys()
        equal += sum(found[name] == expected[name] for name in expected)
        print(f"{equal} of {(number + 1) * len(expected)} records equal after {10 * (number + 1)} kills", flush=True)
    assert equal == 3 * len(expected)


def _study(folder: Path, chance: random.Random, kills: int) -> dict[str, tuple[object, ...]]:
    """Runs the smoke study to its end; the parts of its records that do not depend on the clock."""
    for name in ("workflow", "profiles", "config", "increlora"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    source = folder / "increlora/training/run.py"
    source.write_text(source.read_text().replace("CHECKPOINT_SECONDS = 60.0", "CHECKPOINT_SECONDS = 0.0"))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "config/smoke.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    for number in range(kills + 1):
        with (folder / "out.txt").open("a") as out:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        if number == kills:
            assert process.wait() == 0, (folder / "out.txt").read_text()[-3000:]
            break
        time.sleep(chance.uniform(4, 30))
        if chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        subprocess.run([*command, "--unlock", "--quiet", "all"], cwd=folder, env=environment, capture_output=True)
    records = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("seed*.json")}
    return {
        name: tuple(record[block] for block in ("run", "score", "parameters", "allocation"))
        for name, record in records.items()
    }

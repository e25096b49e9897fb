"""`profiles/slurm` on a real SLURM of one node with a GPU that is an empty file. Ten minutes, as root, by hand:

apt-get install slurm-wlm munge slurmdbd mariadb-server
pip install -e ".[slurm]"
pytest -m cluster tests/slurm
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.study_helpers import ROOT, copy_project

pytestmark = [pytest.mark.cluster, pytest.mark.workflow]

ROWS = [{"method": "lora", "budgets": [2]}, {"method": "increlora", "budgets": [2]}]
SMALL = {
    "execution": {"gpu": 1, "job": "method", "mem_mb": 1500},
    "artefacts": {"only": ["table1"], "table1": {"tasks": ["rte"], "rows": ROWS}},
}
"""Two jobs of two runs."""
LONG = {"training": {"max_steps": 20000, "eval_steps": 2000}, "seeds": [0], "execution": {"runtime": 2}}
"""Runs of some minutes, with a time limit of two. A checkpoint is written every minute."""


@pytest.fixture(params=["accounting", ""], ids=["accounting", "bare"], scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running cluster; "accounting" if it has that."""
    folder = tmp_path_factory.mktemp("cluster")
    script = ROOT / "tests/slurm/cluster.sh"
    started = subprocess.run([script, "start", folder, request.param], capture_output=True, text=True, timeout=300)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield request.param
    finally:
        subprocess.run([script, "stop", folder], check=True, timeout=60)


@pytest.fixture
def clone(tmp_path: Path, cluster: str) -> Path:
    """The project, with the fields of the profile filled in as its comments say."""
    copy_project(tmp_path)
    profile = tmp_path / "profiles/slurm/config.yaml"
    text = profile.read_text()
    fields = {"slurm_account": "research" if cluster else "", "slurm_partition": "gpus", "gpu_model": "toy"}
    for field, value in fields.items():
        text, number = re.subn(rf'^  {field}: ""', f'  {field}: "{value}"', text, flags=re.MULTILINE)
        assert number == 1, field
    profile.write_text(text)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(LONG))
    return tmp_path


class Snakemake:
    """Snakemake at work in a folder; what it prints goes to `out.txt` there."""

    def __init__(self, folder: Path, *configs: str, more: tuple[str, ...] = ()) -> None:
        command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", *more]
        command += ["--slurm-init-seconds-before-status-checks", "5", "--configfile", "config/smoke.yaml", *configs]
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.out = folder / "out.txt"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)

    def __enter__(self) -> Snakemake:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        slurm("scancel", "--user", str(os.getuid()))
        until(lambda: not jobs("pending,running,completing"))

    def finish(self, seconds: float = 600) -> tuple[int, str]:
        """The exit code and all that was printed."""
        return self.process.wait(seconds), self.out.read_text()


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def jobs(state: str = "all") -> list[str]:
    return slurm("squeue", "--noheader", "--format=%i", f"--states={state}").split()


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    for _ in range(int(seconds * 4)):
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError("waited in vain")


def records(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "results/runs").rglob("*.json")}


def test_the_profile_runs_a_study(clone: Path, cluster: str) -> None:
    before = set(jobs())
    with Snakemake(clone, "small.yaml") as run:
        code, text = run.finish()
    assert code == 0, text[-4000:]
    assert len(records(clone)) == 4
    assert (clone / "results/smoke_table1.csv").is_file()
    submitted = set(jobs()) - before
    assert len(submitted) == 3, "the backbone and one job per method; the rest where snakemake runs"
    for job in submitted:
        asked = slurm("scontrol", "show", "job", job)
        assert "gres:gpu:toy:1" in asked
        assert "Partition=gpus" in asked
        assert "MinMemoryNode=1500M" in asked
        assert ("Account=research" in asked) == bool(cluster)


def test_all_jobs_are_in_the_queue_at_once(clone: Path) -> None:
    """The default profile's limit of one GPU is for one machine; here the queue waits, not snakemake."""
    with Snakemake(clone, "small.yaml"):
        until(lambda: len(jobs("pending,running")) >= 2)


def test_a_cancelled_and_a_timed_out_job_are_named_and_go_on(clone: Path) -> None:
    with Snakemake(clone, "small.yaml", "long.yaml", more=("--retries", "0")) as run:
        until(lambda: [path for path in (clone / ".increlora/checkpoints").rglob("*") if path.is_file()])
        slurm("scancel", *jobs("running"))
        code, text = run.finish()
    assert code == 1
    assert re.search(r"SLURM-job '\d+' failed, SLURM status is: 'CANCELLED", text), text[-3000:]
    assert re.search(r"SLURM-job '\d+' failed, SLURM status is: 'TIMEOUT", text), text[-3000:]
    assert "Traceback" not in text
    assert not records(clone)
    with Snakemake(clone, "small.yaml", "long.yaml", more=("--config", "execution={runtime: 30}")) as run:
        code, text = run.finish(1200)
    assert code == 0, text[-3000:]
    assert len(records(clone)) == 2
    logs = [path.read_text() for path in (clone / "logs/smoke/train").iterdir()]
    assert len([log for log in logs if "resumed at step" in log]) == 2


def test_a_drained_node_holds_the_jobs_and_loses_nothing(clone: Path) -> None:
    node = slurm("sinfo", "--noheader", "--format=%n").strip()
    slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=maintenance")
    with Snakemake(clone, "small.yaml") as run:
        try:
            until(lambda: jobs("pending"))
            time.sleep(20)
            assert run.process.poll() is None
            assert not jobs("running")
        finally:
            slurm("scontrol", "update", f"nodename={node}", "state=resume")
        code, text = run.finish()
    assert code == 0, text[-3000:]
    assert len(records(clone)) == 4

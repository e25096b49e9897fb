"""`profiles/slurm` on a real SLURM of one node with a GPU that is an empty file. Ten minutes, as root, by hand:

apt-get install slurm-wlm munge slurmdbd mariadb-server
pip install -e ".[slurm]"
pytest -m cluster tests/slurm
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.study_helpers import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.workflow]

ROWS = [{"method": "lora", "budgets": [2]}, {"method": "increlora", "budgets": [2]}]
SMALL = {
    "execution": {"gpu": 1, "job": "method", "mem_mb": 1500},
    "artefacts": {
        "table1": {"tasks": ["rte"], "rows": ROWS},
        **dict.fromkeys(("table2", "table3", "figure4", "figure5", "figure6", "growth")),
    },
}
"""Two jobs of two runs."""
LONG = {"training": {"max_steps": 12000, "eval_steps": 1000}, "seeds": [0], "execution": {"runtime": 1}}
"""Runs of about two minutes, with a time limit of one."""


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
    for name in ("workflow", "profiles", "config", "increlora"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "local.yaml"))
    shutil.copy(ROOT / "Snakefile", tmp_path)
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


def start(folder: Path, *configs: str, more: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", *more]
    command += ["--slurm-init-seconds-before-status-checks", "5", "--configfile", "config/smoke.yaml", *configs]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    out = (folder / "out.txt").open("w")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True)


def finish(started: subprocess.Popen[str], folder: Path, seconds: float = 400) -> tuple[int, str]:
    try:
        code = started.wait(seconds)
    finally:
        started.kill()
    return code, (folder / "out.txt").read_text()


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def jobs(state: str = "all") -> list[str]:
    return slurm("squeue", "--noheader", "--format=%i", f"--states={state}").split()


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    for _ in range(int(seconds * 4)):
        if condition():
            return
        time.sleep(0.25)
    raise AssertionError("waited in vain")


def records(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "results/runs").rglob("*.json")}


def test_the_profile_runs_a_study(clone: Path, cluster: str) -> None:
    before = set(jobs())
    code, text = finish(start(clone, "small.yaml"), clone)
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
    started = start(clone, "small.yaml")
    try:
        until(lambda: len(jobs("pending,running")) >= 2)
    finally:
        started.kill()
        slurm("scancel", "--user", str(os.getuid()))


def test_a_cancelled_and_a_timed_out_job_are_named_and_go_on(clone: Path) -> None:
    started = start(clone, "small.yaml", "long.yaml", more=("--retries", "0"))
    checkpoints = clone / ".increlora/checkpoints"
    until(lambda: [path for path in checkpoints.rglob("*") if path.is_file()])
    slurm("scancel", jobs("running")[0])
    code, text = finish(started, clone)
    assert code == 1
    assert re.search(r"SLURM-job '\d+' failed, SLURM status is: '?CANCELLED", text), text[-3000:]
    assert re.search(r"SLURM-job '\d+' failed, SLURM status is: '?TIMEOUT", text), text[-3000:]
    assert "Traceback" not in text
    assert not records(clone)
    code, text = finish(start(clone, "small.yaml", "long.yaml", more=("--config", "execution={runtime: 10}")), clone)
    assert code == 0, text[-3000:]
    assert len(records(clone)) == 2


def test_a_drained_node_holds_the_jobs_and_loses_nothing(clone: Path) -> None:
    node = slurm("sinfo", "--noheader", "--format=%n").strip()
    slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=maintenance")
    try:
        started = start(clone, "small.yaml")
        until(lambda: jobs("pending"))
        reason = slurm("squeue", "--noheader", "--format=%r", "--states=pending")
        assert re.search(r"drain|down|unavail|nodes required", reason, re.IGNORECASE), reason
    finally:
        slurm("scontrol", "update", f"nodename={node}", "state=resume")
    code, text = finish(started, clone)
    assert code == 0, text[-3000:]
    assert len(records(clone)) == 4

"""The profiles for clusters, as far as they can be checked without one (tests/slurm runs a real SLURM, by hand)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.study_helpers import ROOT, copy_project

pytestmark = pytest.mark.workflow


@pytest.mark.parametrize(
    ("profile", "plugin"),
    [
        ("slurm", "snakemake_executor_plugin_slurm"),
        ("kubernetes", "snakemake_executor_plugin_kubernetes"),
    ],
)
def test_a_dry_run_of_the_paper(profile: str, plugin: str, tmp_path: Path) -> None:
    pytest.importorskip(plugin)
    copy_project(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", f"profiles/{profile}", "--dry-run"]
    done = subprocess.run(
        [*command, "--configfile", "config/paper.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    assert re.search(r"^train +620$", text, re.MULTILINE)
    assert "Provided resources: gpu=" not in text, (
        "the limit of profiles/default, one GPU at a time, is not for a cluster"
    )


PLUGIN = """
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False)


class Executor(RemoteExecutor):
    def run_job(self, job): raise AssertionError(f"{job} does not belong on the cluster")
    def cancel_jobs(self, jobs): pass
    async def check_active_jobs(self, jobs): yield
"""
"""A cluster that gets no jobs."""


@pytest.mark.parametrize("executor", ["local", "elsewhere"])
def test_gpus_have_to_be_where_the_runs_are(executor: str, tmp_path: Path) -> None:
    copy_project(tmp_path)
    (tmp_path / "snakemake_executor_plugin_elsewhere").mkdir()
    (tmp_path / "snakemake_executor_plugin_elsewhere/__init__.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--jobs", "1", "--executor", executor]
    done = subprocess.run(
        [*command, "--until", "check", "--configfile", "config/smoke.yaml", "--config", "execution={gpu: 1}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = done.stdout + done.stderr
    told = "error: execution.gpu: a run asks for 1 and PyTorch sees none"
    assert (done.returncode, told in text) == ((1, True) if executor == "local" else (0, False)), text[-3000:]


def test_commands_and_profiles_have_options_that_snakemake_has() -> None:
    """Each profile is that of the workflow; `--profile` would leave the limits of `profiles/default` in force."""
    shown = subprocess.run([sys.executable, "-m", "snakemake", "--help"], capture_output=True, text=True, timeout=60)
    options = set(re.findall(r"--[a-z-]+", shown.stdout))
    places = ["README.md", "CONTRIBUTING.md", "docs/*.md", "config/*.yaml", "profiles/*/config.yaml"]
    texts = {path: path.read_text() for place in places for path in ROOT.glob(place)}
    commands = [line for text in texts.values() for line in re.findall(r"\bsnakemake (-.*)", text)]
    assert len(commands) > 5
    for command in commands:
        used = set(re.findall(r"--[a-z-]+", command.partition("#")[0].partition("`")[0]))
        assert used <= options, command
        assert ("profiles/" in command) == ("--workflow-profile" in used), command
    for path in ROOT.glob("profiles/*/config.yaml"):
        keys = {f"--{key}" for key in yaml.safe_load(texts[path])}
        unknown = keys - options
        plugin = f"snakemake_executor_plugin_{path.parent.name}"
        if importlib.util.find_spec(plugin) is None:  # the options of a plugin that is not installed
            unknown = {key for key in unknown if not key.startswith(f"--{path.parent.name}-")} - {"--container-image"}
        assert not unknown, path

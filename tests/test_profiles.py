"""The profiles for clusters, as far as they can be checked without one (tests/slurm runs a real SLURM, by hand)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study_helpers import ROOT

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
    for name in ("workflow", "profiles", "config", "increlora"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "local.yaml"))
    shutil.copy(ROOT / "Snakefile", tmp_path)
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

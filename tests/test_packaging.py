"""What a release is: archives that build and pass the index's checks, and a wheel that stands on its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.study_helpers import ROOT

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=folder, env=kept, capture_output=True, text=True, timeout=900)
    if done.returncode and "connection broken by" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel that is built from it."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, folder=out)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def test_the_archives_hold_the_package_and_no_results(archives: tuple[Path, Path]) -> None:
    source, wheel = archives
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = run("git", "ls-files", "increlora", folder=ROOT).splitlines()
    assert in_wheel == set(tracked)
    with tarfile.open(source) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"increlora", "tests", "workflow", "config", "README.md", "LICENSE", "pyproject.toml"} <= tops
    assert not tops & {"results", "figures", "logs", ".increlora", ".snakemake", ".venv"}


def test_the_index_would_take_them(archives: tuple[Path, Path]) -> None:
    pytest.importorskip("twine")
    told = run(sys.executable, "-m", "twine", "check", "--strict", *archives, folder=archives[0].parent)
    assert told.count("PASSED") == 2


def test_the_wheel_alone_runs_what_readme_shows(
    archives: tuple[Path, Path], tiny_backbone: Path, tmp_path: Path
) -> None:
    """In an environment with the tuner's own dependencies only, and without this repository."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    lock = (ROOT / "requirements.lock").read_text() + (ROOT / "torch.lock").read_text()
    (tmp_path / "versions.txt").write_text("\n".join(re.findall(r"^[\w.-]+==[^\\\n]+", lock, re.MULTILINE)))
    install = ("install", "--quiet", "--no-compile", "--constraint", "versions.txt", archives[1])
    run(sys.executable, "-m", "pip", "--python", python, *install, folder=tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    rows = "[{'input_ids': [1, 5 + i % 40, 2], 'attention_mask': [1, 1, 1], 'labels': i % 2} for i in range(160)]"
    script = f"dataset = {rows}\n" + code.replace("microsoft/deberta-v3-base", str(tiny_backbone))
    script += "\nimport increlora; print(increlora.__file__, sum(model.rank_distribution().values()))"
    (tmp_path / "readme.py").write_text(script)
    where, total = run(python, "readme.py", folder=tmp_path).splitlines()[-1].split()
    assert Path(where).is_relative_to(tmp_path)
    assert int(total) == 2 * 12
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "usage: increlora" in run(python.with_name("increlora"), "--help", folder=tmp_path)

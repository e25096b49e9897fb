"""Where nothing can be written, or no more: one sentence, no traceback, and nothing half-written passes as finished."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from increlora.cli import main
from increlora.files import whole_folder
from increlora.study.cells import Cell
from increlora.study.load import load_study
from increlora.study.settings import run_settings
from increlora.training import checksums
from increlora.training.checkpoint import Checkpoint
from increlora.training.pretrain import PretrainSettings, pretrain
from increlora.training.record import read_record
from increlora.training.store import Store
from tests.study_helpers import ROOT, SMOKE, copy_project, fake_record

Unwritable = Callable[[Path], None]


@contextlib.contextmanager
def tmpfs(folder: Path, option: str) -> Iterator[None]:
    """A file system of its own; the test is skipped where it cannot be had."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounts a file system, as root: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def unwritable() -> Iterator[Unwritable]:
    """Makes a folder that nobody can write to; root can write to any folder but those of a read-only file system."""
    with contextlib.ExitStack() as stack:

        def make(folder: Path) -> None:
            if os.geteuid() == 0:
                stack.enter_context(tmpfs(folder, "ro"))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                folder.chmod(0o500)
                stack.callback(folder.chmod, 0o700)

        yield make


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    with tmpfs(tmp_path / "disk", "size=16m"):
        yield tmp_path / "disk"


def fill(disk: Path, *, but: int = 0) -> Path:
    """Leaves so many bytes of a disk; the file that takes the others."""
    with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(shutil.disk_usage(disk).free - but))
    return disk / "filler"


RUN = ["run", str(SMOKE), "--task", "rte", "--method", "lora", "--budget", "2", "--seed", "0"]


@pytest.mark.parametrize("command", [RUN, ["store", "adopt"], ["check", str(SMOKE), "--here"]], ids=lambda one: one[0])
@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        (None, "results/runs"),
        ("INCRELORA_STORE", "store"),
        ("INCRELORA_CHECKPOINTS", "checkpoints"),
        ("HF_MODULES_CACHE", "modules"),
    ],
)
def test_folders_are_tried_before_anything_is_trained(
    command: list[str],
    variable: str | None,
    folder: str,
    unwritable: Unwritable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, place in (("INCRELORA_STORE", "a"), ("INCRELORA_CHECKPOINTS", "b"), ("HF_MODULES_CACHE", "c")):
        monkeypatch.setenv(name, place)
    if variable:
        monkeypatch.setenv(variable, f"{folder}/below")
    unwritable(tmp_path / folder)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert f"{tmp_path / folder} cannot be written to (" in error
    assert error.count("\n") == 1


def test_a_full_disk_keeps_the_records_before(disk: Path) -> None:
    settings = run_settings(load_study(SMOKE), Cell("rte", "lora", 2), 0)
    other = settings.model_copy(update={"seed": 1})
    store = Store(disk)
    store.put(fake_record(settings))
    fill(disk)
    with pytest.raises(OSError, match="No space left on device") as caught:
        store.put(fake_record(other))
    assert caught.value.filename == str(store.path(other.digest))
    assert store.get(settings.digest) == fake_record(settings)
    assert [path.name for path in disk.glob("*/*")] == [store.path(settings.digest).name]


def test_a_full_disk_keeps_the_checkpoint_before(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint("0" * 16, disk)
    checkpoint.save({"step": 1})
    fill(disk, but=100_000)
    with caplog.at_level(logging.WARNING):
        checkpoint.save({"step": 2, "weights": torch.zeros(100_000)})
    assert "could not be written (No space left on device); training goes on" in caplog.text
    saved = checkpoint.load()
    assert saved is not None and saved["step"] == 1
    assert sorted(path.name for path in disk.iterdir()) == [checkpoint.path.name, "filler"]


@pytest.mark.parametrize("but", [0, 8192, 60_000])
def test_a_full_disk_has_no_half_backbone(but: int, disk: Path) -> None:
    """Files are written by Python, by safetensors and by tokenizers, each with errors of its own."""
    settings = PretrainSettings(hidden_size=16, num_layers=1, num_heads=1, steps=2, batch_size=4, documents=50)
    fill(disk, but=but)
    with pytest.raises(OSError, match="No space left on device") as caught:
        pretrain(settings, disk / "backbone", progress=False)
    assert caught.value.filename
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_what_a_kill_left_of_a_folder_is_swept(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".name.1", tmp_path / ".name.2"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "half").touch()
    os.utime(old, (0, 0))
    (tmp_path / ".name.lock").touch()
    with whole_folder(tmp_path / "name") as folder:
        (folder / "file").write_text("first")
    with contextlib.suppress(KeyboardInterrupt), whole_folder(tmp_path / "name") as folder:
        (folder / "file").write_text("second")
        raise KeyboardInterrupt
    assert (tmp_path / "name/file").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".name.2", ".name.lock", "name"]
    with whole_folder(tmp_path / "name") as folder:
        (folder / "other").touch()
    assert [path.name for path in (tmp_path / "name").iterdir()] == ["other"]


def clone(folder: Path) -> Path:
    """The project with a study of one run."""
    copy_project(folder)
    one = {"only": ["table1"], "table1": {"tasks": ["rte"], "rows": [{"method": "bitfit"}]}}
    (folder / "one.yaml").write_text(json.dumps({"seeds": [0], "artefacts": one}))
    return folder


def until(rule: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--until", rule]
    return [*command, "--configfile", "config/smoke.yaml", "one.yaml"]


def ask(command: list[str], folder: Path, **variables: str) -> tuple[int, str]:
    """The exit code of a command and what it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INCRELORA_")}
    environment = {**kept, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.workflow
def test_a_study_goes_on_when_the_disk_has_room_again(disk: Path) -> None:
    pytest.importorskip("snakemake")
    folder = clone(disk)
    filler = fill(disk, but=100_000)
    code, text = ask(until("backbone"), folder)
    assert code == 1
    assert "No space left on device; free some and start again" in text
    assert "Traceback" not in text
    assert not [path for path in (folder / ".increlora").rglob("*") if path.suffix in (".safetensors", ".json")]
    filler.unlink()
    code, text = ask(until("train"), folder)
    assert code == 0, text[-3000:]
    (record,) = (folder / "results/runs").rglob("*.json")
    assert read_record(record).run.status in ("completed", "collapsed")
    (backbone,) = (folder / ".increlora/backbones").glob("smoke-*")
    assert checksums.damage(backbone) is None


@pytest.mark.workflow
def test_a_study_does_not_start_where_it_cannot_write(unwritable: Unwritable, tmp_path: Path) -> None:
    pytest.importorskip("snakemake")
    folder = clone(tmp_path)
    unwritable(folder / "results")
    code, text = ask(until("train"), folder)
    assert code == 1
    assert f"error: results/runs: {folder / 'results'} cannot be written to (" in text
    assert "Traceback" not in text
    assert "Job 1" not in text


@pytest.mark.workflow
def test_a_home_that_cannot_be_written_to_is_no_matter(unwritable: Unwritable, tmp_path: Path) -> None:
    """`scripts/env`, as it is when the environment is there already."""
    pytest.importorskip("snakemake")
    folder = clone(tmp_path / "clone")
    unwritable(tmp_path / "home")
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/env", folder / "scripts")
    locks = {name: (ROOT / name).read_text() for name in ("requirements.lock", "torch.lock")}
    (folder / ".venv").mkdir()
    for name, text in {**locks, ".venv/installed.lock": "".join(locks.values())}.items():
        (folder / name).write_text(text)
    code, text = ask(["scripts/env", *until("train")], folder, HOME=str(tmp_path / "home"))
    assert code == 0, text[-3000:]
    assert f"{tmp_path / 'home'}/.cache cannot be written to; caches go to {folder}/.increlora/cache" in text
    assert list((folder / "results/runs").rglob("*.json"))


@pytest.mark.slow
def test_two_clones_share_a_store_at_the_same_time(tiny_backbone: Path, tmp_path: Path) -> None:
    """A run is trained once: records hold times, so those of the second clone are equal only if it took the first's."""
    backbone = json.dumps({"backbone": {"pretrain": None, "path": str(tiny_backbone)}})
    command = [sys.executable, "-m", "increlora", "run", str(SMOKE), backbone, "--task", "rte", "--method", "lora"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "INCRELORA_STORE": str(tmp_path / "store")}
    clones = [tmp_path / "one", tmp_path / "two"]
    started = []
    for folder in clones:
        folder.mkdir()
        started.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in (folder / "results/runs").rglob("*.json")}
        for folder in clones
    )
    assert len(one) == 4
    assert one == two
    assert "is being trained by another process; waiting for it" in "".join(said)
    assert len(list((tmp_path / "store").glob("??/*"))) == 4
    assert not list((tmp_path / "store/claims").iterdir())

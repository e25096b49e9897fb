"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ABANDONED_SECONDS = 600.0
"""Age from which a half-written file or folder counts as left over by a writer that was killed."""


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to write into; synced to disk, it takes the name `path` at the end of the block.

    An earlier folder of that name is replaced. If the block fails the new folder is deleted; leftovers of writers that
    were killed are deleted first.

    Raises:
        OSError: it cannot be written. Libraries that are written in Rust raise other errors, with the same number.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.is_dir() and is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    folder, old = (Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) for _ in range(2))
    try:
        yield folder
        folder.chmod(0o755)
        for one in (*folder.rglob("*"), folder):
            _sync(one)
        if path.exists():
            path.rename(old / path.name)
        folder.rename(path)
    except Exception as error:
        if number := re.search(r"(?:\[Errno |os error )(\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise
    finally:
        for rest in (folder, old):
            shutil.rmtree(rest, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that takes the name `path` at the end of the block, synced to disk; its folder is made.

    If the block fails, what was written is deleted and an earlier file of that name stays. A writer that is killed
    leaves ``.<name>.*.tmp`` in the same folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def nearest_existing(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists: where it would be made."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def is_abandoned(path: Path) -> bool:
    """Whether a half-written file or folder is so old that its writer must have been killed."""
    return time.time() - path.stat().st_mtime > ABANDONED_SECONDS


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

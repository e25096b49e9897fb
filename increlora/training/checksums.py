"""Checksums that reveal damage to a folder which this package has written. Light to import, for the workflow."""

from __future__ import annotations

import hashlib
from pathlib import Path

NAME = "SHA256SUMS"
"""The list of checksums in the folder; ``sha256sum --check`` reads it."""


def write(folder: Path) -> None:
    """List the checksums of a folder's files in it."""
    lines = [f"{_checksum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")


def damage(folder: str | Path) -> str | None:
    """What is wrong with a folder, in a few words; None if every listed file has its checksum, or if none is listed."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return "it has no config.json"
    if not (folder / NAME).is_file():
        return None
    for line in (folder / NAME).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _checksum(folder / name) != expected:
            return f"{name} is damaged"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

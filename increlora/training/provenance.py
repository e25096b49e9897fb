"""Where a record comes from: versions and commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("increlora", "torch", "transformers", "peft", "datasets", "evaluate", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> tuple[str | None, bool | None]:
    """Commit of the source tree and whether code differs from it; (None, None) outside of a repository.

    Results, figures and caches do not count as differences: a run writes them itself.
    """
    root = Path(__file__).resolve().parents[2]
    try:
        _git(root, "ls-files", "--error-unmatch", "increlora/__init__.py")  # not installed inside of another repository
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "increlora", "workflow", "config", "Snakefile")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head, bool(changed)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

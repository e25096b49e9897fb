"""The folders that runs write to. Light to import, for the workflow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from increlora.errors import ConfigError
from increlora.files import nearest_existing


def checkpoints() -> Path:
    """Of unfinished runs: outside of the workflow's outputs, which Snakemake deletes before it starts a job."""
    return Path(os.environ.get("INCRELORA_CHECKPOINTS") or ".increlora/checkpoints")


def store() -> Path:
    """Of finished runs."""
    return Path(os.environ.get("INCRELORA_STORE") or ".increlora/store")


def check_writable(records: str | Path) -> None:
    """Check that every folder that runs write to is writable, or the folder in which it would be made.

    Among them is the cache into which `evaluate` copies its metrics, which are Python modules.

    Args:
        records: folder of the records.

    Raises:
        ConfigError: names the first folder that cannot be written to.
    """
    chosen = {
        Path(records): "make it writable, or run elsewhere",
        store(): "make it writable, or set INCRELORA_STORE",
        checkpoints(): "make it writable, or set INCRELORA_CHECKPOINTS",
        _modules(): "make it writable, or set HF_HOME",
    }
    for folder, remedy in chosen.items():
        place = nearest_existing(folder)
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(4096))
        except OSError as error:
            told = f"{place} cannot be written to ({error.strerror}); {remedy}"
            raise ConfigError(str(folder), told) from None


def _modules() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_MODULES_CACHE") or Path(HF_HOME) / "modules")

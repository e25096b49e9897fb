"""Finished runs, kept by the digest of their settings.

The workflow manager deletes the declared outputs of a job before it starts it again: when one seed of a cell fails, or
when a seed is added, the records of all its seeds are gone. The store lies outside of the workflow's reach, so such a
job finds what is already finished and trains the rest. Because a digest stands for everything that decides a result,
an entry never goes stale; deleting the whole folder costs time and nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from increlora.training.settings import RunSettings

log = logging.getLogger(__name__)

Record = dict[str, Any]


class RecordError(ValueError):
    """A file is not a whole, self-consistent record."""


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes a record whole or not at all: to a temporary file beside it, synced to disk, then renamed.

    Each block of the record is one line, so that a difference between two records shows which block it is in.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = (f"{json.dumps(name)}: {json.dumps(block, allow_nan=False)}" for name, block in record.items())
    content = "{\n" + ",\n".join(blocks) + "\n}\n"
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_record(path: str | Path) -> Record:
    """Reads a record and checks that its digest is that of the settings it stores.

    Raises:
        RecordError: if the file is not such a record; the message says why.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        given = record["run"]["digest"]
        settings = RunSettings.model_validate(record["run"]["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"not a record: {str(error).splitlines()[0]} ({type(error).__name__})") from None
    if settings.digest != given:
        raise RecordError(f"its digest is {given}, but its settings have {settings.digest}")
    return record


class Store:
    """Finished runs in one folder, one file per digest.

    Args:
        root: the folder; by default ``$INCRELORA_STORE``, or ``.increlora/store`` in the working directory.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("INCRELORA_STORE") or ".increlora/store")

    def path(self, digest: str) -> Path:
        return self.root / digest[:2] / f"{digest}.json"

    def get(self, digest: str) -> Record | None:
        """The finished run of this digest; None if there is none (or only a broken file)."""
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            return read_record(path)
        except RecordError as error:
            log.warning("ignoring %s: %s", path, error)
            return None

    def put(self, record: Mapping[str, Any]) -> None:
        """Keeps a finished run; safe against being stopped half-way and against others writing the same run."""
        write_record(self.path(record["run"]["digest"]), record)

    def restore(self, settings: RunSettings) -> Record | None:
        """The finished run with these settings, under the study and method names of whoever asks for it."""
        record = self.get(settings.digest)
        if record is None:
            return None
        names = settings.model_dump(mode="json", include={"study", "task", "method", "budget", "seed"})
        return {**record, "run": {**record["run"], **names, "settings": settings.model_dump(mode="json")}}

    def adopt(self, records_root: str | Path) -> int:
        """Takes in the records below a folder (those of a fresh clone, say) that the store does not have yet.

        Returns:
            The number of records taken in. Broken or inconsistent ones are skipped with a warning.
        """
        adopted = 0
        for path in sorted(Path(records_root).rglob("seed*.json")):
            try:
                record = read_record(path)
            except RecordError as error:
                log.warning("not adopting %s: %s", path, error)
                continue
            if not self.path(record["run"]["digest"]).exists():
                self.put(record)
                adopted += 1
        return adopted

"""Finished runs, kept by the digest of their settings.

Snakemake deletes the declared outputs of a job before it starts it again: when one run of a job fails, or one is added,
the records of all its runs are gone. The store is out of Snakemake's reach, so such a job restores what is finished and
trains the rest. A digest covers everything that decides a result, so an entry never goes stale; deleting the whole
folder costs nothing but time.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from increlora.training import places
from increlora.training.record import Record, RecordError, digest_of, read_record, sweep, write_record
from increlora.training.settings import RunSettings

logger = logging.getLogger(__name__)


class Store:
    """Finished runs in one folder, one file per digest.

    Args:
        root: the folder; by default ``$INCRELORA_STORE``, or ``.increlora/store`` in the working directory.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or places.store())

    def path(self, digest: str) -> Path:
        return self.root / digest[:2] / f"{digest}.json"

    @contextlib.contextmanager
    def claim(self, digest: str) -> Iterator[None]:
        """Hold a run until the block ends; wait as long as another process trains it."""
        path = self.root / "claims" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s is being trained by another process; waiting for it", digest)
            lock.acquire()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # a waiting process notices and opens a new one
            lock.release()

    def get(self, digest: str) -> Record | None:
        """The finished run of this digest; None if there is none (or only a broken file)."""
        path = self.path(digest)
        if not path.exists():
            return None
        try:
            return read_record(path)
        except RecordError as error:
            logger.warning("ignoring %s: %s", path, error)
            return None

    def put(self, record: Record) -> None:
        """Keep a finished run; safe against interruption and against other writers of the same run."""
        write_record(self.path(record.run.digest), record)

    def restore(self, settings: RunSettings) -> Record | None:
        """The finished run with these settings, under the names of study and method that the caller's settings have."""
        record = self.get(settings.digest)
        if record is None:
            return None
        names = {"study": settings.study, "method": settings.method, "settings": settings}
        return record.model_copy(update={"run": record.run.model_copy(update=names)})

    def adopt(self, records_root: str | Path) -> int:
        """Take in the records below a folder (those of a fresh clone, say) that the store does not have yet.

        Returns:
            The number of records taken in. Those that `read_record` refuses are left out with a warning.
        """
        for folder in {path.parent for path in self.root.glob("*/.*")}:
            sweep(folder)
        adopted = 0
        for path in sorted(Path(records_root).rglob("seed*.json")):
            digest = digest_of(path)
            if digest is not None and self.path(digest).exists():
                continue
            try:
                record = read_record(path)
            except RecordError as error:
                logger.warning("not adopting %s: %s", path, error)
                continue
            self.put(record)
            adopted += 1
        return adopted

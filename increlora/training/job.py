"""One run from its settings to its record: restored from the store if it is finished, otherwise trained."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from pathlib import Path

from filelock import FileLock

from increlora.errors import ConfigError
from increlora.glue.data import Data
from increlora.training import checksums
from increlora.training.pretrain_settings import PretrainSettings
from increlora.training.record import Record, RecordError, read_record
from increlora.training.settings import Backbone, RunSettings
from increlora.training.store import Store

logger = logging.getLogger(__name__)


def finish(
    settings: RunSettings, ranks_from: str | Path | None = None, *, progress: bool = True
) -> tuple[Record, bool]:
    """The record of a run, and whether it was trained now; otherwise it comes from the store.

    A record just trained goes to the store first; only then is the run's checkpoint deleted. A run that another process
    is training is waited for.

    Raises:
        ConfigError: the finished run was made from another content of a local folder.
    """
    store = Store()
    # under torchrun the processes of one run would wait for each other
    with contextlib.nullcontext() if "RANK" in os.environ else store.claim(settings.digest):
        record = store.restore(settings)
        if record is not None:
            _check_content(settings, record)
            logger.debug("%s: restored from %s", settings.label, store.path(settings.digest))
            return portable(record), False
        from increlora.training.checkpoint import Checkpoint
        from increlora.training.run import run

        logger.debug("%s: training (digest %s)", settings.label, settings.digest)
        _need_backbone(settings.backbone, progress=progress)
        ranks = source_ranks(settings, ranks_from)
        tensorboard = os.environ.get("INCRELORA_TENSORBOARD")
        record = portable(run(settings, ranks=ranks, progress=progress, tensorboard=tensorboard))
        if is_first_process():
            store.put(record)
            Checkpoint(settings.digest).delete()
        return record, True


def _need_backbone(backbone: Backbone, *, progress: bool) -> None:
    """Pretrain the package's own backbone if it is missing or damaged."""
    if backbone.pretrain is None or backbone.path is None or "RANK" in os.environ:
        return
    folder = Path(backbone.path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if reason := checksums.damage(folder):
            from increlora.training.pretrain import pretrain

            logger.warning("%s: %s; pretraining the backbone", folder, reason)
            pretrain(PretrainSettings.model_validate(backbone.pretrain), folder, progress=progress)


def _check_content(settings: RunSettings, record: Record) -> None:
    """A local folder counts as a copy of the Hub repository of that name: its content must not change between runs."""
    found = record.provenance
    if settings.data.source == "local":
        _same("data", settings.data.path, found.data.fingerprint, _data_fingerprint(settings.task, settings.data))
    if settings.backbone.path is not None and settings.backbone.pretrain is None:
        from increlora.training.backbone import fingerprint

        _same("backbone", settings.backbone.path, found.backbone.fingerprint, fingerprint(settings.backbone))


def _same(block: str, path: str | None, recorded: str | None, now: str | None) -> None:
    if recorded not in (None, now):
        raise ConfigError(
            f"{block}.path",
            f"{path} is not what the finished run of these settings used (fingerprint {now}, recorded {recorded}); "
            f"give it a `{block}.name` of its own",
        )


@functools.cache
def _data_fingerprint(task: str, data: Data) -> str:
    from increlora.glue.loading import load_task

    return load_task(task, data).fingerprint


def is_first_process() -> bool:
    """Under ``torchrun`` every process trains, and one writes."""
    return os.environ.get("RANK", "0") == "0"


def source_ranks(settings: RunSettings, path: str | Path | None) -> dict[str, int] | None:
    """Final rank of every module in the record that a run starts from, or in the store; None if it starts from none.

    Raises:
        ConfigError: if that record is missing or is not the one that the settings mean.
    """
    if settings.ranks_from is None:
        return None
    if path is None:
        raise ConfigError("ranks_from", f"{settings.label} needs the record of a {settings.ranks_from.method!r} run")
    if not Path(path).exists() and settings.ranks_source is not None:
        # under torchrun the first process may not have written a record that it takes from the store
        stored = Store().path(settings.ranks_source)
        path = stored if stored.exists() else path
    try:
        record = read_record(path)
    except RecordError as error:
        raise ConfigError("ranks_from", f"{path}: {error}") from None
    if record.run.digest != settings.ranks_source:
        raise ConfigError(
            "ranks_from",
            f"{path} is a run with digest {record.run.digest}, but {settings.label} starts from "
            f"{settings.ranks_source}: train {settings.ranks_from.method!r} again with the present settings",
        )
    if record.allocation is None:
        raise ConfigError("ranks_from", f"{path} allocated no ranks (status {record.run.status!r})")
    return dict(record.allocation.ranks)


def portable(record: Record) -> Record:
    """A record without absolute paths of the machine it was made on; paths are no part of the digest."""
    settings = record.run.settings
    for block in ("backbone", "data"):
        place = getattr(settings, block)
        if place.path and Path(place.path).is_absolute():
            place = place.model_copy(update={"path": Path(place.path).name})
            settings = settings.model_copy(update={block: place})
    return record.model_copy(update={"run": record.run.model_copy(update={"settings": settings})})

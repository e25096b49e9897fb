"""One job of the workflow: the runs of one cell, seed after seed in one process.

A run that is already finished comes from the store. A run that fails is reported and the other seeds still run, so that
starting the job again has only the failed ones left to do.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from increlora.errors import ConfigError, IncreLoraError
from increlora.training import checksums
from increlora.training.pretrain_settings import PretrainSettings
from increlora.training.record import Record, RecordError, read_record, write_record
from increlora.training.settings import Backbone, Data, RunSettings
from increlora.training.store import Store

logger = logging.getLogger(__name__)


def settings_of_seed(cell: Mapping[str, Any], seed: int) -> RunSettings:
    """The settings of one run from those of its cell.

    Args:
        cell: as `increlora.study.expand.cell_settings` gives them: a dump of `RunSettings` without ``seed``, and with
            ``ranks_source`` by seed.
        seed: of the run.
    """
    sources = cell.get("ranks_source") or {}
    try:
        return RunSettings.model_validate({**cell, "seed": seed, "ranks_source": sources.get(str(seed))})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(".".join(["settings", *map(str, first["loc"])]), first["msg"]) from None


class Meter:
    """Tells after every run how many are left and how long they will take.

    Args:
        total: runs to come.
    """

    def __init__(self, total: int):
        self.total, self.done, self.trained = total, 0, 0
        self.started = time.monotonic()

    def tick(self, settings: RunSettings, record: Record | None, trained: bool) -> None:
        """Count a run that ended; ``record`` is None if it failed."""
        self.done, self.trained = self.done + 1, self.trained + trained
        score = f"{record.score.best.score:.2f}" if record and record.score.best else "no score"
        left = (time.monotonic() - self.started) / max(1, self.trained) * (self.total - self.done)
        logger.info("%d of %d  %s  %s  %s left", self.done, self.total, settings.label, score, _duration(left))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def run_job(
    cell: Mapping[str, Any],
    seeds: Sequence[int],
    records: Sequence[str | Path],
    ranks_from: Sequence[str | Path] = (),
    *,
    progress: bool = True,
    meter: Meter | None = None,
) -> list[int]:
    """Trains or restores one run per seed and writes its record.

    Args:
        cell: settings of the cell, see `settings_of_seed`.
        seeds: seeds of the runs.
        records: where each run's record goes.
        ranks_from: for each run, the record whose final ranks it starts from; empty for methods that need none.
        progress: show progress bars.
        meter: counts the runs of several jobs.

    Returns:
        The seeds whose run failed.

    Raises:
        ConfigError: if the settings cannot be right for any seed.
    """
    if len(records) != len(seeds) or (ranks_from and len(ranks_from) != len(seeds)):
        raise ConfigError("--records", f"one path per seed is needed: {len(seeds)} seeds, {len(records)} records")
    runs = [settings_of_seed(cell, seed) for seed in seeds]
    failed = []
    meter = meter or Meter(len(runs))
    for number, settings in enumerate(runs):
        record, trained = None, False
        try:
            source = ranks_from[number] if ranks_from else None
            record, trained = finish(settings, source, progress=progress)
            if _is_first_process():
                write_record(records[number], record)
        except IncreLoraError as error:
            logger.error("%s failed: %s", settings.label, error)
            failed.append(settings.seed)
        except Exception:
            if "RANK" in os.environ:  # the other processes of torchrun wait for this one: all have to end
                raise
            logger.exception("%s failed", settings.label)
            failed.append(settings.seed)
        meter.tick(settings, record, trained)
    return failed


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
        from increlora.training.run import discard_checkpoint, run

        logger.debug("%s: training (digest %s)", settings.label, settings.digest)
        _need_backbone(settings.backbone, progress=progress)
        ranks = source_ranks(settings, ranks_from)
        tensorboard = os.environ.get("INCRELORA_TENSORBOARD")
        record = portable(run(settings, ranks=ranks, progress=progress, tensorboard=tensorboard))
        if _is_first_process():
            store.put(record)
            discard_checkpoint(settings)
        return record, True


def _need_backbone(backbone: Backbone, *, progress: bool) -> None:
    """Make sure that a backbone of the package's own is there and whole: pretrain it, or pretrain it again."""
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
    """A local folder is taken for a copy of what the Hub has under the same name; here it is held to that."""
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

    return load_task(task, **data.model_dump()).fingerprint


def _is_first_process() -> bool:
    """Under ``torchrun`` every process trains, and one writes."""
    return os.environ.get("RANK", "0") == "0"


def source_ranks(settings: RunSettings, path: str | Path | None) -> dict[str, int] | None:
    """Final rank of every module in the record that a run starts from; None if it starts from none.

    Raises:
        ConfigError: if that record is missing or is not the one that the settings mean.
    """
    if settings.ranks_from is None:
        return None
    if path is None:
        raise ConfigError("ranks_from", f"{settings.label} needs the record of a {settings.ranks_from.method!r} run")
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

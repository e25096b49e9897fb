"""One job of the workflow: the runs of one cell, seed after seed in one process.

A run that is already finished comes from the store. A run that fails is reported and the other seeds still run, so that
starting the job again has only the failed ones left to do.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from increlora.errors import ConfigError, IncreLoraError
from increlora.training.settings import Data, RunSettings
from increlora.training.store import Record, RecordError, Store, read_record, write_record

log = logging.getLogger(__name__)


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
        best = record["score"].get("best") if record else None
        score = f"{best['score']:.2f}" if best else "no score"
        left = (time.monotonic() - self.started) / max(1, self.trained) * (self.total - self.done)
        log.info("%d of %d  %s  %s  %s left", self.done, self.total, settings.label, score, _duration(left))


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
        except (IncreLoraError, RecordError) as error:
            log.error("%s failed: %s", settings.label, error)
            failed.append(settings.seed)
        except Exception:
            if "RANK" in os.environ:  # the other processes of torchrun wait for this one: all have to end
                raise
            log.exception("%s failed", settings.label)
            failed.append(settings.seed)
        meter.tick(settings, record, trained)
    return failed


def finish(
    settings: RunSettings, ranks_from: str | Path | None = None, *, progress: bool = True
) -> tuple[Record, bool]:
    """The record of a run, and whether it was trained now; otherwise it comes from the store.

    A record just trained goes to the store first; only then is the run's checkpoint deleted.

    Raises:
        ConfigError: the finished run was made from another content of a local folder.
    """
    store = Store()
    record = store.restore(settings)
    if record is not None:
        _check_content(settings, record)
        log.debug("%s: restored from %s", settings.label, store.path(settings.digest))
        return portable(record), False
    from increlora.training.run import discard_checkpoint, run

    log.debug("%s: training (digest %s)", settings.label, settings.digest)
    ranks = source_ranks(settings, ranks_from)
    tensorboard = os.environ.get("INCRELORA_TENSORBOARD")
    record = portable(run(settings, ranks=ranks, progress=progress, tensorboard=tensorboard))
    if _is_first_process():
        store.put(record)
        discard_checkpoint(settings)
    return record, True


def _check_content(settings: RunSettings, record: Record) -> None:
    """A local folder is taken for a copy of what the Hub has under the same name; here it is held to that."""
    found = record.get("provenance", {})
    if settings.data.source == "local":
        _same("data", settings.data.path, found.get("data"), _data_fingerprint(settings.task, settings.data))
    if settings.backbone.path is not None and settings.backbone.pretrain is None:
        from increlora.training.backbone import fingerprint

        _same("backbone", settings.backbone.path, found.get("backbone"), fingerprint(settings.backbone))


def _same(block: str, path: str | None, recorded: Mapping[str, Any] | None, now: str | None) -> None:
    if recorded and recorded.get("fingerprint") not in (None, now):
        raise ConfigError(
            f"{block}.path",
            f"{path} is not what the finished run of these settings used (fingerprint {now}, recorded "
            f"{recorded['fingerprint']}); give it a `{block}.name` of its own",
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
    if record["run"]["digest"] != settings.ranks_source:
        raise ConfigError(
            "ranks_from",
            f"{path} is a run with digest {record['run']['digest']}, but {settings.label} starts from "
            f"{settings.ranks_source}: train {settings.ranks_from.method!r} again with the present settings",
        )
    if not record.get("allocation"):
        raise ConfigError("ranks_from", f"{path} allocated no ranks (status {record['run'].get('status')!r})")
    return dict(record["allocation"]["ranks"])


def portable(record: Mapping[str, Any]) -> Record:
    """A record without absolute paths of the machine it was made on; paths are no part of the digest."""
    settings = dict(record["run"]["settings"])
    for block in ("backbone", "data"):
        path = settings[block].get("path")
        if path and Path(path).is_absolute():
            settings[block] = {**settings[block], "path": Path(path).name}
    return {**record, "run": {**record["run"], "settings": settings}}

"""Checks after training: whether the records on disk are those of the runs that a study wants."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from increlora.glue.data import Data
from increlora.study.config import Study
from increlora.study.settings import all_runs
from increlora.training.record import Record, State, state
from increlora.training.settings import RunSettings

if TYPE_CHECKING:
    from increlora.glue.loading import TaskData


class Finding(NamedTuple):
    """What was found about one run."""

    settings: RunSettings
    path: Path
    state: State


def verify(study: Study, records_root: str | Path) -> list[Finding]:
    """One finding for every run of the study.

    The runs of a study have to have seen the same model and, on a task, the same data. A Hub repository can move on
    under its name between two runs: those that saw another commit or content than most are `stale`, and so are those on
    the built-in corpus whose data or labels are not what it generates.
    """
    paths = ((settings, settings.record_path(records_root)) for settings in all_runs(study))
    findings = [Finding(settings, path, state(settings, path)) for settings, path in paths]
    seen: dict[str, Counter[str]] = {}
    for finding in findings:
        for field, value in _origins(finding.state.record):
            seen.setdefault(field, Counter())[value] += 1
    common = {field: values.most_common(1)[0][0] for field, values in seen.items()}
    return [_held_to(common, finding) for finding in findings]


def _held_to(common: dict[str, str], finding: Finding) -> Finding:
    if finding.state.status != "ok":
        return finding
    for field, value in _origins(finding.state.record):
        if value != common[field]:
            told = f"provenance.{field.partition(' ')[0]} is {value}; most runs have {common[field]}"
            return _stale(finding, told)
    unlike = _unlike_corpus(finding.settings, finding.state.record) if finding.state.record else None
    return _stale(finding, unlike) if unlike else finding


def _stale(finding: Finding, told: str) -> Finding:
    return finding._replace(state=finding.state._replace(status="stale", detail=told))


def _unlike_corpus(settings: RunSettings, record: Record) -> str | None:
    """How a record on the built-in corpus contradicts the corpus; None if it does not."""
    if settings.data.source != "builtin":
        return None
    corpus = _corpus(settings.task, settings.data)
    if (seen := record.provenance.data.fingerprint) != corpus.fingerprint:
        return f"provenance.data.fingerprint is {seen}; the corpus has {corpus.fingerprint}"
    for field, parts in (("labels", corpus.evaluation), ("test_labels", corpus.test)):
        recorded = {split: list(values[0]) for split, values in getattr(record.score, field).items()}
        if recorded and recorded != {split: examples.labels for split, examples in parts.items()}:
            return f"score.{field} are not the labels of the corpus"
    return None


@functools.cache
def _corpus(task: str, data: Data) -> TaskData:
    """The examples of one task in one draw."""
    from increlora.glue.loading import load_task

    return load_task(task, data)


def _origins(record: Record | None) -> Iterator[tuple[str, str]]:
    """The origins that all runs of a study have to share; draws of the built-in corpus differ and are left out."""
    if record is None:
        return
    backbone, data, task = record.provenance.backbone, record.provenance.data, record.run.task
    found: dict[str, str | None] = {
        "backbone.revision": backbone.revision,
        "backbone.fingerprint": backbone.fingerprint,
    }
    if data.source != "builtin":
        found |= {f"data.revision of {task}": data.revision, f"data.fingerprint of {task}": data.fingerprint}
    yield from ((field, value) for field, value in found.items() if value is not None)


def unexpected(study: Study, records_root: str | Path) -> list[Path]:
    """Records in the study's folder that are not those of any of its runs."""
    wanted = {settings.record_path(records_root) for settings in all_runs(study)}
    return [path for path in sorted((Path(records_root) / study.study).rglob("seed*.json")) if path not in wanted]

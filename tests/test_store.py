"""Finished runs by digest: written whole, restored under the names of whoever asks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from increlora.errors import ConfigError
from increlora.study.config import load_study
from increlora.training import job
from increlora.training.settings import RunSettings
from increlora.training.store import RecordError, Store, read_record, write_record
from tests.study_helpers import SMOKE, fake_record


@pytest.fixture
def settings() -> RunSettings:
    return load_study(SMOKE).settings("rte", "increlora", 2, 0)


def test_round_trip(tmp_path: Path, settings: RunSettings) -> None:
    store = Store(tmp_path)
    assert store.get(settings.digest) is None
    store.put(fake_record(settings))
    assert store.get(settings.digest) == fake_record(settings)


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INCRELORA_STORE", raising=False)
    assert Store().root == Path(".increlora/store")
    monkeypatch.setenv("INCRELORA_STORE", "/elsewhere")
    assert Store().root == Path("/elsewhere")


def test_restored_record_carries_the_names_of_the_one_who_asks(tmp_path: Path, settings: RunSettings) -> None:
    Store(tmp_path).put(fake_record(settings))
    asking = settings.model_copy(update={"study": "other", "method": "renamed"})
    restored = Store(tmp_path).restore(asking)
    assert restored is not None
    assert restored["run"]["study"] == "other"
    assert restored["run"]["method"] == "renamed"
    assert restored["run"]["settings"] == asking.model_dump(mode="json")
    assert restored["run"]["digest"] == asking.digest


def test_a_crash_leaves_the_old_record_and_no_rest(
    tmp_path: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seed0.json"
    write_record(path, {"run": 1})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_record(path, {"run": 2})
    assert json.loads(path.read_text()) == {"run": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path / "seed0.json", {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def test_adopts_consistent_records_only(
    tmp_path: Path, settings: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    good, edited = fake_record(settings), fake_record(settings.model_copy(update={"seed": 1}))
    edited["run"]["settings"]["training"]["learning_rate"] = 1.0
    write_record(tmp_path / "runs" / "seed0.json", good)
    write_record(tmp_path / "runs" / "seed1.json", edited)
    (tmp_path / "runs" / "seed2.json").write_text("{")
    store = Store(tmp_path / "store")
    assert store.adopt(tmp_path / "runs") == 1
    assert store.adopt(tmp_path / "runs") == 0
    assert store.get(settings.digest) == good
    assert "seed1.json: its digest is" in caplog.text
    assert "seed2.json: not a record" in caplog.text
    with pytest.raises(RecordError):
        read_record(tmp_path / "runs" / "seed1.json")


def test_a_broken_entry_counts_as_none(tmp_path: Path, settings: RunSettings) -> None:
    store = Store(tmp_path)
    store.put(fake_record(settings))
    store.path(settings.digest).write_text("{")
    assert store.restore(settings) is None


def test_ranks_come_only_from_the_run_that_was_meant(tmp_path: Path, settings: RunSettings) -> None:
    study = load_study(SMOKE)
    starting = study.settings("rte", "svd_increlora", 2, 0)
    path = tmp_path / "seed0.json"
    with pytest.raises(ConfigError, match="not a record"):
        job.source_ranks(starting, path)
    write_record(path, fake_record(settings))
    assert job.source_ranks(starting, path) == {"module": 2}
    assert job.source_ranks(settings, None) is None
    with pytest.raises(ConfigError, match="train 'increlora' again"):
        job.source_ranks(study.settings("rte", "svd_increlora", 2, 1), path)


def test_records_name_no_folder_of_this_machine(settings: RunSettings) -> None:
    record = fake_record(settings)
    record["run"]["settings"]["data"] |= {"source": "local", "path": "/home/me/glue"}
    assert job.portable(record)["run"]["settings"]["data"]["path"] == "glue"
    assert job.portable(record)["run"]["settings"]["backbone"] == record["run"]["settings"]["backbone"]

"""Finished runs by digest: written whole, restored under the names of whoever asks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from increlora.errors import ConfigError
from increlora.glue.data import Data
from increlora.study.cells import Cell
from increlora.study.load import load_study
from increlora.study.settings import run_settings
from increlora.training import job
from increlora.training.record import RecordError, read_record, write_record
from increlora.training.settings import RunSettings
from increlora.training.store import Store
from tests.study_helpers import ROOT, SMOKE, fake_record


@pytest.fixture
def settings() -> RunSettings:
    return run_settings(load_study(SMOKE), Cell("rte", "increlora", 2), 0)


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
    assert (restored.run.study, restored.run.method) == ("other", "renamed")
    assert restored.run.settings == asking
    assert restored.run.digest == asking.digest
    write_record(tmp_path / "seed0.json", restored)
    assert read_record(tmp_path / "seed0.json") == restored


def test_a_crash_leaves_the_old_record_and_no_rest(
    tmp_path: Path, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seed0.json"
    write_record(path, fake_record(settings))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_record(path, fake_record(settings, run={"status": "collapsed"}))
    assert read_record(path) == fake_record(settings)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path, settings: RunSettings) -> None:
    store = Store(tmp_path)
    store.put(fake_record(settings))
    folder = store.path(settings.digest).parent
    old, new = folder / ".0123.json.abc", folder / ".4567.json.def.tmp"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (0, 0))
    store.adopt(tmp_path / "nothing")
    assert not old.exists()
    assert new.exists(), "somebody may be writing it"


def test_a_second_trainer_of_a_run_waits_and_finds_it_finished(tmp_path: Path, settings: RunSettings) -> None:
    store, order = Store(tmp_path), []

    def second() -> None:
        with Store(tmp_path).claim(settings.digest):
            order.append("second")
            assert store.restore(settings) == fake_record(settings)

    with ThreadPoolExecutor() as pool:
        with store.claim(settings.digest):
            waiting = pool.submit(second)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.3)
            store.put(fake_record(settings))
            order.append("first")
        waiting.result(timeout=30)
    assert order == ["first", "second"]
    assert not list((tmp_path / "claims").iterdir())


HOLDING = """
import sys, time
from increlora.training.store import Store
with Store(sys.argv[1]).claim("0" * 16):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_killed_trainer_lets_the_one_go_on_that_waits(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], env=environment, stdout=subprocess.PIPE)
    with ThreadPoolExecutor() as pool, first, contextlib.ExitStack() as claims:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        waiting = pool.submit(claims.enter_context, Store(tmp_path).claim("0" * 16))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        first.kill()
        waiting.result(timeout=30)


def test_adopts_consistent_records_only(
    tmp_path: Path, settings: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    good, other = fake_record(settings), tmp_path / "runs" / "seed1.json"
    write_record(tmp_path / "runs" / "seed0.json", good)
    write_record(other, fake_record(settings.model_copy(update={"seed": 1})))
    other.write_text(other.read_text().replace('"learning_rate": 0.005', '"learning_rate": 1.0'))
    (tmp_path / "runs" / "seed2.json").write_text("{")
    store = Store(tmp_path / "store")
    assert store.adopt(tmp_path / "runs") == 1
    assert store.adopt(tmp_path / "runs") == 0
    assert store.get(settings.digest) == good
    assert "seed1.json: not a valid record: run: " in caplog.text
    assert "its digest is" in caplog.text
    assert "seed2.json: not a valid record" in caplog.text
    with pytest.raises(RecordError):
        read_record(tmp_path / "runs" / "seed1.json")


def test_a_broken_entry_counts_as_none(tmp_path: Path, settings: RunSettings) -> None:
    store = Store(tmp_path)
    store.put(fake_record(settings))
    store.path(settings.digest).write_text("{")
    assert store.restore(settings) is None


def test_ranks_come_only_from_the_run_that_was_meant(tmp_path: Path, settings: RunSettings) -> None:
    study = load_study(SMOKE)
    starting = run_settings(study, Cell("rte", "svd_increlora", 2), 0)
    path = tmp_path / "seed0.json"
    with pytest.raises(ConfigError, match="not a record"):
        job.source_ranks(starting, path)
    write_record(path, fake_record(settings))
    assert job.source_ranks(starting, path) == {"module": 2}
    assert job.source_ranks(settings, None) is None
    with pytest.raises(ConfigError, match="train 'increlora' again"):
        job.source_ranks(run_settings(study, Cell("rte", "svd_increlora", 2), 1), path)


def test_records_name_no_folder_of_this_machine(settings: RunSettings) -> None:
    local = Data(source="local", path="/home/me/glue")
    record = fake_record(settings.model_copy(update={"data": local}))
    found = job.portable(record).run
    assert found.settings.data.path == "glue"
    assert found.settings.backbone == settings.backbone
    assert found.settings.digest == found.digest

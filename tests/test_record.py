"""Records: written and read to the same bytes, held against their own settings, predictions and labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from increlora.glue.tasks import TASKS
from increlora.study.cells import Cell
from increlora.study.load import load_study
from increlora.study.settings import run_settings
from increlora.training import record as records
from increlora.training.record import Record, RecordError, is_finished, read_record, state, write_record
from increlora.training.settings import RunSettings, Training
from tests.study_helpers import ROOT, SMOKE, fake_record

COMMITTED = sorted((ROOT / "results/runs").rglob("seed*.json"))


@pytest.fixture
def settings() -> RunSettings:
    return run_settings(load_study(SMOKE), Cell("rte", "increlora", 2), 0)


def test_every_committed_record_is_valid_and_is_written_to_the_same_bytes(tmp_path: Path) -> None:
    assert len(COMMITTED) > 900
    for path in COMMITTED:
        write_record(tmp_path / "seed0.json", read_record(path))
        assert (tmp_path / "seed0.json").read_bytes() == path.read_bytes(), path


def _find(part: str) -> Path:
    return next(path for path in COMMITTED if part in path.as_posix())


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        *way, last = keys
        for key in way:
            record = record[key]
        record[last] = value

    return edit


def _better(record: dict[str, Any]) -> None:
    """An accuracy that may be, with a score that fits."""
    for entry in (record["score"]["best"], *record["score"]["history"]):
        entry["metrics"]["accuracy"] = 0.99
        entry["score"] = 99.0


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("score", "best", "metrics", "accuracy", value=99.9), "accuracy is 99.9; allowed: 0 to 1"),
        (_set("score", "last", "metrics", "accuracy", value=-0.1), "allowed: 0 to 1"),
        (_set("score", "best", "score", value=99.9), "score is 99.9, but its metrics give"),
        (_better, "accuracy is 0.99, but its predictions give"),
        (_set("score", "predictions", "best", value={"validation": [0, 1]}), "not one prediction for each"),
        (_set("score", "predictions", "best", value=None), "not one prediction for each"),
        (_set("score", "best", value=None), "missing in a run that completed"),
        (_set("run", "settings", "training", "learning_rate", value=1.0), "its digest is"),
        (_set("run", "seed", value=7), "its seed is 7, but its settings have 0"),
        (_set("run", "status", value="fine"), "run.status"),
        (_set("run", "task", value="wnli"), "its task is 'wnli'"),
        (_set("parameters", value={}), "parameters.trainable: Field required"),
        (_set("cost", "step_ms", value="fast"), "cost.step_ms"),
        (_set("cost", "colour", value="red"), "cost.colour: Extra inputs"),
    ],
)
def test_an_edited_record_is_refused(edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    record = json.loads(_find("mini/rte/increlora/8/seed0").read_text())
    edit(record)
    path = tmp_path / "seed0.json"
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_new_records_bring_their_labels(tmp_path: Path, settings: RunSettings) -> None:
    """So that scores on data that are not at hand can be recomputed, too."""
    labels = {"validation": [0, 1, 0, 0]}
    right = fake_record(settings, {"accuracy": 0.75}, score={"labels": labels})
    path = tmp_path / "seed0.json"
    write_record(path, right)
    assert read_record(path) == right
    with pytest.raises(ValidationError, match=r"accuracy is 0\.5, but its predictions give 0\.7500"):
        fake_record(settings, {"accuracy": 0.5}, score={"labels": labels})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"run": 1}'])
def test_what_is_no_record_is_said_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "seed0.json"
    path.write_text(text)
    with pytest.raises(RecordError, match="not a valid record") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecordError, match="No such file"):
        read_record(tmp_path / "seed1.json")


def test_numbers_that_json_does_not_have_are_refused(settings: RunSettings) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        fake_record(settings, cost={"step_ms": float("nan")})


def test_is_it_finished(tmp_path: Path, settings: RunSettings) -> None:
    path = tmp_path / "seed0.json"
    assert (state(settings, path).status, is_finished(settings, path)) == ("missing", False)
    write_record(path, fake_record(settings))
    assert (state(settings, path).status, is_finished(settings, path)) == ("ok", True)
    changed = settings.model_copy(update={"training": settings.training.model_copy(update={"batch_size": 8})})
    assert state(changed, path)[:2] == ("stale", "training.batch_size: 16 -> 8")
    later = settings.model_copy(update={"protocol": 2})
    assert state(later, path)[:2] == ("protocol", "protocol 1, now 2")
    assert not is_finished(changed, path)
    assert not is_finished(later, path)
    path.write_text("{")
    assert (state(settings, path).status, is_finished(settings, path)) == ("unreadable", False)


def test_a_new_protocol_of_a_method_is_one_of_its_runs_alone(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from increlora.methods import registry

    study = load_study(SMOKE)
    before = {method: run_settings(study, Cell("rte", method, 2), 0).digest for method in ("increlora", "lora")}
    monkeypatch.setitem(registry.METHODS, "lora", replace(registry.METHODS["lora"], protocol=2))
    after = {method: run_settings(study, Cell("rte", method, 2), 0).digest for method in before}
    assert after["increlora"] == before["increlora"]
    assert after["lora"] != before["lora"]


def test_the_schema_names_every_block() -> None:
    schema = records.schema()
    assert set(schema["required"]) == set(Record.model_fields)
    assert "Fractions" in json.dumps(schema)


def test_every_metric_has_a_range() -> None:
    for task in TASKS.values():
        assert all(metric.low < metric.high for metric in task.metrics.values())


@pytest.mark.parametrize("field", ["learning_rate", "epochs", "weight_decay", "max_grad_norm"])
def test_infinity_is_no_setting(field: str) -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValidationError, match=field):
            Training(**{"learning_rate": 1e-3, field: value})

"""Records: written and read to the same bytes, held against their own settings, predictions and labels."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from increlora.glue.tasks import TASKS
from increlora.study.cells import Cell
from increlora.study.load import load_study
from increlora.study.settings import run_settings
from increlora.training.record import (
    RULES,
    RecordError,
    _half,
    is_finished,
    read_record,
    state,
    write_record,
)
from increlora.training.settings import RunSettings
from tests.study_helpers import ROOT, SMOKE, fake_record


@pytest.fixture
def settings() -> RunSettings:
    return run_settings(load_study(SMOKE), Cell("rte", "increlora", 2), 0)


def of_task(task: str) -> RunSettings:
    return run_settings(load_study(SMOKE, {"tasks": {task: {}}}), Cell(task, "increlora", 2), 0)


@pytest.mark.parametrize("task", TASKS)
def test_a_record_of_any_task_is_read_as_it_was_written(task: str, tmp_path: Path) -> None:
    record = fake_record(of_task(task), [70.1, 69.0], test=71.3, test_last=68.0)
    path = tmp_path / "seed0.json"
    write_record(path, record)
    assert read_record(path) == record
    shown = [record.shown("best"), record.shown("last"), record.shown("test")]
    assert [TASKS[task].score(metrics) for metrics in shown if metrics] == pytest.approx([70.1, 69.0, 71.3], abs=0.11)


# -- what is shown --------------------------------------------------------------------------------------------------


def by_halves(split: str, rows: int, right: list[tuple[int, int]]) -> list[dict[str, list[float]]]:
    """Predictions of 0 and 1, the label being 1: as many right ones in either half as asked for, one pair a time."""
    evaluations = []
    for counts in right:
        guess = [0.0] * rows
        for which, count in enumerate(counts):
            for row in _half("rte", split, rows, which)[:count]:
                guess[row] = 1
        evaluations.append({split: guess})
    return evaluations


def test_crossfit_chooses_on_one_half_and_shows_the_other(settings: RunSettings) -> None:
    """Right of 10 in either half: (9, 2), (4, 8), (7, 7). The first half chooses the first, which has 2 on the second;
    the second half chooses the second, which has 4 on the first: (0.2 + 0.4) / 2. `best` takes the third, 14 of 20."""
    labels = {"validation": [1] * 20}
    record = fake_record(settings, by_halves("validation", 20, [(9, 2), (4, 8), (7, 7)]), labels=labels)
    assert record.shown("crossfit") == {"accuracy": pytest.approx(0.3)}
    assert record.shown("best") == record.shown("last") == {"accuracy": pytest.approx(0.7)}
    assert record.score.best_step == 30
    assert record.shown("test") is None


def test_crossfit_takes_the_first_of_equals(settings: RunSettings) -> None:
    labels = {"validation": [1] * 20}
    record = fake_record(settings, by_halves("validation", 20, [(8, 1), (8, 9), (0, 9)]), labels=labels)
    assert record.shown("crossfit") == {"accuracy": pytest.approx((0.1 + 0.8) / 2)}


def test_crossfit_cuts_each_of_mnlis_splits_and_chooses_by_their_mean() -> None:
    task, rows = TASKS["mnli"], 20
    first, second = task.eval_splits
    halves = {split: [_half("mnli", split, rows, which) for which in (0, 1)] for split in (first, second)}

    def evaluation(right: dict[str, tuple[int, int]]) -> dict[str, list[float]]:
        guesses: dict[str, list[float]] = {split: [0] * rows for split in right}
        for split, counts in right.items():
            for which, count in enumerate(counts):
                for row in halves[split][which][:count]:
                    guesses[split][row] = 2
        return guesses

    # mean over both splits, by halves: 0.7 and 0.4, then 0.6 and 0.5
    one, other = evaluation({first: (9, 3), second: (5, 5)}), evaluation({first: (6, 2), second: (6, 8)})
    record = fake_record(of_task("mnli"), [one, other], labels={split: [2] * rows for split in (first, second)})
    assert record.shown("crossfit") == {
        "accuracy": pytest.approx((0.3 + 0.6) / 2),
        "accuracy_mm": pytest.approx((0.5 + 0.6) / 2),
    }


def test_crossfit_of_a_single_evaluation_is_the_mean_of_the_halves(settings: RunSettings) -> None:
    record = fake_record(settings, by_halves("validation", 20, [(9, 2)]), labels={"validation": [1] * 20})
    assert record.shown("crossfit") == pytest.approx(record.shown("last"))


def test_halves_are_disjoint_and_the_same_for_every_run_of_a_task() -> None:
    one, other = (_half("rte", "validation", 401, which) for which in (0, 1))
    assert sorted(one + other) == list(range(401))
    assert one[:8] == [0, 4, 5, 6, 8, 11, 14, 16], "what finished tables were made with"
    assert one != _half("sst2", "validation", 401, 0)


def test_a_run_without_an_evaluation_shows_nothing(settings: RunSettings) -> None:
    record = fake_record(settings, [], run={"status": "diverged", "reason": "loss is nan at step 1"})
    assert [record.shown(rule) for rule in RULES] == [None] * 4


# -- what is refused ------------------------------------------------------------------------------------------------


def _set(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        *way, last = keys
        place: Any = record
        for key in way:
            place = place[key]
        place[last] = value

    return edit


def _flipped(field: str, at: int = 0) -> Callable[[dict[str, Any]], None]:
    """The first number of one of the packed lists, 0 or 1, replaced by the other."""

    def edit(record: dict[str, Any]) -> None:
        packed = record["score"][field]
        lines = zlib.decompress(base64.b64decode(packed["validation"])).decode().splitlines()
        lines[at] = str(1 - int(lines[at][0])) + lines[at][1:]
        packed["validation"] = base64.b64encode(zlib.compress("\n".join(lines).encode())).decode()

    return edit


def _cut(field: str) -> Callable[[dict[str, Any]], None]:
    """A packed list without its last line."""

    def edit(record: dict[str, Any]) -> None:
        packed = record["score"][field]
        lines = zlib.decompress(base64.b64decode(packed["validation"])).decode().splitlines()
        packed["validation"] = base64.b64encode(zlib.compress("\n".join(lines[:-1]).encode())).decode()

    return edit


def _better(record: dict[str, Any]) -> None:
    """An accuracy that may be, with a score that fits."""
    record["score"]["history"][0] |= {"metrics": {"accuracy": 0.99}, "score": 99.0}


def _untested(record: dict[str, Any]) -> None:
    record["score"] |= {"test": None, "test_labels": {}, "test_predictions": {}}


FIRST = ("score", "history", 0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set(*FIRST, "metrics", "accuracy", value=99.9), r"history\[0\].metrics.accuracy is 99.9; allowed: 0 to 1"),
        (
            _set(*FIRST, "metrics", value={"accuracy": 0.7, "f1": 0.9}),
            r"score.history\[0\].metrics has accuracy, f1, not accu",
        ),
        (_set(*FIRST, "metrics", value={}), r"score.history\[0\].metrics has nothing, not accuracy"),
        (_set(*FIRST, "score", value=99.9), r"score.history\[0\].score is 99.9, but its metrics give 70.1"),
        (_set(*FIRST, "penalty", value=-0.1), "score.history.0.penalty: Input should be greater than or equal to 0"),
        (_set(*FIRST, "penalty", value="none"), "score.history.0.penalty"),
        (_better, r"score.history\[0\].metrics.accuracy is 0.99, but its predictions give 0.701"),
        (_set("score", "test", "best", "accuracy", value=1.2), "score.test.best.accuracy is 1.2; allowed: 0 to 1"),
        (_set("score", "test", "last", "accuracy", value=0.9), "score.test.last.accuracy is 0.9, but its predictions"),
        (_set("score", "best_step", value=20), "score.best_step is 20, but the best evaluation is that of step 10"),
        (_set("score", "best_step", value=None), "score.best_step is None"),
        (_set("score", "baseline", value=40.0), "score.baseline is 40.0, but its labels give 50.0"),
        (_flipped("predictions"), r"score.history\[0\].metrics.accuracy is 0.701, but its predictions give 0.700"),
        (_flipped("predictions", 1), r"score.history\[1\].metrics.accuracy"),
        (_flipped("labels"), r"score.history\[0\].metrics.accuracy"),
        (_flipped("test_predictions"), "score.test.best.accuracy"),
        (_flipped("test_predictions", 1), "score.test.last.accuracy"),
        (_flipped("test_labels"), "score.test.best.accuracy"),
        (_cut("predictions"), "score.predictions has not one prediction for each of the 1000 examples of validation"),
        (_cut("test_predictions"), "score.test_predictions has not one prediction for each of the 1000 examples of t"),
        (_cut("labels"), "score.labels has not one label for each of the 1000 examples of validation"),
        (_set("score", "labels", value={}), "score.labels has not one label"),
        (_set("score", "predictions", "validation", value="no base64"), "score.predictions.validation: .*is damaged"),
        (_set("score", "labels", "validation", value="bm8gemxpYg=="), "score.labels.validation: .*is damaged"),
        (_set("score", "history", value=[]), "score.history is empty in a run that completed"),
        (_untested, "score.test is missing, but its data have test"),
        (_set("provenance", "data", "rows", "test", value=999), "each of the 999 examples of test"),
        (_set("run", "settings", "training", "learning_rate", value=1.0), "its digest is"),
        (_set("run", "seed", value=7), "its seed is 7, but its settings have 0"),
        (_set("run", "status", value="fine"), "run.status"),
        (_set("run", "task", value="wnli"), "its task is 'wnli'"),
        (_set("parameters", value={}), "parameters.trainable: Field required"),
        (_set("cost", "step_ms", value="fast"), "cost.step_ms"),
        (_set("cost", "colour", value="red"), "cost.colour: Extra inputs"),
    ],
)
def test_an_edited_record_is_refused(
    edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path, settings: RunSettings
) -> None:
    path = tmp_path / "seed0.json"
    write_record(path, fake_record(settings, [70.1, 69.0], test=71.3, test_last=68.0))
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_packed_numbers_are_not_shortened_unseen(settings: RunSettings, tmp_path: Path) -> None:
    """A character of the compressed text lost or changed: every such damage is found."""
    path = tmp_path / "seed0.json"
    write_record(path, fake_record(settings, [70.1, 69.0]))
    text = path.read_text()
    packed = json.loads(text)["score"]["predictions"]["validation"]
    for at in range(0, len(packed) - 2, 7):
        other = "A" if packed[at] != "A" else "B"
        path.write_text(text.replace(packed, packed[:at] + other + packed[at + 1 :]))
        with pytest.raises(RecordError, match=r"validation|metrics"):
            read_record(path)


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
    later = settings.model_copy(update={"protocol": settings.protocol + 1})
    assert state(later, path)[:2] == ("protocol", f"protocol {settings.protocol}, now {later.protocol}")
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


def test_the_commit_is_that_of_this_package_and_not_of_a_project_around_it(tmp_path: Path) -> None:
    """As where it is installed in an environment inside of somebody's repository."""
    installed = tmp_path / ".venv/increlora"
    shutil.copytree(ROOT / "increlora", installed, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".gitignore").write_text(".venv\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "mine"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    script = "from increlora.training.provenance import commit; print(*commit())"
    environment = {**os.environ, "PYTHONPATH": str(installed.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "None None\n"

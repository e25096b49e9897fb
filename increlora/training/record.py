"""The record of one run: its model, how it is written and read, and whether it is the one that a study wants.

Reading recomputes what can be recomputed: the digest from the settings, and the scores from predictions and labels. So
a record that was edited or damaged is refused everywhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from increlora.errors import IncreLoraError
from increlora.glue.tasks import TASKS, Task
from increlora.training.settings import Data, RunSettings

TOLERANCE = 1e-4
"""How far a stored metric may be from the recomputed one; STS-B's were once computed in float32."""

_LATER = (
    (("score",), "labels"),
    (("provenance", "data"), "revision"),
    (("provenance", "backbone"), "revision"),
    (("run", "settings", "data"), "revision"),
)
"""Fields that the first records did not have. Unset they are not written, so that a restored record is its old file."""

ABANDONED_SECONDS = 600.0
"""Age at which a temporary file counts as left by a writer that was killed."""

Predictions = dict[str, list[int | float]]
"""Class index or score of every example, by evaluation split."""
Status = Literal["completed", "collapsed", "diverged"]


class RecordError(IncreLoraError, ValueError):
    """A file is not a whole, self-consistent record; the message says why."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Run(_Block):
    """Which run it was."""

    study: str
    task: str
    method: str
    kind: str
    budget: int | None
    seed: int
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]
    protocol: int
    status: Status
    """`collapsed`: the shown checkpoint predicts one answer for every example; `diverged`: loss or predictions were not
    finite."""
    reason: str | None
    settings: RunSettings

    @model_validator(mode="after")
    def _is_the_run_of_its_settings(self) -> Run:
        if self.settings.digest != self.digest:
            raise ValueError(f"its digest is {self.digest}, but its settings have {self.settings.digest}")
        for name in ("study", "task", "method", "kind", "budget", "seed", "protocol"):
            if getattr(self, name) != getattr(self.settings, name):
                given, own = getattr(self, name), getattr(self.settings, name)
                raise ValueError(f"its {name} is {given!r}, but its settings have {own!r}")
        return self


class Evaluation(_Block):
    """What one evaluation found."""

    step: int
    epoch: float
    train_loss: float | None
    """Mean since the evaluation before."""
    score: float
    """The task's single number, in percent."""
    metrics: dict[str, float]
    """Fractions, by the keys of `Task.metrics`."""
    total_rank: int | None
    trainable: int


class Checkpoints(_Block):
    """Predictions of two checkpoints."""

    best: Predictions | None
    last: Predictions | None


class Score(_Block):
    """How good it was on the development splits."""

    best: Evaluation | None
    """The evaluation with the best score."""
    last: Evaluation | None
    """The evaluation at the last step."""
    baseline: float
    """Score of the best constant prediction, in percent."""
    history: list[Evaluation]
    predictions: Checkpoints
    labels: Predictions | None = None
    """Gold labels; older records have none."""


class Parameters(_Block):
    """How many parameters train."""

    trainable: int
    """At the end, without the head, except for full fine-tuning."""
    head: int
    total: int
    budget: int
    """At the nominal budget."""
    deviation: float | None
    """``trainable / budget - 1``."""


class Cost(_Block):
    """What the run cost."""

    wall_seconds: float
    train_seconds: float
    step_ms: float | None
    """Median time of an optimizer step."""
    peak_memory_mb: float | None
    optimizer_state: int
    """The most floating-point values that the optimizer held."""
    peak_trainable: int
    """The most parameters that received a gradient."""
    device: str
    threads: int
    processes: int
    steps: int
    examples: int


class Event(_Block):
    """A change of ranks."""

    step: int
    grown: dict[str, int]
    """Ranks gained by module, negative where they were cut."""
    total_rank: int


class Ranks(_Block):
    """Rank of every module after a step, in the order of `Allocation.modules`."""

    step: int
    ranks: list[int]


class Orthogonality(_Block):
    """Means over modules of ||A A^T - I||_F^2 and ||B^T B - I||_F^2 (Figure 5)."""

    step: int
    A: float
    B: float


class Allocation(_Block):
    """How ranks were allocated."""

    events: list[Event]
    ranks: dict[str, int]
    total_rank: int
    budget_rank: int
    modules: list[str]
    growth: list[Ranks]
    orthogonality: list[Orthogonality]


class DataOrigin(_Block):
    """The data that were used."""

    source: str
    revision: str | None = None
    """Commit of the Hub data set."""
    fingerprint: str
    """Of the content, `increlora.glue.loading`."""
    rows: dict[str, int]
    """Examples by split."""


class BackboneOrigin(_Block):
    """The pretrained model that was used."""

    name: str
    revision: str | None = None
    """Commit of the Hub repository."""
    fingerprint: str | None
    """Of the weights that were loaded; of the Hub's, older records have none."""


class Provenance(_Block):
    """Where the record comes from."""

    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    """Whether code or configuration differed from the commit."""
    data: DataOrigin
    backbone: BackboneOrigin
    started: str
    finished: str


class Record(_Block):
    """Everything one run leaves. Scores are in percent, metrics are fractions."""

    run: Run
    score: Score
    parameters: Parameters
    cost: Cost
    allocation: Allocation | None
    """None for methods that allocate no ranks and start from none."""
    provenance: Provenance

    @model_validator(mode="after")
    def _scores_are_those_of_the_predictions(self) -> Record:
        task = TASKS.get(self.run.task)
        if task is None:
            raise ValueError(f"its task {self.run.task!r} is unknown; allowed: {', '.join(TASKS)}")
        for number, entry in enumerate(self.score.history):
            _check_ranges(task, entry, f"score.history[{number}]")
        for name in ("best", "last"):
            entry, predictions = getattr(self.score, name), getattr(self.score.predictions, name)
            if entry is not None:
                _check_ranges(task, entry, f"score.{name}")
                self._check_predictions(task, entry, predictions, f"score.{name}")
            elif self.run.status != "diverged":
                raise ValueError(f"score.{name} is missing in a run that {self.run.status}")
        return self

    def _check_predictions(self, task: Task, entry: Evaluation, predictions: Predictions | None, field: str) -> None:
        rows = {split: self.provenance.data.rows.get(split) for split in task.eval_splits}
        if {split: len(values) for split, values in (predictions or {}).items()} != rows:
            raise ValueError(f"{field} has not one prediction for each of its {rows} examples")
        labels = self.labels()
        if labels is None or predictions is None:
            return
        from increlora.glue.metrics import recompute

        for key, value in recompute(task.name, predictions, labels).items():
            if abs(value - entry.metrics[key]) > TOLERANCE:
                raise ValueError(f"{field}.metrics.{key} is {entry.metrics[key]}, but its predictions give {value:.4f}")

    def labels(self) -> Predictions | None:
        """The gold labels of the evaluation splits: stored, or generated again; None if they are not at hand."""
        if self.score.labels is not None:
            return self.score.labels
        settings, origin = self.run.settings, self.provenance.data
        if settings.data.source != "builtin":
            return None
        fingerprint, labels = _builtin(settings.task, settings.data)
        return labels if fingerprint == origin.fingerprint else None


def _check_ranges(task: Task, entry: Evaluation, field: str) -> None:
    for key, metric in task.metrics.items():
        value = entry.metrics.get(key)
        if value is None or not metric.low <= value <= metric.high:
            raise ValueError(f"{field}.metrics.{key} is {value}; allowed: {metric.low:g} to {metric.high:g}")
    expected = task.score(entry.metrics)
    if not math.isclose(entry.score, expected, abs_tol=100 * TOLERANCE):
        raise ValueError(f"{field}.score is {entry.score}, but its metrics give {expected:.4f}")


@functools.cache
def _builtin(task: str, data: Data) -> tuple[str, Predictions]:
    """Fingerprint and evaluation labels of the built-in corpus."""
    from increlora.glue.loading import load_task

    found = load_task(task, **data.model_dump())
    return found.fingerprint, {split: examples.labels for split, examples in found.evaluation.items()}


# -- files ----------------------------------------------------------------------------------------------------------


def write_record(path: str | Path, record: Record) -> None:
    """Write a record whole or not at all: to a temporary file beside it, synced to disk, then renamed.

    Each block of the record is one line, so that a difference between two records shows which block it is in.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    content = record.model_dump(mode="json")
    for path_to, name in _LATER:
        block = functools.reduce(lambda block, key: block[key], path_to, content)
        if block[name] is None:
            del block[name]
    blocks = (f"{json.dumps(name)}: {json.dumps(block, allow_nan=False)}" for name, block in content.items())
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("{\n" + ",\n".join(blocks) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Delete the temporary files of writers that were killed."""
    for temporary in folder.glob(".*.json.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS:
                temporary.unlink()


def read_record(path: str | Path) -> Record:
    """Read a record and hold it against its own settings, predictions and labels.

    Raises:
        RecordError: names the field that is missing, damaged or edited.
    """
    try:
        return Record.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        raise RecordError(f"not a valid record: {_first(error)}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"not a record: {str(error).splitlines()[0]} ({type(error).__name__})") from None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")


def schema() -> dict[str, Any]:
    """JSON schema of a record."""
    return Record.model_json_schema(mode="serialization")


# -- is it finished? ------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What the file of a run's record holds."""

    status: Literal["ok", "stale", "missing", "unreadable", "protocol"]
    """`ok`: the run is finished; `stale`: made with other settings; `missing`; `unreadable`: no valid record;
    `protocol`: made when the same settings meant something else."""
    detail: str = ""
    record: Record | None = None


def state(settings: RunSettings, path: str | Path) -> State:
    """Whether a run is finished: whether this file is a valid record, and that of these settings."""
    if not Path(path).exists():
        return State("missing")
    try:
        record = read_record(path)
    except RecordError as error:
        return State("unreadable", str(error))
    if record.run.protocol != settings.protocol:
        return State("protocol", f"protocol {record.run.protocol}, now {settings.protocol}", record)
    if record.run.digest != settings.digest:
        return State("stale", "; ".join(differences(record.run.settings, settings)), record)
    return State("ok", record=record)


def is_finished(settings: RunSettings, path: str | Path) -> bool:
    """Whether this file is the record of these settings, by its digest alone: the quick answer, for the workflow."""
    return digest_of(path) == settings.digest


def digest_of(path: str | Path) -> str | None:
    """The digest in a record's file, the rest unchecked; None if there is none."""
    try:
        return str(json.loads(Path(path).read_bytes())["run"]["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def differences(recorded: RunSettings, wanted: RunSettings) -> list[str]:
    """The fields in which two settings differ, as ``field: recorded -> wanted``; names and local paths do not count."""
    old, new = (dict(_flat(settings.model_dump(mode="json"))) for settings in (recorded, wanted))
    ignored = {"study", "method", "backbone.path", "data.path"}
    return [
        f"{field}: {old.get(field, 'unset')!r} -> {new.get(field, 'unset')!r}"
        for field in {**old, **new}
        if field not in ignored and old.get(field, ...) != new.get(field, ...)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

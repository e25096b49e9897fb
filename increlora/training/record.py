"""The record of one run: its model, how it is written and read, and whether it is the one that a study wants.

Reading recomputes what can be recomputed: the digest from the settings, and the scores from predictions and labels. So
a record that was edited or damaged is refused everywhere.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from increlora.errors import IncreLoraError
from increlora.files import is_abandoned, whole_file
from increlora.glue.tasks import TASKS, Task
from increlora.model import Block
from increlora.training.settings import RunSettings

TOLERANCE = 1e-4
"""How far a stored metric may be from the recomputed one: another version of NumPy or SciPy may round differently."""

Rule = Literal["crossfit", "test", "best", "last"]
"""Which number of a run is shown, see `Record.shown`."""
RULES: tuple[Rule, ...] = get_args(Rule)
Status = Literal["completed", "collapsed", "diverged"]


class RecordError(IncreLoraError, ValueError):
    """A file is not a whole, self-consistent record; the message says why."""


class _Block(BaseModel):
    model_config = Block.model_config


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
    """`collapsed`: the best development checkpoint predicts one answer for every example; `diverged`: loss or
    predictions were not finite."""
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


def _unpacked(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        lines = zlib.decompress(base64.b64decode(given, validate=True)).decode("ascii").splitlines()
    except (ValueError, zlib.error):
        raise ValueError("is damaged: no base64 of compressed numbers") from None
    return [json.loads(f"[{line}]") for line in lines]


def _packed(values: Sequence[Sequence[float]]) -> str:
    lines = "\n".join(json.dumps(one)[1:-1].replace(" ", "") for one in map(list, values))
    return base64.b64encode(zlib.compress(lines.encode("ascii"), 9)).decode("ascii")


Packed = Annotated[tuple[tuple[int | float, ...], ...], BeforeValidator(_unpacked), PlainSerializer(_packed)]
"""Class indices or scores, one tuple per evaluation: as JSON the base64 of their compressed lines of numbers."""


class Evaluation(_Block):
    """What one evaluation on the development splits found."""

    step: int
    epoch: float
    train_loss: float | None
    """Mean since the evaluation before."""
    penalty: float | None = Field(ge=0)
    """The weighted regulariser at this step; None for methods without one."""
    score: float
    """The task's single number, in percent."""
    metrics: dict[str, float]
    """Fractions, by the keys of `Task.metrics`."""
    total_rank: int | None
    trainable: int


class Test(_Block):
    """Metrics on the test splits, of two checkpoints; fractions, by the keys of `Task.metrics`."""

    best: dict[str, float]
    """Of the evaluation with the best development score."""
    last: dict[str, float]


class Score(_Block):
    """How good it was."""

    baseline: float
    """Development score of the best constant prediction, in percent."""
    best_step: int | None
    """Step of the evaluation with the best development score, the first of equals."""
    history: list[Evaluation]
    test: Test | None
    """None where the data have no labelled test splits, or nothing was evaluated."""
    labels: dict[str, Packed]
    """Gold labels by development split."""
    predictions: dict[str, Packed]
    """By development split, for every evaluation of `history`."""
    test_labels: dict[str, Packed]
    """By the development splits that the test splits belong to."""
    test_predictions: dict[str, Packed]
    """Of the two checkpoints of `test`, in that order."""

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the best development score; None if there was none."""
        return next((entry for entry in self.history if entry.step == self.best_step), None)

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation."""
        return self.history[-1] if self.history else None


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
    """All that it was trained on, in their order."""
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
    """Deviations from orthogonality after a step, as `increlora.methods.base.Orthogonality` defines them."""

    step: int
    A: float
    B: float
    A_with_reserve: float
    B_with_reserve: float
    norm: float
    norm_with_reserve: float


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
    revision: str | None
    """Commit of the Hub data set."""
    fingerprint: str
    """Of the content, `increlora.glue.loading`."""
    rows: dict[str, int]
    """Examples by split."""


class BackboneOrigin(_Block):
    """The pretrained model that was used."""

    name: str
    revision: str | None
    """Commit of the Hub repository."""
    fingerprint: str
    """Of the weights that were loaded."""


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

    def shown(self, rule: Rule) -> dict[str, float] | None:
        """The run's metrics by one rule of which checkpoint to show, as fractions by the keys of `Task.metrics`.

        - ``best``: development metrics of the evaluation with the best development score, chosen and shown on the same
          rows, as the papers do.
        - ``last``: development metrics of the last evaluation.
        - ``test``: test metrics of the evaluation with the best development score.
        - ``crossfit``: the development rows are cut into two halves, the same for every run of a task; the evaluation
          with the best score on one half shows its metrics on the other, and the other way round; their mean.

        Returns:
            None where the run has no such number.
        """
        score = self.score
        if rule == "test":
            return None if score.test is None else score.test.best
        if not score.history:
            return None
        if rule == "crossfit":
            return self._crossfit()
        entry = score.best if rule == "best" else score.last
        return None if entry is None else entry.metrics

    def _crossfit(self) -> dict[str, float]:
        from increlora.glue.metrics import recompute

        task, score = TASKS[self.run.task], self.score
        halves = []
        for half in (0, 1):
            rows = {split: _half(task.name, split, len(labels[0]), half) for split, labels in score.labels.items()}
            gold = {split: [score.labels[split][0][row] for row in chosen] for split, chosen in rows.items()}
            guesses = (
                {split: [score.predictions[split][at][row] for row in chosen] for split, chosen in rows.items()}
                for at in range(len(score.history))
            )
            halves.append([recompute(task.name, guess, gold) for guess in guesses])
        shown = [there[_first_best(task, map(task.score, here))] for here, there in (halves, halves[::-1])]
        return {key: (shown[0][key] + shown[1][key]) / 2 for key in shown[0]}

    @model_validator(mode="after")
    def _scores_are_those_of_the_predictions(self) -> Record:
        from increlora.glue.metrics import baseline

        task, score = TASKS.get(self.run.task), self.score
        if task is None:
            raise ValueError(f"its task {self.run.task!r} is unknown; allowed: {', '.join(TASKS)}")
        if not score.history and self.run.status != "diverged":
            raise ValueError(f"score.history is empty in a run that {self.run.status}")
        evaluations = {f"history[{number}].metrics": entry.metrics for number, entry in enumerate(score.history)}
        self._check(task, evaluations, "", score.labels, score.predictions, task.eval_splits)
        constant = baseline(task.name, {split: values[0] for split, values in score.labels.items()})
        if not math.isclose(score.baseline, constant, abs_tol=100 * TOLERANCE):
            raise ValueError(f"score.baseline is {score.baseline}, but its labels give {constant:.4f}")
        for number, entry in enumerate(score.history):
            if not math.isclose(entry.score, wanted := task.score(entry.metrics), abs_tol=100 * TOLERANCE):
                raise ValueError(f"score.history[{number}].score is {entry.score}, but its metrics give {wanted:.4f}")
        best = score.history[_first_best(task, (one.score for one in score.history))].step if score.history else None
        if score.best_step != best:
            raise ValueError(f"score.best_step is {score.best_step}, but the best evaluation is that of step {best}")
        if score.test is not None:
            tested = {"test.best": score.test.best, "test.last": score.test.last}
            self._check(task, tested, "test_", score.test_labels, score.test_predictions, task.test_splits)
        elif self.run.status != "diverged" and self.provenance.data.rows.keys() & set(task.test_splits):
            raise ValueError(f"score.test is missing, but its data have {', '.join(task.test_splits)}")
        return self

    def _check(
        self,
        task: Task,
        evaluations: Mapping[str, Mapping[str, float]],
        prefix: str,
        labels: Mapping[str, Packed],
        predictions: Mapping[str, Packed],
        splits: Sequence[str],
    ) -> None:
        """Check metrics against predictions and labels on development or test splits."""
        from increlora.glue.metrics import recompute

        for own, split in zip(task.eval_splits, splits, strict=True):
            rows = self.provenance.data.rows.get(split)
            if [len(values) for values in labels.get(own, ())] != [rows]:
                raise ValueError(f"score.{prefix}labels has not one label for each of the {rows} examples of {split}")
            found = [len(values) for values in predictions.get(own, ())]
            if found != [rows] * len(evaluations):
                raise ValueError(
                    f"score.{prefix}predictions has not one prediction for each of the {rows} examples of {split} "
                    f"and each of {len(evaluations)} evaluations, but {found}"
                )
        gold = {split: values[0] for split, values in labels.items()}
        for at, (field, metrics) in enumerate(evaluations.items()):
            if metrics.keys() != task.metrics.keys():
                raise ValueError(f"score.{field} has {', '.join(metrics) or 'nothing'}, not {', '.join(task.metrics)}")
            wanted = recompute(task.name, {split: values[at] for split, values in predictions.items()}, gold)
            for key, metric in task.metrics.items():
                if not metric.low <= metrics[key] <= metric.high:
                    allowed = f"{metric.low:g} to {metric.high:g}"
                    raise ValueError(f"score.{field}.{key} is {metrics[key]}; allowed: {allowed}")
                if abs(metrics[key] - wanted[key]) > TOLERANCE:
                    raise ValueError(
                        f"score.{field}.{key} is {metrics[key]}, but its predictions give {wanted[key]:.4f}"
                    )


def _first_best(task: Task, scores: Iterable[float]) -> int:
    """Position of the best score, the first of equals."""
    best, found = 0, list(scores)
    for at, score in enumerate(found):
        if task.is_better(score, found[best]):
            best = at
    return best


@functools.cache
def _half(task: str, split: str, rows: int, which: int) -> list[int]:
    """One of the two halves of a development split, the same for every run of a task."""
    order = list(range(rows))
    random.Random(f"{task}/{split}/{rows}").shuffle(order)
    return sorted(order[which::2])


# ---- Files


def as_bytes(record: Record) -> bytes:
    """A record as its file has it.

    Each block of the record is one line, so that a difference between two records shows which block it is in.
    """
    content = record.model_dump(mode="json")
    blocks = (f"{json.dumps(name)}: {json.dumps(block, allow_nan=False)}" for name, block in content.items())
    return ("{\n" + ",\n".join(blocks) + "\n}\n").encode()


def write_record(path: str | Path, record: Record) -> None:
    """Write a record, whole or not at all."""
    path = Path(path)
    sweep(path.parent)
    content = as_bytes(record)
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:  # a full disk does not say of which file
        raise OSError(error.errno, error.strerror, str(path)) from error


def sweep(folder: Path) -> None:
    """Delete the temporary files of writers that were killed."""
    for temporary in folder.glob(".*.json.*"):
        with contextlib.suppress(FileNotFoundError):
            if is_abandoned(temporary):
                temporary.unlink()


def read_record(path: str | Path) -> Record:
    """Read a record and check it against its own settings, predictions and labels.

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


# ---- Is it finished?


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

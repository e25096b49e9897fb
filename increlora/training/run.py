"""One run: settings in, one record out.

A custom loop instead of Transformers' Trainer: a run that was killed resumes bit for bit from a single file, and starts
in half the time, which is most of the cost of a study of many short runs. The loop is the same for all methods; what
differs between them is behind `increlora.methods.base.Adaptation`.

On the CPU the record's scores are a function of the settings alone, resumed or not. Under ``torchrun`` every process
takes its share of each batch and the gradients are averaged, so the effective batch stays that of the settings.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import math
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from increlora.errors import ConfigError, IncreLoraError
from increlora.glue import metrics
from increlora.methods.base import Adaptation, target_shapes
from increlora.methods.families import target_modules
from increlora.methods.ranks import transform_ranks
from increlora.methods.registry import prepare
from increlora.training import backbone as backbones
from increlora.training.batches import collate, epoch_order, evaluation_order
from increlora.training.checkpoint import Checkpoint, set_random_state
from increlora.training.data import Encoded, run_data
from increlora.training.deberta import slice_relative_positions
from increlora.training.device import ProcessGroup, autocast, device_name, device_slot
from increlora.training.interrupt import Interrupt, noting_sigterm
from increlora.training.memory import MIB, LiveTensors, resident_tensors
from increlora.training.provenance import commit, versions
from increlora.training.record import Record
from increlora.training.settings import RunSettings

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
EVALUATION_BATCH = 128
NOTED_POINTS = 30


@dataclass
class Progress:
    """What a run has gathered so far; part of its checkpoint.

    Attributes:
        step: completed optimizer steps.
        history: one entry per evaluation on the development splits.
        predictions: of every evaluation, by split.
        best: position in `history` of the best score.
        best_weights: those of that evaluation, where there is a test split to show it on.
        constant: whether every prediction of the best evaluation is the same.
        orthogonality: the step and `Adaptation.orthogonality` over training, for low-rank methods.
        losses: training losses since the last evaluation.
        seconds: training time of earlier sessions of this run.
        step_seconds: time of every optimizer step.
        peak_memory: bytes at the peak of one measured step, on devices that keep no statistics of their own.
        optimizer_state: the most floating-point values that the optimizer has kept.
        devices: those that it has been trained on, in their order.
        status: ``completed`` until proven otherwise.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    predictions: dict[str, list[list[float]]] = field(default_factory=dict)
    best: int | None = None
    best_weights: dict[str, Tensor] | None = None
    constant: bool = False
    orthogonality: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    peak_memory: int | None = None
    optimizer_state: int = 0
    devices: list[str] = field(default_factory=list)
    status: str = "completed"
    reason: str | None = None


def run(
    settings: RunSettings,
    *,
    ranks: Mapping[str, int] | None = None,
    progress: bool = True,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    tensorboard: str | Path | None = None,
) -> Record:
    """Train and evaluate; continue from a checkpoint of the same settings if there is one.

    Args:
        settings: everything that decides the result.
        ranks: final ranks of the run named by ``settings.ranks_from``.
        progress: show a bar with the time left (on a terminal only).
        checkpoint_seconds: time between two checkpoints.
        tensorboard: folder for TensorBoard event files.

    Returns:
        The record. The caller stores it and then deletes the checkpoint.

    Raises:
        IncreLoraError: settings or data are wrong; nothing was trained.
    """
    with device_slot() as device:
        return _Run(settings, ranks, device, progress, checkpoint_seconds, tensorboard).record()


class Speed(NamedTuple):
    """What a run costs on this machine."""

    step: float
    """Seconds of a training step."""
    row: float
    """Seconds of evaluating one example."""


def measure_speed(settings: RunSettings, steps: int = 10) -> Speed:
    """Time the first steps of a run and one evaluation, and leave nothing behind.

    Args:
        settings: of the run; few rows are enough, if ``max_steps`` is that of the whole run.
        steps: at most so many are timed, after three that are not.
    """
    with device_slot() as device:
        return _Run(settings, None, device, progress=False, checkpoint_seconds=math.inf, tensorboard=None).speed(steps)


class _Run:
    def __init__(
        self,
        settings: RunSettings,
        ranks: Mapping[str, int] | None,
        device: torch.device,
        progress: bool,
        checkpoint_seconds: float,
        tensorboard: str | Path | None,
    ):
        self.settings, self.device, self.show = settings, device, progress
        self.checkpoint_seconds = checkpoint_seconds
        self.started = _now()
        self.clock = time.monotonic()
        self.earlier = 0.0  # seconds of training in earlier sessions
        self.group = ProcessGroup(device)
        self.data = run_data(settings)
        self.task = self.data.source.task
        self.labels, self.test_labels = (
            {split: list(examples.labels) for split, examples in part.items()}
            for part in (self.data.source.evaluation, self.data.source.test)
        )
        self.total, self.per_epoch, _ = settings.training.steps(len(self.data.train))
        if device.type == "cuda":
            torch.cuda.init()  # else there are no statistics yet
            torch.cuda.reset_peak_memory_stats(device)
        self.source_ranks = ranks
        self.adaptation = self._adapt()
        self.checkpoint = Checkpoint(settings.digest)
        self.progress = Progress()
        self.writer = _tensorboard(tensorboard, settings) if self.group.is_first else None

    # ---- Preparation

    def _adapt(self) -> Adaptation:
        settings, ranks = self.settings, self.source_ranks
        torch.manual_seed(settings.seed)
        model = backbones.load_model(settings.backbone, self.task, settings.training.classifier_dropout)
        if settings.ranks_from is not None and ranks is not None:
            family: str = model.config.model_type  # type: ignore[union-attr,assignment]
            shapes = target_shapes(model, target_modules(family, settings.backbone.target_modules))
            ranks = transform_ranks(ranks, settings.ranks_from.transform, shapes, settings.seed)
        adaptation = prepare(
            settings.kind,
            model,
            settings.recipe(len(self.data.train)),
            budget=settings.budget,
            options=settings.options,
            target_modules=settings.backbone.target_modules,
            ranks=ranks,
        )
        slice_relative_positions(adaptation.model)
        adaptation.model.to(self.device)
        return adaptation

    # ---- Training

    def speed(self, steps: int) -> Speed:
        optimizer, scheduler = self.adaptation.optimizer()
        self._start()
        batches = list(itertools.islice(self._batches(0), 3 + steps))
        untimed = min(3, len(batches) - 1)  # the first steps allocate
        began = time.perf_counter()
        for step, rows in enumerate(batches):
            if step == untimed:
                self._wait()
                began = time.perf_counter()
            self._step(rows, optimizer, scheduler)
        self._wait()
        trained = time.perf_counter()
        self._predictions(self.data.evaluation)
        rows_evaluated = sum(map(len, self.data.evaluation.values()))
        return Speed((trained - began) / (len(batches) - untimed), (time.perf_counter() - trained) / rows_evaluated)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _start(self) -> None:
        self.adaptation.model.train()
        self.trained = [p for p in self.adaptation.model.parameters() if p.requires_grad]  # no method replaces any

    def record(self) -> Record:
        optimizer, scheduler = self._resume() or self.adaptation.optimizer()
        if self.progress.step == 0:
            torch.manual_seed(self.settings.seed + 1 + self.group.rank)
        with noting_sigterm() as interrupt:
            self._train(optimizer, scheduler, interrupt)
        if self.progress.status == "completed":
            self.adaptation.finish()
        return self._record(self._cost(optimizer), self._parameters(), self._allocation())

    def _resume(self) -> tuple[torch.optim.Optimizer, Any] | None:
        """Optimizer and scheduler of the checkpoint, all other state restored; None to start from the beginning."""
        state = self.checkpoint.load()
        if state is None:
            return None
        try:
            self.adaptation.load_state_dict(state["adaptation"])
            optimizer, scheduler = self.adaptation.optimizer()
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            progress = Progress(**state["progress"])
            set_random_state(state["random"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, IncreLoraError) as error:
            logger.warning("%s does not fit this run (%s); starting anew", self.checkpoint.path, type(error).__name__)
            self.adaptation = self._adapt()
            return None
        self.progress, self.earlier = progress, progress.seconds
        if not self.group.is_first:  # the checkpoint is the first process's; dropout has to differ
            torch.manual_seed(self.settings.seed + 1 + self.group.rank + progress.step)
        logger.info("%s: resumed at step %d of %d", self.settings.label, progress.step, self.total)
        return optimizer, scheduler

    def _save(self, optimizer: torch.optim.Optimizer, scheduler: Any, session_start: float) -> None:
        spent = self.progress.seconds + time.monotonic() - session_start
        self.checkpoint.save(
            {
                "adaptation": self.adaptation.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "progress": {**vars(self.progress), "seconds": spent},
            }
        )

    def _train(self, optimizer: torch.optim.Optimizer, scheduler: Any, interrupt: Interrupt) -> None:
        progress = self.progress
        session_start = saved = time.monotonic()
        note_every = max(1, self.total // NOTED_POINTS)
        if progress.step == 0:
            self._note_orthogonality()
        if (device := device_name(self.device)) not in progress.devices:
            progress.devices.append(device)
        self._start()
        bar = tqdm(
            total=self.total,
            initial=progress.step,
            desc=self.settings.label,
            unit="step",
            disable=None if self.show and self.group.is_first else True,
            leave=False,
        )
        for rows in self._batches(progress.step):
            loss = self._measured_step(rows, optimizer, scheduler)
            if not math.isfinite(loss):
                progress.status, progress.reason = "diverged", f"loss is {loss} at step {progress.step + 1}"
                break
            progress.losses.append(loss)
            if progress.step % note_every == 0:
                self._note_orthogonality()
                self._note_optimizer_state(optimizer)
            self._log(loss, scheduler)
            if self._evaluates_at(progress.step):
                try:
                    self._evaluate()
                except FloatingPointError as error:
                    progress.status, progress.reason = "diverged", f"{error} at step {progress.step}"
                    break
                bar.set_postfix(score=f"{progress.history[-1]['score']:.2f}", refresh=False)
            bar.update()
            due = time.monotonic() - saved >= self.checkpoint_seconds
            if self.group.is_first and (due or interrupt.has_come) and progress.step < self.total:
                self._save(optimizer, scheduler, session_start)
                saved = time.monotonic()
            if interrupt.has_come and progress.step < self.total:
                logger.warning("%s: SIGTERM at step %d of %d", self.settings.label, progress.step, self.total)
                raise SystemExit(128 + signal.SIGTERM)
        bar.close()
        progress.seconds += time.monotonic() - session_start

    def _measured_step(self, rows: list[int], optimizer: torch.optim.Optimizer, scheduler: Any) -> float:
        """One timed step; on a CPU, one step early in training (while ranks grow) is traced for its memory instead."""
        progress = self.progress
        if self.device.type == "cpu" and progress.peak_memory is None and progress.step >= self.total // 4:
            with LiveTensors(resident_tensors(self.adaptation.model, optimizer)) as tensors:
                loss = self._step(rows, optimizer, scheduler)
            progress.peak_memory = tensors.peak
            return loss
        began = time.perf_counter()
        loss = self._step(rows, optimizer, scheduler)
        progress.step_seconds.append(time.perf_counter() - began)
        return loss

    def _step(self, rows: list[int], optimizer: torch.optim.Optimizer, scheduler: Any) -> float:
        """One optimizer step, left out if the loss is not finite; returns the loss."""
        max_grad_norm, adaptation = self.settings.training.max_grad_norm, self.adaptation
        loss = self._gradients(rows)
        if math.isfinite(loss):
            if max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, max_grad_norm)
            self.progress.step += 1
            adaptation.before_step(self.progress.step)
            optimizer.step()
            scheduler.step()
            adaptation.after_step(self.progress.step)
            optimizer.zero_grad()
        return loss

    def _peak_memory_mb(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return None if self.progress.peak_memory is None else self.progress.peak_memory / MIB

    def _batches(self, done: int) -> Iterator[list[int]]:
        """Rows of the batches that are still to come."""
        training = self.settings.training
        lengths = self.data.train.lengths()
        for step in range(done, self.total):
            epoch, position = divmod(step, self.per_epoch)
            if position == 0 or step == done:
                order = epoch_order(
                    lengths, training.batch_size, self.settings.seed, epoch, grouping=training.length_grouping
                )
            yield order[position]

    def _gradients(self, rows: list[int]) -> float:
        """Accumulate the gradients of one batch; returns its loss without the method's penalty."""
        pieces = self.settings.training.gradient_accumulation
        total = 0.0
        for piece in range(pieces):
            part = rows[piece::pieces]
            share = part[self.group.rank :: self.group.size]
            weight = len(share) * self.group.size / len(rows)
            # The last batch of an epoch can have fewer rows than processes or micro-batches. An empty share runs one
            # row at weight 0, so that its penalty still counts.
            batch = self._collate(self.data.train, share or rows[:1])
            with autocast(self.device, self.settings.training.precision):
                loss = self.adaptation.model(**batch).loss * weight
                penalty = self.adaptation.penalty()
            objective = loss if penalty is None else loss + penalty / pieces
            objective.backward()
            total += float(loss.detach())
        return self.group.average_gradients(self.adaptation.model, total)

    def _collate(self, data: Encoded, rows: list[int]) -> dict[str, Tensor]:
        multiple = 8 if self.device.type == "cuda" else 1
        batch = collate(data, rows, self.data.pad_token_id, multiple)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    # ---- Evaluation

    def _evaluates_at(self, step: int) -> bool:
        every = self.settings.training.eval_steps or self.per_epoch
        return step == self.total or step % every == 0

    @torch.no_grad()
    def _predict(self, data: Encoded) -> list[float]:
        """A class index or a score per example, in the order of the data.

        Raises:
            FloatingPointError: the model computes NaN or infinity.
        """
        predictions: list[float] = [0.0] * len(data)
        for rows in evaluation_order(data.lengths(), EVALUATION_BATCH):
            batch = self._collate(data, rows)
            batch.pop("labels")
            with autocast(self.device, self.settings.training.precision):
                logits = self.adaptation.model(**batch).logits.float()
            if not logits.isfinite().all():
                raise FloatingPointError("predictions are not finite")
            values = logits.squeeze(-1) if self.task.is_regression else logits.argmax(-1)
            for row, value in zip(rows, values.tolist(), strict=True):
                predictions[row] = round(value, 4) if self.task.is_regression else value
        return predictions

    def _evaluate(self) -> None:
        """Score the current weights on every development split, and keep the best ones for the test splits."""
        task, progress, adaptation = self.task, self.progress, self.adaptation
        predictions = self._predictions(self.data.evaluation)
        values = metrics.compute(task.name, predictions, self.labels)
        ranks, score = adaptation.ranks(), task.score(values)
        entry = {
            "step": progress.step,
            "epoch": round(progress.step / self.per_epoch, 4),
            "train_loss": statistics.fmean(progress.losses) if progress.losses else None,
            "penalty": adaptation.regularisation(),
            "score": score,
            "metrics": values,
            "total_rank": sum(ranks.values()) if ranks is not None else None,
            "trainable": adaptation.parameters().trainable,
        }
        progress.losses = []
        progress.history.append(entry)
        for split, guess in predictions.items():
            progress.predictions.setdefault(split, []).append(guess)
        if progress.best is None or task.is_better(score, progress.history[progress.best]["score"]):
            progress.best = len(progress.history) - 1
            progress.constant = all(len(set(guess)) == 1 for guess in predictions.values())
            progress.best_weights = adaptation.weights() if self.data.test else None
        if self.writer is not None:
            self.writer.add_scalar("evaluation/score", score, progress.step)

    def _predictions(self, splits: Mapping[str, Encoded]) -> dict[str, list[float]]:
        self.adaptation.model.eval()
        predictions = {split: self._predict(data) for split, data in splits.items()}
        self.adaptation.model.train()
        return predictions

    def _tested(self) -> dict[str, Any]:
        """Metrics, labels and predictions of the best and the last weights on the test splits; leaves the best ones."""
        progress, labels = self.progress, {split: [gold] for split, gold in self.test_labels.items()}
        if progress.best_weights is None or progress.status == "diverged":
            return {"test": None, "test_labels": {}, "test_predictions": {}}
        last = self._predictions(self.data.test)
        best = last
        if progress.best != len(progress.history) - 1:
            self.adaptation.load_weights(progress.best_weights)
            best = self._predictions(self.data.test)
        of = {"best": best, "last": last}
        return {
            "test": {name: metrics.compute(self.task.name, guess, self.test_labels) for name, guess in of.items()},
            "test_labels": labels,
            "test_predictions": {split: [best[split], last[split]] for split in self.data.test},
        }

    def _note_orthogonality(self) -> None:
        """Record the curves of Figure 5 for methods that have such factors."""
        values = self.adaptation.orthogonality()
        if values is not None and all(map(math.isfinite, values)):  # squares overflow long before the loss does
            self.progress.orthogonality.append({"step": self.progress.step, **values._asdict()})

    def _note_optimizer_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Keep the largest size of the optimizer's state: a growing method ends with less than it had."""
        values = (value for state in optimizer.state.values() for name, value in state.items() if name != "step")
        now = sum(value.numel() for value in values if torch.is_tensor(value) and value.is_floating_point())
        self.progress.optimizer_state = max(self.progress.optimizer_state, now)

    def _log(self, loss: float, scheduler: Any) -> None:
        if self.writer is None:
            return
        self.writer.add_scalar("train/loss", loss, self.progress.step)
        self.writer.add_scalar("train/learning_rate", scheduler.get_last_lr()[0], self.progress.step)
        ranks = self.adaptation.ranks()
        if ranks is not None:
            self.writer.add_scalar("allocation/total_rank", sum(ranks.values()), self.progress.step)

    # ---- The record

    def _record(self, cost: dict[str, Any], parameters: dict[str, Any], allocation: dict[str, Any] | None) -> Record:
        settings, progress = self.settings, self.progress
        if progress.status == "completed" and progress.constant:
            progress.status = "collapsed"
            progress.reason = "every prediction of the best checkpoint is the same"
        names = ("study", "task", "method", "kind", "budget", "seed", "digest", "protocol")
        head, dirty = commit()
        return Record.model_validate(
            {
                "run": {
                    **{name: getattr(settings, name) for name in names},
                    "status": progress.status,
                    "reason": progress.reason,
                    "settings": settings,
                },
                "score": {
                    "baseline": metrics.baseline(settings.task, self.labels),
                    "best_step": None if progress.best is None else progress.history[progress.best]["step"],
                    "history": progress.history,
                    "labels": {split: [gold] for split, gold in self.labels.items()},
                    "predictions": progress.predictions,
                    **self._tested(),
                },
                "parameters": parameters,
                "cost": cost,
                "allocation": allocation,
                "provenance": {
                    "versions": versions(),
                    "commit": head,
                    "dirty": dirty,
                    "data": {
                        "source": settings.data.source,
                        "revision": self.data.source.revision,
                        "fingerprint": self.data.source.fingerprint,
                        "rows": self._rows(),
                    },
                    "backbone": {
                        "name": settings.backbone.name,
                        "revision": backbones.revision(settings.backbone),
                        "fingerprint": backbones.fingerprint(settings.backbone),
                    },
                    "started": self.started,
                    "finished": _now(),
                },
            }
        )

    def _rows(self) -> dict[str, int]:
        """Examples by the names of the splits."""
        names = dict(zip(self.task.eval_splits, self.task.test_splits, strict=True))
        evaluation = {split: len(data) for split, data in self.data.evaluation.items()}
        return {
            "train": len(self.data.train),
            **evaluation,
            **{names[split]: len(data) for split, data in self.data.test.items()},
        }

    def _parameters(self) -> dict[str, Any]:
        count = self.adaptation.parameters()
        budget = self.adaptation.budget_parameters
        return {
            "trainable": count.trainable,
            "head": count.head,
            "total": count.total,
            "budget": budget,
            "deviation": count.trainable / budget - 1 if budget else None,
        }

    def _cost(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        progress = self.progress
        self._note_optimizer_state(optimizer)
        return {
            "wall_seconds": round(self.earlier + time.monotonic() - self.clock, 3),
            "train_seconds": round(progress.seconds, 3),
            "step_ms": round(1000 * statistics.median(progress.step_seconds), 3) if progress.step_seconds else None,
            "peak_memory_mb": self._peak_memory_mb(),
            "optimizer_state": progress.optimizer_state,
            "peak_trainable": self.adaptation.peak_trainable(),
            "device": ", then ".join(progress.devices),
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "steps": progress.step,
            "examples": len(self.data.train),
        }

    def _allocation(self) -> dict[str, Any] | None:
        ranks = self.adaptation.ranks()
        if ranks is None:
            return None
        modules, events = list(ranks), self.adaptation.events()
        start = dict(ranks)
        for event in events:
            for module, gained in event["grown"].items():
                start[module] -= gained
        growth = [{"step": 0, "ranks": list(start.values())}]
        for event in events:
            for module, gained in event["grown"].items():
                start[module] += gained
            growth.append({"step": event["step"], "ranks": list(start.values())})
        return {
            "events": events,
            "ranks": ranks,
            "total_rank": sum(ranks.values()),
            "budget_rank": (self.settings.budget or 0) * len(modules),
            "modules": modules,
            "growth": growth,
            "orthogonality": self.progress.orthogonality,
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _tensorboard(folder: str | Path | None, settings: RunSettings) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("tensorboard", "the package tensorboard is not installed: pip install tensorboard") from error
    return SummaryWriter(str(Path(folder) / settings.label))

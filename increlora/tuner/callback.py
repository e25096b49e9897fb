"""Everything that the Transformers Trainer, and trainers derived from it, need: one callback."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer_optimizer
from transformers.integrations import TensorBoardCallback

from .errors import IncreLoraError
from .growth import RankAllocator, find_allocators
from .layer import KINDS, IncreLoraLayer
from .optimizer import IncreLoraAdamW, RestartedWarmup

logger = logging.getLogger(__name__)

REPLACED = ("adamw_torch", "adamw_torch_fused")
"""Values of ``optim`` that mean plain AdamW, which is the Trainer's default."""


class IncreLoraCallback(TrainerCallback):
    """Trains an IncreLoRA adapter with the Trainer.

    Example::

        trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[IncreLoraCallback()])

    It tells the allocators how long training lasts and calls ``update_and_allocate`` before every optimizer step.
    Where ``optim`` is AdamW (the default), `IncreLoraAdamW` takes its place; any other optimizer is used as it
    is, with a warning that says what is then not exact. Schedules of every kind work.

    What it logs besides the Trainer's own values, also to TensorBoard: ``increlora/total_rank`` and its
    ``increlora/budget`` (of adapters with ``budget_by="parameters"`` ``increlora/parameters`` and
    ``increlora/parameter_budget``), ``increlora/penalty`` (the weighted regulariser, which is not in the loss),
    ``increlora/youngest_lr`` (learning rate of the components born last) and ``increlora/grown`` (modules that grew
    since the last log).
    """

    def __init__(self) -> None:
        self._allocators: list[RankAllocator] = []
        self._optimizer: Any = None
        self._tensorboard: TensorBoardCallback | None = None
        self._grown: list[str] = []

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the Trainer create IncreLoRA's AdamW where it would create torch's, and any other that is followed."""
        _complete_reference(kwargs["model"])
        if (given := kwargs.get("optimizer")) is not None:
            for allocator in find_allocators(kwargs["model"]):
                allocator.follow(given)  # before a checkpoint is loaded into it
            return
        handlers = trainer_optimizer._OPTIMIZER_HANDLERS
        if args.optim in handlers and not isinstance(handlers[args.optim], _Following):
            handlers[args.optim] = _Following(handlers[args.optim])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass on the length of training and the schedule, which the Trainer knows only now."""
        self._allocators = find_allocators(kwargs["model"])
        if not self._allocators:
            warnings.warn("IncreLoraCallback does nothing: the model has no active IncreLoRA adapter", stacklevel=2)
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]  # as Accelerate has wrapped them
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        scaler = getattr(optimizer, "scaler", None)
        warmup = args.get_warmup_steps(state.max_steps)
        if isinstance(self._optimizer, IncreLoraAdamW):
            self._optimizer.schedule = RestartedWarmup.of(getattr(scheduler, "scheduler", scheduler), warmup)
        for allocator in self._allocators:
            if state.global_step and self._lost(allocator, state.global_step):
                raise IncreLoraError(
                    f"the state of growth was not loaded, because {type(self._optimizer).__name__} was not followed "
                    "when its own was. Pass it as Trainer(optimizers=(optimizer, scheduler)), or call "
                    "find_allocator(model).follow(optimizer) where it is created"
                )
            allocator.follow(self._optimizer)
            allocator.gradient_accumulation_steps = args.gradient_accumulation_steps
            allocator.regulariser.scaler = scaler
            allocator.step = state.global_step
            allocator.set_total_steps(state.max_steps, warmup)
        if "tensorboard" in (args.report_to or ()) and state.is_world_process_zero:
            self._tensorboard = TensorBoardCallback()
            self._tensorboard.on_train_begin(args, state, control)

    def _lost(self, allocator: RankAllocator, step: int) -> bool:
        """Whether a training that goes on after a step has lost the state of growth."""
        if not allocator.finished:
            loaded = not self._optimizer.state or allocator.step == step
            return not (allocator.follows(self._optimizer) and loaded)
        moments = [  # storage has been cut since growth ended, and they with it
            (parameter, self._optimizer.state.get(parameter, {}).get("exp_avg", parameter))
            for layer in allocator.layers.values()
            for parameter in layer.tensors(allocator.adapter).values()
        ]
        return any(moment.shape != parameter.shape for parameter, moment in moments)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the step and grow; gradients are complete and clipped by now."""
        for allocator in self._allocators:
            self._grown += allocator.update_and_allocate(state.global_step + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add growth to what is logged in training."""
        if logs is None or "loss" not in logs or not self._allocators:
            return
        values: dict[str, Any] = {
            "increlora/total_rank": sum(allocator.total_rank for allocator in self._allocators),
            "increlora/penalty": sum(allocator.regulariser.value() for allocator in self._allocators),
        }
        by_parameters = [one for one in self._allocators if one.config.budget_by == "parameters"]
        by_rank = [one for one in self._allocators if one.config.budget_by == "rank"]
        if by_rank:
            values["increlora/budget"] = sum(one.budget or one.total for one in by_rank)
        if by_parameters:
            values["increlora/parameters"] = sum(one.total for one in by_parameters)
            values["increlora/parameter_budget"] = sum(one.budget or one.total for one in by_parameters)
        if isinstance(self._optimizer, IncreLoraAdamW):
            values["increlora/youngest_lr"] = self._optimizer.youngest_lr
        values["increlora/grown"] = len(self._grown)
        if self._grown:
            logger.info("step %d: ranks grew in %s", state.global_step, ", ".join(sorted(set(self._grown))))
        self._grown = []
        logs.update(values)  # the progress bar comes later
        state.log_history[-1].update(values)  # the history and the trackers have been served already
        if self._tensorboard is not None:
            self._tensorboard.on_log(args, state, control, logs=values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so if growth has not ended: training stopped early, or its best checkpoint is from before."""
        for allocator in self._allocators:
            if allocator.budget is not None and not allocator.finished:
                warnings.warn(
                    f"the adapter ends with {allocator.total} of {allocator.budget} {allocator.config.unit}: growth "
                    "had not ended (training stopped early, the best checkpoint is older, or modules count as full)",
                    stacklevel=2,
                )
        if self._tensorboard is not None:
            self._tensorboard.on_train_end(args, state, control)
            self._tensorboard = None


class _Following:
    """How the Trainer makes the optimizer of a model with IncreLoRA adapters; that of any other model as before.

    `IncreLoraAdamW` where it would make torch's AdamW. Any other is of its own class, followed from its creation on: a
    checkpoint is loaded into it before training begins, and the state of growth with it.
    """

    def __init__(self, handler: Callable[[Any], tuple[Any, dict[str, Any]]]):
        self.handler = handler

    def __call__(self, context: Any) -> tuple[Any, dict[str, Any]]:
        allocators = find_allocators(context.model) if context.model is not None else []
        if allocators and context.args.optim in REPLACED:
            return IncreLoraAdamW, {**context.optimizer_kwargs, **context.adam_kwargs, "adapted": context.model}
        kind, options = self.handler(context)
        if not allocators or trainer_optimizer.is_optimizer_factory(kind):
            return kind, options

        class Followed(kind):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)
                for allocator in allocators:
                    allocator.follow(self)

            def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
                for allocator in allocators:  # not every library's optimizer calls the hooks of torch's
                    state_dict = allocator.take_state(state_dict)
                super().load_state_dict(state_dict, *args, **kwargs)

        Followed.__name__, Followed.__qualname__, Followed.__module__ = (
            kind.__name__,
            kind.__qualname__,
            kind.__module__,
        )
        return Followed, options


def _complete_reference(model: nn.Module) -> None:
    """Make TRL's adapter ``ref`` the copy of ``default`` that it is meant to be.

    Its trainers copy the parameters with ``.default.`` in their names; those of methods that keep their tensors in a
    ``ParameterDict`` end in ``.default``.
    """
    for layer in model.modules():
        if not isinstance(layer, IncreLoraLayer) or not {"default", "ref"} <= layer.components.keys():
            continue
        if layer.increlora_lambda["default"].any() and not layer.increlora_lambda["ref"].any():
            rank = layer.rank("default")
            layer.set_rank("ref", rank)
            copy, original = layer.tensors("ref"), layer.tensors("default")
            with torch.no_grad():
                for kind, dim in KINDS.items():
                    copy[kind].narrow(dim, 0, rank).copy_(original[kind].narrow(dim, 0, rank))

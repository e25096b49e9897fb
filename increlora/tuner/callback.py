"""IncreLoRA in Transformers' Trainer: one callback brings allocation, optimizer and schedule."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, trainer_optimizer

from increlora.errors import IncreLoraError
from increlora.tuner.model import find_tuner
from increlora.tuner.optimizer import IncreLoraAdamW, WarmupDecay

OPTIMIZER_NAME = "increlora_adamw"


class IncreLoraCallback(TrainerCallback):
    """Trains an IncreLoRA adapter with the Trainer.

    Example::

        trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[IncreLoraCallback()])

    It sets ``args.optim`` to :class:`IncreLoraAdamW` (which follows ``learning_rate``, ``adam_beta1``, ``adam_beta2``,
    ``adam_epsilon`` and ``weight_decay``), tells the tuner how long training lasts, and calls ``update_and_allocate``
    before every optimizer step. Use the Trainer's ``linear`` schedule: it is the curve of what trains from the start.
    """

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the Trainer create IncreLoRA's optimizer."""
        if kwargs.get("optimizer") is None:
            trainer_optimizer._OPTIMIZER_HANDLERS[OPTIMIZER_NAME] = _optimizer_factory
            args.optim = OPTIMIZER_NAME

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Pass on the length of training, which the Trainer knows only now."""
        optimizer = _unwrap(kwargs["optimizer"])
        if not isinstance(optimizer, IncreLoraAdamW):
            raise IncreLoraError(
                f"the Trainer's optimizer is {type(optimizer).__name__}, which cannot follow growing ranks: give it "
                "IncreLoraCallback among its `callbacks` when it is created, and no `optimizers` of another kind"
            )
        if args.lr_scheduler_type != "linear":
            raise IncreLoraError(f"lr_scheduler_type is {args.lr_scheduler_type!r}; IncreLoRA follows 'linear'")
        warmup = args.get_warmup_steps(state.max_steps)
        optimizer.schedule = WarmupDecay(warmup, state.max_steps)
        tuner = find_tuner(kwargs["model"])
        tuner.gradient_accumulation_steps = args.gradient_accumulation_steps
        tuner.loss_factor = args.world_size if args.average_tokens_across_devices else 1
        for growth in tuner.growth.values():
            growth.step = state.global_step
        tuner.set_total_steps(state.max_steps, warmup)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score the step and grow; gradients are complete and clipped by now."""
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        find_tuner(kwargs["model"]).update_and_allocate(state.global_step + 1, loss_scale=scale)


def _unwrap(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)


class _Factory:
    """Called by the Trainer as ``factory()(model, **kwargs)``: the optimizer needs the model, not a list of groups."""

    def __call__(self, model: nn.Module, **kwargs: Any) -> IncreLoraAdamW:
        return IncreLoraAdamW(model, **kwargs)


def _optimizer_factory(context: Any) -> tuple[type[_Factory], dict[str, Any]]:
    weight_decay = {"weight_decay": context.args.weight_decay}
    return _Factory, {**context.optimizer_kwargs, **context.adam_kwargs, **weight_decay}

"""Rank patterns before training: a short growth run on the model itself, which is then put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import cycle, islice
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from .config import IncreLoraConfig
from .errors import ConfigError
from .export import lora_config
from .optimizer import create_optimizer


def find_ranks(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    budget: int,
    steps: int,
    events: int = 10,
    lr: float = 1e-3,
    round_to: int = 1,
    max_r: int | None = None,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    **config: Any,
) -> LoraConfig:
    """The rank distribution that a short training with growing ranks finds, as a config of plain LoRA.

    For trainings in which ranks cannot grow or need not: compiled, sharded or served by a program that wants LoRA. The
    model is trained in place with an IncreLoRA adapter and restored bit for bit afterwards, random state included.

    Args:
        model: any model that PEFT can adapt, without an adapter.
        batches: training batches; they are repeated if there are fewer than ``steps``.
        budget: average rank per module.
        steps: optimizer steps; growth ends with the last event, at about 80 % of them.
        events: how often ranks grow, at most 80 % of the steps.
        lr: peak learning rate of the short training, linear with a warmup of one interval between events.
        round_to: ranks of the result are multiples of this (at least one multiple each), and so is the budget.
        max_r: highest rank of a module.
        loss: ``loss(model, batch)`` (a scalar); by default ``model(**batch).loss``.
        lora: fields of the ``LoraConfig`` that is returned (``lora_alpha``, ``task_type``, ...). Without ``lora_alpha``
            every module has scale 1.
        seed: of the adapter's initial values and of dropout.
        config: fields of `IncreLoraConfig`, e.g. ``target_modules``, ``modules_to_save``, ``orth_reg_weight``.

    Returns:
        A ``LoraConfig`` with ``rank_pattern`` (and ``alpha_pattern``).

    Raises:
        ConfigError: the model has an adapter already, or the budget cannot be distributed in that many steps.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError("model", "has an adapter already; find ranks on the base model")
    if round_to < 1 or budget < round_to or budget % round_to:
        raise ConfigError("budget", f"got {budget}; must be a multiple of round_to ({round_to})")
    if max_r is not None and max_r < round_to:
        raise ConfigError("max_r", f"got {max_r}; must be round_to ({round_to}) or more, or None")
    interval = max(1, int(0.8 * steps) // max(1, events))
    fields: dict[str, Any] = {
        "target_r": budget // round_to,
        "max_r": None if max_r is None else max_r // round_to,
        "deltaT": interval,
        "growth_end": min(0.8, interval * max(1, events) / steps),
        **config,
    }
    device = next(model.parameters()).device
    modules = dict(model.named_modules())
    training = {module: module.training for module in modules.values()}
    gradients = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, IncreLoraConfig(**fields))
        saved = {p: p.detach().clone() for p in adapted.parameters() if p.requires_grad and p in gradients}
        try:
            optimizer, scheduler = create_optimizer(adapted, lr=lr, total_steps=steps, warmup_steps=interval)
            adapted.train()
            for step, batch in enumerate(_repeated(batches, steps), start=1):
                value = adapted(**send_to_device(batch, device)).loss if loss is None else loss(adapted, batch)
                value.backward()
                adapted.update_and_allocate(step)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            ranks = adapted.rank_distribution()
        finally:
            adapted.unload()
            for name, module in modules.items():  # `modules_to_save` leaves its copies behind
                if name and model.get_submodule(name) is not module:
                    model.set_submodule(name, module)
            with torch.no_grad():
                for parameter, value in saved.items():
                    parameter.copy_(value)
            _restore(model, training, gradients, buffers)
    return lora_config({name: rank * round_to for name, rank in ranks.items()}, **(lora or {}))


def _repeated(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """So many batches, from the beginning again where they end; no more of them are read."""
    kept = list(islice(batches, steps))
    if not kept:
        raise ConfigError("batches", "is empty")
    return islice(cycle(kept), steps)


def _restore(
    model: nn.Module,
    training: Mapping[nn.Module, bool],
    gradients: Mapping[nn.Parameter, tuple[bool, Tensor | None]],
    buffers: Mapping[str, Tensor],
) -> None:
    """Put back modes, gradients and buffers, and take away what PEFT leaves on a model."""
    for module, mode in training.items():
        module.training = mode
    for parameter, (trains, gradient) in gradients.items():
        parameter.requires_grad_(trains)
        parameter.grad = gradient
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in buffers:  # not one that the forward pass has made
                buffer.copy_(buffers[name])
    if hasattr(model, "peft_config"):
        del model.peft_config

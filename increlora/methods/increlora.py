"""IncreLoRA and its ablations, and SVD-form LoRA retrained from a saved rank distribution (Table 3).

Both are the project's own tuner: `increlora.tuner` with growth, and with growth off and given ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from increlora.errors import ConfigError
from increlora.methods.base import Adaptation, AllocationError, ParameterCount, Setup, target_shapes
from increlora.methods.lora import PeftAdaptation, inject
from increlora.methods.options import IncreLoraOptions, SvdLoraOptions
from increlora.methods.ranks import Shapes, svd_parameters, uniform_ranks
from increlora.tuner import IncreLoraConfig, create_optimizer, find_tuner


class SvdLora(PeftAdaptation):
    """LoRA in the form ``s B diag(lambda) A`` at the ranks of its config.

    Args:
        setup: what the method was asked for.
        config: of the tuner.
    """

    def __init__(self, setup: Setup[Any], config: IncreLoraConfig, shapes: Shapes):
        super().__init__(inject(setup.model, config), setup.plan, shapes)
        self._budget = setup.size
        self._tuner = find_tuner(self.peft_model)

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The tuner's AdamW, in which every component has its own age; its state dict holds the state of growth."""
        plan = self.plan
        return create_optimizer(
            self.peft_model,
            lr=plan.learning_rate,
            total_steps=plan.total_steps,
            warmup_steps=plan.warmup_steps,
            gradient_accumulation_steps=plan.gradient_accumulation,
            weight_decay=plan.weight_decay,
        )

    def before_step(self, step: int) -> None:
        self._tuner.update_and_allocate(step)

    def penalty(self) -> Tensor | None:
        return self._tuner.orthogonality_loss()

    def ranks(self) -> dict[str, int]:
        return self._tuner.rank_distribution()

    def orthogonality(self) -> tuple[float, float]:
        return self._tuner.orthogonality()

    def parameters(self) -> ParameterCount:
        stored = sum(p.numel() for name, p in self.named_trainable().items() if name not in self.head)
        active, every = self._tuner.active_parameters(), super().parameters()
        return ParameterCount(active, every.head, every.total - stored + active)

    def budget_parameters(self) -> int:
        return svd_parameters(self.shapes, uniform_ranks(self.shapes, self._budget))

    def peak_trainable(self) -> int:
        return svd_parameters(self.shapes, self.ranks())

    def weights(self) -> dict[str, Tensor]:
        """The active components and the head, as the saved adapter has them."""
        state = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        set_peft_model_state_dict(self.peft_model, dict(weights))


class IncreLora(SvdLora):
    """IncreLoRA while it trains."""

    def __init__(self, setup: Setup[Any], config: IncreLoraConfig, shapes: Shapes):
        super().__init__(setup, config, shapes)
        self._config = config

    def events(self) -> list[dict[str, Any]]:
        return self._tuner.growth_events()

    def peak_trainable(self) -> int:
        """Every active component, and the reserve of every module as long as ranks grow (paper: 3 m (r + 1))."""
        reserve = self._config.ranks_per_event if self._config.advance_learning else 0
        lambdas = reserve * len(self.shapes)
        return super().peak_trainable() + svd_parameters(self.shapes, uniform_ranks(self.shapes, reserve)) - lambdas

    def finish(self) -> None:
        budget, total = self._budget * len(self.shapes), sum(self.ranks().values())
        if not self.events():
            raise AllocationError(f"IncreLoRA's total rank never moved from {total}: no event fitted into the training")
        if total > budget and not self._config.allow_overshoot:
            raise AllocationError(f"IncreLoRA ended at total rank {total}, above its budget of {budget}")


def prepare_increlora(setup: Setup[IncreLoraOptions]) -> Adaptation:
    """IncreLoRA with a final average rank of `budget`."""
    shapes = target_shapes(setup.model, setup.target_modules)
    config = setup.options.tuner_config(target_modules=setup.target_modules, target_r=setup.size)
    return IncreLora(setup, config, shapes)


def prepare_svd_lora(setup: Setup[SvdLoraOptions]) -> Adaptation:
    """Fresh SVD-form LoRA at the ranks of a finished run.

    Raises:
        ConfigError: the distribution belongs to other modules.
    """
    shapes = target_shapes(setup.model, setup.target_modules)
    ranks = dict(setup.ranks or {})
    if difference := ranks.keys() ^ shapes.keys():
        raise ConfigError("ranks_from", f"the saved ranks do not fit this backbone: {sorted(difference)[0]}")
    config = setup.options.tuner_config(
        target_modules=setup.target_modules, target_r=None, init_r=setup.size, rank_pattern=ranks
    )
    return SvdLora(setup, config, shapes)

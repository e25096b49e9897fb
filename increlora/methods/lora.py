"""LoRA (arXiv 2106.09685) by PEFT: W0 + (alpha / r) B A on every target matrix."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from increlora.methods.base import Adaptation, Setup, TrainingPlan, head_modules, target_shapes
from increlora.methods.options import LoraOptions
from increlora.methods.ranks import Shapes, lora_parameters, uniform_ranks


def inject(model: nn.Module, config: PeftConfig) -> PeftModel:
    """PEFT's model around `model`, which is changed in place: adapters inserted, the head trained in full.

    PEFT by itself trains the classifier but not the pooler, which is new as well and would stay at its random values.
    """
    config.task_type = TaskType.SEQ_CLS
    config.modules_to_save = head_modules(model)  # type: ignore[attr-defined]  # a field of every tuner's config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


class PeftAdaptation(Adaptation):
    """A model that PEFT has changed.

    `model` is the Transformers model itself, with its adapters inside: parameters keep the backbone's names, and no
    wrapper adds a regulariser to the loss that it returns.

    Attributes:
        peft_model: PEFT's wrapper around `model`, for ``save_pretrained`` and ``merge_and_unload``.
        shapes: the adapted matrices.
    """

    def __init__(self, peft_model: PeftModel, plan: TrainingPlan, shapes: Shapes):
        super().__init__(peft_model.get_base_model(), plan)
        self.peft_model = peft_model
        self.shapes = shapes


class Lora(PeftAdaptation):
    """LoRA at one rank for every module."""

    def __init__(self, peft_model: PeftModel, plan: TrainingPlan, shapes: Shapes, rank: int):
        super().__init__(peft_model, plan, shapes)
        self._rank = rank

    def budget_parameters(self) -> int:
        return lora_parameters(self.shapes, uniform_ranks(self.shapes, self._rank))


def prepare_lora(setup: Setup[LoraOptions]) -> Adaptation:
    """LoRA of rank `budget`."""
    shapes = target_shapes(setup.model, setup.target_modules)
    config = LoraConfig(
        r=setup.size,
        lora_alpha=setup.options.lora_alpha,
        lora_dropout=setup.options.lora_dropout,
        target_modules=setup.target_modules,
    )
    return Lora(inject(setup.model, config), setup.plan, shapes, setup.size)

"""Models that PEFT has changed: what LoRA, AdaLoRA and IncreLoRA share."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from increlora.methods.base import Adaptation, Setup
from increlora.methods.families import head_modules

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class PeftAdaptation(Adaptation):
    """A model with one adapter of PEFT, and its head trained in full.

    `model` is the Transformers model itself, with the adapter inside: parameters keep the backbone's names, and no
    wrapper adds a regulariser to the loss that it returns. PEFT by itself would train the classifier but not the
    pooler, which is new as well and would stay at its random values.

    Attributes:
        peft_model: PEFT's wrapper around `model`, for ``save_pretrained`` and ``merge_and_unload``.
        shapes: the adapted matrices.
    """

    def __init__(self, setup: Setup[Any], config: PeftConfig):
        from peft import TaskType, get_peft_model

        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = head_modules(setup.model)  # type: ignore[attr-defined]  # a field of every tuner's config
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            self.peft_model: PeftModel = get_peft_model(setup.model, config)
        super().__init__(self.peft_model.get_base_model(), setup.recipe)
        self.shapes = setup.shapes

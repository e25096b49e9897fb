"""IncreLoRA as a PEFT tuner.

Read in this order: ``config``, ``layer``, ``importance``, ``allocation``, ``regulariser``, ``optimizer``, ``model``,
``callback``, ``export``. Importing the package registers the method with PEFT under the type ``INCRELORA``.
"""

from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from increlora.tuner.callback import IncreLoraCallback
from increlora.tuner.config import PEFT_TYPE, IncreLoraConfig
from increlora.tuner.export import export_lora, lora_config, save_rank_distribution
from increlora.tuner.layer import IncreLoraLayer, IncreLoraLinear
from increlora.tuner.model import IncreLoraModel, find_tuner
from increlora.tuner.optimizer import IncreLoraAdamW, WarmupDecay, create_optimizer

_TYPE: Any = PEFT_TYPE
# `peft.utils.register_peft_method` only takes members of the PeftType enum; these four dictionaries are what it fills.
if PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(_TYPE, IncreLoraConfig) is not IncreLoraConfig:
    raise ImportError(f"PEFT already has a method named {PEFT_TYPE}: this version of increlora does not fit it")
PEFT_TYPE_TO_TUNER_MAPPING[_TYPE] = IncreLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[_TYPE] = IncreLoraModel.prefix

__all__ = [
    "IncreLoraAdamW",
    "IncreLoraCallback",
    "IncreLoraConfig",
    "IncreLoraLayer",
    "IncreLoraLinear",
    "IncreLoraModel",
    "WarmupDecay",
    "create_optimizer",
    "export_lora",
    "find_tuner",
    "lora_config",
    "save_rank_distribution",
]

"""IncreLoRA as a PEFT tuner.

Read in this order: ``config``, ``storage``, ``layer``, ``importance``, ``allocation``, ``growth``, ``regulariser``,
``decay``, ``optimizer``, ``model``, ``callback``, ``export``, ``rank_search``. Names are loaded on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

EXPORTS = {
    "IncreLoraAdamW": "optimizer",
    "IncreLoraCallback": "callback",
    "IncreLoraConfig": "config",
    "IncreLoraModel": "model",
    "RankAllocator": "growth",
    "RestartedWarmup": "optimizer",
    "create_optimizer": "optimizer",
    "export_lora": "export",
    "find_allocator": "growth",
    "find_ranks": "rank_search",
    "lora_config": "export",
}
"""Public names and the modules that define them."""

__all__ = [*EXPORTS, "register"]


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        import peft  # noqa: F401  # before any module of this package begins, see `register`

        register()
        return getattr(import_module(f".{EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Make PEFT know the method under the type ``INCRELORA``.

    ``peft.utils.register_peft_method`` only takes members of the enum ``PeftType``; it fills these dictionaries.

    Does nothing while a module of this package is itself being imported; a config registers when it is made.

    Raises:
        ImportError: PEFT has another method of that name.
    """
    parts = (module for name, module in sys.modules.items() if name.startswith(f"{__name__}."))
    if any(getattr(module.__spec__, "_initializing", False) for module in parts):
        return
    from peft.mapping import (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )

    from .config import PEFT_TYPE, IncreLoraConfig
    from .model import IncreLoraModel

    name: Any = PEFT_TYPE
    if PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(name, IncreLoraConfig) is not IncreLoraConfig:
        raise ImportError(f"PEFT already has a method named {name.value}: this version of increlora does not fit it")
    PEFT_TYPE_TO_TUNER_MAPPING[name] = IncreLoraModel
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = IncreLoraModel.prefix

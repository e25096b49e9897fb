"""increlora: IncreLoRA (arXiv 2308.12043) as a PEFT method, and the study that reproduces its paper.

Names of the tuner are loaded on first use, so that light commands stay light::

    from increlora import IncreLoraConfig, IncreLoraCallback, create_optimizer, export_lora
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_TUNER = (
    "IncreLoraAdamW",
    "IncreLoraCallback",
    "IncreLoraConfig",
    "IncreLoraModel",
    "WarmupDecay",
    "create_optimizer",
    "export_lora",
    "find_tuner",
    "lora_config",
    "save_rank_distribution",
)
__all__ = ["__version__", "slice_relative_positions", *_TUNER]


def __getattr__(name: str) -> Any:
    if name in _TUNER:
        import increlora.tuner

        return getattr(increlora.tuner, name)
    if name == "slice_relative_positions":
        from increlora.training.deberta import slice_relative_positions

        return slice_relative_positions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""LoRA (arXiv 2106.09685) by PEFT: W0 + (alpha / r) B A on every target matrix."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup
from increlora.methods.method import RANK, Look, Method, PaperMemory, RankOptions
from increlora.methods.peft_models import PeftAdaptation
from increlora.methods.ranks import lora_parameters, uniform_ranks


class LoraOptions(RankOptions):
    """LoRA: W0 + (alpha / r) B A."""


def prepare(setup: Setup[LoraOptions]) -> Adaptation:
    """LoRA of rank `budget`."""
    from peft import LoraConfig

    config = LoraConfig(r=setup.size, target_modules=setup.target_modules, **setup.options.model_dump())
    return PeftAdaptation(setup, config)


METHOD = Method(
    kind="lora",
    title="LoRA",
    budget=RANK,
    parameters=lambda shapes, rank, _: lora_parameters(shapes, uniform_ranks(shapes, rank)),
    prepare=prepare,
    look=Look("#0072B2", "s"),
    options=LoraOptions,
    paper_memory=PaperMemory("3mr", lambda m, r: 3 * m * r),
)

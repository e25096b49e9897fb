"""The two methods that add nothing: full fine-tuning, and BitFit (arXiv 2106.10199)."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup, head_parameters, train_only
from increlora.methods.options import Options


class FullFineTuning(Adaptation):
    """Everything trains and everything counts, the head too."""

    counts_head = True


def prepare_full_ft(setup: Setup[Options]) -> Adaptation:
    """Full fine-tuning."""
    setup.model.requires_grad_(True)
    return FullFineTuning(setup.model, setup.plan)


def prepare_bitfit(setup: Setup[Options]) -> Adaptation:
    """BitFit: every backbone parameter whose name contains ``bias``, LayerNorm biases included."""
    head = head_parameters(setup.model).keys()
    train_only(setup.model, {name for name, _ in setup.model.named_parameters() if "bias" in name} - head)
    return Adaptation(setup.model, setup.plan)

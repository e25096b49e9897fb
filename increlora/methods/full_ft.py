"""Full fine-tuning."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup
from increlora.methods.method import Look, Method, Options


class FullFineTuning(Adaptation):
    """Everything trains and everything counts, the head too."""

    counts_head = True


def prepare(setup: Setup[Options]) -> Adaptation:
    """Let every parameter train."""
    setup.model.requires_grad_(True)
    return FullFineTuning(setup.model, setup.recipe)


METHOD = Method(
    kind="full_ft",
    title="Full FT",
    budget=None,
    parameters="build",
    prepare=prepare,
    look=Look("#000000", "X"),
    passes=6,
)

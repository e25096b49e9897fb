"""BitFit (arXiv 2106.10199): train the backbone's biases."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup, head_parameters, train_only
from increlora.methods.method import Look, Method, Options


def prepare(setup: Setup[Options]) -> Adaptation:
    """Train every backbone parameter whose name contains ``bias``, LayerNorm biases included."""
    head = head_parameters(setup.model).keys()
    train_only(setup.model, {name for name, _ in setup.model.named_parameters() if "bias" in name} - head)
    return Adaptation(setup.model, setup.recipe)


METHOD = Method(
    kind="bitfit",
    title="BitFit",
    budget=None,
    parameters="build",
    prepare=prepare,
    look=Look("#666666", "P"),
)

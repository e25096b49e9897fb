"""Pooler and classifier alone, on a backbone that stays as it is: what adapting the backbone has to beat."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup, train_only
from increlora.methods.method import Look, Method, Options


def prepare(setup: Setup[Options]) -> Adaptation:
    """Train the head only."""
    train_only(setup.model, set())
    return Adaptation(setup.model, setup.recipe)


METHOD = Method(
    kind="head",
    title="Head only",
    budget=None,
    parameters="build",
    prepare=prepare,
    look=Look("#999999", "v"),
)

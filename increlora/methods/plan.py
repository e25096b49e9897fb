"""What a method may know of the training to come (its optimizer, its schedule, when to allocate)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPlan:
    """The part of a run's training settings that methods depend on.

    Attributes:
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warmup, part of `total_steps`.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay of AdamW.
        seed: seeds the initialisation of everything that a method adds.
        gradient_accumulation: micro-batches (forward and backward passes) per optimizer step.
    """

    total_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    seed: int
    gradient_accumulation: int = 1

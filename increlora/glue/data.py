"""Which data a task is trained and evaluated on, as settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from increlora.glue.tasks import Task
from increlora.model import Block

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy and torch both take as a seed."""


class Data(Block):
    """Where the task's examples come from."""

    source: Literal["builtin", "hub", "local"]
    """`builtin` generates them, `hub` downloads `name`, `local` reads the folder `path` in the layout of `name`."""
    name: str = "nyu-mll/glue"
    """Hub data set."""
    path: str | None = None
    """Folder for `source: local`."""
    revision: str | None = None
    """Hub revision; the commit makes a run reproducible."""
    train_rows: int | None = Field(default=None, ge=1)
    """Use the first so many training examples; null for all."""
    eval_rows: int | None = Field(default=None, ge=1)
    """Use the first so many evaluation examples of each split; null for all."""
    test_rows: int | None = Field(default=None, ge=1)
    """Use the first so many examples of each labelled test split (the built-in corpus has them); null for all."""
    evaluate_on: Literal["validation", "held_out"] = "validation"
    """`held_out`: a fixed fifth of the training split, which is then not trained on: for the choice of settings, on
    data that no table shows."""
    seed: Seed | None = None
    """Seed of the built-in generator; null: that of the run, so that every seed trains on a draw of its own."""

    @model_validator(mode="after")
    def _path_belongs_to_local(self) -> Data:
        if self.source == "local" and not self.path:
            raise ValueError("source 'local' needs `path`, the folder of the data set")
        return self

    def rows(self, task: Task) -> tuple[int, int]:
        """Training examples, and evaluation examples over all evaluation splits, as far as these settings tell."""
        train, evaluation, splits = task.train_rows, task.eval_rows, len(task.eval_splits)
        if self.source == "builtin":
            from increlora.glue.corpus import EVAL_ROWS, TRAIN_ROWS

            train, evaluation = self.train_rows or TRAIN_ROWS, (self.eval_rows or EVAL_ROWS) * splits
        if self.evaluate_on == "held_out":
            train, evaluation = train - train // 5, train // 5
        return min(train, self.train_rows or train), min(evaluation, (self.eval_rows or evaluation) * splits)

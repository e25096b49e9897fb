"""The data of a run: the splits of its task, tokenised."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from increlora.errors import ConfigError
from increlora.glue.data import Data
from increlora.glue.loading import Examples, TaskData, load_task
from increlora.glue.tasks import TASKS
from increlora.methods.families import position_limit
from increlora.training import backbone as backbones
from increlora.training.settings import Backbone, RunSettings


@dataclass(frozen=True)
class Encoded:
    """Token ids per example and labels.

    Attributes:
        features: per example ``{"input_ids": [...], "token_type_ids": [...], ...}``, without padding.
        labels: class indices (int64) or scores (float32), one per example.
    """

    features: list[dict[str, list[int]]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def lengths(self) -> list[int]:
        return [len(feature["input_ids"]) for feature in self.features]


def encode(examples: Examples, tokenizer: Any, max_length: int, *, regression: bool) -> Encoded:
    """Tokenise, truncating pairs longest first."""
    encoding = tokenizer(*examples.texts, truncation=True, max_length=max_length)
    names = list(encoding.keys())
    columns = [encoding[name] for name in names]
    features = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    labels = torch.tensor(examples.labels, dtype=torch.float32 if regression else torch.int64)
    return Encoded(features, labels)


@dataclass(frozen=True)
class RunData:
    """A task's splits, tokenised.

    Attributes:
        source: the splits as text, with labels.
        train: what is trained on.
        evaluation: development splits by name.
        test: test splits by name; none where the data have no labelled ones.
        pad_token_id: the token that fills a batch up.
    """

    source: TaskData
    train: Encoded
    evaluation: dict[str, Encoded]
    test: dict[str, Encoded]
    pad_token_id: int


def run_data(settings: RunSettings) -> RunData:
    """What a run trains and is evaluated on; runs on the same data one after another tokenise once.

    Raises:
        ConfigError: the backbone does not read texts of ``training.max_length`` tokens.
    """
    backbone, length = settings.backbone, settings.training.max_length
    config = backbones.load_config(backbone, TASKS[settings.task])
    longest = position_limit(config)
    if longest is not None and length > longest:
        raise ConfigError("training.max_length", f"{backbone.name} reads up to {longest} tokens")
    ready = backbone.model_copy(update={"pretrain": None})  # a mapping cannot be hashed
    return _encoded(settings.task, settings.data, ready, config.vocab_size, length)


@functools.lru_cache(maxsize=2)
def _encoded(task: str, data: Data, backbone: Backbone, vocab_size: int, length: int) -> RunData:
    source = load_task(task, data)
    tokenizer = backbones.load_tokenizer(backbone, vocab_size)
    encoded = functools.partial(encode, tokenizer=tokenizer, max_length=length, regression=source.task.is_regression)
    evaluation, test = (
        {split: encoded(examples) for split, examples in part.items()} for part in (source.evaluation, source.test)
    )
    return RunData(source, encoded(source.train), evaluation, test, tokenizer.pad_token_id or 0)

"""The data of a run: the splits of its task, tokenised."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from increlora.errors import ConfigError
from increlora.glue.loading import Examples, TaskData, load_task
from increlora.methods.families import position_limit
from increlora.training import backbone as backbones
from increlora.training.settings import Backbone, Data, RunSettings


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
    return _encoded(
        settings.model_dump_json(include={"task": True, "data": True, "backbone": True, "training": {"max_length"}})
    )


@functools.lru_cache(maxsize=2)
def _encoded(relevant: str) -> RunData:
    given = json.loads(relevant)
    backbone, data, length = Backbone(**given["backbone"]), Data(**given["data"]), given["training"]["max_length"]
    source = load_task(given["task"], **data.model_dump())
    config = backbones.load_config(backbone, source.task)
    longest = position_limit(config)
    if longest is not None and length > longest:
        raise ConfigError("training.max_length", f"{backbone.name} reads up to {longest} tokens")
    tokenizer = backbones.load_tokenizer(backbone, config.vocab_size)
    encoded = functools.partial(encode, tokenizer=tokenizer, max_length=length, regression=source.task.is_regression)
    evaluation, test = (
        {split: encoded(examples) for split, examples in part.items()} for part in (source.evaluation, source.test)
    )
    return RunData(source, encoded(source.train), evaluation, test, tokenizer.pad_token_id or 0)

"""Loading the pretrained model and its tokenizer, from the Hub or a folder in the Hub's layout."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from increlora.errors import ConfigError, IncreLoraError
from increlora.glue.tasks import Task
from increlora.training import checksums
from increlora.training.settings import Backbone


def load_model(backbone: Backbone, task: Task, classifier_dropout: float | None = None) -> nn.Module:
    """The backbone with a new head for the task, in float32.

    Args:
        backbone: name or path, revision.
        task: decides the number of outputs and, for regression, the loss.
        classifier_dropout: dropout before the classifier; ``None`` keeps the model's.

    Raises:
        ConfigError: there is no such model.
    """
    from transformers import AutoModelForSequenceClassification

    where, revision = location(backbone)
    if backbone.path is not None and (reason := checksums.damage(backbone.path)):
        raise ConfigError("backbone", f"{where} cannot be used: {reason}; delete it to have it made anew")
    config = load_config(backbone, task)
    if classifier_dropout is not None:
        _set_classifier_dropout(config, classifier_dropout)
    with _quiet(), _loading("backbone", f"{where} could not be loaded"):
        return AutoModelForSequenceClassification.from_pretrained(
            where, config=config, revision=revision, dtype=torch.float32, trust_remote_code=False
        )


def load_config(backbone: Backbone, task: Task) -> Any:
    """The backbone's Transformers config for a task.

    Raises:
        ConfigError: there is none, or it is broken.
    """
    from transformers import AutoConfig

    where, revision = location(backbone)
    with _loading("backbone", f"the config of {where} could not be loaded"):
        config = AutoConfig.from_pretrained(
            where, revision=revision, num_labels=task.num_labels, trust_remote_code=False
        )
        config.problem_type = "regression" if task.is_regression else "single_label_classification"
        return config


def load_tokenizer(backbone: Backbone, vocab_size: int | None = None) -> Any:
    """The fast tokenizer that belongs to the backbone.

    Args:
        backbone: name or path, revision.
        vocab_size: rows of the model's embedding table.

    Raises:
        ConfigError: there is none. Transformers makes an empty one for a folder without its files, in which every word
            is unknown; so one that has less than half of the model's tokens is refused, as is one that has more.
    """
    from transformers import AutoTokenizer

    where, revision = location(backbone)
    with _loading("backbone", f"no tokenizer could be loaded from {where}"):
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
    if vocab_size is not None and not vocab_size / 2 <= len(tokenizer) <= vocab_size:
        raise ConfigError(
            "backbone",
            f"the tokenizer of {where} has {len(tokenizer)} tokens, the model {vocab_size}; are its files there "
            "(tokenizer.json, vocab.txt or spm.model)?",
        )
    return tokenizer


@contextlib.contextmanager
def _loading(field: str, message: str) -> Iterator[None]:
    """Transformers raises errors of many types for a name, a folder, a broken or a truncated file."""
    try:
        yield
    except IncreLoraError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError(field, f"{message} ({type(error).__name__}: {reason})") from error


def location(backbone: Backbone) -> tuple[str, str | None]:
    """Folder or Hub name to load from, and the revision (of the Hub only)."""
    if backbone.path is None:
        return backbone.name, backbone.revision
    if not (Path(backbone.path) / "config.json").is_file():
        raise ConfigError("backbone.path", f"{backbone.path!r} holds no config.json; give a folder in the Hub's layout")
    return backbone.path, None


def fingerprint(backbone: Backbone) -> str | None:
    """16 hexadecimal digits of the weights' content, where they lie in a local folder."""
    return None if backbone.path is None else _fingerprint(backbone.path)


@functools.cache
def _fingerprint(path: str) -> str:
    digest = hashlib.sha256()
    for weights in weight_files(Path(path)):
        digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    """The files that Transformers loads weights from, in its order of preference; several where they are sharded.

    Raises:
        ConfigError: there are none.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / shard for shard in sorted(set(shards))]
    raise ConfigError("backbone.path", f"{folder} holds no weights (model.safetensors or pytorch_model.bin)")


def _set_classifier_dropout(config: Any, dropout: float) -> None:
    for name in ("cls_dropout", "classifier_dropout"):  # DeBERTa's and BERT's names
        if hasattr(config, name) or (name == "cls_dropout" and config.model_type.startswith("deberta")):
            setattr(config, name, dropout)
            return
    raise ConfigError("training.classifier_dropout", f"a {config.model_type} model has no such setting; use null")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notice that the head is new (it always is) and the bar over a second's loading."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

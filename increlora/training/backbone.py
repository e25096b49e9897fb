"""Loading the pretrained model and its tokenizer, from the Hub or a folder in the Hub's layout."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from increlora.errors import ConfigError
from increlora.glue.tasks import Task
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
    from transformers import AutoConfig, AutoModelForSequenceClassification

    where, revision = location(backbone)
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, num_labels=task.num_labels)
        config.problem_type = "regression" if task.is_regression else "single_label_classification"
        if classifier_dropout is not None:
            _set_classifier_dropout(config, classifier_dropout)
        with _quiet():
            return AutoModelForSequenceClassification.from_pretrained(
                where, config=config, revision=revision, dtype=torch.float32
            )
    except OSError as error:
        raise ConfigError("backbone", f"{where} could not be loaded: {error}") from error


def load_tokenizer(backbone: Backbone) -> Any:
    """The fast tokenizer that belongs to the backbone."""
    from transformers import AutoTokenizer

    where, revision = location(backbone)
    try:
        return AutoTokenizer.from_pretrained(where, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError("backbone", f"no tokenizer could be loaded from {where}: {error}") from error


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
    for weights in sorted(Path(path).glob("*.safetensors")):
        digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


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

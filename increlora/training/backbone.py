"""Loading the pretrained model and its tokenizer, from the Hub or a folder in the Hub's layout."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from increlora import hub
from increlora.errors import ConfigError, IncreLoraError
from increlora.glue.tasks import Task
from increlora.training import checksums
from increlora.training.settings import Backbone

DESCRIPTION = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
SAFETENSORS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


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

    folder = location(backbone)
    if backbone.path is not None and (reason := checksums.damage(folder)):
        raise ConfigError("backbone", f"{folder} cannot be used: {reason}; delete it to have it made anew")
    config = load_config(backbone, task)
    if classifier_dropout is not None:
        _set_classifier_dropout(config, classifier_dropout)
    name, files = backbone.path or backbone.name, [path.name for path in weight_files(folder)]
    damaged = f"the weights of {name} ({', '.join(files[:2])}) could not be loaded"
    with _quiet(), _loading("backbone", damaged):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=files[0].endswith(".safetensors"),
            weights_only=True,  # a pickle can run code
            # On a CPU a step of all-MiniLM-L6-v2 takes 1.2 times as long with the fused kernels (backward).
            attn_implementation=None if torch.cuda.is_available() else "eager",
            output_loading_info=True,
        )
    lacking = [key for key in found["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
    if lacking := sorted(key for key in lacking if ".pooler." not in key):
        raise ConfigError("backbone", f"{damaged}: {len(lacking)} tensors are missing, among them {lacking[0]}")
    return model


def load_config(backbone: Backbone, task: Task) -> Any:
    """The backbone's Transformers config for a task.

    Raises:
        ConfigError: there is none, or it is broken.
    """
    from transformers import AutoConfig

    folder = location(backbone, weights=False)
    with _loading("backbone", f"the config of {backbone.path or backbone.name} could not be loaded"):
        config = AutoConfig.from_pretrained(folder, num_labels=task.num_labels, trust_remote_code=False)
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

    folder, where = location(backbone, weights=False), backbone.path or backbone.name
    with _loading("backbone", f"no tokenizer could be loaded from {where}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if vocab_size is not None and not vocab_size / 2 <= len(tokenizer) <= vocab_size:
        raise ConfigError(
            "backbone",
            f"the tokenizer of {where} has {len(tokenizer)} tokens, the model's vocabulary {vocab_size}; are its "
            "files there (tokenizer.json, vocab.txt or spm.model)?",
        )
    return tokenizer


@contextlib.contextmanager
def _loading(field: str, message: str) -> Iterator[None]:
    """A `ConfigError` for whatever Transformers raises: the type depends on what is wrong with a name or a file."""
    try:
        yield
    except IncreLoraError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(field, f"{message}: it needs code of its own (`auto_map`), which is never run") from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(field, f"{message} ({type(error).__name__}: {reason})") from error


def location(backbone: Backbone, *, weights: bool = True) -> Path:
    """The folder to load from: the local one, or that of the Hub's commit in the cache, downloaded where needed.

    Everything is loaded from this folder, so that config, tokenizer and weights are of one commit. Of the weights only
    those are downloaded that are loaded: pickles (`pytorch_model.bin`) where there are no safetensors.

    Args:
        backbone: name or path, revision.
        weights: whether the weights are needed too.

    Raises:
        ConfigError: there is no such model, or it has no weights.
    """
    if backbone.path is not None:
        if not (Path(backbone.path) / "config.json").is_file():
            remedy = "`increlora pretrain` makes it" if backbone.pretrain else "give a folder in the Hub's layout"
            raise ConfigError("backbone.path", f"{backbone.path!r} holds no config.json; {remedy}")
        return Path(backbone.path)
    folder = hub.snapshot(backbone.name, backbone.revision, DESCRIPTION)
    if not (folder / "config.json").is_file():
        raise ConfigError("backbone.name", f"got {backbone.name!r}: the repository has no config.json")
    for patterns in (SAFETENSORS, PICKLES) if weights else ():
        hub.snapshot(backbone.name, folder.name, ("config.json", *patterns))  # it warns where no file matches
        if any((folder / name).is_file() for name in (patterns[0], patterns[-1])):
            break
    return folder


def revision(backbone: Backbone) -> str | None:
    """Commit of the Hub repository that is loaded; None for a local folder."""
    return None if backbone.path is not None else location(backbone, weights=False).name


def fingerprint(backbone: Backbone) -> str:
    """16 hexadecimal digits of the content of the weights that are loaded."""
    return _fingerprint(str(location(backbone)))


@functools.cache
def _fingerprint(path: str) -> str:
    digest = hashlib.sha256()
    for weights in weight_files(Path(path)):
        with weights.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def weight_files(folder: Path) -> list[Path]:
    """The files that Transformers loads weights from, in its order of preference; several where they are sharded.

    Raises:
        ConfigError: there are none, or not all of them.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            with _loading("backbone", f"{index} is no index of weights"):
                shards = sorted({str(shard) for shard in json.loads(index.read_text("utf-8"))["weight_map"].values()})
            if absent := [shard for shard in shards if not (folder / shard).is_file()]:
                raise ConfigError("backbone", f"{folder} lacks {absent[0]}, which {index.name} names")
            return [folder / shard for shard in shards]
    raise ConfigError("backbone", f"{folder} holds no weights (model.safetensors or pytorch_model.bin)")


def _set_classifier_dropout(config: Any, dropout: float) -> None:
    for name in ("cls_dropout", "classifier_dropout"):  # DeBERTa's and BERT's names
        if hasattr(config, name) or (name == "cls_dropout" and config.model_type.startswith("deberta")):
            setattr(config, name, dropout)
            return
    raise ConfigError("training.classifier_dropout", f"a {config.model_type} model has no such setting; use null")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warning that the head is new (it always is), the bar of a short load, and warnings about pickles."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()

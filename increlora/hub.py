"""Repositories of the Hugging Face Hub: from the cache or downloaded, or one sentence that says why neither works."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from increlora.errors import ConfigError


@functools.cache
def snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a model repository in the cache, whose name is the commit; asks the Hub once per process.

    Args:
        name: of the model.
        revision: branch, tag or commit; None for the main branch.
        patterns: the files to download.

    Raises:
        ConfigError: there is no such repository or revision, or it is out of reach.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the file system
        raise unavailable("backbone", name, error) from error


_LOCAL = {"backbone": "backbone.path", "data": "data.source to local and data.path"}


def unavailable(block: str, name: str, error: Exception, part: str = "") -> ConfigError:
    """Why a repository is not available, and what to do about it.

    Args:
        block: of the config, ``backbone`` or ``data``.
        name: of the repository.
        error: what the client library raised.
        part: names the part of the repository that was wanted.
    """
    from huggingface_hub import constants, errors

    # the client libraries wrap one another's exceptions
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) and inner not in chain:
        chain.append(inner)
    field, at = f"{block}.name", constants.ENDPOINT
    reason = " ".join(str(error).split())[:300]
    if constants.HF_HUB_OFFLINE:
        told = f"not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch it where {at} can be reached"
    elif _any(chain, errors.RevisionNotFoundError):
        field, told = f"{block}.revision", f"there is no such revision at {at}"
    elif _any(chain, errors.GatedRepoError):
        told = f"its owner gives access on request at {at}/{name}; then set HF_TOKEN"
    elif _any(chain, errors.RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":
        told = f"there is none at {at}; if it is private, set HF_TOKEN"
    elif _any(chain, errors.LocalEntryNotFoundError, ConnectionError):
        told = f"not in the cache, and {at} cannot be reached; to read it from a folder set {_LOCAL[block]}"
    else:
        told = f"could not be loaded from {at} ({type(error).__name__}: {reason})"
    return ConfigError(field, f"{part}{name}: {told}")


def _any(chain: Sequence[BaseException], *kinds: type[BaseException]) -> bool:
    return any(isinstance(one, kinds) for one in chain)

"""Errors that a user can fix, as the tuner defines them, and those of the file system."""

import errno

from increlora.tuner.errors import ConfigError, IncreLoraError, unknown

__all__ = ["ConfigError", "IncreLoraError", "sentence", "unknown"]


def sentence(error: Exception) -> str:
    """What an error says, on one line; one of the file system names the file first."""
    told = str(error)
    if isinstance(error, OSError) and error.strerror:
        told = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        told += "; free some and start again" if error.errno == errno.ENOSPC else ""
    return " ".join(told.split())

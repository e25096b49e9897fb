"""Errors that a user can mend, as the tuner defines them, and those of the file system."""

from increlora.tuner.errors import ConfigError, IncreLoraError, unknown

__all__ = ["ConfigError", "IncreLoraError", "sentence", "unknown"]


def sentence(error: Exception) -> str:
    """What an error says, on one line; one of the file system names the file first."""
    told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return " ".join(told.split())

"""Errors that a user can mend, as the tuner defines them."""

from increlora.tuner.errors import ConfigError, IncreLoraError, unknown

__all__ = ["ConfigError", "IncreLoraError", "unknown"]

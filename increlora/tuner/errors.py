"""Errors that a user can fix. The command line prints them as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class IncreLoraError(Exception):
    """Base class of every error that the user can fix."""


class ConfigError(IncreLoraError, ValueError):
    """A setting is wrong.

    Args:
        field: dotted path of the field, e.g. ``methods.lora.training.learning_rate``.
        message: what was given and what is allowed.
    """

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field = field


def unknown(field: str, given: object, allowed: Iterable[object]) -> ConfigError:
    """The error for a name that does not exist, with the closest existing one suggested."""
    names = [str(name) for name in allowed]
    close = get_close_matches(str(given), names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ConfigError(field, f"{given!r} is unknown{hint}; allowed: {', '.join(names)}")

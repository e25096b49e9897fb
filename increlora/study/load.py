"""One or more YAML files become a `Study`, with a grid spanned and everything checked."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from increlora.errors import ConfigError
from increlora.model import parsed, shortened
from increlora.study.checks import check_study
from increlora.study.config import Study
from increlora.study.grid import with_trials
from increlora.training.settings import OVERRULED


def load_study(*sources: str | Path | Mapping[str, Any]) -> Study:
    """Reads a study from YAML files, inline YAML (``{...}``) or mappings; later ones win, block by block.

    Raises:
        ConfigError: for the first thing that is wrong, naming the file or field, what was given and what is allowed.
    """
    given = merge(*(read_config(source) for source in sources), overruled=OVERRULED)
    study = with_trials(parsed(Study, given, ""))
    check_study(study)
    return study


class _Loader(yaml.SafeLoader):
    """YAML in which a key may occur once in a mapping, where YAML itself would take the last, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        seen: dict[str, yaml.Node] = {}
        for key in own:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen[str(key.value)] = key
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """One configuration as a plain dict: a mapping, a YAML file, or inline YAML that starts with a brace.

    Raises:
        ConfigError: the file cannot be read or is no YAML mapping.
    """
    if isinstance(source, Mapping):
        return _with_text_keys(source)
    inline = isinstance(source, str) and source.lstrip().startswith("{")
    name = "inline configuration" if inline else shortened(str(source), 200)[1:-1]
    try:
        text = str(source) if inline else Path(source).read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(name, f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(name, f"is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(name, "is not valid YAML: " + " ".join(str(error).split())) from None
    if not isinstance(content, dict):
        raise ConfigError(name, f"must be a mapping of settings, not {type(content).__name__}")
    return _with_text_keys(content)


def _with_text_keys(given: Mapping[Any, Any]) -> dict[str, Any]:
    """Every key as text, so that the budget 2 of a file and of the command line are one."""
    return {str(key): _with_text_keys(value) if isinstance(value, Mapping) else value for key, value in given.items()}


def typed(given: Any) -> Any:
    """Text that YAML would read as a number, a boolean or null as such: Snakemake's --config makes text of all."""
    if isinstance(given, Mapping):
        return {key: typed(value) for key, value in given.items()}
    if isinstance(given, list):
        return [typed(value) for value in given]
    if not isinstance(given, str):
        return given
    try:
        value = yaml.load(given, _Loader)
    except yaml.YAMLError:
        return given
    return value if value is None or isinstance(value, int | float) else given


def merge(*layers: Mapping[str, Any], overruled: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Deep merge: mappings are merged key by key, everything else is replaced by the later layer.

    A later layer with a key of `overruled` drops the key that would overrule it from the layers before.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for weaker, stronger in (overruled or {}).items():
            if weaker in layer:
                merged.pop(stronger, None)
        for key, value in layer.items():
            old = merged.get(key)
            if isinstance(old, Mapping) and isinstance(value, Mapping):
                value = merge(old, value, overruled=overruled)
            merged[key] = value
    return merged


def changes(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be merged onto `base` to get `wanted`, which has all of its keys."""
    changed: dict[str, Any] = {}
    for key, value in wanted.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            changed |= {key: inner} if (inner := changes(old, value)) else {}
        elif key not in base or old != value:
            changed[key] = value
    return changed

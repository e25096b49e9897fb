"""What every typed block of settings has in common, and what is wrong with one in a sentence that names the field.

Imports nothing but pydantic: reading a config stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, field_validator

from increlora.errors import ConfigError, unknown


class Block(BaseModel):
    """Settings that never change once made; unknown fields, infinities and booleans for numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_boolean_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:  # pydantic takes `true` for 1
        types = _leaves(cls.model_fields[str(info.field_name)].annotation)
        values = given if isinstance(given, list | tuple) else [given]
        if {int, float} & types and bool not in types and any(isinstance(value, bool) for value in values):
            raise ValueError("a number is needed, not true or false")
        return given


def _leaves(annotation: Any) -> set[Any]:
    arguments = get_args(annotation)
    return set().union(*map(_leaves, arguments)) if arguments else {annotation}


def parsed(kind: Any, given: Any, field: str = "") -> Any:
    """A value of a model or annotated type.

    Args:
        kind: the model or type.
        given: what it is made from.
        field: dotted path of the value in the config.

    Raises:
        ConfigError: the value cannot be one; names the field, what was given and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise _config_error(error, kind, given, field) from None


def _config_error(error: ValidationError, model: Any, given: Any, prefix: str) -> ConfigError:
    """The first field that is wrong, and how many others are."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_path(one, given), []).append(one)
    (where, mistakes), *others = found.items()
    field = ".".join([prefix, *where] if prefix else where) or "config"
    more = f" (and {len(others)} more)" if others else ""
    if mistakes[0]["type"] == "extra_forbidden":
        mistake = unknown(field, where[-1], _model_at(model, where[:-1]).model_fields)
        return ConfigError(field, str(mistake).removeprefix(f"{field}: ") + more)
    allowed = " or ".join(dict.fromkeys(map(_allowed, mistakes)))  # one per member of a union
    value = mistakes[0]["input"]
    is_shown = isinstance(value, str | int | float | bool | None)
    return ConfigError(field, (f"got {shortened(value)}: " if is_shown else "") + allowed + more)


def _path(mistake: Any, given: Any) -> tuple[str, ...]:
    """Where a mistake is, without the names that pydantic adds for the members of a union and for keys."""
    where = []
    for part in mistake["loc"]:
        parts = given if isinstance(given, Mapping) else range(len(given)) if isinstance(given, list | tuple) else ()
        if part in parts:
            where.append(_printed(str(part)))
            given = given[part]
    return (*where, str(mistake["loc"][-1])) if mistake["type"] == "missing" else tuple(where)


def _printed(part: str) -> str:
    """Part of a path, as Python writes it where it is no name at all."""
    return part if part.isprintable() and len(part) <= 64 else shortened(part)


def shortened(given: object, longest: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(given)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _allowed(mistake: Any) -> str:
    match mistake["type"]:
        case "missing":
            return "is required but was not given"
        case "string_pattern_mismatch":
            return f"must match {mistake['ctx']['pattern']}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping of settings"
        case "list_type" | "tuple_type":
            return "must be a list"
    message: str = mistake["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _model_at(model: type[BaseModel], where: tuple[str, ...]) -> type[BaseModel]:
    """The model that holds the fields at a location; keys of mappings and list positions are passed over."""
    for part in where:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg))), None)

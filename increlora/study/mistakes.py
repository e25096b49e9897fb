"""What pydantic finds wrong with a config, as one sentence that names the field by its dotted path."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from increlora.errors import ConfigError, unknown


def parsed(kind: Any, given: Any, field: str) -> Any:
    """A value of a model or annotated type.

    Raises:
        ConfigError: the value cannot be one; names the field.
    """
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise config_error(error, kind, field) from None


def config_error(error: ValidationError, model: Any, prefix: str = "") -> ConfigError:
    """The first problem that pydantic found in making a `model`, and how many others there are."""
    first, *others = error.errors(include_url=False)
    where = [_printed(str(part)) for part in first["loc"] if part != "[key]"]
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        parent = ".".join([prefix, *where[:-1]] if prefix else where[:-1]) or "config"
        mistake = unknown(parent, where[-1], _model_at(model, where[:-1]).model_fields)
        return ConfigError(parent, str(mistake).removeprefix(f"{parent}: ") + more)
    field = ".".join([prefix, *where] if prefix else where) or "config"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return ConfigError(field, "is required but was not given" + more)
    if first["type"] == "string_pattern_mismatch":
        message = f"must match {first['ctx']['pattern']}"
    if first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        message = "must be a mapping of settings"
    if first["type"] in ("list_type", "tuple_type"):
        message = "must be a list"
    if isinstance(first["input"], str | int | float | bool | None):
        message = f"got {shortened(first['input'])}: {message[:1].lower()}{message[1:]}"
    return ConfigError(field, message + more)


def _printed(part: str) -> str:
    """Part of a path, as Python writes it where it is no name at all."""
    return part if part.isprintable() and len(part) <= 64 else shortened(part)


def shortened(given: object, longest: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(given)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _model_at(model: type[BaseModel], where: list[str]) -> type[BaseModel]:
    """The model that holds the fields at a location; keys of mappings and list positions are passed over."""
    for part in where:
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg))), None)

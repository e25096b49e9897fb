"""What every typed block of settings has in common. Imports nothing but pydantic: reading a config stays light."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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

"""A grid of settings becomes variants: one trial for every combination of values, and which of them is the best."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from increlora.errors import ConfigError, unknown
from increlora.model import parsed
from increlora.study.config import Row, Study, Variant
from increlora.training.settings import Training

SYMBOLS = {"learning_rate": "", "lora_alpha": "α "}
"""How a trial's title introduces a value; other settings by their name."""


class Trial(NamedTuple):
    """One combination of values."""

    name: str
    """Of its variant."""
    values: dict[str, Any]
    at_edge: tuple[str, ...]
    """Settings of which it has the first or last value, where there are more than two."""


def trials(study: Study, origin: str) -> list[Trial]:
    """Every trial of a variant, the first setting of its grid varying fastest; none without a grid."""
    axes = study.grid.methods.get(origin, {}) if study.grid else {}
    if not axes:
        return []
    found = []
    for positions in product(*(range(len(values)) for values in reversed(axes.values()))):
        at = dict(zip(axes, reversed(positions), strict=True))
        values = {setting: axes[setting][at[setting]] for setting in axes}
        first, *further = axes
        tags = [f"{at[first] + 1}", *(_tag(setting, values[setting]) for setting in further)]
        edges = [name for name in axes if len(axes[name]) > 2 and at[name] in (0, len(axes[name]) - 1)]
        found.append(Trial("_".join([origin, *tags]), values, tuple(edges)))
    return found


def _tag(setting: str, value: Any) -> str:
    """Initial of the setting's last word, and its value: `a16` for a `lora_alpha` of 16."""
    return setting.rpartition("_")[2][:1] + re.sub(r"[^A-Za-z0-9]", "_", str(value))


def with_trials(study: Study) -> Study:
    """The study with its trials as variants, which are all the rows of Table 1 in place of their origins.

    Raises:
        ConfigError: the grid names a variant that is not there or is no row of Table 1, a trial has the name of another
            variant, or a value cannot be.
    """
    if study.grid is None:
        return study
    table = study.artefacts.chosen.table1
    if table is None:
        raise ConfigError("grid", "needs `artefacts.table1`: its trials take the places of the rows there")
    methods = dict(study.methods)
    for origin in study.grid.methods:
        if origin not in study.methods:
            raise unknown("grid.methods", origin, study.methods)
        if origin not in {row.method for row in table.rows}:
            raise ConfigError(f"grid.methods.{origin}", "is no row of `artefacts.table1`, which its trials replace")
        for trial in trials(study, origin):
            if trial.name in study.methods:
                raise ConfigError(f"methods.{trial.name}", f"is the name of a trial of {origin!r}; give it another one")
            methods[trial.name] = _variant(study, origin, trial.values)
    rows = [Row(method=trial.name, budgets=row.budgets) for row in table.rows for trial in trials(study, row.method)]
    artefacts = study.artefacts.model_copy(update={"table1": table.model_copy(update={"rows": tuple(rows)})})
    return study.model_copy(update={"methods": methods, "artefacts": artefacts})


def _variant(study: Study, origin: str, values: Mapping[str, Any]) -> Variant:
    training = {name: value for name, value in values.items() if name in Training.model_fields}
    options = {name: value for name, value in values.items() if name not in training}
    shown = [f"{SYMBOLS.get(name, f'{name} ')}{_printed(value)}" for name, value in values.items()]
    title = " ".join([study.title(origin), *shown])
    given = {"title": title, "extends": origin, "training": training, "options": options}
    return parsed(Variant, given, f"grid.methods.{origin}")


def _printed(value: Any) -> str:
    """A number without trailing zeros: 1.8e-4, 16."""
    if not isinstance(value, float):
        return str(value)
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def best(scores: Mapping[str, Mapping[int | None, float]], over: str) -> dict[int | None, str]:
    """The best trial of a method, by the rule of `Choose.over`.

    Args:
        scores: of each trial at each budget; trials without a score at every budget of the others are out.
        over: `budgets` or `each_budget`.

    Returns:
        The trial chosen for each budget: the same one throughout with `budgets`. Of equals the first.
    """
    budgets: Sequence[int | None] = list(dict.fromkeys(budget for one in scores.values() for budget in one))
    whole = {name: one for name, one in scores.items() if set(one) == set(budgets)}
    if not whole:
        return {}
    if over == "each_budget":
        return {budget: max(whole, key=lambda name: whole[name][budget]) for budget in budgets}
    winner = max(whole, key=lambda name: sum(whole[name].values()))
    return dict.fromkeys(budgets, winner)

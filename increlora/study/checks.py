"""Checks before training: whether the fields of a study fit together.

They read no weights and import neither torch nor Transformers, so the workflow makes them each time it starts. Budgets
are checked against the real shapes of the backbone in `increlora.study.budgets`; records after training in
`increlora.study.verify`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from increlora.errors import ConfigError, unknown
from increlora.glue.tasks import TASKS
from increlora.methods.method import RANK
from increlora.methods.registry import METHODS, validate_options
from increlora.model import Block, parsed, shortened
from increlora.study.cells import all_cells, kind_of, method_of, ranks_from
from increlora.study.config import Artefacts, Overrides, Study, Table1, Variant
from increlora.study.settings import run_settings
from increlora.training.pretrain_settings import PretrainSettings

MOST_BUILTIN_ROWS = 100_000


def check_study(study: Study) -> None:
    """Checks all that spans several fields of a study.

    Raises:
        ConfigError: for the first mistake.
    """
    _known("tasks", study.tasks, TASKS)
    _backbone(study)
    _data(study)
    for name in study.methods:
        _variant(study, name)
    _artefacts(study)
    if study.grid and study.grid.choose.metric != "all":
        shown = study.artefacts.chosen.table1 or study
        _among("grid.choose.metric", [study.grid.choose.metric], shown.tasks, "is no task of Table 1")
    for cell in all_cells(study):
        run_settings(study, cell, study.seeds[0])


def _backbone(study: Study) -> None:
    backbone = study.backbone
    if ".." in backbone.name or len(backbone.name) > 128:
        raise ConfigError("backbone.name", f"got {shortened(backbone.name)}: it becomes the name of a folder")
    try:
        re.compile(backbone.target_modules or "")
    except re.error as error:
        raise ConfigError("backbone.target_modules", f"is not a valid regular expression ({error})") from None
    if backbone.pretrain is not None:
        pretrain_settings(study)
    if backbone.path is None:
        return
    if backbone.pretrain is not None:
        raise ConfigError("backbone.path", "cannot be combined with `backbone.pretrain`; remove one of them")
    _width(backbone.path)


def pretrain_settings(study: Study) -> PretrainSettings:
    """The settings of a backbone that the workflow pretrains itself.

    Raises:
        ConfigError: for the first thing that is wrong, or if the study has no such backbone.
    """
    if study.backbone.pretrain is None:
        raise ConfigError("backbone.pretrain", "is not set: this study's backbone comes ready-made")
    return parsed(PretrainSettings, study.backbone.pretrain, "backbone.pretrain")


def hidden_size(study: Study) -> int | None:
    """Width of the backbone as far as it is known without the network."""
    if study.backbone.pretrain is not None:
        return pretrain_settings(study).hidden_size
    return _width(study.backbone.path) if study.backbone.path else None


def _width(folder: str) -> int | None:
    """Hidden size in the config of a model folder, if it says."""
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "backbone.path", f"got {shortened(folder)}: no model folder (its config.json: {error.strerror})"
        ) from None
    except ValueError as error:
        raise ConfigError("backbone.path", f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError("backbone.path", f"{path} must hold a JSON object, not {type(content).__name__}")
    width = content.get("hidden_size")
    return width if isinstance(width, int) else None


def _data(study: Study) -> None:
    data = study.data
    if data.path is not None and data.source != "local":
        raise ConfigError(
            "data.path", f"belongs to source 'local', not to {data.source!r}; set `data.source` or remove it"
        )
    if data.path is not None and not Path(data.path).is_dir():
        raise ConfigError("data.path", f"got {shortened(data.path)}: no such folder")
    for name in ("train_rows", "eval_rows", "test_rows"):
        rows = getattr(data, name)
        if data.source == "builtin" and rows is not None and rows > MOST_BUILTIN_ROWS:
            allowed = f"allowed: up to {MOST_BUILTIN_ROWS:,} rows of the built-in corpus"
            raise ConfigError(f"data.{name}", f"got {rows}; {allowed}")

    if study.report.checkpoint == "test" and (data.source != "builtin" or data.evaluate_on != "validation"):
        raise ConfigError(
            "report.checkpoint",
            "'test' needs a test split with labels, which only the built-in corpus has, and with `evaluate_on: "
            "validation`; allowed here: crossfit, best, last",
        )


def _variant(study: Study, name: str) -> None:
    variant, field = study.methods[name], f"methods.{name}"
    _ancestors(study, name)
    kind = kind_of(study, name)
    if kind not in METHODS:
        raise unknown(f"{field}.kind", kind, METHODS)
    _known(f"{field}.tasks", variant.tasks, study.tasks)
    for place, layer in _layers(field, variant):
        validate_options(kind, layer.options, f"{place}.options")
        if layer is not variant and ".budgets." in place and METHODS[kind].budget is None:
            raise ConfigError(place.rpartition(".")[0], f"{name!r} has no budget; remove the field")
    needs_ranks, source = METHODS[kind].needs_ranks, ranks_from(study, name)
    if needs_ranks and source is None:
        raise ConfigError(f"{field}.ranks_from", f"is required by kind {kind!r}: the method variant to take")
    if source is None:
        return
    if not needs_ranks:
        raise ConfigError(f"{field}.ranks_from", f"kind {kind!r} takes no ranks from another run; remove it")
    _known(f"{field}.ranks_from.method", [source.method], study.methods)
    _among(f"{field}.ranks_from.method", [source.method], _allocating(study), "allocates no ranks")


def _layers(field: str, variant: Variant) -> Iterator[tuple[str, Overrides]]:
    """Everything that a variant sets itself, with its place; also for tasks and budgets that no artefact shows."""
    yield field, variant
    for budget, layer in variant.budgets.items():
        yield f"{field}.budgets.{budget}", layer
    for task, on_task in variant.tasks.items():
        yield f"{field}.tasks.{task}", on_task
        for budget, layer in on_task.budgets.items():
            yield f"{field}.tasks.{task}.budgets.{budget}", layer


def _ancestors(study: Study, name: str) -> None:
    seen = [name]
    while parent := study.methods[seen[-1]].extends:
        _known(f"methods.{seen[-1]}.extends", [parent], study.methods)
        if parent in seen:
            raise ConfigError(f"methods.{name}.extends", f"goes in a circle: {' -> '.join([*seen, parent])}")
        seen.append(parent)


def _allocating(study: Study) -> list[str]:
    """The variants whose runs end with a rank per module that training has found."""
    for name in study.methods:
        _ancestors(study, name)
    kinds = {name: METHODS.get(kind_of(study, name)) for name in study.methods}
    return [name for name, method in kinds.items() if method and method.allocates]


def _artefacts(study: Study) -> None:
    given = [name for name, one in study.artefacts if name != "only" and one is not None]
    if not given:
        names = [name for name in Artefacts.model_fields if name != "only"]
        raise ConfigError("artefacts", f"none given; allowed: {', '.join(names)}")
    _known("artefacts.only", study.artefacts.only or (), given)
    wanted, every, allocating = study.artefacts.chosen, list(study.methods), _allocating(study)
    with_budget = [name for name in every if method_of(study, name).budget]
    without = [name for name in every if name not in with_budget]
    ranked = [name for name in every if name in allocating or method_of(study, name).needs_ranks]
    if wanted.table1:
        _table1(study, wanted.table1)
    for name, part, allowed, lacking in (
        *((name, "rows", every, "") for name in wanted.comparisons),
        ("headroom", "full", without, "has a budget"),
        ("headroom", "head", without, "has a budget"),
        ("figure4", "methods", with_budget, "has no budget to draw a curve over"),
        ("figure5", "with_advance", ranked, "has no factors A and B in its records"),
        ("figure5", "without_advance", ranked, "has no factors A and B in its records"),
        ("figure6", "methods", ranked, "has no ranks in its records"),
        ("rank_growth", "method", allocating, "allocates no ranks"),
        ("training", "method", allocating, "allocates no ranks"),
        ("training", "reference", every, ""),
    ):
        if block := getattr(wanted, name):
            _shown(study, name, block, part, allowed, lacking)
    if wanted.headroom and (over := wanted.headroom.over_budgets):
        _shown(study, "headroom.over_budgets", over, "method", with_budget, "has no budget")
        if over.budgets[0] >= over.budgets[1]:
            told = f"got {list(over.budgets)}; the smallest comes first, then a larger one"
            raise ConfigError("artefacts.headroom.over_budgets.budgets", told)
    if (pair := wanted.figure5) and pair.with_advance == pair.without_advance:
        raise ConfigError("artefacts.figure5", f"compares {pair.with_advance!r} with itself; give two variants")
    if not all_cells(study):
        raise ConfigError("artefacts", "`claims` has no runs of its own; give it a table or figure to be made about")


def _table1(study: Study, table: Table1) -> None:
    _known("artefacts.table1.tasks", table.tasks, study.tasks)
    seen: set[tuple[str, int | None]] = set()
    for number, row in enumerate(table.rows):
        field = f"artefacts.table1.rows.{number}"
        _known(f"{field}.method", [row.method], study.methods)
        _row_budgets(study, field, row.method, row.budgets)
        for budget in row.budgets or (None,):
            if (row.method, budget) in seen:
                at = "" if budget is None else f" at budget {budget}"
                raise ConfigError(field, f"{row.method!r} is given more than once{at}")
            seen.add((row.method, budget))
    _same_levels(study, seen)


def _same_levels(study: Study, rows: Iterable[tuple[str, int | None]]) -> None:
    """The widths of an adapter are compared with the ranks of the low-rank methods in their order."""
    found: dict[str, set[int]] = {}
    for method, budget in rows:
        if budget is not None and (unit := method_of(study, method).budget):
            found.setdefault(unit.name if unit.is_common else kind_of(study, method), set()).add(budget)
    ranks = found.pop(RANK.name, set())
    for kind, widths in found.items():
        if ranks and len(widths) != len(ranks):
            raise ConfigError(
                "artefacts.table1.rows",
                f"{kind!r} has the widths {sorted(widths)} and the low-rank methods the ranks {sorted(ranks)}; give as "
                "many of both: the largest is compared with the largest, and so on",
            )


def _shown(study: Study, name: str, block: Block, part: str, allowed: Iterable[str], lacking: str) -> None:
    """An artefact's tasks, its variants in the field `part`, and its budgets, which hold for all of these.

    Variants that are not `allowed` there are refused with what they are `lacking`.
    """
    place, given = f"artefacts.{name}", {key: one if isinstance(one, tuple) else (one,) for key, one in block}
    for field in given.keys() & {"task", "tasks"}:
        _known(f"{place}.{field}", given[field], study.tasks)
    _known(f"{place}.{part}", given[part], study.methods)
    for field in given.keys() & {"budget", "budgets"}:
        for method in given[part]:
            if method_of(study, method).budget:
                _budgets_fit(study, f"{place}.{field}", method, given[field])
    _among(f"{place}.{part}", given[part], allowed, lacking)


def _row_budgets(study: Study, field: str, method: str, budgets: tuple[int, ...] | None) -> None:
    unit = method_of(study, method).budget
    if unit is None and budgets:
        raise ConfigError(f"{field}.budgets", f"got {list(budgets)}: {method!r} has no budget; remove the field")
    if unit is not None and not budgets:
        raise ConfigError(f"{field}.budgets", f"is required: {method!r} needs at least one budget ({unit.name})")
    _budgets_fit(study, f"{field}.budgets", method, budgets or ())


def _budgets_fit(study: Study, field: str, method: str, budgets: Iterable[int]) -> None:
    widest = hidden_size(study)
    for budget in budgets:
        if widest is not None and budget > widest:
            bound = f"from 1 to {widest}, the hidden size of {study.backbone.name!r}"
            raise ConfigError(field, f"got {budget} for {method!r}; allowed: {bound}")


def _known(field: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    names = list(allowed)
    for name in given:
        if name not in names:
            raise unknown(field, name, names)


def _among(field: str, given: Iterable[str], allowed: Iterable[str], lacking: str) -> None:
    names = list(allowed)
    for name in given:
        if name not in names:
            raise ConfigError(field, f"{name!r} {lacking}; allowed: {', '.join(names) or 'none of the methods here'}")

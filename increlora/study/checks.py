"""What can be wrong between the fields of a study: names, budgets, seeds, references and files.

`validate` raises a `ConfigError` for the first mistake. It reads no weights and imports neither torch nor transformers,
so the workflow runs it each time it is started; budgets are checked against the real shapes of the backbone in
`increlora.study.plan.check`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from increlora.errors import ConfigError, unknown
from increlora.glue.tasks import TASKS
from increlora.study.config import Method, Overrides, Study, pretrain_settings
from increlora.study.expand import all_cells, resolve, variant


def validate(study: Study) -> None:
    """Checks all that spans several fields of a study.

    Raises:
        ConfigError: for the first mistake.
    """
    _known("tasks", study.tasks, TASKS)
    _unique("seeds", study.seeds)
    _methods(study)
    _files(study)
    _artefacts(study)
    for cell in all_cells(study):
        resolve(study, cell.task, cell.method, cell.budget, cell.seeds[0])


def _methods(study: Study) -> None:
    from increlora.methods import registry

    for name, method in study.methods.items():
        field = f"methods.{name}"
        _inheritance(study, name)
        chosen = variant(study, name)
        if chosen.kind not in registry.METHODS:
            raise unknown(f"{field}.kind", chosen.kind, registry.METHODS)
        _known(f"{field}.tasks", method.tasks, study.tasks)
        for place, layer in _layers(field, method):
            registry.validate_options(chosen.kind, layer.options, f"{place}.options")
        needs_ranks = registry.METHODS[chosen.kind].needs_ranks
        if needs_ranks and chosen.ranks_from is None:
            raise ConfigError(f"{field}.ranks_from", f"is required by kind {chosen.kind!r}: the method variant to take")
        if chosen.ranks_from is None:
            continue
        if not needs_ranks:
            raise ConfigError(f"{field}.ranks_from", f"kind {chosen.kind!r} takes no ranks from another run; remove it")
        source = chosen.ranks_from.method
        _known(f"{field}.ranks_from.method", [source], study.methods)
        allocating = [other for other in study.methods if _allocates(study, other)]
        _among(f"{field}.ranks_from.method", [source], allocating, "allocates no ranks")


def _layers(field: str, method: Method) -> Iterator[tuple[str, Overrides]]:
    """Everything that a variant sets itself, with its place; also for tasks and budgets that no artefact shows."""
    yield field, method
    for budget, layer in method.budgets.items():
        yield f"{field}.budgets.{budget}", layer
    for task, on_task in method.tasks.items():
        yield f"{field}.tasks.{task}", on_task
        for budget, layer in on_task.budgets.items():
            yield f"{field}.tasks.{task}.budgets.{budget}", layer


def _inheritance(study: Study, name: str) -> None:
    seen = [name]
    while parent := study.methods[seen[-1]].extends:
        _known(f"methods.{seen[-1]}.extends", [parent], study.methods)
        if parent in seen:
            raise ConfigError(f"methods.{name}.extends", f"goes in a circle: {' -> '.join([*seen, parent])}")
        seen.append(parent)


def _allocates(study: Study, name: str) -> bool:
    """Whether a variant's runs end with a rank per module that training has found."""
    from increlora.methods import registry

    _inheritance(study, name)
    kind = registry.METHODS.get(variant(study, name).kind)
    return kind is not None and kind.allocates


def _artefacts(study: Study) -> None:
    from increlora.methods import registry

    wanted = study.artefacts
    allocating = [name for name in study.methods if _allocates(study, name)]
    ranked = [
        name for name in study.methods if name in allocating or registry.METHODS[variant(study, name).kind].needs_ranks
    ]
    if not wanted.model_dump(exclude_none=True):
        raise ConfigError("artefacts", f"none given; allowed: {', '.join(type(wanted).model_fields)}")
    if table := wanted.table1:
        _known("artefacts.table1.tasks", table.tasks, study.tasks)
        _unique("artefacts.table1.tasks", table.tasks)
        for number, row in enumerate(table.rows):
            field = f"artefacts.table1.rows[{number}]"
            _known(f"{field}.method", [row.method], study.methods)
            _row_budgets(study, field, row.method, row.budgets)
    for name, rows in (("table2", wanted.table2), ("table3", wanted.table3)):
        if rows:
            _shared(study, f"artefacts.{name}", rows.tasks, ("rows", rows.rows), rows.budget)
    if curve := wanted.figure4:
        _shared(study, "artefacts.figure4", curve.tasks, ("methods", curve.methods), curve.budgets)
        with_budget = [name for name in study.methods if variant(study, name).takes_budget]
        _among("artefacts.figure4.methods", curve.methods, with_budget, "has no budget to draw a curve over")
    if pair := wanted.figure5:
        for part in ("with_advance", "without_advance"):
            _shared(study, "artefacts.figure5", [pair.task], (part, [getattr(pair, part)]), pair.budget)
            _among(f"artefacts.figure5.{part}", [getattr(pair, part)], ranked, "has no factors A and B in its records")
    if maps := wanted.figure6:
        _shared(study, "artefacts.figure6", [maps.task], ("methods", maps.methods), maps.budget)
        _among("artefacts.figure6.methods", maps.methods, ranked, "has no ranks in its records")
    if growth := wanted.growth:
        _shared(study, "artefacts.growth", [growth.task], ("method", [growth.method]), growth.budget)
        _among("artefacts.growth.method", [growth.method], allocating, "allocates no ranks")


def _shared(
    study: Study, field: str, tasks: Iterable[str], methods: tuple[str, Iterable[str]], budgets: int | tuple[int, ...]
) -> None:
    """An artefact whose budgets hold for all its methods; `methods` is the name and the value of the field for them."""
    _known(f"{field}.tasks", tasks, study.tasks)
    _known(f"{field}.{methods[0]}", methods[1], study.methods)
    _unique(f"{field}.tasks", tasks)
    _unique(f"{field}.{methods[0]}", methods[1])
    name, each = ("budget", (budgets,)) if isinstance(budgets, int) else ("budgets", budgets)
    _unique(f"{field}.{name}", each)
    for method in methods[1]:
        if variant(study, method).takes_budget:
            _budgets_fit(study, f"{field}.{name}", method, each)


def _row_budgets(study: Study, field: str, method: str, budgets: tuple[int, ...] | None) -> None:
    from increlora.methods import registry

    budget = registry.METHODS[variant(study, method).kind].budget
    unit = budget and budget.name
    if unit is None and budgets:
        raise ConfigError(f"{field}.budgets", f"got {list(budgets)}: {method!r} has no budget; remove the field")
    if unit is not None and not budgets:
        raise ConfigError(f"{field}.budgets", f"is required: {method!r} needs at least one budget ({unit})")
    _unique(f"{field}.budgets", budgets or ())
    _budgets_fit(study, f"{field}.budgets", method, budgets or ())


def _budgets_fit(study: Study, field: str, method: str, budgets: Iterable[int]) -> None:
    widest = hidden_size(study)
    for budget in budgets:
        if budget < 1 or (widest is not None and budget > widest):
            bound = f"from 1 to {widest}, the hidden size of {study.backbone.name!r}" if widest else "1 or more"
            raise ConfigError(field, f"got {budget} for {method!r}; allowed: {bound}")


def hidden_size(study: Study) -> int | None:
    """Width of the backbone as far as it is known without the network."""
    backbone = study.backbone
    if backbone.pretrain is not None:
        size = pretrain_settings(backbone.pretrain).hidden_size
    elif backbone.path is not None:
        size = json.loads((Path(backbone.path) / "config.json").read_text(encoding="utf-8")).get("hidden_size")
    else:
        size = None
    return size


def _files(study: Study) -> None:
    backbone, data = study.backbone, study.data
    if backbone.pretrain is not None:
        pretrain_settings(backbone.pretrain)
    if backbone.path is not None:
        if backbone.pretrain is not None:
            raise ConfigError("backbone.path", "cannot be combined with `backbone.pretrain`; remove one of them")
        if not (Path(backbone.path) / "config.json").is_file():
            raise ConfigError("backbone.path", f"got {backbone.path!r}: no model folder (it has no config.json)")
    if data.path is not None and data.source != "local":
        raise ConfigError(
            "data.path", f"belongs to source 'local', not to {data.source!r}; set `data.source` or remove it"
        )
    if data.path is not None and not Path(data.path).is_dir():
        raise ConfigError("data.path", f"got {data.path!r}: no such folder")


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


def _unique(field: str, given: Iterable[int | str]) -> None:
    repeated = [value for value, times in Counter(given).items() if times > 1]
    if repeated:
        raise ConfigError(field, f"{repeated[0]!r} is given more than once; each may occur once")

"""The typed form of ``config/*.yaml``, and how one or more files become a `Study`.

A study says which backbone and data it uses, how methods are trained, and which artefacts (tables and figures of the
paper) it builds. The artefacts alone decide which runs there are; see `increlora.study.expand`. All that can be wrong
is found here, before anything heavy is imported or trained, and is reported as a `ConfigError` with the dotted name of
the field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from increlora.errors import ConfigError, unknown
from increlora.training.pretrain_settings import PretrainSettings
from increlora.training.settings import Backbone, Data, RanksFrom, RunSettings, Training

if TYPE_CHECKING:
    from increlora.study.expand import Cell

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
"""Letters, digits and underscores: it becomes part of file names."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_no_setting(cls, given: Any) -> Any:
        return {} if given is None else given


if TYPE_CHECKING:

    class TrainingOverrides(_Block):
        """Any subset of the fields of `Training`."""
else:
    TrainingOverrides = create_model(
        "TrainingOverrides",
        __base__=_Block,
        __doc__="Any subset of the fields of `Training`; those left out keep the value of the layer below.",
        **{
            name: (
                Annotated[field.annotation, "as in Training", *field.metadata],
                Field(default=None, description=field.description),
            )
            for name, field in Training.model_fields.items()
        },
    )


class Overrides(_Block):
    """What one layer changes."""

    training: TrainingOverrides = TrainingOverrides()
    """Training settings."""
    options: dict[str, Any] = {}
    """Options of the method; the registry entry of its kind says which there are."""


class TaskOverrides(Overrides):
    """What a method changes on one task."""

    budgets: dict[int, Overrides] = {}
    """Further changes at single budgets."""


class Method(Overrides):
    """A variant of a method: one row of a table."""

    title: str | None = None
    """How tables and figures print it; the variant's name if left out."""
    kind: str | None = None
    """Name in the method registry; the variant's own name (or the kind of `extends`) if left out."""
    extends: str | None = None
    """Variant from which this one inherits everything; whatever is set here wins over everything set there."""
    budgets: dict[int, Overrides] = {}
    """Changes at single budgets, on every task."""
    tasks: dict[str, TaskOverrides] = {}
    """Changes on single tasks; they win over `budgets`."""
    ranks_from: RanksFrom | None = None
    """For kind `svd_lora`: the variant whose final ranks it starts from, at the same task, budget and seed."""


class TaskSettings(_Block):
    """A task of the study."""

    training: TrainingOverrides = TrainingOverrides()
    """Training settings on this task, for every method."""


class Report(_Block):
    """How results are shown."""

    checkpoint: Literal["best", "last"] = "best"
    """Which evaluation a table shows: the best one on the development set, or the last. Records hold both."""


class Execution(_Block):
    """How the workflow packs runs into jobs. Nothing here changes a result."""

    job: Literal["method", "cell", "run"] = "cell"
    """`method`: one job per kind of method with all runs of its variants in one process, which starts up once (for runs
    of seconds). `cell`: one job per task, method and budget, all seeds in one process. `run`: one job per seed."""
    gpu: int = Field(default=1, ge=0)
    """GPUs that a training job asks for; 0 for a study that is meant for CPUs."""
    threads: int = Field(default=1, ge=1)
    """Cores of a training job."""
    mem_mb: int = Field(default=4000, ge=1)
    """Memory of a training job, in MB."""
    runtime: int = Field(default=120, ge=1)
    """Time limit of one run, in minutes; a job of several runs gets as many times more."""


class Row(_Block):
    """A method in Table 1, once for each budget."""

    method: str
    """Method variant."""
    budgets: tuple[int, ...] | None = None
    """Average rank per module, or bottleneck width of the adapters; left out for a method without a budget."""


class Table1(_Block):
    """Comparison of methods over tasks (Table 1)."""

    tasks: tuple[str, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)


class Comparison(_Block):
    """Variants at one budget (Tables 2 and 3)."""

    tasks: tuple[str, ...] = Field(min_length=1)
    budget: int
    rows: tuple[str, ...] = Field(min_length=1)


class Figure4(_Block):
    """Score over the budget (Figure 4)."""

    tasks: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    budgets: tuple[int, ...] = Field(min_length=1)


class Figure5(_Block):
    """Orthogonality of A and B over training (Figure 5)."""

    task: str
    budget: int
    with_advance: str
    """Variant with advance learning."""
    without_advance: str
    """Variant without it."""


class Figure6(_Block):
    """Final rank of every module (Figure 6)."""

    task: str
    budget: int
    methods: tuple[str, ...] = Field(min_length=1)


class Growth(_Block):
    """Rank of every module over training (a figure of this package)."""

    task: str
    budget: int
    method: str


class Artefacts(_Block):
    """The tables and figures to build; one that is left out is not built and needs no runs."""

    table1: Table1 | None = None
    table2: Comparison | None = None
    table3: Comparison | None = None
    figure4: Figure4 | None = None
    figure5: Figure5 | None = None
    figure6: Figure6 | None = None
    growth: Growth | None = None


class Study(_Block):
    """A whole study. Make one with `load_study` or `Study.from_dict`, which also check what spans several fields."""

    study: Name
    """Name of the study; results are called after it."""
    seeds: tuple[Seed, ...] = Field(min_length=1)
    """One run per seed in every cell."""
    report: Report = Report()
    execution: Execution = Execution()
    backbone: Backbone
    data: Data
    training: TrainingOverrides = TrainingOverrides()
    """Training settings of every run, unless a task or method says otherwise."""
    tasks: dict[str, TaskSettings]
    """Every task that is used anywhere."""
    methods: dict[Name, Method]
    """Every method variant that is used anywhere."""
    artefacts: Artefacts

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Study:
        """Builds and checks a study.

        Raises:
            ConfigError: for the first thing that is wrong, naming the field, what was given and what is allowed.
        """
        from increlora.study.checks import validate

        try:
            study = cls.model_validate(config)
        except ValidationError as error:
            raise config_error(error, cls) from None
        validate(study)
        return study

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the whole study, but for how jobs are packed."""
        return hashlib.sha256(self.model_dump_json(exclude={"execution"}).encode()).hexdigest()[:16]

    def cells(self) -> tuple[Cell, ...]:
        """Every (task, method, budget) that an artefact needs, each once, in the order of the artefacts."""
        from increlora.study.expand import all_cells

        return all_cells(self)

    def runs(self) -> list[RunSettings]:
        """The resolved settings of every run: cells in their order, seeds within a cell."""
        return [
            self.settings(cell.task, cell.method, cell.budget, seed) for cell in self.cells() for seed in cell.seeds
        ]

    def settings(self, task: str, method: str, budget: int | None, seed: int) -> RunSettings:
        """The resolved settings of one run (see `increlora.study.expand.resolve`)."""
        from increlora.study.expand import resolve

        return resolve(self, task, method, budget, seed)

    def title(self, method: str) -> str:
        """How tables and figures print a method variant."""
        return self.methods[method].title or method


def load_study(*sources: str | Path | Mapping[str, Any]) -> Study:
    """Reads a study from YAML files, inline YAML (``{...}``) or mappings; later ones win, block by block.

    Raises:
        ConfigError: if a file cannot be read or the study is wrong.
    """
    return Study.from_dict(merge(*(read_config(source) for source in sources)))


def read_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """One configuration as a plain dict: a mapping, a YAML file, or inline YAML that starts with a brace."""
    if isinstance(source, Mapping):
        return dict(source)
    inline = isinstance(source, str) and source.lstrip().startswith("{")
    name = "inline configuration" if inline else str(source)
    try:
        content = yaml.safe_load(str(source) if inline else Path(source).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(name, f"cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ConfigError(name, "is not valid YAML: " + " ".join(str(error).split())) from None
    if not isinstance(content, dict):
        raise ConfigError(name, f"must be a mapping of settings, not {type(content).__name__}")
    return content


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge: mappings are merged key by key, everything else is replaced by the later layer."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def overrides(base: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be merged onto `base` to get `wanted`, which has all of its keys."""
    changed: dict[str, Any] = {}
    for key, value in wanted.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            changed |= {key: inner} if (inner := overrides(old, value)) else {}
        elif key not in base or old != value:
            changed[key] = value
    return changed


def pretrain_settings(given: Mapping[str, Any]) -> PretrainSettings:
    """The settings of a backbone that the workflow pretrains itself.

    Raises:
        ConfigError: for the first thing that is wrong.
    """
    try:
        return PretrainSettings.model_validate(given)
    except ValidationError as error:
        raise config_error(error, PretrainSettings, "backbone.pretrain") from None


def config_error(error: ValidationError, model: type[BaseModel], prefix: str = "") -> ConfigError:
    """The first problem that pydantic found, in one sentence with the field's dotted name."""
    first, *others = error.errors(include_url=False)
    where = [str(part) for part in first["loc"]]
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        parent = ".".join([prefix, *where[:-1]] if prefix else where[:-1]) or "config"
        mistake = unknown(parent, where[-1], _model_at(model, where[:-1]).model_fields)
        return ConfigError(parent, str(mistake).removeprefix(f"{parent}: ") + more)
    field = ".".join([prefix, *where] if prefix else where) or "config"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return ConfigError(field, "is required but was not given" + more)
    if isinstance(first["input"], str | int | float | bool | None):
        message = f"got {first['input']!r}: {message[:1].lower()}{message[1:]}"
    return ConfigError(field, message + more)


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

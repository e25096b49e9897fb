"""A study as data: the typed form of ``config/*.yaml``.

A study says which backbone and data it uses, how methods are trained, and which artefacts (tables and figures of the
paper) it builds; the artefacts alone decide which runs there are. Here are the models and what a single field may hold.
`increlora.study.load` reads files, `increlora.study.checks` holds the fields against one another.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from increlora.glue.data import Data, Seed
from increlora.model import Block
from increlora.training.record import Rule
from increlora.training.settings import Backbone, RanksFrom, Training

T = TypeVar("T", bound=Sequence[Any])


def unique(given: T) -> T:
    """The values as they are.

    Raises:
        ValueError: one of them occurs twice.
    """
    repeated = [value for value, times in Counter(map(str, given)).items() if times > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is given more than once; each may occur once")
    return given


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
"""Up to 64 letters, digits and underscores: names become parts of file names."""
Title = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,80}$")]
"""One line of up to 80 characters."""
Budget = Annotated[int, Field(ge=1)]
"""Average rank per module, or bottleneck width of an adapter."""
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(unique)]
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(unique)]
Budgets = Annotated[tuple[Budget, ...], Field(min_length=1), AfterValidator(unique)]


class _Block(Block):
    @model_validator(mode="before")
    @classmethod
    def _empty_is_no_setting(cls, given: Any) -> Any:
        return {} if given is None else given


class TrainingOverrides(_Block, Training):
    """Any subset of the fields of `Training`; those left out keep the value of the layer below."""


# Only the defaults differ from `Training`: nothing is required, and what is unset is no override.
for _field in TrainingOverrides.model_fields.values():
    _field.default = None
TrainingOverrides.model_rebuild(force=True)


def _unchanged() -> TrainingOverrides:
    return TrainingOverrides.model_validate({})


class Overrides(_Block):
    """What one layer changes."""

    training: TrainingOverrides = Field(default_factory=_unchanged)
    """Training settings."""
    options: dict[str, Any] = Field(default={})
    """Options of the method; the registry entry of its kind says which there are."""

    @field_validator("options")
    @classmethod
    def _options_are_finite(cls, given: dict[str, Any]) -> dict[str, Any]:  # JSON, hence a digest, has no infinity
        for name, value in given.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; a finite number is needed")
        return given


class TaskOverrides(Overrides):
    """What a variant changes on one task."""

    budgets: dict[Budget, Overrides] = Field(default={})
    """Further changes at single budgets."""


class Variant(Overrides):
    """A method with certain settings: one row of a table."""

    title: Title | None = None
    """How tables and figures print it; the variant's name if left out."""
    kind: str | None = None
    """Name in the method registry; the variant's own name (or the kind of `extends`) if left out."""
    extends: str | None = None
    """Variant from which this one inherits everything; whatever is set here wins over everything set there."""
    budgets: dict[Budget, Overrides] = Field(default={})
    """Changes at single budgets, on every task."""
    tasks: dict[str, TaskOverrides] = Field(default={})
    """Changes on single tasks; they win over `budgets`."""
    ranks_from: RanksFrom | None = None
    """For kinds that retrain from a rank distribution: the variant whose final ranks it takes, at the same task, budget
    and seed."""


class TaskSettings(_Block):
    """A task of the study."""

    training: TrainingOverrides = Field(default_factory=_unchanged)
    """Training settings on this task, for every method."""


class Report(_Block):
    """How results are shown."""

    checkpoint: Rule = "crossfit"
    """Which of a run's numbers a table shows; records hold what all of them need. `test`: chosen on the development
    split, shown on the test split, where there is one. `crossfit`: chosen on one half of the development split, shown
    on the other, and the other way round. `best`: chosen and shown on the same rows, as in the papers. `last`: the
    last evaluation."""


class Execution(_Block):
    """How the workflow packs runs into jobs. Nothing here changes a result."""

    job: Literal["run", "method"] = "run"
    """`run`: one job per run, so that a cluster schedules, limits and repeats each alone. `method`: one job per kind of
    method with all runs of its variants in one process, for runs of seconds: starting Python costs as much as a run."""
    gpu: int = Field(default=1, ge=0)
    """GPUs that a training job asks for; 0 for a study that is meant for CPUs."""
    threads: int = Field(default=1, ge=1)
    """Cores of a training job; `increlora run` and `increlora pretrain` take as many."""
    mem_mb: int = Field(default=4000, ge=1)
    """Memory of a training job, in MB."""
    runtime: int = Field(default=120, ge=1)
    """Time limit of one run, in minutes; a job of several runs gets as many times more."""


class Row(_Block):
    """A variant in Table 1, once for each budget."""

    method: str
    """Method variant."""
    budgets: Budgets | None = None
    """Average rank per module, or bottleneck width of the adapters; left out for a method without a budget."""


class Table1(_Block):
    """Comparison of methods over tasks (Table 1)."""

    tasks: Names
    rows: tuple[Row, ...] = Field(min_length=1)


class Comparison(_Block):
    """Variants at one budget (Tables 2 and 3, and the table of variants, which compares each row with the first)."""

    tasks: Names
    budget: Budget
    rows: Names


class OverBudgets(_Block):
    """One variant at its largest budget and at its smallest."""

    tasks: Names
    method: str
    """Method variant."""
    budgets: tuple[Budget, Budget]
    """The smallest and the largest."""


class Headroom(_Block):
    """How much there is to gain on each task, hence whether it can tell methods apart (a table of this package)."""

    tasks: Names
    full: str
    """Variant that trains all weights."""
    head: str
    """Variant that trains a head on the frozen encoder."""
    over_budgets: OverBudgets | None = None
    """Whether a budget matters, on the tasks of Figure 4."""


class Figure4(_Block):
    """Score over the budget (Figure 4), and the same in numbers (the table `budgets`)."""

    tasks: Names
    methods: Names
    budgets: Budgets


class Figure5(_Block):
    """Orthogonality of A and B over training, with and without advance learning (Figure 5)."""

    task: str
    budget: Budget
    with_advance: str
    """Method variant."""
    without_advance: str
    """Method variant."""


class Figure6(_Block):
    """Final rank of every module (Figure 6)."""

    task: str
    budget: Budget
    methods: Names


class TrainingCurves(_Block):
    """Total rank, regulariser and score over training, beside another variant's score (a figure of this package)."""

    task: str
    budget: Budget
    method: str
    """Method variant that allocates ranks."""
    reference: str
    """Method variant."""


class RankGrowth(_Block):
    """Rank of every module over training (a figure of this package)."""

    task: str
    budget: Budget
    method: str


class Artefacts(_Block):
    """The tables and figures to build; one that is left out is not built and needs no runs."""

    only: Names | None = None
    """Of the artefacts below, build just these: for a file that extends another study with fewer artefacts."""
    table1: Table1 | None = None
    table2: Comparison | None = None
    table3: Comparison | None = None
    variants: Comparison | None = None
    headroom: Headroom | None = None
    claims: Literal[True] | Names | None = None
    """The paper's claims, tested on the records of the artefacts here; `true` for all that these can answer."""
    figure4: Figure4 | None = None
    figure5: Figure5 | None = None
    figure6: Figure6 | None = None
    rank_growth: RankGrowth | None = None
    training: TrainingCurves | None = None

    @property
    def chosen(self) -> Artefacts:
        """Those that `only` keeps; all of them without it."""
        gone = set(type(self).model_fields) - {"only", *self.only} if self.only else ()
        return self.model_copy(update=dict.fromkeys(gone))

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """The tables of variants at one budget that there are, by name."""
        found = {name: getattr(self, name) for name in ("table2", "table3", "variants")}
        return {name: wanted for name, wanted in found.items() if wanted}


class Choose(_Block):
    """How a grid's best trial is chosen, the same for every method."""

    metric: str = "all"
    """`all` for the mean over the paper's tasks, as in the column "All" of Table 1, or one task."""
    over: Literal["budgets", "each_budget"] = "budgets"
    """`budgets`: one trial per method, by its mean over the method's budgets. `each_budget`: one for every budget."""


class Grid(_Block):
    """Trials of training settings and options. In Table 1 the rows of a method that stands here become its trials, and
    those of the others go."""

    choose: Choose = Choose()
    methods: dict[Name, dict[str, Annotated[tuple[Any, ...], Field(min_length=1), AfterValidator(unique)]]]
    """For each variant the values of training settings or options; every combination is a trial. A trial is a variant
    called after its origin, the position of its first setting's value, and initial and value of each further setting:
    ``lora_2_a16`` has the second learning rate and a `lora_alpha` of 16."""


class Study(_Block):
    """A whole study. Make one with `increlora.study.load.load_study`, which also checks what spans several fields."""

    study: Name
    """Name of the study; results are called after it."""
    seeds: Seeds
    """One run per seed in every cell."""
    report: Report = Report()
    execution: Execution = Execution()
    backbone: Backbone
    data: Data
    training: TrainingOverrides = Field(default_factory=_unchanged)
    """Training settings of every run, unless a task or variant says otherwise."""
    tasks: dict[str, TaskSettings]
    """Every task that is used anywhere."""
    methods: dict[Name, Variant]
    """Every method variant that is used anywhere."""
    grid: Grid | None = None
    """Trials of settings, for a study that chooses those of another."""
    artefacts: Artefacts

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the whole study, but for how jobs are packed."""
        return hashlib.sha256(self.model_dump_json(exclude={"execution"}).encode()).hexdigest()[:16]

    def title(self, variant: str) -> str:
        """How tables and figures print a variant."""
        return self.methods[variant].title or variant

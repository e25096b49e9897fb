"""The options of every method, typed: what may stand under `methods.<variant>.options` in a study's config.

An options model also knows which budgets and schedules are possible, so that a wrong config fails before the first
model is loaded. Nothing here imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from increlora.errors import ConfigError
from increlora.methods.plan import TrainingPlan
from increlora.methods.ranks import Shapes

if TYPE_CHECKING:
    from increlora.tuner.config import IncreLoraConfig


class Options(BaseModel):
    """Options of one method. Without fields: a method that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def check(self, budget: int | None, plan: TrainingPlan, shapes: Shapes, field: str = "options") -> None:
        """Raise `ConfigError` if this budget cannot be had with this plan on modules of these shapes.

        Args:
            budget: rank per module or bottleneck width, at least 1 (the registry has seen to that).
            plan: the training to come.
            shapes: the adapted matrices.
            field: dotted path of these options, for the message.
        """


class AdapterOptions(Options):
    """Options of the bottleneck adapters."""

    activation: Literal["swish", "relu"]
    """Nonlinearity between the two projections."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the projections' Gaussian initialisation; biases start at 0."""


class HoulsbyOptions(AdapterOptions):
    """HAdapter: swish by default."""

    activation: Literal["swish", "relu"] = "swish"
    """Nonlinearity between the two projections."""


class PfeifferOptions(AdapterOptions):
    """PAdapter: ReLU by default."""

    activation: Literal["swish", "relu"] = "relu"
    """Nonlinearity between the two projections."""


class RankOptions(Options):
    """What every method with a low-rank update has in common."""

    lora_alpha: int = Field(default=16, ge=1)
    """Numerator of the update's scale, alpha / rank."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the low-rank branch."""

    def check(self, budget: int | None, plan: TrainingPlan, shapes: Shapes, field: str = "options") -> None:
        _check_rank(budget, shapes, "budget")


class LoraOptions(RankOptions):
    """LoRA: W0 + (alpha / r) B A."""


@dataclass(frozen=True)
class AdaLoraSchedule:
    """PEFT's names for AdaLoRA's three phases, in optimizer steps; see `AdaLoraOptions`."""

    init_r: int
    tinit: int
    tfinal: int
    deltaT: int


class AdaLoraOptions(RankOptions):
    """AdaLoRA (arXiv 2303.10512). Options carry PEFT's names; in the authors' scripts they are called

    ================== ===================================================================
    ``init_r``          ``lora_r``
    ``tinit``           ``init_warmup``: the first steps, at the initial rank
    ``tfinal``          ``final_warmup``: the *last* steps, at the final ranks; it counts back from the end of training
    ``deltaT``          ``mask_interval``
    ``orth_reg_weight`` ``reg_orth_coef``
    ================== ===================================================================

    Between `tinit` and ``total_steps - tfinal`` the total rank falls along a cubic curve.
    """

    init_r: int | None = Field(default=None, ge=1)
    """Initial rank per module; null for `init_r_factor` times the budget."""
    init_r_factor: float = Field(default=1.5, gt=1)
    """Initial over target rank, the product rounded up."""
    tinit: int | None = Field(default=None, ge=0)
    """Steps before ranks are cut; null for `tinit_fraction` of all steps."""
    tfinal: int | None = Field(default=None, ge=0)
    """Steps after the last cut; null for `tfinal_fraction` of all steps."""
    tinit_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps before ranks are cut (the authors' scripts: 0.09 to 0.22)."""
    tfinal_fraction: float = Field(default=0.5, ge=0, lt=1)
    """Share of all steps after the last cut (the authors' scripts: 0.31 to 0.58)."""
    deltaT: int = Field(default=10, ge=1)
    """Steps between two cuts."""
    beta1: float = Field(default=0.85, gt=0, lt=1)
    """Decay of the smoothed sensitivity."""
    beta2: float = Field(default=0.85, gt=0, lt=1)
    """Decay of the smoothed uncertainty."""
    orth_reg_weight: float = Field(default=0.1, ge=0)
    """Coefficient of the orthogonality regulariser, the mean of ||A A^T - I||_F and ||B^T B - I||_F."""

    def schedule(self, target_r: int, total_steps: int) -> AdaLoraSchedule:
        """Everything in steps and ranks, for a run of `total_steps` that ends at `target_r` per module."""
        return AdaLoraSchedule(
            init_r=math.ceil(self.init_r_factor * target_r) if self.init_r is None else self.init_r,
            tinit=round(self.tinit_fraction * total_steps) if self.tinit is None else self.tinit,
            tfinal=round(self.tfinal_fraction * total_steps) if self.tfinal is None else self.tfinal,
            deltaT=self.deltaT,
        )

    def check(self, budget: int | None, plan: TrainingPlan, shapes: Shapes, field: str = "options") -> None:
        super().check(budget, plan, shapes, field)
        assert budget is not None
        schedule = self.schedule(budget, plan.total_steps)
        if schedule.init_r <= budget:
            raise ConfigError(f"{field}.init_r", f"{schedule.init_r} must exceed the budget, rank {budget}")
        _check_rank(schedule.init_r, shapes, f"{field}.init_r")
        cutting = plan.total_steps - schedule.tinit - schedule.tfinal
        if cutting < schedule.deltaT:
            given = f"tinit {schedule.tinit} + tfinal {schedule.tfinal}"
            raise ConfigError(
                f"{field}.tfinal",
                f"{given} leave {cutting} of {plan.total_steps} training steps for cutting ranks; "
                f"at least deltaT ({schedule.deltaT}) are needed. Lower tinit, tfinal or deltaT, or train longer",
            )


class SvdLoraOptions(RankOptions):
    """LoRA in SVD form at given ranks, by `increlora.tuner` (Table 3). Fields that are null follow the preset."""

    preset: Literal["paper", "code"] = "paper"
    """The paper's equations, or what the authors' code computes."""
    scaling: Literal["constant", "active_rank"] | None = None
    """Scale of the update: alpha / budget throughout, or alpha / active rank of the module."""
    orth_reg_weight: float | None = Field(default=None, ge=0)
    """Coefficient of the orthogonality regulariser."""
    orth_reg: Literal["squared", "frobenius", "component"] | None = None
    """What the regulariser measures."""
    init_std: float | None = Field(default=None, gt=0)
    """Standard deviation of the Gaussian initialisation of A and B."""

    def tuner_config(self, **fields: Any) -> IncreLoraConfig:
        """The tuner's config with these options and further fields of it, which win."""
        from increlora.tuner.config import IncreLoraConfig

        own = self.model_dump(exclude={"preset"}, exclude_none=True)
        return IncreLoraConfig.from_preset(self.preset, **{**own, **fields})


class IncreLoraOptions(SvdLoraOptions):
    """IncreLoRA and its ablations (arXiv 2308.12043): fields of `increlora.tuner.IncreLoraConfig` of the same name.

    Fields that are null follow the preset.
    """

    init_r: int | None = Field(default=None, ge=1)
    """Rank of every module at the start."""
    tinit: int | None = Field(default=None, ge=0)
    """Steps before the first interval; the first growth is at tinit + deltaT."""
    deltaT: int | None = Field(default=None, ge=1)
    """Steps between two growths (nu); null for the number of warmup steps."""
    top_h: int | None = Field(default=None, ge=1)
    """Modules that grow at each event; null for as many as reach the budget at `growth_end`."""
    growth_end: float | None = Field(default=None, gt=0, le=1)
    """Fraction of training at which growth ends, where `top_h` is null."""
    ranks_per_event: int | None = Field(default=None, ge=1)
    """Ranks that each of these modules gains."""
    beta1: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the smoothed importance."""
    beta2: float | None = Field(default=None, gt=0, lt=1)
    """Decay of its smoothed uncertainty."""
    score_reduction: Literal["mean", "sum_sqrt"] | None = None
    """Mean of |dW * grad| over its entries (paper), or sum over sqrt(entries) (authors' code)."""
    score_window: int | None = Field(default=None, ge=1)
    """Steps scored before each growth; null for as many as the smoothing remembers."""
    advance_learning: bool = True
    """Train each module's next component before it is activated."""
    restart_warmup: bool = True
    """Give what starts to train at a growth a warmup of its own."""
    reserve_lambda: float | None = Field(default=None, gt=0)
    """Lambda of the reserve component, where a promoted one starts."""
    allow_overshoot: bool = False
    """Let ties and `ranks_per_event` exceed the budget, as the authors' code does."""

    def check(self, budget: int | None, plan: TrainingPlan, shapes: Shapes, field: str = "options") -> None:
        super().check(budget, plan, shapes, field)
        from increlora.tuner.allocation import resolve_schedule

        assert budget is not None
        try:
            config = self.tuner_config(target_r=budget)
            if budget <= config.init_r:
                raise ConfigError("init_r", f"{config.init_r} must be below the budget, rank {budget}, to leave growth")
            resolve_schedule(
                config,
                total_step=plan.total_steps,
                warmup_steps=plan.warmup_steps,
                modules=len(shapes),
                initial_rank=config.init_r * len(shapes),
                budget=budget * len(shapes),
            )
        except ConfigError as error:
            raise ConfigError(f"{field}.{error.field}", str(error).removeprefix(f"{error.field}: ")) from None


def _check_rank(rank: int | None, shapes: Shapes, field: str) -> None:
    for name, (rows, columns) in shapes.items():
        if rank is not None and rank > min(rows, columns):
            raise ConfigError(field, f"rank {rank} exceeds that of {name}, a {rows} x {columns} matrix")

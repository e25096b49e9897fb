"""IncreLoRA (arXiv 2308.12043) and its ablations, by the package's own tuner. Only this file calls `increlora.tuner`.

The options are the fields of `increlora.tuner.IncreLoraConfig`. `TunerOptions.check` validates them by making one,
before any training; reading a config takes them as they are, because importing that class imports PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from increlora.errors import ConfigError, unknown
from increlora.methods.base import Adaptation, AllocationError, Orthogonality, ParameterCount, Setup
from increlora.methods.method import (
    RANK,
    Component,
    Look,
    Method,
    Options,
    PaperMemory,
    Recipe,
    check_rank,
)
from increlora.methods.peft_models import PeftAdaptation
from increlora.methods.ranks import Shapes, lora_parameters, svd_parameters, uniform_ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim.lr_scheduler import LRScheduler

    from increlora.tuner import IncreLoraConfig

_SET_BY_THE_STUDY = {
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "target_r",
    "rank_pattern",
    "scaling_r",
    "total_step",
    "bias",
    "target_parameters",
}
"""Fields of `IncreLoraConfig` that follow from other parts of a study's config."""


class TunerOptions(Options):
    """Fields of `increlora.tuner.IncreLoraConfig`, and the preset that decides those left null."""

    model_config = ConfigDict(extra="allow")

    preset: Literal["paper", "code"] = "paper"
    """The paper's equations, or what the authors' code computes."""

    spelled_out: ClassVar[dict[str, Any]] = {
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        **dict.fromkeys(("scaling", "orth_reg", "init_std")),
        "orth_reg_weight": "auto",
    }
    """Fields that a run's settings spell out even where the config does not set them.

    Digests of finished runs depend on it, so it never changes: a field that `IncreLoraConfig` gains is in the settings
    of the runs that set it, and `lora_alpha` is 16 here, where the tuner's own default is automatic.
    """

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        whole = {**cls.spelled_out, **given}
        return {**whole, "orth_reg_weight": "auto"} if whole["orth_reg_weight"] is None else whole

    @classmethod
    def names(cls) -> set[str]:
        """The fields of `IncreLoraConfig` that a study may set."""
        return {*cls.spelled_out, "lambda_lr_ratio"}

    def tuner_config(self, **own: Any) -> IncreLoraConfig:
        """The tuner's config with these options and further fields of it, which win.

        Raises:
            ConfigError: an option is unknown or wrong; the error's field is the option's name.
        """
        from increlora.tuner import IncreLoraConfig

        given = self.model_dump(exclude={"preset"}, exclude_none=True)
        for name in given.keys() - self.names():
            raise unknown(name, name, self.names())
        return IncreLoraConfig.from_preset(self.preset, **{**given, **own})

    def check(self, budget: int | None, recipe: Recipe, shapes: Shapes, field: str = "options") -> None:
        check_rank(budget, shapes, "budget")
        assert budget is not None
        try:
            self._check(budget, recipe, shapes)
        except ConfigError as error:
            raise ConfigError(f"{field}.{error.field}", str(error).removeprefix(f"{error.field}: ")) from None

    def _check(self, budget: int, recipe: Recipe, shapes: Shapes) -> None:
        self.tuner_config(target_r=None, init_r=budget)


class IncreLoraOptions(TunerOptions):
    """Options of IncreLoRA and its ablations."""

    spelled_out: ClassVar[dict[str, Any]] = {
        **TunerOptions.spelled_out,
        **dict.fromkeys(("init_r", "tinit", "deltaT", "top_h", "growth_end", "ranks_per_event")),
        **dict.fromkeys(("beta1", "beta2", "score_reduction", "score_window", "reserve_lambda")),
        "advance_learning": True,
        "restart_warmup": True,
        "allow_overshoot": False,
    }

    @classmethod
    def names(cls) -> set[str]:
        from peft import PeftConfig

        from increlora.tuner import IncreLoraConfig

        everything, inherited = ({field.name for field in fields(one)} for one in (IncreLoraConfig, PeftConfig))
        return everything - inherited - _SET_BY_THE_STUDY

    def _check(self, budget: int, recipe: Recipe, shapes: Shapes) -> None:
        from increlora.tuner.allocation import component_costs, nominal_budget, resolve_schedule

        config = self.tuner_config(target_r=budget)
        if budget <= config.init_r:
            raise ConfigError("init_r", f"{config.init_r} must be below the budget, rank {budget}, to leave growth")
        widths = [sum(shape) for shape in shapes.values()]
        costs = component_costs(config, widths)
        resolve_schedule(
            config,
            total_step=recipe.total_steps,
            warmup_steps=recipe.warmup_steps,
            costs=costs,
            initial=config.init_r * sum(costs),
            budget=nominal_budget(config, widths),
        )


class SvdLora(PeftAdaptation):
    """LoRA in the form ``s B diag(lambda) A`` at the ranks of its config."""

    def __init__(self, setup: Setup[Any], config: IncreLoraConfig):
        from increlora.tuner import find_allocator

        super().__init__(setup, config)
        self._config, self._allocator = config, find_allocator(self.peft_model)

    def optimizer(self) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The tuner's AdamW, in which every component has its own age; its state dict holds the state of growth."""
        from increlora.tuner import create_optimizer

        recipe = self.recipe
        return create_optimizer(
            self.peft_model,
            lr=recipe.learning_rate,
            total_steps=recipe.total_steps,
            warmup_steps=recipe.warmup_steps,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            weight_decay=recipe.weight_decay,
        )

    def before_step(self, step: int) -> None:
        self._allocator.update_and_allocate(step)

    def ranks(self) -> dict[str, int]:
        return self._allocator.rank_distribution()

    def orthogonality(self) -> Orthogonality:
        active, every = (self._allocator.orthogonality(reserve=reserve) for reserve in (False, True))
        return Orthogonality(active.A, active.B, every.A, every.B, active.norm, every.norm)

    def regularisation(self) -> float:
        return self._allocator.regulariser.value()

    def parameters(self) -> ParameterCount:
        stored = sum(p.numel() for name, p in self.named_trainable().items() if name not in self.head)
        active, every = self._allocator.active_parameters(), super().parameters()
        return ParameterCount(active, every.head, every.total - stored + active)

    def peak_trainable(self) -> int:
        return svd_parameters(self.shapes, self.ranks())

    def weights(self) -> dict[str, Tensor]:
        """The active components and the head, as the saved adapter has them.

        Without the reserve, which adds its lambda of 1e-5 while ranks grow: outputs of a growing model change by that.
        """
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.peft_model, save_embedding_layers=False)
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.peft_model, dict(weights))


class IncreLora(SvdLora):
    """IncreLoRA while it trains."""

    def events(self) -> list[dict[str, Any]]:
        return self._allocator.events()

    def peak_trainable(self) -> int:
        """Every active component, and the reserve of every module as long as ranks grow (paper: 3 m (r + 1))."""
        reserve = self._config.ranks_per_event if self._config.advance_learning else 0
        return super().peak_trainable() + lora_parameters(self.shapes, uniform_ranks(self.shapes, reserve))

    def finish(self) -> None:
        allocator = self._allocator
        if not self.events():
            total = allocator.total_rank
            raise AllocationError(f"IncreLoRA's total rank never moved from {total}: no event fitted into the training")
        if allocator.budget is not None and allocator.total > allocator.budget and not self._config.allow_overshoot:
            raise AllocationError(
                f"IncreLoRA ended with {allocator.total} {self._config.unit}, above its budget of {allocator.budget}"
            )


def prepare(setup: Setup[IncreLoraOptions]) -> Adaptation:
    """IncreLoRA with a final average rank of `budget`."""
    return IncreLora(setup, setup.options.tuner_config(target_modules=setup.target_modules, target_r=setup.size))


def _parameters_at_budget(shapes: Shapes, rank: int, options: Options) -> int:
    """A budget of parameters is what LoRA has at that rank; a budget of ranks adds a lambda to each of them."""
    is_of_parameters = (options.model_extra or {}).get("budget_by") == "parameters"
    return (lora_parameters if is_of_parameters else svd_parameters)(shapes, uniform_ranks(shapes, rank))


_SCORES = {
    "mean": "mean of |ΔW · grad| over its entries (paper)",
    "sum_sqrt": "sum of |ΔW · grad| over the root of the number of entries (authors' code)",
    "taylor": "|sum of λ · grad(λ)|, the sum of ΔW · grad with its signs",
}
_SCORE_OF_PRESET = {"paper": "mean", "code": "sum_sqrt"}


def _note(runs: list[Mapping[str, Any]]) -> str:
    """Which preset, importance score and learning rate of lambda the runs were made with."""
    presets = {options["preset"] for options in runs}
    scores = {
        "taylor"
        if options.get("score") == "taylor"
        else options["score_reduction"] or _SCORE_OF_PRESET[options["preset"]]
        for options in runs
    }
    used = " and ".join(_SCORES[name] for name in sorted(scores))
    given = {options.get("lambda_lr_ratio", 1) for options in runs}
    ratios = sorted(ratio if isinstance(ratio, str) else f"{ratio:g}" for ratio in given)
    rate = "" if ratios == ["1"] else f"; learning rate of λ over that of A and B: {' and '.join(ratios)} (paper: 1)"
    return f"IncreLoRA: preset {' and '.join(sorted(presets))}; importance score: {used}{rate}."


METHOD = Method(
    kind="increlora",
    title="IncreLoRA",
    budget=RANK,
    parameters=_parameters_at_budget,
    prepare=prepare,
    look=Look("#D55E00", "o"),
    options=IncreLoraOptions,
    allocates=True,
    overhead=1.09,
    paper_memory=PaperMemory(
        "3m(r+1)",
        lambda m, r: 3 * m * (r + 1),
        "Beside its active components and the reserve IncreLoRA keeps room for ranks to come, moments included: at low "
        "ranks that is more than 3m(r+1).",
    ),
    components=(
        Component("orth", "OR", "orthogonality regulariser", lambda options: options["orth_reg_weight"] != 0),
        Component("advance", "AL", "advance learning", lambda options: options["advance_learning"]),
        Component("restart", "RW", "restarted warmup", lambda options: options["restart_warmup"]),
    ),
    note=_note,
    protocol=2,
)

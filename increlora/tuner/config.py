"""Configuration of IncreLoRA (arXiv 2308.12043), in the terms of PEFT and AdaLoRA."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftConfig

from . import register
from .errors import ConfigError, unknown


class _PeftType(str):
    """A name that PEFT and Transformers can treat like a member of the enum ``PeftType``."""

    @property
    def value(self) -> str:
        return str.__str__(self)

    def __str__(self) -> str:
        return f"PeftType.{self.value}"  # as the enum prints itself; `get_model_status` cuts the name out of it

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


PEFT_TYPE = _PeftType("INCRELORA")

ScoreReduction = Literal["mean", "sum_sqrt"]
Scaling = Literal["active_rank", "constant"]
OrthReg = Literal["squared", "frobenius", "component"]
BudgetBy = Literal["rank", "parameters"]
Score = Literal["exact", "taylor"]
Bias = Literal["none", "all", "increlora_only"]

CARD = """## Loading this adapter

PEFT knows its type, `INCRELORA`, once the package `increlora` has been imported; a `KeyError: 'INCRELORA'` means that
it has not.

```python
import increlora
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/adapter")
```

`increlora.export_lora(model, folder)` writes it as plain LoRA, which PEFT loads by itself.
"""
"""What an adapter's README says beside PEFT's own text."""

CODE_RANKS_PER_EVENT = {2: 1, 4: 2, 6: 3, 8: 4}
"""Ranks that a chosen module gains in the authors' code, by average target rank."""


@dataclass
class IncreLoraConfig(PeftConfig):
    """IncreLoRA adapter: ranks grow during training where the importance is highest.

    The defaults are the equations of the paper; `from_preset` gives the authors' code as well.

    Args:
        target_modules: names or a regular expression of the linear and embedding layers to adapt, as in ``LoraConfig``.
            Prefer a regular expression: the suffix ``output.dense`` also matches ``attention.output.dense``.
            ``"all-linear"``: every linear layer of the backbone but poolers. ``None``: what PEFT's LoRA adapts in this
            architecture, often only query and value; the paper adapts all six matrices.
        exclude_modules: names or a regular expression of modules to leave alone.
        modules_to_save: further modules that are trained in full and saved, e.g. ``["pooler", "classifier"]``.
        layers_to_transform: indices of the layers to adapt, as in ``LoraConfig``.
        layers_pattern: name of the list of layers that these count, as in ``LoraConfig``.
        init_r: rank of every module at the start (paper, section 3: 1).
        target_r: average final rank per module; the budget is ``target_r`` times the number of modules (paper,
            ``r_avg``). ``None`` switches growth off: the ranks stay as they are.
        budget_by: what the budget counts: ``"rank"`` (paper), or ``"parameters"``: growth stops at the number of
            parameters that LoRA has at rank ``target_r`` in every module, a component's lambda counted, and never
            exceeds it.
        max_r: highest rank that a module may grow to. ``None``: the smaller side of its matrix. Storage for it is
            allocated at once, which a wrapper or optimizer that cannot follow a larger tensor needs (see `capacity`).
        rank_pattern: ``{module name or regular expression: rank}`` for modules that start at another rank than
            ``init_r``. A saved adapter holds its ranks here.
        lora_alpha: numerator of the scaling ``s``. ``"auto"``: 8 times the rank below it, so that ``s = 8`` at every
            budget, with which the learning rates on GLUE were chosen (docs/evidence.md); 16 with
            ``scaling="active_rank"`` (the authors' scripts have 16 or 32).
        scaling: ``"active_rank"``: ``s = lora_alpha / (rank + 1e-5)``, so growth rescales what is there (authors'
            code); ``"constant"``: ``s = lora_alpha / target_r`` throughout (no rank is in the paper's equations).
        scaling_r: rank in that constant, where it is not ``target_r``, or ``init_r`` without growth. A saved adapter
            holds what it was trained with, and so stays the same update when growth is switched off or goes further.
        lora_dropout: dropout probability on the adapter's input.
        tinit: optimizer steps before the first interval starts, or ``"deltaT"`` for as many as an interval has; the
            first growth is at ``tinit + deltaT`` (paper: ``nu``; authors' code: ``2 nu``).
        deltaT: optimizer steps between two growths (paper, ``nu``). ``None``: the warmup steps of the schedule.
        step_origin: number of the first optimizer step when events are counted: 1, or 0 as in the authors' code, whose
            events therefore come one step later.
        top_h: modules that grow per event (authors' code). ``None``: as many as it takes for the total to rise
            linearly, ``round(initial + missing * k / n)`` at event ``k`` of ``n``, to the budget at ``growth_end``
            (paper). In parameters the total stays below that line by less than one component.
        growth_end: fraction of training, in (0, 1], at which growth ends without ``top_h``: the budget is reached at
            the event nearest to it.
        ranks_per_event: ranks that a chosen module gains per event (paper: 1), the module chosen last perhaps fewer:
            what is left of the event's ranks.
        beta1: weight of the past in the smoothed importance, in (0, 1) (paper, equation of ``I``: 0.85).
        beta2: weight of the past in its uncertainty, in (0, 1) (paper, equation of ``U``: 0.85).
        score: ``"exact"``: from the entries of ``|dW * grad(dW)|``, which takes one matrix product per module
            (paper); ``"taylor"``: ``|sum over k of lambda_k dL/dlambda_k|``, the absolute value of the sum of these
            entries, which is free.
        score_reduction: of the exact score: ``"mean"`` over the entries of ``|dW * grad(dW)|`` (paper);
            ``"sum_sqrt"``: sum divided by the square root of their number (authors' code), which favours large
            matrices.
        score_window: score only so many steps before each event, or ``"all"``. ``None``: as many as the smoothing
            remembers (64 at 0.85), which chooses the modules that scoring every step chooses.
        score_first_step: score the very first step; the authors' code counts it as 0.
        orth_reg_weight: coefficient of the orthogonality regulariser. ``"auto"``: 0.1 (paper) as the weight of a mean
            over all A and B, so 0.1 divided by their number for ``orth_reg="squared"``, which is a sum. On RTE and
            STS-B the paper has three times as much.
        orth_reg: ``"squared"``: sum over modules of ``||A A^T - I||_F^2 + ||B^T B - I||_F^2`` (paper); ``"frobenius"``:
            mean over all A and B of the norm, not squared (authors' code); ``"component"``: the mean over single
            components of ``| ||a||^2 - 1 |`` (what that code computes, because it keeps one parameter per component).
        regularise_frozen_reserve: without advance learning, let the frozen reserve count in the regulariser, as in the
            authors' code: in its value and, through the norm and the cross terms, in the active components' gradient.
        advance_learning: train a reserve component per module before it is needed (paper, section 3).
        reserve_from: when the first reserve is created: with the model (``"init"``), or at the end of the first
            optimizer step (``"first_step"``, authors' code).
        keep_reserve: after growth has ended, keep the reserve with lambda 0 in the regulariser and train it on
            (authors' code); otherwise it goes.
        restart_warmup: give parameters that start to train at an event a warmup of their own (paper, section 3).
        reserve_lambda: value of lambda in the reserve, and where a promoted one starts (paper, section 3: 1e-5).
        lambda_lr_ratio: learning rate of lambda divided by that of A and B. 1 (paper). ``"width"``:
            ``sqrt(out_features)`` per module, with which an update of lambda moves ``dW`` as far as an update of LoRA's
            B does once b has unit norm, where the regulariser drives it. `IncreLoraAdamW` applies it.
        init_std: standard deviation of the Gaussian init of a and b (authors' code: 0.02).
        init_weights: ``True``: lambda starts at 0, so the initial update is 0; ``False``: at random values, for tests.
        bias: biases that train too: ``"none"``, ``"all"`` or ``"increlora_only"`` (of the adapted modules).
        allow_overshoot: let ties and ``ranks_per_event`` exceed the budget (of ranks) as the authors' code does.
        total_step: optimizer steps of the whole training, for a loop that does without the Trainer callback and
            ``create_optimizer``, which know better; then set ``deltaT`` too.
        trainable_token_indices: rows of an embedding that train in full, as in ``LoraConfig``.
        target_parameters: must stay ``None``: IncreLoRA adapts modules, not bare parameters.

    Raises:
        ConfigError: a field is out of range; the message names it, what was given and what is allowed.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_r: int = 1
    target_r: int | None = 8
    budget_by: BudgetBy = "rank"
    max_r: int | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    lora_alpha: float | Literal["auto"] = "auto"
    scaling: Scaling = "constant"
    scaling_r: int | None = None
    lora_dropout: float = 0.0
    tinit: int | Literal["deltaT"] = 0
    deltaT: int | None = None
    step_origin: Literal[0, 1] = 1
    top_h: int | None = None
    growth_end: float = 0.5
    ranks_per_event: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    score: Score = "exact"
    score_reduction: ScoreReduction = "mean"
    score_window: int | Literal["all"] | None = None
    score_first_step: bool = True
    orth_reg_weight: float | Literal["auto"] = "auto"
    orth_reg: OrthReg = "squared"
    regularise_frozen_reserve: bool = False
    advance_learning: bool = True
    reserve_from: Literal["init", "first_step"] = "init"
    keep_reserve: bool = False
    restart_warmup: bool = True
    reserve_lambda: float = 1e-5
    lambda_lr_ratio: float | Literal["width"] = 1.0
    init_std: float = 0.02
    init_weights: bool = True
    bias: Bias = "none"
    allow_overshoot: bool = False
    total_step: int | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    target_parameters: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        register()
        self.peft_type = PEFT_TYPE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as every PEFT config does
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]
        self._check()

    def _check(self) -> None:
        def require(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise ConfigError(name, f"got {getattr(self, name)!r}; must be {allowed}")

        def number(name: str) -> bool:
            value = getattr(self, name)
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

        def count(value: Any, lowest: int) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= lowest

        require("init_std", number("init_std") and self.init_std > 0, "a finite number above 0")
        alpha = self.lora_alpha
        require(
            "lora_alpha",
            alpha == "auto" or (number("lora_alpha") and alpha > 0),
            "a finite number above 0, or 'auto'",
        )
        require("reserve_lambda", number("reserve_lambda") and self.reserve_lambda >= 0, "a finite number of 0 or more")
        weight = self.orth_reg_weight
        require(
            "orth_reg_weight",
            weight == "auto" or (number("orth_reg_weight") and weight >= 0),
            "a finite number of 0 or more, or 'auto'",
        )
        for name in ("beta1", "beta2"):
            require(name, number(name) and 0 < getattr(self, name) < 1, "between 0 and 1, both excluded")
        require("growth_end", number("growth_end") and 0 < self.growth_end <= 1, "in (0, 1]")
        require("lora_dropout", number("lora_dropout") and 0 <= self.lora_dropout < 1, "in [0, 1)")
        lowest = 0 if self.target_r is None else 1
        require("init_r", count(self.init_r, lowest), "1 or more (0 if growth is off)")
        require("ranks_per_event", count(self.ranks_per_event, 1), "1 or more")
        require("target_r", self.target_r is None or count(self.target_r, 1), "1 or more, or None to switch growth off")
        require("rank_pattern", all(count(r, lowest) for r in self.rank_pattern.values()), f"ranks of {lowest} or more")
        if self.target_r is not None and not self.rank_pattern:
            require("target_r", self.target_r >= self.init_r, f"init_r ({self.init_r}) or more")
        if self.max_r is not None:
            require("max_r", count(self.max_r, self.init_r), f"init_r ({self.init_r}) or more, or None")
            require(
                "max_r", self.target_r is None or self.max_r >= self.target_r, f"target_r ({self.target_r}) or more"
            )
        for name in ("deltaT", "top_h", "total_step", "scaling_r"):
            require(name, getattr(self, name) is None or count(getattr(self, name), 1), "1 or more, or None")
        require("tinit", self.tinit == "deltaT" or count(self.tinit, 0), "0 or more, or 'deltaT'")
        window = self.score_window
        require("score_window", window in (None, "all") or count(window, 1), "1 or more, 'all', or None")
        ratio = self.lambda_lr_ratio
        require("lambda_lr_ratio", ratio == "width" or (number("lambda_lr_ratio") and ratio > 0), "above 0, or 'width'")
        for one in fields(self):
            if isinstance(one.default, bool) and one.name in IncreLoraConfig.__annotations__:
                require(one.name, isinstance(getattr(self, one.name), bool), "True or False")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if self.allow_overshoot and self.budget_by != "rank":
            raise ConfigError("allow_overshoot", "is the authors' rule for a budget of ranks: set budget_by='rank'")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform", "cannot be used when `target_modules` is a regular expression")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern", "needs `layers_to_transform`: the indices of the layers that it counts")
        if self.target_parameters:
            raise ConfigError(
                "target_parameters",
                f"got {self.target_parameters!r}, but IncreLoRA adapts modules only: for the experts of a mixture, "
                "whose weights are one parameter, use PEFT's LoRA",
            )

    @property
    def grows(self) -> bool:
        """Whether ranks are to grow."""
        return self.target_r is not None and not self.inference_mode

    @property
    def constant_r(self) -> int:
        """The rank in the constant scaling."""
        return self.scaling_r or self.target_r or max(1, self.init_r)

    def scale(self, rank: int) -> float:
        """The factor ``s`` of a module's update at this rank."""
        alpha = self.lora_alpha
        if self.scaling == "active_rank":
            return (16.0 if alpha == "auto" else alpha) / (rank + 1e-5)
        return 8.0 if alpha == "auto" else alpha / self.constant_r

    @property
    def unit(self) -> str:
        """What the budget is a number of."""
        return "ranks" if self.budget_by == "rank" else "parameters"

    @property
    def capacity(self) -> int:
        """Components that a growing module has storage for at first, reserve included.

        `max_r` and the reserve if `max_r` is given; otherwise 4 times `target_r`, and a module that outgrows it gets
        twice as much (see `RankAllocator`).
        """
        return (self.max_r or 4 * (self.target_r or self.init_r)) + self.ranks_per_event

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config as PEFT does; of an adapter that is being saved, with its ranks and that of its scaling.

        The adapter's README, which PEFT has written by then, is told what loading needs.
        """
        own = self.rank_pattern, self.scaling_r
        if (ranks := self.__dict__.pop("_saved_ranks", None)) is not None:
            self.rank_pattern, self.scaling_r = ranks, self.constant_r
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.rank_pattern, self.scaling_r = own
        card = Path(save_directory, "README.md")
        if ranks is not None and card.is_file() and CARD not in (text := card.read_text(encoding="utf-8")):
            card.write_text(f"{text.rstrip()}\n\n{CARD}", encoding="utf-8")

    @classmethod
    def from_preset(cls, preset: Literal["paper", "code"], **overrides: Any) -> IncreLoraConfig:
        """A config that follows the paper's equations or the authors' code.

        ``"code"`` takes that code's decisions step for step; whatever is given in ``overrides`` wins.

        Args:
            preset: ``"paper"`` or ``"code"`` (FeiyuZhang98/IncreLoRA).
            overrides: fields of `IncreLoraConfig`.
        """
        if preset == "paper":
            return cls(**overrides)
        if preset != "code":
            raise unknown("preset", preset, ("paper", "code"))
        target_r = overrides.get("target_r", cls.target_r) or 0
        fields: dict[str, Any] = {
            "score_reduction": "sum_sqrt",
            "score_window": "all",
            "score_first_step": False,
            "scaling": "active_rank",
            "orth_reg": "frobenius",
            "regularise_frozen_reserve": True,
            "reserve_from": "first_step",
            "keep_reserve": True,
            "ranks_per_event": CODE_RANKS_PER_EVENT.get(target_r, 1),
            "tinit": "deltaT",
            "step_origin": 0,
        }
        return cls(**{**fields, **overrides})


_CHOICES: dict[str, tuple[Any, ...]] = {
    "scaling": get_args(Scaling),
    "budget_by": get_args(BudgetBy),
    "score": get_args(Score),
    "score_reduction": get_args(ScoreReduction),
    "orth_reg": get_args(OrthReg),
    "bias": get_args(Bias),
    "reserve_from": ("init", "first_step"),
    "step_origin": (0, 1),
}

"""Configuration of IncreLoRA (arXiv 2308.12043), in the terms of PEFT and AdaLoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from increlora.errors import ConfigError, unknown


class _PeftType(str):
    """A name that reads like a member of PEFT's enum ``PeftType``, which PEFT and Transformers take it for."""

    @property
    def value(self) -> str:
        return str(self)


PEFT_TYPE = _PeftType("INCRELORA")

ScoreReduction = Literal["mean", "sum_sqrt"]
Scaling = Literal["active_rank", "constant"]
OrthReg = Literal["squared", "frobenius", "component"]

CODE_RANKS_PER_EVENT = {2: 1, 4: 2, 6: 3, 8: 4}
"""Ranks that a chosen module gains in the authors' code, by average target rank."""


@dataclass
class IncreLoraConfig(PeftConfig):
    """IncreLoRA adapter: ranks grow during training where the importance is highest.

    The defaults are the equations of the paper; :meth:`from_preset` gives the authors' code as well.

    Args:
        target_modules: names or a regular expression of the linear layers to adapt, as in ``LoraConfig``. Prefer a
            regular expression: the suffix ``output.dense`` also matches ``attention.output.dense``. ``None``: what
            PEFT's LoRA adapts in this architecture, often only query and value; the paper adapts all six matrices.
        exclude_modules: names or a regular expression of modules to leave alone.
        modules_to_save: further modules that are trained in full and saved, e.g. ``["pooler", "classifier"]``.
        layers_to_transform: indices of the layers to adapt, as in ``LoraConfig``.
        layers_pattern: name of the list of layers that these count, as in ``LoraConfig``.
        init_r: rank of every module at the start (paper, section 3: 1).
        target_r: average final rank per module; the budget is ``target_r`` times the number of modules (paper,
            ``r_avg``). ``None`` switches growth off: the ranks stay as they are.
        rank_pattern: ``{module name or regular expression: rank}`` for modules that start at another rank than
            ``init_r``. A saved adapter holds its ranks here.
        lora_alpha: numerator of the scaling ``s``.
        scaling: ``"active_rank"``: ``s = lora_alpha / (rank + 1e-5)``, so growth rescales what is there (authors'
            code); ``"constant"``: ``s = lora_alpha / target_r`` throughout (no rank is in the paper's equations).
        lora_dropout: dropout probability on the adapter's input.
        tinit: optimizer steps before the first interval starts, or ``"deltaT"`` for as many as an interval has; the
            first growth is at ``tinit + deltaT`` (paper: ``nu``; authors' code: ``2 nu``).
        deltaT: optimizer steps between two growths (paper, ``nu``). ``None``: the warmup steps of the schedule.
        top_h: modules that grow per event. ``None``: as many as it takes to reach the budget at ``growth_end``.
        growth_end: fraction of training, in (0, 1], at which growth ends when ``top_h`` is derived.
        ranks_per_event: ranks that a chosen module gains per event (paper: 1).
        beta1: weight of the past in the smoothed importance, in (0, 1) (paper, equation of ``I``: 0.85).
        beta2: weight of the past in its uncertainty, in (0, 1) (paper, equation of ``U``: 0.85).
        score_reduction: ``"mean"`` over the entries of ``|dW * grad(dW)|`` (paper); ``"sum_sqrt"``: sum divided by the
            square root of their number (authors' code), which favours large matrices.
        score_window: score only so many steps before each event, or ``"all"``. ``None``: as many as the smoothing
            remembers to 1e-9 (128 at 0.85), so that a longer window changes the scores by no more than rounding.
        orth_reg_weight: coefficient of the orthogonality regulariser in the training loss (paper: 0.1; 0.3 on RTE and
            STS-B).
        orth_reg: ``"squared"``: sum over modules of ``||A A^T - I||_F^2 + ||B^T B - I||_F^2`` (paper); ``"frobenius"``:
            mean over all A and B of the norm, not squared (authors' code); ``"component"``: the mean over single
            components of ``| ||a||^2 - 1 |`` (what that code computes, because it keeps one parameter per component).
        advance_learning: train a reserve component per module before it is needed (paper, section 3).
        restart_warmup: give parameters that start to train at an event a warmup of their own (paper, section 3).
        reserve_lambda: value of lambda in the reserve, and where a promoted one starts (paper, section 3: 1e-5).
        init_std: standard deviation of the Gaussian init of a and b (authors' code: 0.02).
        allow_overshoot: let ties and ``ranks_per_event`` exceed the budget as the authors' code does.
        capacity_block: components by which a module's storage is enlarged; growth inside a block moves no memory.
        total_step: optimizer steps of the whole training, for a loop that does without the Trainer callback and
            ``create_optimizer``, which know better; then set ``deltaT`` too.
        fan_in_fan_out: the weight is stored as (in, out); set by the model for GPT-2's ``Conv1D``.
        bias: must be ``"none"``; there for code that expects the field.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    init_r: int = 1
    target_r: int | None = 8
    rank_pattern: dict[str, int] = field(default_factory=dict)
    lora_alpha: float = 16
    scaling: Scaling = "constant"
    lora_dropout: float = 0.0
    tinit: int | Literal["deltaT"] = 0
    deltaT: int | None = None
    top_h: int | None = None
    growth_end: float = 0.5
    ranks_per_event: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    score_reduction: ScoreReduction = "mean"
    score_window: int | Literal["all"] | None = None
    orth_reg_weight: float = 0.1
    orth_reg: OrthReg = "squared"
    advance_learning: bool = True
    restart_warmup: bool = True
    reserve_lambda: float = 1e-5
    init_std: float = 0.02
    allow_overshoot: bool = False
    capacity_block: int = 4
    total_step: int | None = None
    fan_in_fan_out: bool = False
    bias: Literal["none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
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

        require("init_r", self.init_r >= (0 if self.target_r is None else 1), "1 or more (0 if growth is off)")
        require("target_r", self.target_r is None or self.target_r >= 1, "1 or more, or None to switch growth off")
        if self.target_r is not None and not self.rank_pattern:
            require("target_r", self.target_r >= self.init_r, f"init_r ({self.init_r}) or more")
        for name in ("beta1", "beta2"):
            require(name, 0 < getattr(self, name) < 1, "between 0 and 1, both excluded")
        for name in ("deltaT", "top_h", "total_step"):
            require(name, getattr(self, name) is None or getattr(self, name) >= 1, "1 or more, or None")
        require(
            "tinit",
            self.tinit == "deltaT" or (isinstance(self.tinit, int) and self.tinit >= 0),
            "0 or more, or 'deltaT'",
        )
        window = self.score_window
        require(
            "score_window", window in (None, "all") or (isinstance(window, int) and window >= 1), "1 or more, or 'all'"
        )
        require("growth_end", 0 < self.growth_end <= 1, "in (0, 1]")
        require("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        require("orth_reg_weight", self.orth_reg_weight >= 0, "0 or more")
        require("lora_alpha", self.lora_alpha > 0, "above 0")
        require("init_std", self.init_std > 0, "above 0, or nothing would ever train")
        require("reserve_lambda", self.reserve_lambda >= 0, "0 or more")
        lowest = 0 if self.target_r is None else 1
        require("rank_pattern", all(r >= lowest for r in self.rank_pattern.values()), f"ranks of {lowest} or more")
        require("bias", self.bias == "none", "'none'")
        for name in ("ranks_per_event", "capacity_block"):
            require(name, getattr(self, name) >= 1, "1 or more")
        for name, kind in (("score_reduction", ScoreReduction), ("scaling", Scaling), ("orth_reg", OrthReg)):
            if getattr(self, name) not in kind.__args__:  # type: ignore[attr-defined]
                raise unknown(name, getattr(self, name), kind.__args__)  # type: ignore[attr-defined]
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError("layers_to_transform", "cannot be used when `target_modules` is a regular expression")

    @classmethod
    def from_preset(cls, preset: Literal["paper", "code"], **overrides: Any) -> IncreLoraConfig:
        """A config that follows the paper's equations or the authors' code.

        The two differ in score, scaling, regulariser, step of the first event and ranks per event; whatever is given
        in ``overrides`` wins.

        Args:
            preset: ``"paper"`` or ``"code"`` (FeiyuZhang98/IncreLoRA).
            overrides: fields of :class:`IncreLoraConfig`.
        """
        if preset == "paper":
            return cls(**overrides)
        if preset != "code":
            raise unknown("preset", preset, ("paper", "code"))
        target_r = overrides.get("target_r", cls.target_r) or 0
        fields: dict[str, Any] = {
            "score_reduction": "sum_sqrt",
            "scaling": "active_rank",
            "orth_reg": "frobenius",
            "ranks_per_event": CODE_RANKS_PER_EVENT.get(target_r, 1),
            "tinit": "deltaT",
        }
        return cls(**{**fields, **overrides})

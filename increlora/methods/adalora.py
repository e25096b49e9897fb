"""AdaLoRA (arXiv 2303.10512) by PEFT: W0 + (alpha / init_r) B diag(E) A, started above the budget and cut down to it.

PEFT cuts by setting entries of E to 0 and keeps all tensors at their initial size; ``config.rank_pattern`` says which
components are left. Between two cuts, components that were cut receive gradients and may move away from 0, as in the
authors' code; from step ``total_steps - tfinal`` on they are set back to 0 after every step. Where this module departs
from plain PEFT, it is for a known trap:

- the orthogonality term is a `penalty` of the training loss; PEFT's own forward adds it to evaluation losses as well;
- `after_step` calls ``update_and_allocate``, without which PEFT trains a fixed rank, and `finish` checks that it did;
- the scale's ``ranknum`` is frozen here: PEFT lets it train when the backbone lies on another device than the CPU;
- the smoothed importance is part of `state_dict`; PEFT saves only weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from increlora.errors import ConfigError
from increlora.methods.base import Adaptation, AllocationError, Orthogonality, ParameterCount, Setup
from increlora.methods.method import RANK, Look, Method, PaperMemory, RankOptions, Recipe, check_rank
from increlora.methods.peft_models import PeftAdaptation
from increlora.methods.ranks import Shapes, svd_parameters, uniform_ranks

if TYPE_CHECKING:
    from peft import AdaLoraConfig
    from peft.tuners.adalora import AdaLoraModel
    from torch import Tensor

_ADAPTER = "default"
_LAMBDA = ".lora_E"
_MASK = ".active"  # key of a module's mask in `weights`


@dataclass(frozen=True)
class AdaLoraSchedule:
    """PEFT's names for AdaLoRA's three phases, in optimizer steps; see `AdaLoraOptions`."""

    init_r: int
    tinit: int
    tfinal: int
    deltaT: int


class AdaLoraOptions(RankOptions):
    """AdaLoRA (arXiv 2303.10512).

    Between `tinit` and ``total_steps - tfinal`` the total rank falls along a cubic curve.

    Options have PEFT's names. The authors' scripts call `init_r` ``lora_r``, `tinit` ``init_warmup``, `tfinal`
    ``final_warmup`` (it counts back from the end of training), `deltaT` ``mask_interval`` and `orth_reg_weight`
    ``reg_orth_coef``.
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

    def check(self, budget: int | None, recipe: Recipe, shapes: Shapes, field: str = "options") -> None:
        super().check(budget, recipe, shapes, field)
        assert budget is not None
        schedule = self.schedule(budget, recipe.total_steps)
        if schedule.init_r <= budget:
            raise ConfigError(f"{field}.init_r", f"{schedule.init_r} must exceed the budget, rank {budget}")
        check_rank(schedule.init_r, shapes, f"{field}.init_r")
        cutting = recipe.total_steps - schedule.tinit - schedule.tfinal
        if cutting < schedule.deltaT:
            given = f"tinit {schedule.tinit} + tfinal {schedule.tfinal}"
            raise ConfigError(
                f"{field}.tfinal",
                f"{given} leave {cutting} of {recipe.total_steps} training steps for cutting ranks; "
                f"at least deltaT ({schedule.deltaT}) are needed. Lower tinit, tfinal or deltaT, or train longer",
            )


class AdaLora(PeftAdaptation):
    """AdaLoRA while it trains.

    Args:
        setup: what the method was asked for.
        config: of PEFT.
    """

    def __init__(self, setup: Setup[AdaLoraOptions], config: AdaLoraConfig):
        super().__init__(setup, config)
        self._config, self._tuner = config, cast("AdaLoraModel", self.peft_model.base_model)
        get = self.model.get_parameter
        for name in self.shapes:
            get(f"{name}.ranknum.{_ADAPTER}").requires_grad_(False)
        # A (init_r, in) and B (out, init_r) of every module: PEFT never replaces them
        self._a: list[Tensor] = [get(f"{name}.lora_A.{_ADAPTER}") for name in self.shapes]
        self._b: list[Tensor] = [get(f"{name}.lora_B.{_ADAPTER}") for name in self.shapes]
        self._events: list[dict[str, Any]] = []
        self._recorded = self.ranks()

    # ---- Allocation

    def after_step(self, step: int) -> None:
        """Score and cut (PEFT's rank allocator); reads the gradients of this step."""
        self._tuner.update_and_allocate(step)
        ranks = self.ranks()
        cutting_ends = step == self.recipe.total_steps - self._config.tfinal
        if sum(ranks.values()) != sum(self._recorded.values()) or (cutting_ends and ranks != self._recorded):
            changed = {name: ranks[name] - before for name, before in self._recorded.items() if ranks[name] != before}
            self._events.append({"step": step, "grown": changed, "total_rank": sum(ranks.values())})
            self._recorded = ranks

    def active(self) -> dict[str, list[bool]]:
        """Which components of each module are not cut."""
        pattern = self._config.rank_pattern
        if pattern is None:
            return {name: [True] * self._config.init_r for name in self.shapes}
        # keys are names of E, without the adapter's name once `save_pretrained` was called
        return {key.removesuffix(f".{_ADAPTER}").removesuffix(_LAMBDA): mask for key, mask in pattern.items()}

    def ranks(self) -> dict[str, int]:
        active = self.active()
        return {name: sum(active[name]) for name in self.shapes}

    def events(self) -> list[dict[str, Any]]:
        return self._events

    def finish(self) -> None:
        budget = self._config.target_r * len(self.shapes)
        total = sum(self.ranks().values())
        if not self._events:
            raise AllocationError(f"AdaLoRA's ranks never moved from {self._config.init_r}: was `after_step` called?")
        if total > budget:
            raise AllocationError(f"AdaLoRA ended at total rank {total}, above its budget of {budget}")

    # ---- Regularisation

    def penalty(self) -> Tensor | None:
        """orth_reg_weight times the mean of ||A A^T - I||_F and ||B^T B - I||_F over all A and B, those cut included.

        What ``AdaLoraModel.forward`` adds to a loss, with one batch of products per shape in place of one per matrix.
        """
        import torch

        if not self._config.orth_reg_weight:
            return None
        every = [torch.ones(len(a), dtype=torch.bool, device=a.device) for a in self._a]
        deviations = _gram_deviations([*self._a, *(b.T for b in self._b)], [*every, *every])
        # the norm's gradient at 0 is NaN for an exactly orthogonal matrix; the clamp makes it 0 there
        norms = [deviation.square().sum((1, 2)).clamp_min(1e-24).sqrt() for deviation in deviations]
        return self._config.orth_reg_weight * torch.cat(norms).mean()

    def orthogonality(self) -> Orthogonality:
        import torch

        active = self.active()
        masks = [torch.tensor(active[name], device=a.device) for name, a in zip(self.shapes, self._a, strict=True)]
        with torch.no_grad():
            of_a, of_b = (
                torch.cat([deviation.square().sum((1, 2)) for deviation in _gram_deviations(matrices, masks)])
                for matrices in (self._a, [b.T for b in self._b])
            )
        a, b = float(of_a.mean()), float(of_b.mean())
        norm = float(torch.cat([of_a, of_b]).sqrt().mean())
        return Orthogonality(a, b, a, b, norm, norm)

    def regularisation(self) -> float:
        import torch

        with torch.no_grad():
            penalty = self.penalty()
        return 0.0 if penalty is None else float(penalty)

    # ---- Counts

    def parameters(self) -> ParameterCount:
        allocated = super().parameters()
        cut = self.peak_trainable() - svd_parameters(self.shapes, self.ranks())
        return ParameterCount(allocated.trainable - cut, allocated.head, allocated.total - cut)

    # ---- State

    def weights(self) -> dict[str, Tensor]:
        """Trainable tensors, and a mask (init_r,) of the components that are not cut for every module."""
        import torch

        masks = {f"{name}{_MASK}": torch.tensor(mask) for name, mask in self.active().items()}
        return super().weights() | masks

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        super().load_weights({name: tensor for name, tensor in weights.items() if not name.endswith(_MASK)})
        self._config.rank_pattern = {
            f"{name}{_LAMBDA}.{_ADAPTER}": weights[f"{name}{_MASK}"].tolist() for name in self.shapes
        }

    def _method_state(self) -> dict[str, Any]:
        allocator = self._tuner.rankallocator
        return {
            "importance": {name: tensor.cpu() for name, tensor in allocator.exp_avg_ipt.items()},
            "uncertainty": {name: tensor.cpu() for name, tensor in allocator.exp_avg_unc.items()},
            "events": list(self._events),
        }

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        allocator = self._tuner.rankallocator
        devices = {name: parameter.device for name, parameter in self.model.named_parameters()}
        allocator.exp_avg_ipt = {name: tensor.to(devices[name]) for name, tensor in state["importance"].items()}
        allocator.exp_avg_unc = {name: tensor.to(devices[name]) for name, tensor in state["uncertainty"].items()}
        allocator.ipt = dict(allocator.exp_avg_ipt)  # only its keys matter: the next step overwrites the values
        self._events = list(state["events"])
        self._recorded = dict.fromkeys(self.shapes, self._config.init_r)  # the present ranks may have moved on since
        for event in self._events:
            for name, change in event["grown"].items():
                self._recorded[name] += change


def _gram_deviations(matrices: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
    """``M M^T - diag(mask)`` of every matrix with components as rows, masked; one batch (matrices, r, r) per shape."""
    import torch

    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    deviations = []
    for members in by_shape.values():
        stacked = torch.stack([matrices[index] for index in members])
        mask = torch.stack([masks[index] for index in members]).to(stacked.dtype)
        with torch.autocast(stacked.device.type, enabled=False):  # a difference from I does not survive bfloat16
            products = torch.bmm(stacked, stacked.transpose(1, 2)) * (mask.unsqueeze(1) * mask.unsqueeze(2))
        deviations.append(products - torch.diag_embed(mask))
    return deviations


def prepare(setup: Setup[AdaLoraOptions]) -> Adaptation:
    """AdaLoRA with a final average rank of `budget`."""
    from peft import AdaLoraConfig

    options, total_steps = setup.options, setup.recipe.total_steps
    config = AdaLoraConfig(
        target_r=setup.size,
        beta1=options.beta1,
        beta2=options.beta2,
        orth_reg_weight=options.orth_reg_weight,
        total_step=total_steps,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=setup.target_modules,
        **asdict(options.schedule(setup.size, total_steps)),
    )
    return AdaLora(setup, config)


METHOD = Method(
    kind="adalora",
    title="AdaLoRA",
    budget=RANK,
    parameters=lambda shapes, rank, _: svd_parameters(shapes, uniform_ranks(shapes, rank)),
    prepare=prepare,
    look=Look("#009E73", "^"),
    options=AdaLoraOptions,
    allocates=True,
    overhead=1.09,
    paper_memory=PaperMemory(
        "6mr",
        lambda m, r: 6 * m * r,
        "6mr is pruning from twice the target rank; AdaLoRA as configured here may start elsewhere (1.5 times by "
        "default).",
    ),
)

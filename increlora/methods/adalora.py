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

from collections.abc import Mapping
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

from increlora.methods.base import Adaptation, AllocationError, ParameterCount, Setup, TrainingPlan, target_shapes
from increlora.methods.lora import PeftAdaptation, inject
from increlora.methods.options import AdaLoraOptions
from increlora.methods.ranks import Shapes, svd_parameters, uniform_ranks
from increlora.tuner.regulariser import orthogonality, orthogonality_loss

_ADAPTER = "default"
_LAMBDA = ".lora_E"
_MASK = ".active"  # key of a module's mask in `weights`


class AdaLora(PeftAdaptation):
    """AdaLoRA while it trains.

    Args:
        peft_model: with one AdaLoRA adapter.
        plan: the training to come.
        shapes: the adapted matrices.
        orth_reg_weight: coefficient of the orthogonality regulariser.
    """

    def __init__(self, peft_model: PeftModel, plan: TrainingPlan, shapes: Shapes, orth_reg_weight: float):
        super().__init__(peft_model, plan, shapes)
        self._orth_reg_weight = orth_reg_weight
        tuner = peft_model.base_model
        assert isinstance(tuner, AdaLoraModel)
        self._tuner = tuner
        config = peft_model.peft_config[_ADAPTER]
        assert isinstance(config, AdaLoraConfig)
        self._config = config
        get = self.model.get_parameter
        for name in shapes:
            get(f"{name}.ranknum.{_ADAPTER}").requires_grad_(False)
        # A (init_r, in) and B (out, init_r) of every module: PEFT never replaces them
        self._a: list[Tensor] = [get(f"{name}.lora_A.{_ADAPTER}") for name in shapes]
        self._b: list[Tensor] = [get(f"{name}.lora_B.{_ADAPTER}") for name in shapes]
        self._events: list[dict[str, Any]] = []
        self._recorded = self.ranks()

    # Allocation

    def after_step(self, step: int) -> None:
        """Score and cut (PEFT's rank allocator); reads the gradients of this step."""
        self._tuner.update_and_allocate(step)
        ranks = self.ranks()
        cutting_ends = step == self.plan.total_steps - self._config.tfinal
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

    # Regularisation

    def penalty(self) -> Tensor | None:
        """orth_reg_weight times the mean of ||A A^T - I||_F and ||B^T B - I||_F over all A and B, those cut included.

        What ``AdaLoraModel.forward`` adds to a loss, with one batch of products per shape in place of one per matrix.
        """
        if not self._orth_reg_weight:
            return None
        every = [torch.ones(len(a), dtype=torch.bool, device=a.device) for a in self._a]
        return self._orth_reg_weight * orthogonality_loss(self._a, self._b, every, "frobenius")

    def orthogonality(self) -> tuple[float, float]:
        active = self.active()
        masks = [torch.tensor(active[name], device=a.device) for name, a in zip(self.shapes, self._a, strict=True)]
        return orthogonality(self._a, masks), orthogonality([b.T for b in self._b], masks)

    # Counts

    def parameters(self) -> ParameterCount:
        allocated = super().parameters()
        cut = self.peak_trainable() - svd_parameters(self.shapes, self.ranks())
        return ParameterCount(allocated.trainable - cut, allocated.head, allocated.total - cut)

    def budget_parameters(self) -> int:
        return svd_parameters(self.shapes, uniform_ranks(self.shapes, self._config.target_r))

    # State

    def weights(self) -> dict[str, Tensor]:
        """Trainable tensors, and a mask (init_r,) of the components that are not cut for every module."""
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


def prepare_adalora(setup: Setup[AdaLoraOptions]) -> Adaptation:
    """AdaLoRA with a final average rank of `budget`."""
    options = setup.options
    shapes = target_shapes(setup.model, setup.target_modules)
    schedule = options.schedule(setup.size, setup.plan.total_steps)
    config = AdaLoraConfig(
        target_r=setup.size,
        init_r=schedule.init_r,
        tinit=schedule.tinit,
        tfinal=schedule.tfinal,
        deltaT=schedule.deltaT,
        beta1=options.beta1,
        beta2=options.beta2,
        orth_reg_weight=options.orth_reg_weight,
        total_step=setup.plan.total_steps,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=setup.target_modules,
    )
    return AdaLora(inject(setup.model, config), setup.plan, shapes, options.orth_reg_weight)

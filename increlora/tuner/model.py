"""The tuner: puts IncreLoRA layers into a model and lets their ranks grow.

``update_and_allocate(step)`` is the method's one call per optimizer step, as in PEFT's AdaLoRA: it smooths the scores
and, at an event, chooses the modules and grows them. It comes after the backward pass and before the optimizer's step.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from increlora.errors import ConfigError, IncreLoraError
from increlora.tuner.allocation import GrowthSchedule, allocate, resolve_schedule
from increlora.tuner.config import IncreLoraConfig
from increlora.tuner.distributed import (
    GradientAverage,
    anywhere,
    share_scores,
    start_equal,
    sum_in,
    world_size,
)
from increlora.tuner.importance import Importance, UpdateGradient
from increlora.tuner.layer import IncreLoraLayer, IncreLoraLinear
from increlora.tuner.regulariser import orthogonality, orthogonality_loss

logger = logging.getLogger(__name__)


@dataclass
class Growth:
    """The state of one growing adapter.

    Attributes:
        budget: total rank at which growth ends, ``r_final``.
        importance: smoothed scores of all modules.
        schedule: known once the length of training is.
        step: number of the last optimizer step, 0 before the first one.
        events: one ``{"step", "grown": {module: ranks}, "total_rank"}`` per event.
        finished: the budget is reached and the reserve switched off.
    """

    budget: int
    importance: Importance
    schedule: GrowthSchedule | None = None
    step: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


class IncreLoraModel(BaseTuner):
    """IncreLoRA on a Transformers model (arXiv 2308.12043). Created by ``get_peft_model(model, IncreLoraConfig(...))``.

    Attributes:
        gradient_accumulation_steps: backward passes per optimizer step; scores are taken of their sum.
        loss_factor: what the caller multiplies a loss by that the model has divided by ``num_items_in_batch``.
        growth_version: raised whenever ranks or storage change.
    """

    prefix: str = "increlora_"
    tuner_layer_cls = IncreLoraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    peft_config: dict[str, Any]

    def __init__(self, model: nn.Module, peft_config: Any, adapter_name: str, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        self.growth: dict[str, Growth] = {}
        self._layers: dict[str, dict[str, IncreLoraLayer]] = {}
        self.gradient_accumulation_steps = 1
        self.loss_factor = 1
        self.growth_version = 0
        self._allocated = False
        self._optimizer_attached = False
        self._regularised = False
        self._hook: RemovableHandle | None = None
        self._length: tuple[int, int] | None = None
        self._equal: set[str] = set()  # adapters that are known to be the same in all processes
        self._gradient_average = GradientAverage(self._trained_tensors)
        super().__init__(model, peft_config, adapter_name, **kwargs)

    # ---------------------------------------------------------------- injection

    def _create_and_replace(  # type: ignore[override]  # PEFT names the optional argument, its tuners take any
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        config: IncreLoraConfig = peft_config
        patterns = list(config.rank_pattern)
        key = current_key if current_key in patterns else get_pattern_key(patterns, current_key)
        rank = config.rank_pattern.get(key, config.init_r)
        reserve = config.ranks_per_event if config.target_r is not None and not config.inference_mode else 0
        layer: Any = target
        if isinstance(target, IncreLoraLayer):
            target.update_layer(adapter_name, rank, config, reserve)
        else:
            layer = IncreLoraLinear(target, adapter_name, rank, config, reserve)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)
        if rank > layer.max_rank:
            raise ConfigError("rank_pattern", f"{current_key} starts at rank {rank}; allowed: up to {layer.max_rank}")

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's cast of half-precision adapters to float32, where the scaling of growing ranks is not rounded."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.adapter_layers(adapter_name).values():
            layer._set_borders(adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module under all its names; PEFT's own leaves all but the first to the base layer.

        It also copies ``weight`` when it unloads ``modules_to_save``, which a pooler of several layers does not have.
        """
        for name, module in list(self.model.named_modules(remove_duplicate=False)):
            if module is child:
                self.model.set_submodule(name, new_module)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the adapter's layers into the model and start its growth from rank ``init_r``."""
        self._layers.clear()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._start_growth(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove the adapter and what is known of its growth."""
        super().delete_adapter(adapter_name)
        self._layers.pop(adapter_name, None)
        self._equal.discard(adapter_name)
        self.growth.pop(adapter_name, None)

    def _start_growth(self, adapter_name: str) -> None:
        config: IncreLoraConfig = self.peft_config[adapter_name]
        layers = self.adapter_layers(adapter_name)
        head = sorted(name for name in layers if "pooler" in name or {"classifier", "score"} & set(name.split(".")))
        if head:
            raise ConfigError(
                "target_modules", f"matches {', '.join(head)}; poolers and classifiers are trained in full, not adapted"
            )
        if config.target_r is None or config.inference_mode:
            return
        budget = config.target_r * len(layers)
        self._check_budget(config, layers.values(), budget, adapter_name)
        self.growth[adapter_name] = Growth(budget, Importance(len(layers), config.beta1, config.beta2))
        self._finish_if_full(adapter_name)
        if self.growth[adapter_name].finished:
            return
        if config.total_step is not None and config.deltaT is not None:
            self.set_total_steps(config.total_step)
        else:  # a second backward pass will tell that nobody allocates
            self._set_recorders(adapter_name, on=True)

    @staticmethod
    def _check_budget(config: IncreLoraConfig, layers: Any, budget: int, adapter: str) -> None:
        initial, highest = sum(layer.rank(adapter) for layer in layers), sum(layer.max_rank for layer in layers)
        if budget > highest or (initial > budget and not config.allow_overshoot):
            raise ConfigError(
                "target_r",
                f"{config.target_r} asks for a total rank of {budget} over {len(layers)} modules; their ranks start at "
                f"{initial} and can reach {highest} in all",
            )

    def adapter_layers(self, adapter: str | None = None) -> dict[str, IncreLoraLayer]:
        """Layers with this adapter (default: the active one) by the base model's module name."""
        adapter = adapter or self.active_adapters[0]
        if adapter not in self._layers:
            self._layers[adapter] = {
                name: module
                for name, module in self.model.named_modules()
                if isinstance(module, IncreLoraLayer) and adapter in module.components
            }
        return self._layers[adapter]

    # ---------------------------------------------------------------- training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward; in training the orthogonality regulariser is added to the loss that it returns."""
        with self._enable_peft_forward_hooks():
            return self.model(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's context of a forward pass. A ``PeftModel`` without a task type calls the base model in it directly."""
        if self._hook is not None or not (self.training and torch.is_grad_enabled()):
            yield
            return
        for adapter, growth in self.growth.items():
            recorder = next(iter(self.adapter_layers(adapter).values())).components[adapter].recorder
            if recorder is not None and recorder.arrived:
                self._require_schedule(growth)
        if world_size() > 1:
            self._follow_processes()
        self._hook = self.model.register_forward_hook(self._add_regulariser, with_kwargs=True)
        try:
            yield
        finally:
            self._hook.remove()
            self._hook = None

    def _add_regulariser(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):
            loss = output[0] if output and isinstance(output[0], Tensor) and output[0].dim() == 0 else None
        else:
            loss = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
        penalty = self.orthogonality_loss() if isinstance(loss, Tensor) else None
        if penalty is None or loss is None:
            return output
        if kwargs.get("num_items_in_batch") is not None:  # the Trainer then does not divide by the micro-batches
            penalty = penalty / (self.gradient_accumulation_steps * self.loss_factor)
        loss = loss + penalty.to(loss.device)
        if isinstance(output, tuple):
            return (loss, *output[1:])
        if isinstance(output, dict):
            output["loss"] = loss
        else:
            output.loss = loss
        return output

    def orthogonality_loss(self) -> Tensor | None:
        """The weighted regulariser of the active adapters, for loops that compute their own loss; ``None`` if off."""
        total = None
        for adapter in self.active_adapters:
            if adapter not in self.peft_config:
                continue
            self._regularised = True
            config = self.peft_config[adapter]
            layers = list(self.adapter_layers(adapter).values())
            layers = [layer for layer in layers if layer.increlora_A[adapter].requires_grad and layer.rank(adapter)]
            if not layers or not config.orth_reg_weight:
                continue
            loss = config.orth_reg_weight * orthogonality_loss(
                [layer.increlora_A[adapter] for layer in layers],
                [layer.increlora_B[adapter] for layer in layers],
                [layer.increlora_mask[adapter] for layer in layers],
                config.orth_reg,
            )
            total = loss if total is None else total + loss
        return total

    def set_total_steps(self, total_step: int, warmup_steps: int = 0) -> None:
        """Tell how long training lasts; resolves the interval and ``top_h`` of every growing adapter.

        Args:
            total_step: optimizer steps of the whole training.
            warmup_steps: steps of the learning rate's linear warmup, the default interval ``nu``.

        Raises:
            ConfigError: the budget cannot be reached in that time.
        """
        self._length = (total_step, warmup_steps)
        for adapter, growth in self.growth.items():
            if growth.finished:
                continue
            layers = self.adapter_layers(adapter)
            initial = self._initial_rank(adapter, growth, layers)
            growth.schedule = resolve_schedule(
                self.peft_config[adapter],
                total_step=total_step,
                warmup_steps=warmup_steps,
                modules=len(layers),
                initial_rank=initial,
                budget=growth.budget,
            )
            self._set_recorders(adapter, on=False)  # a backward pass that came before does not count
            self._set_scoring(adapter, growth)

    @staticmethod
    def _initial_rank(adapter: str, growth: Growth, layers: dict[str, IncreLoraLayer]) -> int:
        """Total rank before the first event, also in a resumed training: the schedule must not depend on the resume."""
        gained = sum(sum(event["grown"].values()) for event in growth.events)
        return sum(layer.rank(adapter) for layer in layers.values()) - gained

    def update_and_allocate(self, global_step: int, *, loss_scale: float = 1.0) -> dict[str, int]:
        """Score the step, and at an event let the chosen modules grow.

        Call it once per optimizer step: after the last backward pass, before ``optimizer.step()``.

        Args:
            global_step: number of this optimizer step, counted from 1.
            loss_scale: factor by which a ``GradScaler`` has multiplied the loss.

        Returns:
            ``{module: ranks gained}``, empty if nothing grew.

        Raises:
            IncreLoraError: the length of training is unknown, no gradient reached a module, or an event was missed.
        """
        if global_step < 1:
            raise IncreLoraError(f"global_step is {global_step}: optimizer steps count from 1")
        if not self._regularised and any(self.peft_config[a].orth_reg_weight for a in self.growth):
            warnings.warn(
                "the orthogonality regulariser is not in the loss, because the model has not returned one (label "
                "smoothing, or a loss of your own): add model.orthogonality_loss() to it",
                stacklevel=2,
            )
        self._allocated, self._regularised = True, False
        grown: dict[str, int] = {}
        for adapter in self.active_adapters:
            growth = self.growth.get(adapter)
            if growth is None:
                continue
            before, growth.step = growth.step, global_step
            if growth.finished:
                continue
            schedule = self._require_schedule(growth)
            missed = [step for step in range(before + 1, global_step) if before and schedule.is_event(step)]
            if missed:
                raise IncreLoraError(
                    f"global_step is {global_step} after {before}, but ranks were to grow at {missed[0]}: call "
                    "`update_and_allocate` once per optimizer step, with the number of that step"
                )
            if schedule.is_scored(global_step):
                self._score(adapter, growth, loss_scale)
            if schedule.is_event(global_step):
                grown.update(self._grow(adapter, growth, global_step))
            if not growth.finished:
                self._set_scoring(adapter, growth)
        return grown

    def _require_schedule(self, growth: Growth) -> GrowthSchedule:
        if growth.schedule is None:
            raise IncreLoraError(
                "IncreLoRA does not know how long training lasts: use IncreLoraCallback with the Trainer, "
                "create_optimizer(..., total_steps=...) in a loop, or set total_step and deltaT in the config"
            )
        return growth.schedule

    def _score(self, adapter: str, growth: Growth, loss_scale: float) -> None:
        layers = self.adapter_layers(adapter)
        recorders = [layer.components[adapter].recorder for layer in layers.values()]
        arrived = [recorder is not None and recorder.arrived for recorder in recorders]
        if world_size() > 1:
            arrived = anywhere(arrived, next(iter(layers.values())).increlora_A[adapter].device)
        if not all(arrived):
            silent = [name for name, one in zip(layers, arrived, strict=True) if not one]
            raise IncreLoraError(
                f"no gradient reached {silent[0]} (and {len(silent) - 1} more modules) in a step that is scored: was "
                "`update_and_allocate` called without a backward pass, or is the module not used in the forward pass?"
            )
        scores = []
        for index, (layer, recorder) in enumerate(zip(layers.values(), recorders, strict=True)):
            assert recorder is not None
            if not recorder.arrived:  # only in other processes: this one's share of the gradient is 0
                a = layer.increlora_A[adapter]
                recorder.add(a.new_zeros(0, layer.out_features), a.new_zeros(0, layer.in_features))
            score = recorder.take(sum_in(index % world_size()) if world_size() > 1 else None)
            assert score is not None
            scores.append(score)
        total = torch.stack([score.to(scores[0].device) for score in scores])
        if world_size() > 1:
            share_scores(total)
        growth.importance.update(total / loss_scale)

    def _grow(self, adapter: str, growth: Growth, step: int) -> dict[str, int]:
        if not self._optimizer_attached:
            raise IncreLoraError(
                "ranks are about to grow, but the optimizer cannot follow: train with IncreLoraAdamW "
                "(create_optimizer(...), or IncreLoraCallback with the Trainer)"
            )
        layers = self.adapter_layers(adapter)
        names = list(layers)
        config: IncreLoraConfig = self.peft_config[adapter]
        schedule = self._require_schedule(growth)
        gains = allocate(
            growth.importance.scores().tolist(),
            [layer.rank(adapter) for layer in layers.values()],
            [layer.max_rank for layer in layers.values()],
            top_h=schedule.top_h,
            ranks_per_event=schedule.ranks_per_event,
            budget=growth.budget,
            allow_overshoot=config.allow_overshoot,
        )
        grown = {names[index]: ranks for index, ranks in gains.items()}
        for name, ranks in grown.items():
            layers[name].grow(adapter, ranks)
        total = sum(layer.rank(adapter) for layer in layers.values())
        growth.events.append({"step": step, "grown": grown, "total_rank": total})
        self.growth_version += 1
        logger.debug("step %d: total rank %d of %d, grown %s", step, total, growth.budget, grown)
        self._finish_if_full(adapter)
        return grown

    def _finish_if_full(self, adapter: str) -> None:
        growth, layers = self.growth[adapter], self.adapter_layers(adapter)
        total = sum(layer.rank(adapter) for layer in layers.values())
        # as in the authors' code, an overshot budget never runs the closing step
        if total < growth.budget or (total > growth.budget and self.peft_config[adapter].allow_overshoot):
            growth.finished = total > growth.budget
            if growth.finished:
                self._set_recorders(adapter, on=False)
            return
        growth.finished = True
        for layer in layers.values():
            layer.close(adapter)
        self.growth_version += 1

    def _continue_growth(self, adapter: str) -> None:
        """Go on from loaded ranks; the events stay as far as they led there."""
        growth = self.growth[adapter]
        total = sum(layer.rank(adapter) for layer in self.adapter_layers(adapter).values())
        totals = [event["total_rank"] for event in growth.events]
        growth.events = growth.events[: totals.index(total) + 1 if total in totals else 0]
        self._finish_if_full(adapter)
        if growth.schedule is not None and not growth.finished:
            self._set_scoring(adapter, growth)

    def _set_scoring(self, adapter: str, growth: Growth) -> None:
        self._set_recorders(adapter, on=growth.schedule is not None and growth.schedule.is_scored(growth.step + 1))

    def _set_recorders(self, adapter: str, *, on: bool) -> None:
        hold = self.gradient_accumulation_steps > 1 or world_size() > 1
        for layer in self.adapter_layers(adapter).values():
            components = layer.components[adapter]
            if not on:
                components.recorder = None
            elif components.recorder is None or components.recorder.hold != hold:
                components.recorder = UpdateGradient(
                    partial(layer.factored_update, adapter), components.config.score_reduction, hold
                )

    # ---------------------------------------------------------------- what the optimizer asks

    @property
    def restart_warmup(self) -> bool:
        return any(self.peft_config[adapter].restart_warmup for adapter in self.active_adapters)

    def attach_optimizer(self) -> None:
        """Note that an optimizer follows the growth of this model."""
        self._optimizer_attached = True

    def consume_allocation(self) -> None:
        """Raise if an optimizer step comes without ``update_and_allocate`` while an adapter is growing."""
        growing = any(not self.growth[a].finished for a in self.active_adapters if a in self.growth)
        if growing and not self._allocated:
            raise IncreLoraError(
                "optimizer.step() without update_and_allocate(step): ranks would never grow; call it after the "
                "backward pass, or add IncreLoraCallback to the Trainer"
            )
        self._allocated = False

    def component_tensors(self) -> Iterator[tuple[IncreLoraLayer, str, str]]:
        """The trainable adapter tensors as (layer, adapter, kind), kind being A, B or lambda."""
        self._parameters.pop("ddp_placeholder", None)  # whoever wraps the model has done so by now
        for adapter in self.active_adapters:
            if adapter in self.peft_config:
                for layer in self.adapter_layers(adapter).values():
                    for kind in ("A", "B", "lambda"):
                        if getattr(layer, f"increlora_{kind}")[adapter].requires_grad:
                            yield layer, adapter, kind

    # ---------------------------------------------------------------- what users ask

    def rank_distribution(self, adapter: str | None = None) -> dict[str, int]:
        """Active rank per module, in the form that ``LoraConfig(rank_pattern=...)`` takes."""
        adapter = adapter or self.active_adapters[0]
        return {name: layer.rank(adapter) for name, layer in self.adapter_layers(adapter).items()}

    def growth_events(self, adapter: str | None = None) -> list[dict[str, Any]]:
        """One ``{"step", "grown": {module: ranks}, "total_rank"}`` per event so far."""
        growth = self.growth.get(adapter or self.active_adapters[0])
        return growth.events if growth else []

    def active_parameters(self, adapter: str | None = None) -> int:
        """Numbers in the active components, ``sum of rank * (in + out + 1)``; the reserve is not counted."""
        adapter = adapter or self.active_adapters[0]
        layers = self.adapter_layers(adapter).values()
        return sum(layer.rank(adapter) * (layer.in_features + layer.out_features + 1) for layer in layers)

    def orthogonality(self, adapter: str | None = None) -> tuple[float, float]:
        """Mean over modules of ``||A A^T - I||_F^2`` and ``||B^T B - I||_F^2`` over active components and reserve."""
        adapter = adapter or self.active_adapters[0]
        layers = list(self.adapter_layers(adapter).values())
        masks = []
        for layer in layers:
            mask = torch.zeros_like(layer.increlora_mask[adapter])
            mask[: layer.components[adapter].rank + layer.components[adapter].reserve] = 1
            masks.append(mask)
        return (
            orthogonality([layer.increlora_A[adapter] for layer in layers], masks),
            orthogonality([layer.increlora_B[adapter].T for layer in layers], masks),
        )

    # ---------------------------------------------------------------- saving and loading

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Only the active components are saved: the reserve is a matter of training."""
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        for name, layer in _named_layers(model, adapter_name):
            rank = layer.rank(adapter_name)
            config.rank_pattern[name.removeprefix("base_model.model.")] = rank
            for kind, cut in (("A", (slice(rank),)), ("B", (slice(None), slice(rank))), ("lambda", (slice(rank),))):
                key = f"{name}.increlora_{kind}.{adapter_name}"
                if key in selected:
                    selected[key] = selected[key][cut].contiguous()
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Give every layer the rank of the saved tensors, whatever rank it has now, and pad them to its storage."""
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        # Transformers' own `load_adapter` keeps the layers only
        tuner = next((module for module in model.modules() if isinstance(module, IncreLoraModel)), None)
        growing = tuner is not None and adapter_name in tuner.growth
        layers = []
        for name, layer in _named_layers(model, adapter_name):
            names = {kind: f"{name}.increlora_{kind}.{adapter_name}" for kind in ("A", "B", "lambda")}
            if names["lambda"] in mapped:
                layers.append((layer, names))
        for layer, names in layers:
            rank = mapped[names["lambda"]].shape[0]
            layer.set_rank(adapter_name, rank, config.ranks_per_event if growing else 0)
        if tuner is not None and growing:
            tuner._continue_growth(adapter_name)
        for layer, names in layers:
            rank = layer.rank(adapter_name)
            for kind, key in names.items():
                padded = getattr(layer, f"increlora_{kind}")[adapter_name].detach().clone()
                padded[(slice(None), slice(rank)) if kind == "B" else (slice(rank),)] = mapped[key].to(padded)
                mapped[key] = padded
        if tuner is not None:
            tuner.growth_version += 1
        return mapped

    def growth_state_dict(self) -> dict[str, Any]:
        """What continues growth exactly and is not in the saved adapter: reserve, scores, events, storage."""
        state = {}
        for adapter, growth in self.growth.items():
            layers = {}
            for name, layer in self.adapter_layers(adapter).items():
                components = layer.components[adapter]
                rows = slice(components.rank, components.rank + components.reserve)
                layers[name] = {
                    "rank": components.rank,
                    "reserve": components.reserve,
                    "seed": components.seed,
                    "capacity": layer.increlora_lambda[adapter].shape[0],
                    "A": layer.increlora_A[adapter].detach()[rows].clone(),
                    "B": layer.increlora_B[adapter].detach()[:, rows].clone(),
                }
            state[adapter] = {
                "layers": layers,
                "importance": growth.importance.state_dict(),
                "step": growth.step,
                "events": growth.events,
                "finished": growth.finished,
            }
        return state

    def load_growth_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`growth_state_dict`; the active components have been loaded before.

        Raises:
            IncreLoraError: the loaded adapter has other ranks than the state.
        """
        for adapter, saved in state.items():
            growth, layers = self.growth[adapter], self.adapter_layers(adapter)
            for name, own in saved["layers"].items():
                layer = layers[name]
                if layer.rank(adapter) != own["rank"]:
                    raise IncreLoraError(
                        f"{name} has rank {layer.rank(adapter)}, the optimizer's checkpoint {own['rank']}: load the "
                        "adapter of the same checkpoint first"
                    )
                layer.restore_reserve(adapter, own)
            growth.importance.load_state_dict(saved["importance"])
            growth.step = saved["step"]
            growth.events, growth.finished = [dict(event) for event in saved["events"]], saved["finished"]
        self.growth_version += 1
        if self._length is not None:
            self.set_total_steps(*self._length)

    # ---------------------------------------------------------------- several processes

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """DistributedDataParallel cannot follow a tensor that grows: the tuner averages these gradients itself.

        Read when DistributedDataParallel wraps the model. It refuses one that has nothing else to train, so such a
        model then gets a number for it to look after; it has no gradient and is gone when training starts.
        """
        prefixes = [name for name, _ in self.model.named_modules() if isinstance(_, IncreLoraLayer)]
        own = {
            name
            for names in (self.model.named_parameters(), self.model.named_buffers())
            for name, _ in names
            if ".increlora_" in name and any(name.startswith(f"{prefix}.increlora_") for prefix in prefixes)
        }
        rest = [parameter for name, parameter in self.model.named_parameters() if name not in own]
        if self._trained_tensors() and not any(parameter.requires_grad for parameter in rest):
            self.ddp_placeholder = nn.Parameter(torch.zeros((), device=rest[0].device))
        return [prefix + name for name in own for prefix in ("", "model.", "base_model.model.")]

    def _trained_tensors(self) -> list[nn.Parameter]:
        return [getattr(layer, f"increlora_{kind}")[adapter] for layer, adapter, kind in self.component_tensors()]

    def _follow_processes(self) -> None:
        """Make sure that the adapters start equal, and have the coming backward pass end with averaged gradients."""
        for adapter in dict.fromkeys(adapter for _, adapter, _ in self.component_tensors()):
            if adapter not in self._equal:
                layers = list(self.adapter_layers(adapter).values())
                start_equal(adapter, layers)
                self._equal.add(adapter)
                if layers[0].components[adapter].recorder is not None:  # it may date from before there were processes
                    self._set_recorders(adapter, on=True)
        self._gradient_average.watch()


def find_tuner(model: nn.Module) -> IncreLoraModel:
    """The IncreLoRA tuner in a (wrapped) model.

    Raises:
        IncreLoraError: there is none.
    """
    for module in model.modules():
        if isinstance(module, IncreLoraModel):
            return module
    raise IncreLoraError("the model has no IncreLoRA adapter: create one with get_peft_model(model, IncreLoraConfig())")


def _named_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, IncreLoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, IncreLoraLayer) and adapter in module.components:
            yield name, module

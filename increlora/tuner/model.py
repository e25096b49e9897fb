"""The tuner: puts IncreLoRA layers into a model and hands what users ask on to the adapters' allocators.

``update_and_allocate(step)`` is the method's one call per optimizer step, as in PEFT's AdaLoRA. It comes after the
backward pass and before the optimizer's step.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import Tensor, nn

from .allocation import component_costs, highest_rank, nominal_budget, resolve_schedule
from .config import IncreLoraConfig
from .errors import ConfigError
from .growth import RankAllocator, allocators_of, find_allocator
from .layer import KINDS, IncreLoraEmbedding, IncreLoraLayer, IncreLoraLinear, features, named_layers, pad
from .regulariser import Deviation

HEADS = {*SEQ_CLS_HEAD_NAMES, "classification_head", "pre_classifier", "pooler", "qa_outputs", "lm_head"}
"""Names of modules that are part of a task head: ``target_modules="all-linear"`` passes over what is in them, and over
what is outside of a Transformers model's backbone."""


class IncreLoraModel(BaseTuner):
    """IncreLoRA (arXiv 2308.12043). Created by ``get_peft_model(model, IncreLoraConfig(...))``."""

    prefix: str = "increlora_"
    tuner_layer_cls = IncreLoraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    peft_config: dict[str, Any]
    _found: list[IncreLoraLayer] | None = None
    _names: dict[nn.Module, list[str]] | None = None

    # ---------------------------------------------------------------- injection

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: Any = None,
    ) -> None:
        """Put the adapter's layers into the model and start its growth from rank ``init_r``.

        Raises:
            ConfigError: the adapter cannot be what its config says; the model is as it was before.
        """
        if state_dict is None:
            self._check_targets(self.peft_config[adapter_name], model)
        super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        self._names = None
        if any(adapter_name in layer.components for layer in self._layers()):
            RankAllocator(self.model, adapter_name)

    def _check_targets(self, config: IncreLoraConfig, model: nn.Module) -> None:
        """Resolve ``target_modules`` and refuse what cannot work before the model is touched."""
        all_linear = isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear"
        self._prepare_adapter_config(config, self.get_model_config(model))
        _maybe_include_all_linear_layers(config, model)
        if all_linear:
            names = {name for name in config.target_modules or () if not HEADS & set(name.split("."))}
            prefix = _backbone_prefix(model)
            config.target_modules = {name for name in names if name.startswith(prefix)} or names  # type: ignore[assignment]
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, IncreLoraLayer))
        shapes = {}
        for name, module in model.named_modules():
            if name and not name.startswith(inside) and self._check_target_module_exists(config, name):
                base = module.get_base_layer() if isinstance(module, IncreLoraLayer) else module
                try:
                    shapes[name] = features(base)
                except TypeError as error:
                    raise TypeError(f"{name}: {error}") from None
        if heads := [name for name in shapes if HEADS & set(name.split("."))]:
            warnings.warn(
                f"target_modules matches {', '.join(heads)} of the task head, which is usually trained in full: name "
                "it in `modules_to_save` instead",
                stacklevel=2,
            )
        if config.target_r is not None and config.grows and not config.allow_overshoot:
            self._check_budget(config, shapes)

    def _check_budget(self, config: IncreLoraConfig, shapes: dict[str, tuple[int, int]]) -> None:
        widths = [sum(shape) for shape in shapes.values()]
        costs, budget = component_costs(config, widths), nominal_budget(config, widths)
        initial = sum(cost * self._initial_rank(config, name) for cost, name in zip(costs, shapes, strict=True))
        if initial > budget:
            raise ConfigError(
                "target_r",
                f"{config.target_r} asks for {budget} {config.unit} over {len(shapes)} modules; they start with "
                f"{initial}",
            )
        if config.total_step is not None and config.deltaT is not None:
            ranks = [highest_rank(config, *shape) for shape in shapes.values()]
            highest = max(initial, sum(map(operator.mul, costs, ranks)))
            resolve_schedule(
                config,
                total_step=config.total_step,
                warmup_steps=0,
                costs=costs,
                initial=initial,
                budget=min(budget, highest),
            )

    @staticmethod
    def _initial_rank(config: IncreLoraConfig, name: str) -> int:
        patterns = list(config.rank_pattern)
        key = name if name in patterns else get_pattern_key(patterns, name)
        return config.rank_pattern.get(key, config.init_r)

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
        rank = self._initial_rank(config, current_key)
        if isinstance(target, IncreLoraLayer):
            target.update_layer(adapter_name, rank, config)
            return
        kwargs = {}
        try:  # what torchao needs to quantise again after a merge
            name = "get_apply_tensor_subclass"
            kwargs[name] = operator.attrgetter(f"hf_quantizer.quantization_config.{name}")(self.model)
        except AttributeError:
            pass
        kind = IncreLoraEmbedding if isinstance(target, nn.Embedding) else IncreLoraLinear
        layer = kind(target, adapter_name, rank, config, **kwargs)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT's cast of half-precision adapters to float32, where the scaling of growing ranks is not rounded."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self._layers():
            if adapter_name in layer.components:
                layer.set_borders(adapter_name)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module under all its names; PEFT's own leaves all but the first to the base layer.

        It also copies ``weight`` when it unloads ``modules_to_save``, which a pooler of several layers does not have.
        """
        self._found = None
        for name in self._places(child):
            self.model.set_submodule(name, new_module)

    def _places(self, wanted: nn.Module) -> list[str]:
        """All names of a module. One walk finds those of all, as there may be thousands to replace."""
        for _ in range(2):
            if self._names is not None:
                found = [name for name in self._names.get(wanted, ()) if self._at(name) is wanted]
                if found:
                    return found
            self._names = defaultdict(list)
            for name, module in self.model.named_modules(remove_duplicate=False):
                self._names[module].append(name)
        return []

    def _at(self, name: str) -> nn.Module | None:
        try:
            return self.model.get_submodule(name)
        except AttributeError:  # what holds it has been replaced
            return None

    def _layers(self) -> list[IncreLoraLayer]:
        """All of them, looked for once: a walk through the model in every step is felt on a GPU's host."""
        if self._found is None:
            self._found = [module for module in self.model.modules() if isinstance(module, IncreLoraLayer)]
        return self._found

    # ---------------------------------------------------------------- mixed batches

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's context of a forward pass: hands ``adapter_names``, one per row of the batch, to the layers."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if any(layer.merged for layer in self._layers()):
            raise ValueError("Cannot pass `adapter_names` when there are merged adapters, please unmerge them first.")
        known = {name for layer in self._layers() for name in layer.components}
        if unexpected := {name for name in names if name != "__base__"} - known:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unexpected))}")
        beams = kwargs.get("num_beams") or 1
        repeated = [name for name in names for _ in range(beams)]
        encoder = self.model.get_encoder() if beams > 1 and hasattr(self.model, "get_encoder") else None
        inside = set(encoder.modules()) if encoder is not None and encoder is not self.model else set()
        handles = [
            module.register_forward_pre_hook(
                partial(_pass_adapter_names, names=names if module in inside else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, IncreLoraLayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # ---------------------------------------------------------------- saved adapters

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """PEFT's hook for saving: only the active components, because the reserve matters only in training."""
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        selected = {key: value for key, value in selected.items() if ".increlora_state." not in key}
        config._saved_ranks = {}  # for the config that is saved next; the caller's own stays as it is
        for name, layer in named_layers(model, adapter_name):
            rank = layer.rank(adapter_name)
            config._saved_ranks[name.removeprefix("base_model.model.")] = rank
            for kind, dim in KINDS.items():
                key = f"{name}.increlora_{kind}.{adapter_name}"
                if key in selected:
                    selected[key] = selected[key].narrow(dim, 0, rank).contiguous()
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's hook for loading: every layer takes the rank of the saved tensors."""
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        layers = {
            f"{name}.increlora_": layer
            for name, layer in named_layers(model, adapter_name)
            if f"{name}.increlora_lambda.{adapter_name}" in mapped
        }
        for prefix, layer in layers.items():
            layer.set_rank(adapter_name, len(mapped[f"{prefix}lambda.{adapter_name}"]))
        if layers:
            find_allocator(model, adapter_name).resume_from_ranks()  # growth may have ended, and storage with it
        for prefix, layer in layers.items():
            for kind, stored in layer.tensors(adapter_name).items():
                mapped[f"{prefix}{kind}.{adapter_name}"] = pad(
                    mapped[f"{prefix}{kind}.{adapter_name}"], stored, KINDS[kind]
                )
            mapped[f"{prefix}state._extra_state"] = layer.pack_state([adapter_name])  # or PEFT reports it as missing
        return mapped

    # ---------------------------------------------------------------- growth

    def set_total_steps(self, total_step: int, warmup_steps: int = 0) -> None:
        """See `RankAllocator.set_total_steps`."""
        for allocator in allocators_of(self._layers()):
            allocator.set_total_steps(total_step, warmup_steps)

    def update_and_allocate(self, global_step: int) -> dict[str, int]:
        """See `RankAllocator.update_and_allocate`; of all active adapters, whose gains are added up."""
        grown: Counter[str] = Counter()
        for allocator in allocators_of(self._layers()):
            grown.update(allocator.update_and_allocate(global_step))
        return dict(grown)

    def orthogonality_loss(self) -> float:
        """The weighted regulariser of the active adapters now, a number to look at: it acts on gradients by itself."""
        return sum(allocator.regulariser.value() for allocator in allocators_of(self._layers()))

    def rank_distribution(self, adapter: str | None = None) -> dict[str, int]:
        """Active rank per module, in the form that ``LoraConfig(rank_pattern=...)`` takes."""
        return find_allocator(self.model, adapter).rank_distribution()

    def growth_events(self, adapter: str | None = None) -> list[dict[str, Any]]:
        """One ``{"step", "grown": {module: ranks}, "total_rank"}`` per event so far."""
        return find_allocator(self.model, adapter).events()

    def active_parameters(self, adapter: str | None = None) -> int:
        """Numbers in the active components, ``sum of rank * (in + out + 1)``; the reserve is not counted."""
        return find_allocator(self.model, adapter).active_parameters()

    def orthogonality(self, adapter: str | None = None, *, reserve: bool = True) -> Deviation:
        """See `RankAllocator.orthogonality`."""
        return find_allocator(self.model, adapter).orthogonality(reserve=reserve)


def _backbone_prefix(model: nn.Module) -> str:
    """How names in a Transformers model's backbone begin, heads being outside of it; empty where it has none."""
    backbone = getattr(model, "base_model", model)
    name = getattr(model, "base_model_prefix", "")
    return f"{name}." if backbone is not model and name and getattr(model, name, None) is backbone else ""


def _pass_adapter_names(module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, Any]:
    return args, {**kwargs, "adapter_names": names}

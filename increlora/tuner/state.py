"""Saved adapters: only active components, in PEFT's format, and loading them whatever ranks the model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .layer import KINDS, IncreLoraLayer

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTuner

    _Base = BaseTuner
else:
    _Base = object


class AdapterStateDict(_Base):
    """PEFT's hooks for the state dict of an adapter (see ``BaseTuner``), to be mixed into the tuner."""

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Only the active components are saved: the reserve matters only in training."""
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        selected = {key: value for key, value in selected.items() if ".increlora_state." not in key}
        config._saved_ranks = {}  # for the config that is saved next; the caller's own stays as it is
        for name, layer in named_layers(model, adapter_name):
            rank = layer.rank(adapter_name)
            config._saved_ranks[name.removeprefix("base_model.model.")] = rank
            for kind, cut in zip(KINDS, _active(rank), strict=True):
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
        allocator = None
        for name, layer in named_layers(model, adapter_name):
            names = {kind: f"{name}.increlora_{kind}.{adapter_name}" for kind in KINDS}
            if names["lambda"] not in mapped:
                continue
            allocator = layer.components[adapter_name].allocator
            rank = mapped[names["lambda"]].shape[0]
            layer.set_rank(adapter_name, rank)
            for (kind, key), cut in zip(names.items(), _active(rank), strict=True):
                padded = getattr(layer, f"increlora_{kind}")[adapter_name].detach().clone()
                padded[cut] = mapped[key].to(padded)
                mapped[key] = padded
        if allocator is not None:
            allocator.resume_from_ranks()
            for name, layer in named_layers(model, adapter_name):  # growth may have ended, and storage with it
                for kind, dim in zip(KINDS, (0, 1, 0), strict=True):
                    key = f"{name}.increlora_{kind}.{adapter_name}"
                    if key in mapped:
                        mapped[key] = mapped[key].narrow(dim, 0, layer.capacity(adapter_name))
        return mapped


def named_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, IncreLoraLayer]]:
    """The layers with this adapter and their names."""
    for name, module in model.named_modules():
        if isinstance(module, IncreLoraLayer) and adapter in module.components:
            yield name, module


def _active(rank: int) -> tuple[Any, ...]:
    """The active part of A, B and lambda."""
    return (slice(rank),), (slice(None), slice(rank)), (slice(rank),)

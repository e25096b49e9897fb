"""The adapted linear layer: ``y = W0 x + s B diag(lambda) A x`` (paper, section 3), factored.

Components are rows of A and columns of B. Storage has room for more of them than are in use, in this order::

    active (rank)  |  reserve (advance learning)  |  spare
    lambda trains  |  lambda fixed at 1e-5        |  all zero

so growth only moves the borders: it rewrites two small vectors and draws a new reserve. Memory is enlarged in blocks,
as new Parameters (an old one may still be part of a live graph, which fixes its shape). The forward pass always uses
the whole storage with the coefficient vector ``c = s * lambda`` on active rows, ``s * 1e-5`` on reserve rows and 0 on
spare ones; the gradient of a spare row is therefore exactly 0, and so is that of the reserve's lambda.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from increlora.tuner.config import IncreLoraConfig
from increlora.tuner.importance import UpdateGradient, tap


@dataclass
class Components:
    """How the storage of one adapter in one layer is divided.

    Attributes:
        rank: active components.
        reserve: components in reserve behind the active ones; 0 once growth has ended.
        config: the adapter's config.
        seed: draws the reserve's initial values, the same in every process.
        recorder: collects ``grad(dW)`` in scored steps; ``None`` in the others.
    """

    rank: int
    reserve: int
    config: IncreLoraConfig
    seed: int
    recorder: UpdateGradient | None = field(default=None, repr=False)

    @property
    def trained(self) -> int:
        """Rows of A and columns of B that receive updates."""
        return self.rank + (self.reserve if self.config.advance_learning else 0)

    def scaling(self) -> float:
        """The factor ``s`` of the update."""
        if self.config.scaling == "active_rank":
            return self.config.lora_alpha / (self.rank + 1e-5)
        return self.config.lora_alpha / (self.config.target_r or max(1, self.config.init_r))


class IncreLoraLayer(BaseTunerLayer):
    """Adapter weights and their bookkeeping, apart from the kind of base layer."""

    adapter_layer_names = ("increlora_A", "increlora_B", "increlora_lambda")
    other_param_names = (
        "increlora_dropout",
        "increlora_scale",
        "increlora_reserve_scale",
        "increlora_mask",
        "components",
    )

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.increlora_A = nn.ParameterDict({})  # (capacity, in)
        self.increlora_B = nn.ParameterDict({})  # (out, capacity)
        self.increlora_lambda = nn.ParameterDict({})  # (capacity,)
        self.increlora_dropout = nn.ModuleDict({})
        self.increlora_scale = BufferDict({}, persistent=False)  # (capacity,) s on active rows
        self.increlora_reserve_scale = BufferDict({}, persistent=False)  # (capacity,) s * 1e-5 on reserve rows
        self.increlora_mask = BufferDict({}, persistent=False)  # (capacity,) 1 on rows that the regulariser counts
        self.components: dict[str, Components] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        base: Any = self.get_base_layer()
        if isinstance(base, nn.Linear):
            self.in_features, self.out_features = base.in_features, base.out_features
        elif isinstance(base, Conv1D):
            self.in_features, self.out_features = base.weight.shape
        else:
            raise TypeError(f"IncreLoRA adapts torch.nn.Linear and Conv1D, not {type(base).__name__}")

    @property
    def max_rank(self) -> int:
        """A sum of more rank-one components than this has no higher rank."""
        return min(self.in_features, self.out_features)

    def rank(self, adapter: str) -> int:
        return self.components[adapter].rank

    def update_layer(self, adapter: str, rank: int, config: IncreLoraConfig, reserve: int) -> None:
        """Create the adapter: a and b from N(0, init_std^2), lambda 0, so that the initial update is 0."""
        seed = int(torch.randint(2**31, ()).item())
        self.components[adapter] = Components(rank, reserve, config, seed)
        self.increlora_A[adapter] = nn.Parameter(torch.zeros(0, self.in_features))
        self.increlora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, 0))
        self.increlora_lambda[adapter] = nn.Parameter(torch.zeros(0))
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.increlora_dropout[adapter] = dropout
        self._ensure_capacity(adapter)
        self._draw_rows(adapter, 0, rank + reserve)
        self._move_adapter_to_device_of_base_layer(adapter)
        self._set_borders(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_rank(self, adapter: str, rank: int, reserve: int) -> None:
        """Divide the storage anew: ``rank`` active rows (to be filled by the caller) and a fresh reserve."""
        components = self.components[adapter]
        components.rank, components.reserve = rank, reserve
        if self.increlora_lambda[adapter].is_meta:  # PEFT's low_cpu_mem_usage: allocate now that the rank is known
            base: Any = self.get_base_layer()
            for kind in ("A", "B", "lambda"):
                stored = getattr(self, f"increlora_{kind}")
                empty = torch.zeros_like(stored[adapter], device=base.weight.device)
                stored[adapter] = nn.Parameter(empty, requires_grad=stored[adapter].requires_grad)
        with torch.no_grad():
            for parameter in (self.increlora_A[adapter], self.increlora_B[adapter], self.increlora_lambda[adapter]):
                parameter.zero_()
        self._ensure_capacity(adapter)
        self._draw_rows(adapter, rank, rank + reserve)
        self._set_borders(adapter)

    def grow(self, adapter: str, ranks: int) -> None:
        """Promote the first ``ranks`` reserve components and refill the reserve (paper, section 3).

        A promoted lambda starts at ``reserve_lambda`` with advance learning and at 0 without it.
        """
        components = self.components[adapter]
        old_end = components.rank + components.reserve
        with torch.no_grad():
            start = components.config.reserve_lambda if components.config.advance_learning else 0.0
            components.rank += ranks
            self._ensure_capacity(adapter)
            self.increlora_lambda[adapter][components.rank - ranks : components.rank] = start
        self._draw_rows(adapter, old_end, components.rank + components.reserve)
        self._set_borders(adapter)

    def close(self, adapter: str) -> None:
        """End growth: reserve and spare rows go (paper: lambda = 0); what is left costs as much as LoRA."""
        components = self.components[adapter]
        components.reserve, components.recorder = 0, None
        self._resize(adapter, components.rank)
        self._set_borders(adapter)

    def restore_reserve(self, adapter: str, saved: dict[str, Any]) -> None:
        """Restore storage and reserve of a checkpoint; the active components stay as they are.

        The storage gets the checkpoint's size too: the same shapes give bit for bit the same sums.
        """
        components = self.components[adapter]
        components.reserve, components.seed = saved["reserve"], saved["seed"]
        self._resize(adapter, saved["capacity"])
        with torch.no_grad():
            rank, end = components.rank, components.rank + components.reserve
            self.increlora_A[adapter][rank:] = 0
            self.increlora_B[adapter][:, rank:] = 0
            self.increlora_lambda[adapter][rank:] = 0
            self.increlora_A[adapter][rank:end] = saved["A"].to(self.increlora_A[adapter])
            self.increlora_B[adapter][:, rank:end] = saved["B"].to(self.increlora_B[adapter])
        self._set_borders(adapter)

    def _ensure_capacity(self, adapter: str) -> None:
        """Enlarge the storage to whole blocks if the rows in use no longer fit."""
        components = self.components[adapter]
        rows = components.rank + components.reserve
        block = components.config.capacity_block if components.reserve else 1
        if components.reserve and rows <= self.increlora_lambda[adapter].shape[0]:
            return
        self._resize(adapter, math.ceil(rows / block) * block)

    def _resize(self, adapter: str, capacity: int) -> None:
        a, b, lam = self.increlora_A[adapter], self.increlora_B[adapter], self.increlora_lambda[adapter]
        if capacity == lam.shape[0]:
            return
        keep = min(capacity, lam.shape[0])
        for kind, old, shape, kept in (
            ("A", a, (capacity, self.in_features), (slice(keep),)),
            ("B", b, (self.out_features, capacity), (slice(None), slice(keep))),
            ("lambda", lam, (capacity,), (slice(keep),)),
        ):
            new = nn.Parameter(old.detach().new_zeros(shape), requires_grad=old.requires_grad)
            new.data[kept] = old.detach()[kept]
            if old.grad is not None:
                new.grad = torch.zeros_like(new)
                new.grad[kept] = old.grad[kept]
            getattr(self, f"increlora_{kind}")[adapter] = new

    @torch.no_grad()
    def _draw_rows(self, adapter: str, start: int, stop: int) -> None:
        """Gaussian a and b for rows ``start`` to ``stop``, from a generator of their own."""
        components = self.components[adapter]
        a, b = self.increlora_A[adapter], self.increlora_B[adapter]
        for row in range(start, stop):
            generator = torch.Generator().manual_seed(components.seed * 65_537 + row)
            for target, width in ((a[row], self.in_features), (b[:, row], self.out_features)):
                if target.device.type != "meta":
                    target.copy_(torch.randn(width, generator=generator) * components.config.init_std)

    def _set_borders(self, adapter: str) -> None:
        """Recompute the vectors that say which rows are active, in reserve and spare."""
        components = self.components[adapter]
        config, rank, lam = components.config, components.rank, self.increlora_lambda[adapter]
        if lam.is_meta:  # PEFT's low_cpu_mem_usage: `set_rank` comes with the weights
            return
        scale, reserve_scale, mask = (lam.detach().new_zeros(lam.shape[0]) for _ in range(3))
        scale[:rank] = components.scaling()
        mask[: components.trained] = 1
        if config.advance_learning:
            reserve_scale[rank : rank + components.reserve] = components.scaling() * config.reserve_lambda
        self.increlora_scale[adapter] = scale
        self.increlora_reserve_scale[adapter] = reserve_scale
        self.increlora_mask[adapter] = mask

    def coefficients(self, adapter: str) -> Tensor:
        """``s * lambda`` on active rows, ``s * reserve_lambda`` on reserve rows, 0 on spare ones (capacity,)."""
        return torch.addcmul(
            self.increlora_reserve_scale[adapter], self.increlora_lambda[adapter], self.increlora_scale[adapter]
        )

    @torch.no_grad()
    def factored_update(self, adapter: str, rows: slice = slice(None)) -> Tensor:
        """Rows of the update matrix ``dW = s B diag(lambda) A`` (out x in), reserve included."""
        return (self.increlora_B[adapter][rows] * self.coefficients(adapter)) @ self.increlora_A[adapter]

    @torch.no_grad()
    def lora_factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Plain LoRA factors ``A' (rank x in)``, ``B' (out x rank)`` with ``B' A' = dW`` exactly."""
        rank = self.rank(adapter)
        scaled = self.increlora_B[adapter] * (self.increlora_lambda[adapter] * self.increlora_scale[adapter])
        return self.increlora_A[adapter][:rank].clone(), scaled[:, :rank].contiguous()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of the active components in the base weight's layout."""
        a, b = self.lora_factors(adapter)
        return transpose(b @ a, isinstance(self.get_base_layer(), Conv1D))


class IncreLoraLinear(nn.Module, IncreLoraLayer):
    """``torch.nn.Linear`` or ``Conv1D`` with IncreLoRA adapters."""

    def __init__(
        self, base_layer: nn.Module, adapter: str, rank: int, config: IncreLoraConfig, reserve: int, **kwargs: Any
    ) -> None:
        super().__init__()
        IncreLoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter
        self.update_layer(adapter, rank, config, reserve)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x`` (..., in) to (..., out)."""
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError("IncreLoRA does not support batches of mixed adapters (`adapter_names`)")
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        for adapter in self.active_adapters:
            if adapter not in self.components:
                continue
            a = self.increlora_A[adapter]
            inputs = self.increlora_dropout[adapter](self._cast_input_dtype(x, a.dtype))
            hidden = F.linear(inputs, a)
            hidden = hidden * self.coefficients(adapter).to(hidden.dtype)
            update = F.linear(hidden, self.increlora_B[adapter])
            recorder = self.components[adapter].recorder
            if recorder is not None and (self.training or update.requires_grad):
                recorder.record_call()
                update = tap(update, inputs, recorder)
            result = result + update
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the base weight.

        Args:
            safe_merge: raise ``ValueError`` instead of writing NaN or infinity.
            adapter_names: adapters to merge, the active ones by default.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.components:
                continue
            weight: Any = self.get_base_layer().weight
            merged = weight.data + self.get_delta_weight(adapter).to(weight)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"merging adapter {adapter!r} would write NaN or infinity into the base weight")
            weight.data = merged
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Subtract every merged update from the base weight."""
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            weight: Any = self.get_base_layer().weight
            weight.data -= self.get_delta_weight(adapter).to(weight)

    def __repr__(self) -> str:
        return "increlora." + super().__repr__()

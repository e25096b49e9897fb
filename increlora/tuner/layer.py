"""The adapted layer: ``y = W0 x + s B diag(lambda) A x`` (paper, section 3), factored.

Components are rows of A and columns of B. A growing module has storage for more of them than it uses, in this order::

    active (rank)  |  reserve (advance learning)  |  spare
    lambda trains  |  lambda fixed at 1e-5        |  all zero

so growth only moves the borders: no Parameter is replaced, and whoever holds one (optimizers, wrappers, compiled
code) need not know. The forward pass uses the coefficients ``c = s * lambda`` on active rows, ``s * 1e-5`` on reserve
rows and 0 on spare ones; the gradient of a spare row is therefore exactly 0, and so is that of the reserve's lambda.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import transpose
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .allocation import highest_rank
from .config import IncreLoraConfig
from .importance import UpdateGradient, tap
from .storage import resize

if TYPE_CHECKING:
    from .growth import RankAllocator

_STATE = ("rank", "reserve", "seed", "initial", "growing", "closed", "gains")

KINDS = {"A": 0, "B": 1, "lambda": 0}
"""The tensors of an adapter, and the dimension along which each holds its components."""

ALIGNMENT = 8
"""Storage has a multiple of so many rows, and on a CPU the part of it that is multiplied."""

GPU_ROWS = 128
"""The same of the part that is multiplied on a GPU, whose products take as long for 8 rows as for so many, while a part
of a tensor costs it two more kernels in the backward pass."""


@dataclass
class Components:
    """How the storage of one adapter in one layer is divided, and what has led there.

    Attributes:
        rank: active components.
        reserve: components in reserve behind the active ones.
        config: the adapter's config.
        seed: draws the initial values of all components, the same in every process.
        initial: rank at the start.
        growing: whether ranks may still grow.
        closed: growth has ended and the reserve is switched off.
        gains: ``[step, ranks]`` of every event that has enlarged this module.
        importance: smoothed importance and uncertainty ``(I, U)`` of this module.
        recorder: receives ``grad(dW)`` in scored steps; ``None`` in the others.
        allocator: decides when this adapter grows.
    """

    rank: int
    reserve: int
    config: IncreLoraConfig
    seed: int
    initial: int = 0
    growing: bool = False
    closed: bool = False
    gains: list[list[int]] = field(default_factory=list)
    importance: Tensor = field(default_factory=lambda: torch.zeros(2))
    recorder: UpdateGradient | None = field(default=None, repr=False)
    allocator: RankAllocator | None = field(default=None, repr=False)

    @property
    def used(self) -> int:
        """Rows that are not spare."""
        return self.rank + self.reserve

    @property
    def trained(self) -> int:
        """Rows of A and columns of B that receive updates."""
        return self.used if self.config.advance_learning else self.rank

    @property
    def counted(self) -> int:
        """Rows that count in the regulariser."""
        return self.used if self.config.regularise_frozen_reserve else self.trained

    def scaling(self) -> float:
        """The factor ``s`` of the update."""
        return self.config.scale(self.rank)


class IncreLoraLayer(BaseTunerLayer):
    """Adapter weights and their bookkeeping, apart from the kind of base layer.

    Attributes:
        increlora_A: by adapter, (capacity, in).
        increlora_B: by adapter, (out, capacity).
        increlora_lambda: by adapter, (capacity,).
        components: by adapter, how these are divided.
    """

    adapter_layer_names = ("increlora_A", "increlora_B", "increlora_lambda")
    other_param_names = ("increlora_dropout", "increlora_scale", "increlora_offset", "components")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.increlora_state = _State(self)
        self.increlora_A = nn.ParameterDict({})
        self.increlora_B = nn.ParameterDict({})
        self.increlora_lambda = nn.ParameterDict({})
        self.increlora_dropout = nn.ModuleDict({})
        self.increlora_scale = BufferDict({}, persistent=False)  # (capacity,) s on active rows
        self.increlora_offset = BufferDict({}, persistent=False)  # (capacity,) s * 1e-5 on reserve rows
        self.components: dict[str, Components] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.kwargs = kwargs
        self.in_features, self.out_features = features(self.get_base_layer())

    def rank(self, adapter: str) -> int:
        return self.components[adapter].rank

    def capacity(self, adapter: str) -> int:
        return self.increlora_lambda[adapter].shape[0]

    def tensors(self, adapter: str) -> dict[str, nn.Parameter]:
        """A, B and lambda, by the names in `KINDS`."""
        return {kind: getattr(self, f"increlora_{kind}")[adapter] for kind in KINDS}

    def max_rank(self, adapter: str) -> int:
        """The highest rank that growth may give this module."""
        return highest_rank(self.components[adapter].config, self.in_features, self.out_features)

    # ---------------------------------------------------------------- storage

    def update_layer(self, adapter: str, rank: int, config: IncreLoraConfig) -> None:
        """Create the adapter: a and b from N(0, init_std^2), lambda 0, so that the initial update is 0."""
        seed = int(torch.randint(2**31, (), device="cpu").item())
        reserve = config.ranks_per_event if config.grows and config.reserve_from == "init" else 0
        self.components[adapter] = Components(rank, reserve, config, seed, initial=rank, growing=config.grows)
        capacity = self._room(adapter)
        self.increlora_A[adapter] = nn.Parameter(torch.zeros(capacity, self.in_features))
        self.increlora_B[adapter] = nn.Parameter(torch.zeros(self.out_features, capacity))
        self.increlora_lambda[adapter] = nn.Parameter(torch.zeros(capacity))
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.increlora_dropout[adapter] = dropout
        self._draw_rows(adapter, 0, rank + reserve)
        if not config.init_weights:
            nn.init.normal_(self.increlora_lambda[adapter].data[:rank])
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_borders(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_rank(self, adapter: str, rank: int) -> None:
        """Start anew from ``rank`` active components, to be filled by the caller, and a fresh reserve."""
        components = self.components[adapter]
        config = components.config
        components.growing, components.closed = config.grows, False
        components.rank, components.reserve = rank, config.ranks_per_event if config.grows else 0
        if self.increlora_lambda[adapter].is_meta:  # PEFT's low_cpu_mem_usage: allocate now that the rank is known
            for kind in KINDS:
                stored = getattr(self, f"increlora_{kind}")
                empty = torch.zeros_like(stored[adapter], device=self.get_base_weight().device)
                stored[adapter] = nn.Parameter(empty, requires_grad=stored[adapter].requires_grad)
        fits = components.growing and components.used <= self.capacity(adapter)
        self.resize(adapter, self.capacity(adapter) if fits else self._room(adapter))
        with torch.no_grad():
            for tensor in self.tensors(adapter).values():
                tensor.zero_()
        self._draw_rows(adapter, rank, components.used)
        self.set_borders(adapter)

    def _room(self, adapter: str) -> int:
        """Rows of storage that a module of this rank has at first."""
        components = self.components[adapter]
        if not components.growing:
            return components.used
        config = components.config
        largest = max(components.rank, self.max_rank(adapter)) + config.ranks_per_event
        rows = max(components.rank + config.ranks_per_event, min(config.capacity, largest))
        return math.ceil(rows / ALIGNMENT) * ALIGNMENT

    def grow(self, adapter: str, ranks: int, step: int) -> None:
        """Promote the first ``ranks`` reserve components and refill the reserve (paper, section 3).

        A promoted lambda starts at ``reserve_lambda`` with advance learning and at 0 without it.
        """
        components = self.components[adapter]
        promoted = slice(components.rank, components.rank + ranks)
        components.rank, components.reserve = components.rank + ranks, components.reserve - ranks
        components.gains.append([step, ranks])
        with torch.no_grad():
            start = components.config.reserve_lambda if components.config.advance_learning else 0.0
            self.increlora_lambda[adapter][promoted] = start
        self.add_reserve(adapter)

    def add_reserve(self, adapter: str) -> None:
        """Fill the reserve, with fresh components behind those that are there."""
        components = self.components[adapter]
        old, components.reserve = components.used, components.config.ranks_per_event
        self._draw_rows(adapter, old, components.used)
        self.set_borders(adapter)

    def close(self, adapter: str) -> None:
        """End growth: the reserve goes (paper: lambda = 0), or stays in the regulariser alone (``keep_reserve``)."""
        components = self.components[adapter]
        components.growing, components.closed, components.recorder = False, True, None
        if not components.config.keep_reserve:
            components.reserve = 0
            with torch.no_grad():
                self.increlora_A[adapter][components.rank :] = 0
                self.increlora_B[adapter][:, components.rank :] = 0
        self.set_borders(adapter)

    def resize(self, adapter: str, capacity: int) -> None:
        """Give the storage ``capacity`` rows, in the same Parameters, and have the optimizers follow."""
        allocator = self.components[adapter].allocator
        for kind, parameter in self.tensors(adapter).items():
            shape, dim = parameter.shape, KINDS[kind]
            if shape[dim] != capacity:
                resize(parameter, dim, capacity)
                if allocator is not None:
                    allocator.resize_states(parameter, shape, dim)
        self.set_borders(adapter)

    @torch.no_grad()
    def _draw_rows(self, adapter: str, start: int, stop: int) -> None:
        """Gaussian a and b for rows ``start`` to ``stop``, from a generator of their own."""
        components = self.components[adapter]
        a, b = self.increlora_A[adapter], self.increlora_B[adapter]
        for row in range(start, stop):
            generator = torch.Generator("cpu").manual_seed(components.seed * 65_537 + row)
            for target, width in ((a[row], self.in_features), (b[:, row], self.out_features)):
                if target.device.type != "meta":
                    row_values = torch.randn(width, generator=generator, device="cpu", dtype=torch.float32)
                    target.copy_(row_values * components.config.init_std)

    def set_borders(self, adapter: str) -> None:
        """Recompute the vectors that say which rows are active and which in reserve."""
        components, lam = self.components[adapter], self.increlora_lambda[adapter]
        if lam.is_meta:  # PEFT's low_cpu_mem_usage: `set_rank` comes with the weights
            return
        scale, offset = (lam.detach().new_zeros(lam.shape[0]) for _ in range(2))
        scale[: components.rank] = components.scaling()
        if components.config.advance_learning and not components.closed:
            offset[components.rank : components.used] = components.scaling() * components.config.reserve_lambda
        for stored, new in ((self.increlora_scale, scale), (self.increlora_offset, offset)):
            old: Any = stored[adapter] if adapter in stored.keys() else None  # noqa: SIM118
            if old is not None and (old.shape, old.dtype, old.device) == (new.shape, new.dtype, new.device):
                old.copy_(new)  # compiled code holds on to it
            else:
                stored[adapter] = new

    # ---------------------------------------------------------------- the update

    def rows(self, adapter: str) -> int:
        """Rows of the storage that are multiplied: all while compiled code may be reused, else about those in use."""
        components, capacity = self.components[adapter], self.capacity(adapter)
        if components.growing and torch.compiler.is_compiling():
            return capacity
        if self.increlora_lambda[adapter].device.type != "cpu":
            unit = GPU_ROWS
        else:
            unit = ALIGNMENT if components.growing else 1
        return min(capacity, math.ceil(components.used / unit) * unit)

    def factors(self, adapter: str) -> tuple[Tensor, Tensor, Tensor]:
        """A (rows, in), coefficients ``s * lambda`` (rows,) and B (out, rows) of the rows that are multiplied.

        The coefficients are ``s * reserve_lambda`` on reserve rows and 0 on spare ones.
        """
        a, b, lam = self.increlora_A[adapter], self.increlora_B[adapter], self.increlora_lambda[adapter]
        scale, offset, rows = self.increlora_scale[adapter], self.increlora_offset[adapter], self.rows(adapter)
        if rows != lam.shape[0]:
            a, b, lam, scale, offset = a[:rows], b[:, :rows], lam[:rows], scale[:rows], offset[:rows]
        return a, torch.addcmul(offset, lam, scale), b

    @torch.no_grad()
    def factored_update(self, adapter: str, rows: slice | None = None) -> Tensor:
        """Rows (by default all) of the update matrix ``dW = s B diag(lambda) A`` (out x in), reserve included."""
        a, coefficients, b = self.factors(adapter)
        return ((b if rows is None else b[rows]) * coefficients) @ a

    @torch.no_grad()
    def lora_factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """Plain LoRA factors ``A' (rank x in)``, ``B' (out x rank)`` with ``B' A' = dW`` exactly."""
        rank = self.rank(adapter)
        scaled = self.increlora_B[adapter] * (self.increlora_lambda[adapter] * self.increlora_scale[adapter])
        return self.increlora_A[adapter][:rank].clone(), scaled[:, :rank].contiguous()

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update of the active components in the base weight's layout."""
        a, b = self.lora_factors(adapter)
        return transpose(b @ a, isinstance(self.get_base_layer(), Conv1D | nn.Embedding))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def record(self, adapter: str, *, hold: bool) -> None:
        """Collect ``grad(dW)`` from the next backward pass on."""
        components = self.components[adapter]
        shape = (self.out_features, self.in_features)
        recorder = components.recorder
        if recorder is None or recorder.hold != hold or not recorder.fits(self.increlora_A[adapter]):
            update = partial(self.factored_update, adapter)  # can be copied and pickled with its layer
            components.recorder = UpdateGradient(
                self.increlora_A[adapter], shape, update, components.config.score_reduction, hold
            )

    # ---------------------------------------------------------------- merging

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the update to the base weight, as PEFT's LoRA merges into the same base layer.

        Args:
            safe_merge: raise ``ValueError`` instead of writing NaN.
            adapter_names: adapters to merge, the active ones by default.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.components:
                continue
            if safe_merge and not all(torch.isfinite(factor).all() for factor in self.lora_factors(adapter)):
                # PEFT's own check misses what torchao rounds to integers
                raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter} seems to be broken")
            if self.rank(adapter):
                lora = self._as_lora(adapter)
                lora.merge(safe_merge, [adapter])
                self._take_back(lora)
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Subtract every merged update from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.components and self.rank(adapter):
                lora = self._as_lora(adapter)
                lora.merged_adapters.append(adapter)
                lora.unmerge()
                self._take_back(lora)

    def _take_back(self, lora: Any) -> None:
        """Keep the base layer that a merge has left; for some quantised formats it is a new one."""
        if self.base_layer is self.get_base_layer():
            self.base_layer = lora.get_base_layer()

    def _as_lora(self, adapter: str) -> Any:
        """PEFT's LoRA layer around the same base layer with the same update: it knows every quantised format."""
        a, b = self.lora_factors(adapter)
        base: Any = self.get_base_layer()
        config = LoraConfig(r=len(a), lora_alpha=len(a), init_lora_weights=False)
        kind = type(base).__name__
        options = {"loaded_in_8bit": kind == "Linear8bitLt", "loaded_in_4bit": kind == "Linear4bit"}
        lora = LoraModel._create_new_module(
            config, adapter, base, r=len(a), lora_alpha=len(a), target_name="", **{**options, **self.kwargs}
        )
        if isinstance(base, nn.Embedding):
            lora.lora_embedding_A[adapter].data, lora.lora_embedding_B[adapter].data = a, b
        else:
            lora.lora_A[adapter].weight.data, lora.lora_B[adapter].weight.data = a, b
        return lora

    # ---------------------------------------------------------------- state

    def growth_state(self, adapter: str) -> dict[str, Any]:
        """Ranks and growth of one adapter, in plain data; of one that does not grow the rank alone."""
        components = self.components[adapter]
        if not components.config.grows:
            return {"rank": components.rank}
        step = components.allocator.step if components.allocator is not None else 0
        state = {name: getattr(components, name) for name in _STATE}
        return {**state, "importance": components.importance.tolist(), "capacity": self.capacity(adapter), "step": step}

    def load_growth_state(self, adapter: str, state: dict[str, Any]) -> None:
        """Restore what `growth_state` returned; the rows are to be filled by the caller."""
        if "capacity" not in state:  # of an adapter that does not grow, while this one may
            self.set_rank(adapter, state["rank"])
            return
        components = self.components[adapter]
        for name in state.keys() & set(_STATE):
            setattr(components, name, copy.deepcopy(state[name]))
        components.importance = torch.tensor(state["importance"], dtype=torch.float64)
        if not components.growing:
            components.recorder = None
        self.resize(adapter, state["capacity"])
        if components.allocator is not None:
            components.allocator.restore(state["step"])

    def pack_state(self, adapters: Iterable[str]) -> Tensor:
        """What the state dict has to hold beside these adapters' tensors: ranks and growth, as JSON in bytes."""
        state = {adapter: self.growth_state(adapter) for adapter in adapters}
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)

    def take_state(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Divide the storage as a state dict says that is about to be loaded, and pad its tensors to the storage."""
        if (saved := state_dict.get(f"{prefix}increlora_state._extra_state")) is None:
            return
        for adapter, state in json.loads(bytes(saved.tolist())).items():
            if adapter not in self.components:
                continue
            self.load_growth_state(adapter, state)
            for kind, stored in self.tensors(adapter).items():
                tensor = state_dict.get(key := f"{prefix}increlora_{kind}.{adapter}")
                if tensor is not None and tensor.shape[KINDS[kind]] < self.capacity(adapter):
                    state_dict[key] = pad(tensor, stored, KINDS[kind])


class _State(nn.Module):
    """Has the state dict hold `IncreLoraLayer.pack_state` too, under the prefix of the adapter's tensors.

    The layer reads it, before those.
    """

    def __init__(self, layer: IncreLoraLayer):
        super().__init__()
        object.__setattr__(self, "layer", layer)  # no submodule: it is the parent

    def get_extra_state(self) -> Tensor:
        layer: IncreLoraLayer = self.layer  # type: ignore[assignment]
        return layer.pack_state(layer.components)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing is left to do after `IncreLoraLayer.take_state`."""


class IncreLoraLinear(nn.Module, IncreLoraLayer):
    """A linear layer, quantised or not, with IncreLoRA adapters."""

    def __init__(self, base_layer: nn.Module, adapter: str, rank: int, config: IncreLoraConfig, **kwargs: Any) -> None:
        super().__init__()
        IncreLoraLayer.__init__(self, base_layer, **kwargs)
        self._active_adapter = adapter
        self.update_layer(adapter, rank, config)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_state(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """``x`` (..., in) to (..., out).

        Args:
            x: the layer's input.
            args, kwargs: handed on to the base layer.
            adapter_names: in inference, the adapter of every row of the batch; ``"__base__"`` for none.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if adapter_names is not None and not self.disable_adapters:
            return self._mixed_batch(x, result, adapter_names)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for adapter in self.active_adapters:
            if adapter in self.components:
                result = result + self.update(x, adapter)
        return result.to(dtype)

    def update(self, x: Tensor, adapter: str) -> Tensor:
        """``dW x`` (..., out); in a scored step its backward pass feeds the recorder."""
        components = self.components[adapter]
        if self.training and components.allocator is not None and not torch.compiler.is_compiling():
            components.allocator.watch(self)
        a, coefficients, b = self.factors(adapter)
        inputs = self._inputs(x, a.dtype, adapter)
        hidden = self._project(inputs, a)
        update = F.linear(hidden * coefficients.to(hidden.dtype), b)
        if components.recorder is not None and self.training:
            if torch.is_grad_enabled():
                update = tap(update, inputs, components.recorder.receiver)
            else:  # reentrant checkpointing: the gradient will come in pieces, one per segment that calls this module
                components.recorder.hold = True
        return update

    def _mixed_batch(self, x: Tensor, result: Tensor, adapter_names: list[str]) -> Tensor:
        if len(adapter_names) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        result = result.clone()
        for adapter in sorted(set(adapter_names) & set(self.components)):
            rows = [index for index, name in enumerate(adapter_names) if name == adapter]
            result[rows] += self.update(x[rows], adapter).to(result.dtype)
        return result

    def _inputs(self, x: Tensor, dtype: torch.dtype, adapter: str) -> Tensor:
        """What A is multiplied with (..., in), under autocast in its dtype: then a scored step keeps no other copy."""
        dropout, device = self.increlora_dropout[adapter], x.device.type
        if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, dtype):
            dropped = x if isinstance(dropout, nn.Identity) else dropout(self._cast_input_dtype(x, dtype))
            return dropped.to(torch.get_autocast_dtype(device))
        return dropout(self._cast_input_dtype(x, dtype))

    def _project(self, inputs: Tensor, a: Tensor) -> Tensor:
        return F.linear(inputs, a)

    def __repr__(self) -> str:
        return "increlora." + super().__repr__()


class IncreLoraEmbedding(IncreLoraLinear):
    """An embedding with IncreLoRA adapters: the linear layer of one-hot inputs, ``in`` being the vocabulary.

    As in PEFT's LoRA, `lora_dropout` has nothing to act on here.
    """

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's ``convert_to_lora`` writes the names of a linear layer; `export_lora` those of an embedding."""
        return False

    def _inputs(self, x: Tensor, dtype: torch.dtype, adapter: str) -> Tensor:
        return x

    def _project(self, inputs: Tensor, a: Tensor) -> Tensor:
        return F.embedding(inputs, a.T, padding_idx=self.padding_idx)

    @property
    def padding_idx(self) -> int | None:
        base: Any = self.get_base_layer()
        return base.padding_idx

    @torch.no_grad()
    def _draw_rows(self, adapter: str, start: int, stop: int) -> None:
        """As of a linear layer, but the vector of ``padding_idx`` has no update, and never gets one."""
        super()._draw_rows(adapter, start, stop)
        if self.padding_idx is not None:
            self.increlora_A[adapter][start:stop, self.padding_idx] = 0

    def update(self, x: Tensor, adapter: str) -> Tensor:
        """``dW x`` (..., out), times the factor that some embeddings multiply their output with."""
        update = super().update(x, adapter)
        scale = self._get_embed_scale()
        return update if scale is None else update * scale.to(update.dtype)


def pad(tensor: Tensor, stored: Tensor, dim: int) -> Tensor:
    """A tensor of fewer components in the place of one in storage, whose further components stay."""
    padded = stored.detach().clone()
    padded.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return padded


def named_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, IncreLoraLayer]]:
    """The layers with this adapter and their names."""
    for name, module in model.named_modules():
        if isinstance(module, IncreLoraLayer) and adapter in module.components:
            yield name, module


def features(base: Any) -> tuple[int, int]:
    """``(in, out)`` of a layer that can be adapted.

    Raises:
        TypeError: it is neither a linear layer (quantised or not) nor a Conv1D of Transformers nor an embedding.
    """
    if isinstance(base, Conv1D):
        height, width = base.weight.shape
        return height, width
    if isinstance(base, nn.Embedding):
        return base.num_embeddings, base.embedding_dim
    if hasattr(base, "in_features") and hasattr(base, "out_features"):
        return base.in_features, base.out_features
    raise TypeError(
        f"Target module {base} is not supported. Currently, only linear layers (quantised ones too), "
        "`transformers.pytorch_utils.Conv1D` and `torch.nn.Embedding` are supported."
    )

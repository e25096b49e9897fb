"""Passing an adapter on: as plain LoRA that needs only PEFT, or as a rank distribution to train LoRA from anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import save_file
from torch import nn

from .errors import ConfigError, IncreLoraError
from .growth import find_allocator
from .layer import IncreLoraEmbedding


def export_lora(model: nn.Module, folder: str | Path, adapter: str | None = None, *, uniform: bool = False) -> Path:
    """Write the adapter as plain LoRA, exactly: ``A' = A``, ``B' = s B diag(lambda)``, so ``B' A' = dW``.

    Args:
        model: the PEFT model, or any model that holds the adapter's layers.
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` are written.
        adapter: name of the adapter, the active one by default.
        uniform: pad all modules with zeros to the largest rank and write neither ``rank_pattern`` nor
            ``alpha_pattern``: for programs that know one rank and one alpha (llama.cpp scales by the global alpha over
            a module's own rank), and for servers that reserve one rank (vLLM's ``max_lora_rank``).

    Returns:
        The folder. ``PeftModel.from_pretrained(base, folder)`` loads it without this package.

    Raises:
        IncreLoraError: no module has any rank, or one has several names: PEFT's LoRA adapts the first one only.
    """
    allocator = find_allocator(model, adapter)
    adapter = allocator.adapter
    layers = {name: layer for name, layer in allocator.layers.items() if layer.rank(adapter)}
    if not layers:
        raise IncreLoraError("no module has any rank: nothing to export")
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module in layers.values()]
    first = [name for name, module in model.named_modules() if module in layers.values()]
    if shared := sorted(set(names) - set(first)):
        raise IncreLoraError(
            f"{shared[0]} is one of several names of a module, and PEFT's LoRA would adapt the first one only: use "
            "merge_and_unload() instead"
        )
    ranks = {name: layer.rank(adapter) for name, layer in layers.items()}
    largest = max(ranks.values())
    config = lora_config(dict.fromkeys(ranks, largest) if uniform else ranks, like=allocator.config)
    config.inference_mode = True
    tensors = {}
    for name, layer in layers.items():
        a, b = layer.lora_factors(adapter)
        missing = largest - len(a) if uniform else 0
        a, b = F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))
        if isinstance(layer, IncreLoraEmbedding):
            tensors[f"base_model.model.{name}.lora_embedding_A"] = a.cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_embedding_B"] = b.cpu().contiguous()
        else:
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.cpu().contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.cpu().contiguous()
    tensors.update(_saved_modules(model, adapter))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def lora_config(ranks: dict[str, int], *, like: Any = None, **overrides: Any) -> LoraConfig:
    """A ``LoraConfig`` with this rank distribution: also the way to retrain from it.

    The scale is 1 (``alpha = rank``) in every module, or ``lora_alpha / rank`` if ``lora_alpha`` is given.

    Args:
        ranks: ``{module name: rank}``, e.g. ``model.rank_distribution()``; modules of rank 0 are left out.
        like: a config whose task type, base model and what trains beside the ranks (``modules_to_save``, ``bias``,
            ``trainable_token_indices``) are taken over.
        overrides: fields of ``LoraConfig``.

    Raises:
        ConfigError: no module has any rank.
    """
    ranks = {name: rank for name, rank in ranks.items() if rank > 0}
    if not ranks:
        raise ConfigError("ranks", "no module has any rank")
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    # PEFT takes a key for the end of a name: one that ends another name as well has to say that it is the whole
    pattern = {
        f"^{name}" if any(other.endswith(f".{name}") for other in ranks) else name: rank
        for name, rank in ranks.items()
        if rank != common
    }
    shared = ("task_type", "base_model_name_or_path", "revision", "modules_to_save", "trainable_token_indices", "bias")
    inherited = {} if like is None else {name: getattr(like, name) for name in shared}
    if inherited.get("bias") == "increlora_only":
        inherited["bias"] = "lora_only"
    fields: dict[str, Any] = {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": {} if "lora_alpha" in overrides else dict(pattern),
        "target_modules": sorted(ranks),
        **inherited,
        **overrides,
    }
    return LoraConfig(**fields)


def _saved_modules(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Tensors of ``modules_to_save``, biases and tokens under the names that PEFT saves them with."""
    holders = (module for module in model.modules() if "peft_config" in vars(module))
    base = next(module for module in holders if not isinstance(module, PeftModel | BaseTuner))
    state = get_peft_model_state_dict(base, adapter_name=adapter, save_embedding_layers=False)
    return {
        f"base_model.model.{key}": value.cpu().contiguous() for key, value in state.items() if ".increlora_" not in key
    }

"""What servers make of an exported adapter: their rules for scale and rank, applied to the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from increlora import export_lora, find_allocator
from tests.integration.conftest import STEPS, adapted, llama
from tests.integration.test_tools import plain_loop

Config = dict[str, Any]


def peft_scale(config: Config, module: str, rank: int) -> float:
    """PEFT and vLLM: the module's own alpha over its own rank."""

    def of_module(pattern: dict[str, int], default: int) -> int:
        return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)

    assert of_module(config["rank_pattern"], config["r"]) == rank
    return of_module(config["alpha_pattern"], config["lora_alpha"]) / rank


def llama_cpp_scale(config: Config, module: str, rank: int) -> float:
    """llama.cpp: the adapter's one alpha over the module's own rank."""
    return config["lora_alpha"] / rank


def fixed_scale(config: Config, module: str, rank: int) -> float:
    """Servers that know one rank: the adapter's one alpha over its one rank."""
    assert rank == config["r"]
    return config["lora_alpha"] / config["r"]


@pytest.fixture(scope="module")
def grown(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = adapted(llama(folder))
    plain_loop(model, folder, tmp_path_factory.mktemp("out"))
    assert len(set(model.rank_distribution().values())) > 1
    return model


@pytest.mark.parametrize(
    ("uniform", "scale"),
    [(False, peft_scale), (True, peft_scale), (True, llama_cpp_scale), (True, fixed_scale)],
    ids=["PEFT", "PEFT, uniform", "llama.cpp, uniform", "one rank, uniform"],
)
def test_exported_update_is_exact(uniform: bool, scale: Callable[..., float], grown: Any, tmp_path: Path) -> None:
    folder = export_lora(grown, tmp_path, uniform=uniform) if uniform else export_lora(grown, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    largest = max(grown.rank_distribution().values())
    names = {key.split(".lora_")[0] for key in tensors}
    assert len(names) == len(grown.rank_distribution())
    for name in names:
        a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        if uniform:
            assert len(a) == largest
        update = scale(config, name, len(a)) * b @ a
        layer = grown.get_submodule(name)
        torch.testing.assert_close(update, layer.get_delta_weight("default"), rtol=1e-5, atol=1e-7)


def test_no_module_grows_beyond_a_servers_cap(folder: Path) -> None:
    """vLLM refuses ranks above its `max_lora_rank`."""
    from increlora import create_optimizer
    from tests.integration.conftest import tokens

    model = adapted(llama(folder), max_r=3)
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
    for step in range(1, STEPS + 1):
        model(**tokens(step)).loss.backward()
        find_allocator(model).update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    ranks = model.rank_distribution().values()
    assert max(ranks) == 3
    assert sum(ranks) == 2 * len(ranks)

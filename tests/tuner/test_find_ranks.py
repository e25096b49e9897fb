"""Rank patterns found by a short growth run, and exports for programs that know one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from increlora import create_optimizer, export_lora, find_allocator, find_ranks
from increlora.errors import ConfigError
from tests.conftest import TARGETS
from tests.tuner.conftest import adapter, deberta, tokens, train


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


def sequences() -> list[dict[str, torch.Tensor]]:
    batches = [tokens(step) for step in range(6)]
    return [{**batch, "labels": batch["input_ids"]} for batch in batches]


CASES = {
    "classifier": (
        deberta,
        [tokens(step) for step in range(6)],
        {"target_modules": TARGETS, "modules_to_save": ["pooler", "classifier"], "task_type": "SEQ_CLS"},
        12,
    ),
    "language model": (llama, sequences(), {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}, 14),
}


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return {"state": state, "modes": modes, "kinds": kinds, "trains": trains}


@pytest.mark.parametrize("case", CASES)
def test_ranks_add_up_and_the_model_is_as_before(case: str) -> None:
    base, batches, config, modules = CASES[case]
    model = base().eval()
    next(model.parameters()).requires_grad_(False)
    before, random = snapshot(model), torch.get_rng_state()
    found = find_ranks(model, batches, budget=4, steps=20, events=4, round_to=2, max_r=6, **config)
    after = snapshot(model)
    assert all(torch.equal(value, after["state"][name]) for name, value in before.pop("state").items())
    after.pop("state")
    assert before == after
    assert torch.equal(random, torch.get_rng_state())
    assert not hasattr(model, "peft_config")

    assert isinstance(found, LoraConfig)
    lora = get_peft_model(model, found)
    ranks = [module.r["default"] for module in lora.modules() if hasattr(module, "lora_A") and module.r]
    assert len(ranks) == modules and sum(ranks) == 4 * modules
    assert all(rank % 2 == 0 for rank in ranks) and max(ranks) <= 6 and len(set(ranks)) > 1


def test_a_buffer_that_the_forward_pass_makes_is_no_obstacle() -> None:
    base, batches, config, _ = CASES["classifier"]
    model = base()
    model.deberta.register_forward_hook(lambda module, *_: module.register_buffer("seen", torch.ones(1)))
    assert find_ranks(model, batches, budget=2, steps=12, events=3, **config).rank_pattern


def test_the_same_seed_finds_the_same_ranks() -> None:
    base, batches, config, _ = CASES["classifier"]
    one, other = (find_ranks(base(), batches, budget=2, steps=12, events=3, **config) for _ in range(2))
    assert one.rank_pattern == other.rank_pattern


def test_what_cannot_be_distributed_is_refused() -> None:
    base, batches, config, _ = CASES["classifier"]
    with pytest.raises(ConfigError, match="multiple of round_to"):
        find_ranks(base(), batches, budget=5, steps=10, round_to=2, **config)
    with pytest.raises(ConfigError, match=r"max_r: got 2; must be round_to \(4\) or more"):
        find_ranks(base(), batches, budget=4, steps=10, round_to=4, max_r=2, **config)
    with pytest.raises(ConfigError, match="batches"):
        find_ranks(base(), [], budget=2, steps=10, **config)
    model = get_peft_model(base(), LoraConfig(target_modules=TARGETS))
    with pytest.raises(ConfigError, match="adapter already"):
        find_ranks(model, batches, budget=2, steps=10, **config)


@pytest.mark.parametrize("uniform", [False, True], ids=["rank pattern", "uniform"])
def test_export_under_the_scale_rules_of_servers(uniform: bool, tmp_path: Path) -> None:
    """PEFT scales by a module's alpha over its rank, llama.cpp by the global alpha over the rank of the tensor."""
    torch.manual_seed(1)
    config = adapter(target_modules="all-linear", modules_to_save=None, task_type="CAUSAL_LM", lora_dropout=0.0)
    model = get_peft_model(llama(), config)
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=24, warmup_steps=4)
    model.train()
    for step, batch in enumerate(sequences() * 4, start=1):
        model(**batch).loss.backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert len(set(model.rank_distribution().values())) > 1
    batch = {name: value for name, value in sequences()[0].items() if name != "labels"}
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        folder = export_lora(model, tmp_path, uniform=uniform)
        loaded = PeftModel.from_pretrained(llama(), folder).eval()
        torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-5)

    written = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    assert bool(written["rank_pattern"]) != uniform
    exact = True
    for name, layer in find_allocator(model).layers.items():
        a = tensors[f"base_model.model.{name}.lora_A.weight"]
        b = tensors[f"base_model.model.{name}.lora_B.weight"]
        assert not uniform or len(a) == written["r"] == max(model.rank_distribution().values())
        served = written["lora_alpha"] / len(a) * b @ a
        exact &= torch.allclose(served, layer.get_delta_weight("default"), atol=1e-6)
    assert exact == uniform


def test_max_r_is_respected_while_growing() -> None:
    model = get_peft_model(deberta(), adapter(max_r=4))
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=40, warmup_steps=4)
    train(model, optimizer, scheduler, range(1, 41))
    assert max(model.rank_distribution().values()) == 4
    assert sum(model.rank_distribution().values()) == 36

"""What trains beside linear layers: embeddings, biases, single tokens; and PEFT's tools for LoRA alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, convert_to_lora, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn

from increlora import IncreLoraConfig, create_optimizer, export_lora, find_allocator

IDS = torch.randint(3, 50, (4, 6), generator=torch.Generator().manual_seed(1))
SIZE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CASES: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": r".*(embed_tokens|q_proj)", "lora_dropout": 0.1},
    "all biases": {"bias": "all"},
    "biases of adapted modules": {"bias": "increlora_only"},
    "tokens": {"trainable_token_indices": [5, 6]},
}


def base() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, attention_bias=True, initializer_range=0.3))


def out(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted(**changes: Any) -> PeftModel:
    torch.manual_seed(1)
    fields = {"target_modules": r".*[qv]_proj", "target_r": 3, "deltaT": 2, "task_type": "CAUSAL_LM"}
    return get_peft_model(base(), IncreLoraConfig(**{**fields, **changes}))


def train(model: PeftModel, steps: int = 10) -> None:
    optimizer, scheduler = create_optimizer(model, lr=3e-2, total_steps=20)
    model.train()
    for step in range(1, steps + 1):
        model(input_ids=IDS).logits.square().mean().backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", CASES)
def test_grows_saves_exports_and_merges(name: str, tmp_path: Path) -> None:
    model = adapted(**CASES[name])
    train(model)
    expected = out(model)
    assert sum(model.rank_distribution().values()) == 6
    model.save_pretrained(tmp_path / "own")
    export_lora(model, tmp_path / "lora")
    for folder in ("own", "lora"):
        loaded = PeftModel.from_pretrained(base(), tmp_path / folder)
        torch.testing.assert_close(out(loaded), expected, rtol=1e-3, atol=1e-4)
    fresh = adapted(**CASES[name])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(out(fresh), expected)
    torch.testing.assert_close(out(model.merge_and_unload()), expected, rtol=1e-3, atol=1e-4)


def test_biases_belong_to_one_adapter() -> None:
    model = adapted(bias="all")
    with pytest.raises(ValueError, match="bias"):
        model.add_adapter("second", IncreLoraConfig(target_modules=["q_proj"], bias="all"))
    with pytest.warns(UserWarning, match="bias"), model.disable_adapter():
        pass


def test_embedding_gradient_equals_that_of_one_hot_inputs() -> None:
    model = adapted(target_modules=["embed_tokens"])
    layer = find_allocator(model).layers["model.embed_tokens"]
    layer.record("default", hold=True)
    model.train()(input_ids=IDS).logits.square().mean().backward()
    recorder = layer.components["default"].recorder
    assert recorder is not None
    plain = base()
    plain(input_ids=IDS).logits.square().mean().backward()
    expected = plain.get_input_embeddings().weight.grad.T
    torch.testing.assert_close(recorder.receiver.grad, expected, rtol=1e-3, atol=1e-6)


def test_the_padding_vector_of_an_embedding_stays() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Embedding(9, 8, padding_idx=3), nn.Linear(8, 2)),
        IncreLoraConfig(target_modules=["0"], target_r=2, deltaT=2),
    )
    optimizer, scheduler = create_optimizer(model, lr=0.1, total_steps=20, warmup_steps=2)
    for step in range(1, 21):
        model(torch.arange(9)).square().sum().backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    update = find_allocator(model).layers["0"].get_delta_weight("default")
    assert update[3].abs().max() == 0 and update[4].abs().max() > 0.01


def test_tools_for_lora_alone_refuse_and_the_export_works_with_them(tmp_path: Path) -> None:
    model, other = adapted(), adapted(init_weights=False)
    train(model)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match="only supports LORA"):
        hotswap_adapter(model, str(tmp_path / "own"), "default")
    expected = out(model)
    plain = PeftModel.from_pretrained(base(), export_lora(other, tmp_path / "other", uniform=True))
    hotswap_adapter(plain, str(export_lora(model, tmp_path / "one", uniform=True)), "default", torch_device="cpu")
    torch.testing.assert_close(out(plain), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(TypeError, match="IncreLoraEmbedding"):
        convert_to_lora(adapted(target_modules=["embed_tokens"]), rank=2)

"""Base models in half precision and in the quantised forms that PEFT's LoRA takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from increlora import create_optimizer, export_lora, find_allocator, lora_config
from tests.integration.conftest import (
    MIDDLE,
    MODULES,
    STEPS,
    adapted,
    assert_equal_adapters,
    bitsandbytes_4bit,
    config,
    llama,
    logits,
    tokens,
)


def bitsandbytes_8bit(folder: Path) -> nn.Module:
    from transformers import BitsAndBytesConfig

    return llama(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def torchao(folder: Path, scheme: Any) -> nn.Module:
    from transformers import TorchAoConfig

    return llama(folder, quantization_config=TorchAoConfig(quant_type=scheme))


def torchao_int8(folder: Path) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig

    return torchao(folder, Int8WeightOnlyConfig())


def torchao_int4(folder: Path) -> nn.Module:
    """The form of int4 that runs on a CPU: values of four bits, each in a byte."""
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return torchao(folder, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def hqq(folder: Path) -> nn.Module:
    """Transformers 5 loads no HQQ model from a folder of float weights on a CPU: replace the layers by hand."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = llama(folder)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith("_proj"):
            quantisation = BaseQuantizeConfig(nbits=8, group_size=32)
            layer = HQQLinear(module, quantisation, compute_dtype=torch.float32, device="cpu", del_orig=False)
            model.set_submodule(name, layer)
    return model


@dataclass(frozen=True)
class Base:
    load: Callable[[Path], nn.Module]
    needs: str = "transformers"


BASES = {
    "float32": Base(llama),
    "bfloat16": Base(lambda folder: llama(folder, dtype=torch.bfloat16)),
    "bitsandbytes 8-bit": Base(bitsandbytes_8bit, "bitsandbytes"),
    "bitsandbytes 4-bit": Base(bitsandbytes_4bit, "bitsandbytes"),
    "torchao int8": Base(torchao_int8, "torchao"),
    "torchao int4": Base(torchao_int4, "torchao"),
    "HQQ": Base(hqq, "hqq"),
}

PROPERTIES = {
    "test_grows_and_moves_the_outputs": "grows",
    "test_saved_adapter_loads": "saves",
    "test_resume_in_the_middle_of_growth": "resumes",
    "test_exports_exactly": "exports",
    "test_merges_as_lora_does": "merges as PEFT's LoRA does",
    "test_nan_is_not_merged": "refuses to merge NaN and changes nothing",
    "test_distribution_retrains_as_lora": "ranks retrain as LoRA",
}
"""What every base model is tested for."""


def train(model: Any, steps: range, optimizer: Any, scheduler: Any) -> None:
    allocator = find_allocator(model)
    model.train()
    for step in steps:
        model(**tokens(step)).loss.backward()
        allocator.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def start(model: Any) -> tuple[Any, Any]:
    return create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)


@pytest.fixture(params=BASES.values(), ids=BASES, scope="module")
def base(request: pytest.FixtureRequest) -> Base:
    pytest.importorskip(request.param.needs)
    return request.param


@pytest.fixture(scope="module")
def trained(base: Base, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A grown adapter, and a checkpoint from the middle of its growth."""
    model, out = adapted(base.load(folder)), tmp_path_factory.mktemp("checkpoint")
    optimizer, scheduler = start(model)
    train(model, range(1, MIDDLE + 1), optimizer, scheduler)
    model.save_pretrained(out)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], out / "state.pt")
    train(model, range(MIDDLE + 1, STEPS + 1), optimizer, scheduler)
    return model, out


@pytest.fixture(scope="module")
def copied(base: Base, folder: Path, trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Loads the grown adapter on a base model of its own: quantised layers cannot always be deep-copied."""
    saved = tmp_path_factory.mktemp("saved")
    trained[0].save_pretrained(saved)
    return lambda: PeftModel.from_pretrained(base.load(folder), saved)


def test_grows_and_moves_the_outputs(base: Base, trained: Any, folder: Path) -> None:
    model, _ = trained
    ranks = model.rank_distribution()
    assert len(ranks) == MODULES
    assert sum(ranks.values()) == 2 * MODULES
    assert (logits(model) - logits(base.load(folder))).abs().max() > 0.1


def test_saved_adapter_loads(base: Base, trained: Any, copied: Callable[[], Any]) -> None:
    loaded = copied()
    assert loaded.rank_distribution() == trained[0].rank_distribution()
    torch.testing.assert_close(logits(loaded), logits(trained[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [True, False], ids=["float32 adapter", "adapter of the base's dtype"])
def test_resume_in_the_middle_of_growth(base: Base, autocast: bool, folder: Path, tmp_path: Path) -> None:
    def load(out: Path | None) -> Any:
        if out is not None:
            model = PeftModel.from_pretrained(
                base.load(folder), out, is_trainable=True, autocast_adapter_dtype=autocast
            )
        else:
            torch.manual_seed(1)
            model = get_peft_model(base.load(folder), config(), autocast_adapter_dtype=autocast)
        return model, *start(model)

    whole, optimizer, scheduler = load(None)
    train(whole, range(1, MIDDLE + 1), optimizer, scheduler)
    whole.save_pretrained(tmp_path)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")
    train(whole, range(MIDDLE + 1, STEPS + 1), optimizer, scheduler)

    resumed, optimizer, scheduler = load(tmp_path)
    for part, state in zip((optimizer, scheduler), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    train(resumed, range(MIDDLE + 1, STEPS + 1), optimizer, scheduler)
    assert_equal_adapters(resumed, whole)


def test_exports_exactly(base: Base, trained: Any, folder: Path, tmp_path: Path) -> None:
    plain = PeftModel.from_pretrained(base.load(folder), export_lora(trained[0], tmp_path))
    assert plain.peft_config["default"].peft_type == "LORA"
    torch.testing.assert_close(logits(plain), logits(trained[0]), atol=2e-2, rtol=2e-2)


def merged(model: Any) -> torch.Tensor:
    model.merge_adapter(safe_merge=True)
    return logits(model)


def base_logits(model: PeftModel) -> torch.Tensor:
    """What the base layers in the model compute."""
    assert not any(getattr(module, "merged", False) for module in model.modules())
    with model.disable_adapter():
        return logits(model)


def test_merges_as_lora_does(base: Base, copied: Callable[[], Any], folder: Path, tmp_path: Path) -> None:
    """The same update merged by PEFT's LoRA into the same base sets the error that quantising again may have."""
    model = copied()
    expected = logits(model)
    plain = PeftModel.from_pretrained(base.load(folder), export_lora(model, tmp_path))
    error = (merged(plain) - expected).abs().max()
    allowed = 1.2 * error + 1e-4
    assert (merged(model) - expected).abs().max() < allowed
    assert (logits(copied().merge_and_unload()) - expected).abs().max() < allowed
    model.unmerge_adapter()
    plain.unmerge_adapter()
    error = (logits(plain) - expected).abs().max()
    assert (logits(model) - expected).abs().max() < 1.2 * error + 1e-4


def test_nan_is_not_merged(base: Base, copied: Callable[[], Any], folder: Path) -> None:
    model = copied()
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "increlora_B" in name)[0] = torch.nan
    before = base_logits(model)
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(base_logits(model), before)


def test_distribution_retrains_as_lora(base: Base, trained: Any, folder: Path) -> None:
    plain = get_peft_model(base.load(folder), lora_config(trained[0].rank_distribution()))
    plain(**tokens(1)).loss.backward()
    found = {name: module.r["default"] for name, module in plain.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model."): r for name, r in found.items()} == trained[0].rank_distribution()

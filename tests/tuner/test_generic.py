"""What holds for every PEFT method on every kind of model, with growth off and in the middle of growth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, convert_to_lora, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from increlora import IncreLoraConfig, create_optimizer

Batch = dict[str, Any]
SIZE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
BERT = {**SIZE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


class Custom(nn.Module):
    """No Transformers model; ``twice`` is called two times in a forward pass."""

    def __init__(self, first: nn.Module, twice: nn.Module):
        super().__init__()
        self.first, self.twice, self.head = first, twice, nn.Linear(12, 4)
        for part in (first, twice):
            nn.init.normal_(part.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.to(self.head.weight.dtype))
        return self.head(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(hidden))))))


def tokens() -> Batch:
    ids = torch.randint(3, 50, (4, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def vectors() -> Batch:
    return {"x": torch.randn(4, 10, generator=torch.Generator().manual_seed(1))}


@dataclass(frozen=True)
class Case:
    """A kind of model, what is adapted in it, its task type and the name of its list of layers."""

    build: Callable[[], nn.Module]
    targets: str
    task: str | None = None
    layers: str | None = None
    batch: Callable[[], Batch] = tokens

    def base(self, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)
        return self.build().to(dtype).eval()

    def forward(self, model: nn.Module, **extra: Any) -> Tensor:
        found = model(**self.batch(), **extra)
        return found if isinstance(found, Tensor) else getattr(found, "logits", found[0])


CASES = {
    "MLP": Case(lambda: Custom(nn.Linear(10, 12), nn.Linear(12, 12)), "first|twice", batch=vectors),
    "Conv1D": Case(lambda: Custom(Conv1D(12, 10), Conv1D(12, 12)), "first|twice", batch=vectors),
    "GPT-2": Case(
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **IDS)), r".*(c_attn|attn\.c_proj|c_fc)", "CAUSAL_LM", "h"
    ),
    "Llama": Case(
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, **IDS)), r".*([qv]|up)_proj", "CAUSAL_LM", "layers"
    ),
    "T5": Case(
        lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
        r".*\.(q|v|wi)",
        "SEQ_2_SEQ_LM",
        "block",
        lambda: {**tokens(), "labels": tokens()["input_ids"]},
    ),
    "BERT": Case(lambda: hf.BertModel(hf.BertConfig(**BERT)), r".*(query|value)", "FEATURE_EXTRACTION", "layer"),
    "BERT classifier": Case(
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), r".*(query|value)", "SEQ_CLS", "layer"
    ),
}
GROWTH: dict[str, dict[str, Any]] = {"off": {"target_r": None, "init_r": 2}, "growing": {"target_r": 3, "deltaT": 2}}


@dataclass(frozen=True)
class Kit:
    """A case with growth off or on. ``pristine`` is its adapted model; a growing one has had two events."""

    case: Case
    growth: str
    pristine: Any = None

    def config(self, **changes: Any) -> IncreLoraConfig:
        fields = {"target_modules": self.case.targets, "task_type": self.case.task, **GROWTH[self.growth]}
        return IncreLoraConfig(**{**fields, "init_weights": False, "init_std": 0.3, "lora_alpha": 8, **changes})

    def adapted(self, seed: int = 1, **changes: Any) -> PeftModel:
        base = self.case.base()
        torch.manual_seed(seed)
        return get_peft_model(base, self.config(**changes))

    def model(self) -> PeftModel:
        return copy.deepcopy(self.pristine)

    def load(self, folder: Path, **options: Any) -> PeftModel:
        return PeftModel.from_pretrained(self.case.base(), folder, **options)

    def out(self, model: nn.Module) -> Tensor:
        model.eval()
        with torch.no_grad():
            return self.case.forward(model).float()

    def outputs(self, model: PeftModel) -> dict[str, Tensor]:
        found = {}
        for name in model.peft_config:
            model.set_adapter(name)
            found[name] = self.out(model)
        return found

    def base_out(self) -> Tensor:
        return self.out(self.case.base())

    def train(self, model: PeftModel, steps: int = 5) -> None:
        optimizer, scheduler = create_optimizer(model, lr=3e-2, total_steps=40)
        model.train()
        for step in range(1, steps + 1):
            self.case.forward(model).square().mean().backward()
            model.update_and_allocate(step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@pytest.fixture(scope="module", params=[(name, growth) for name in CASES for growth in GROWTH], ids=" ".join)
def kit(request: pytest.FixtureRequest) -> Kit:
    name, growth = request.param
    kit = Kit(CASES[name], growth)
    model = kit.adapted()
    if growth == "growing":
        kit.train(model)
        assert sum(model.rank_distribution().values()) > len(model.rank_distribution())
    return Kit(CASES[name], growth, model)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-3) -> bool:
    """Equal but for what rounding and the reserve of a growing adapter (lambda = 1e-5) change."""
    return torch.allclose(one, other, atol=tolerance, rtol=tolerance)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_init_weights(kit: Kit) -> None:
    assert close(kit.out(kit.adapted(init_weights=True)), kit.base_out())
    assert not close(kit.out(kit.adapted()), kit.base_out(), 1e-2)


def test_only_the_adapter_trains(kit: Kit) -> None:
    model = kit.adapted()
    before, trained = values(model), trainable(model)
    head = {name for name in trained if ".modules_to_save." in name}
    assert trained - head == {name for name in before if ".increlora_" in name}
    assert bool(head) == (kit.case.task == "SEQ_CLS")
    kit.train(model, 2)
    after = values(model)
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved <= trained
    assert {name for name in trained if "increlora_A" in name} <= moved


def test_layers_look_like_those_they_replace(kit: Kit) -> None:
    base = dict(kit.case.base().named_modules())
    for name in kit.pristine.rank_distribution():
        layer = kit.pristine.get_base_model().get_submodule(name)
        weight = base[name].weight
        shape = weight.T.shape if isinstance(base[name], Conv1D) else weight.shape
        assert (layer.out_features, layer.in_features) == tuple(shape)
        assert torch.equal(layer.weight, weight)
        assert (layer.bias is None) == (getattr(base[name], "bias", None) is None)


def test_name_and_status(kit: Kit) -> None:
    model = get_peft_model(kit.case.base(), kit.config(), adapter_name="lambda")  # part of other names too
    assert "lambda" in repr(model)
    assert model.get_model_status().peft_types == {"lambda": "INCRELORA"}
    assert model.get_model_status().adapter_model_type == "IncreLoraModel"
    assert len(get_peft_model_state_dict(model, adapter_name="lambda")) >= 3 * len(model.rank_distribution())


def test_layers_to_transform(kit: Kit) -> None:
    layers, every = kit.case.layers, set(kit.pristine.rank_distribution())
    if layers is None:
        pytest.skip("no list of layers")
    names = {name.rsplit(".", 1)[-1] for name in every}
    model = kit.adapted(target_modules=names, layers_to_transform=[1], layers_pattern=layers)
    assert {name for name in every if f".{layers}.1." in f".{name}"} <= set(model.rank_distribution())
    assert all(f".{layers}.1." in f".{name}" for name in model.rank_distribution())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(kit: Kit, dtype: torch.dtype, autocast: bool) -> None:
    model = get_peft_model(kit.case.base(dtype), kit.config(), autocast_adapter_dtype=autocast)
    expected = {torch.float32 if autocast else dtype}
    assert {p.dtype for name, p in model.named_parameters() if ".increlora_" in name} == expected
    before = kit.out(model)
    model.merge_adapter()
    assert close(kit.out(model), before, 0.2)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_saved_adapter_loads(kit: Kit, safe: bool, tmp_path: Path) -> None:
    model = kit.model()
    model.save_pretrained(tmp_path, safe_serialization=safe)
    assert (tmp_path / ("adapter_model.safetensors" if safe else "adapter_model.bin")).exists()
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded = kit.load(tmp_path, **options)
        assert loaded.rank_distribution() == model.rank_distribution()
        assert same(get_peft_model_state_dict(loaded), get_peft_model_state_dict(model))
        assert close(kit.out(loaded), kit.out(model))
        assert trainable(loaded) == (trainable(model) if options == {"is_trainable": True} else set())
    kit.train(loaded, 2)
    assert not close(kit.out(loaded), kit.out(model), 1e-2)
    config = IncreLoraConfig.from_pretrained(tmp_path)
    assert kit.load(tmp_path, config=config).peft_config["default"] is config


def test_several_adapters_are_saved_and_loaded(kit: Kit, tmp_path: Path) -> None:
    model = kit.model()
    model.add_adapter("second", kit.config())
    outputs = kit.outputs(model)
    model.save_pretrained(tmp_path, selected_adapters=["second"])
    assert not (tmp_path / "adapter_config.json").exists()
    model.save_pretrained(tmp_path)
    loaded = kit.load(tmp_path)
    loaded.load_adapter(tmp_path / "second", "other")
    assert close(kit.out(loaded), outputs["default"])
    loaded.set_adapter("other")
    assert close(kit.out(loaded), outputs["second"])


def test_state_dict_holds_the_ranks(kit: Kit) -> None:
    model, fresh = kit.model(), kit.adapted(seed=9)
    assert (fresh.rank_distribution() == model.rank_distribution()) == (kit.growth == "off")
    fresh.load_state_dict(model.state_dict())
    assert fresh.rank_distribution() == model.rank_distribution()
    assert torch.equal(kit.out(fresh), kit.out(model))
    assert same(get_peft_model_state_dict(fresh), get_peft_model_state_dict(model))


def test_merge_and_unmerge(kit: Kit) -> None:
    model, expected = kit.model(), kit.out(kit.pristine)
    for _ in range(2):
        model.merge_adapter()
        assert close(kit.out(model), expected)
        model.unmerge_adapter()
        assert close(kit.out(model), expected)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()
    kept = model.get_base_model().state_dict()
    kept = {name.replace(".base_layer", "").replace(".original_module", ""): tensor for name, tensor in kept.items()}
    for name, tensor in kit.case.base().state_dict().items():
        assert close(kept[name], tensor), name


def test_unload(kit: Kit) -> None:
    base, expected = kit.case.base(), kit.out(kit.pristine)
    left = {True: kit.model().merge_and_unload(safe_merge=True), False: kit.model().unload()}
    assert close(kit.out(left[True]), expected)
    if kit.case.task != "SEQ_CLS":  # its trained head is kept
        assert close(kit.out(left[False]), kit.base_out())
    for model in left.values():
        assert list(model.state_dict()) == list(base.state_dict())
        assert [type(module) for module in model.modules()] == [type(module) for module in base.modules()]


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_broken_adapter_is_not_merged(kit: Kit, value: float) -> None:
    model = kit.model()
    broken = [parameter for name, parameter in model.named_parameters() if "increlora_B" in name]
    broken[0].data[0] = value
    base = {name: tensor for name, tensor in values(model).items() if "base_layer" in name}
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights. The adapter default seems to be broken"
    ):
        model.merge_adapter(safe_merge=True)
    first = next(iter(base))
    assert torch.equal(values(model)[first], base[first])


def test_several_adapters_at_once(kit: Kit) -> None:
    if kit.case.task == "SEQ_CLS":
        pytest.skip("a module that is trained in full belongs to one adapter at a time")
    model = kit.model()
    model.add_adapter("second", kit.config())
    model.base_model.set_adapter(["default", "second"])
    both = kit.out(model)
    assert not close(both, kit.out(kit.pristine), 1e-2)
    for names in (["default", "second"], ["default"], ["second"]):
        model.merge_adapter(names)
        if names == ["default"]:
            continue
        assert close(kit.out(model), both)
        with pytest.raises(ValueError, match="merged"):
            model.delete_adapter("second")
        model.unmerge_adapter()
        assert close(kit.out(model), both)


def test_conversion_to_lora(kit: Kit) -> None:
    model = kit.model()
    config, state = convert_to_lora(model, rank=max(model.rank_distribution().values()))
    plain = get_peft_model(kit.case.base(), config)
    set_peft_model_state_dict(plain, state)
    if kit.case.task != "SEQ_CLS":  # the head is no part of it
        assert close(kit.out(plain), kit.out(model))


def test_disabled_adapter(kit: Kit) -> None:
    model, base, expected = kit.model(), kit.base_out(), kit.out(kit.pristine)
    for prepare in (lambda: None, model.merge_adapter):
        prepare()
        with model.disable_adapter():
            assert close(kit.out(model), base)
        assert close(kit.out(model), expected)


def test_deleted_adapter(kit: Kit) -> None:
    model = kit.model()
    before, expected = set(model.state_dict()), kit.out(model)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("unknown")
    for active in (False, True):
        model.add_adapter("second", kit.config())
        if active:
            model.set_adapter("second")
        model.delete_adapter("second")
        assert model.active_adapters == ["default"]
        assert set(model.state_dict()) == before
        assert close(kit.out(model), expected)


def test_batch_of_mixed_adapters(kit: Kit) -> None:
    if kit.case.task == "SEQ_CLS":
        pytest.skip("PEFT takes no such batches where a head is trained in full")
    model, names = kit.model(), ["default", "__base__", "second", "default"]
    model.add_adapter("second", kit.config())
    alone = {"__base__": kit.base_out(), **kit.outputs(model)}
    with torch.no_grad():
        mixed = kit.case.forward(model.eval(), adapter_names=names)
    for row, name in enumerate(names):
        assert close(mixed[row], alone[name][row]), name
    for wrong, message in ((["unknown"] * 4, "non-existing adapter"), (names[:3], "the number of inputs")):
        with pytest.raises(ValueError, match=message):
            kit.case.forward(model, adapter_names=wrong)
    with pytest.raises(ValueError, match="training mode"):
        kit.case.forward(model.train(), adapter_names=names)


def test_generation(kit: Kit) -> None:
    if kit.case.task not in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
        pytest.skip("not a model that generates")
    model, batch, options = kit.model().eval(), tokens(), {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**batch, **options), kit.model().merge_and_unload().generate(**batch, **options))
    model.add_adapter("second", kit.config())
    names = ["default", "__base__", "second", "default"]
    mixed = model.generate(**batch, **options, num_beams=2, adapter_names=names)
    assert torch.equal(mixed[1], kit.case.base().generate(**batch, **options, num_beams=2)[1])
    assert torch.equal(mixed[0], model.generate(**batch, **options, num_beams=2)[0])


def test_embeddings_as_input(kit: Kit) -> None:
    if kit.case.task in (None, "SEQ_2_SEQ_LM"):
        pytest.skip("not for this model")
    model, batch = kit.model().eval(), tokens()
    embedded = model.get_input_embeddings()(batch.pop("input_ids"))
    found = model(inputs_embeds=embedded, **batch)
    assert close(getattr(found, "logits", found[0]), kit.out(model))

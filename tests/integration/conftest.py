"""Tiny random models, a tiny tokenizer and tiny data: nothing comes from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from increlora import IncreLoraConfig

STEPS, MIDDLE = 24, 7  # the checkpoint of MIDDLE lies between two growths
SEVEN = r".*\.(q|k|v|o|gate|up|down)_proj"
MODULES = 14
WORDS = [f"{prefix}{vowel}{end}" for prefix in "bdfgk" for vowel in "aeiou" for end in "lmnr"]
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `llama` and `bert` in Hub layout."""
    root = tmp_path_factory.mktemp("models")
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    size = {**SIZE, "vocab_size": len(vocabulary), "max_position_embeddings": 64}
    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for name, model in (
        ("llama", hf.LlamaForCausalLM(hf.LlamaConfig(**size, **SPECIAL, num_key_value_heads=2))),
        ("bert", hf.BertModel(hf.BertConfig(**size, **no_dropout, pad_token_id=0, initializer_range=0.2))),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def llama(folder: Path, **options: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder / "llama", **{"dtype": torch.float32, **options})


def bitsandbytes_4bit(folder: Path) -> Any:
    quantisation = hf.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = llama(folder, quantization_config=quantisation)
    for module in model.modules():  # some CPUs would pack the weights in another way and round more in eval mode
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def tokenizer(folder: Path) -> Any:
    return hf.AutoTokenizer.from_pretrained(folder / "llama")


def config(**changes: Any) -> IncreLoraConfig:
    fields = {"target_modules": SEVEN, "target_r": 2, "deltaT": 3, "orth_reg_weight": 0.01, "task_type": "CAUSAL_LM"}
    return IncreLoraConfig(**{**fields, **changes})


def adapted(base: nn.Module, seed: int = 1, **changes: Any) -> PeftModel:
    torch.manual_seed(seed)
    return get_peft_model(base, config(**changes))


def sentences(rows: int, seed: int = 0) -> list[str]:
    """Texts of eight words, each of them a word and its neighbours in the list."""
    draws = torch.randint(len(WORDS) - 8, (rows,), generator=torch.Generator().manual_seed(seed))
    return [" ".join(WORDS[start : start + 8]) for start in draws.tolist()]


def tokens(step: int, rows: int = 4) -> dict[str, torch.Tensor]:
    """The batch of this step."""
    ids = torch.tensor([[4 + WORDS.index(word) for word in text.split()] for text in sentences(rows, seed=step)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def dataset(rows: int = 64) -> Dataset:
    batch = tokens(0, rows)
    return Dataset.from_dict({name: tensor.tolist() for name, tensor in batch.items()})


def training_arguments(out: Path, kind: type = hf.TrainingArguments, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "save_strategy": "steps",
        "save_steps": MIDDLE,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
    }
    return kind(output_dir=str(out), **{**fields, **changes})


def logits(model: nn.Module) -> torch.Tensor:
    model.eval()
    batch = tokens(999)
    batch.pop("labels")
    with torch.no_grad():
        return model(**batch).logits.float()


def adapter_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".increlora_" in name and p.numel()}


def assert_equal_adapters(one: nn.Module, other: nn.Module) -> None:
    first, second = adapter_tensors(one), adapter_tensors(other)
    assert first and first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name

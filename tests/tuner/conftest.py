"""A small model with an IncreLoRA adapter, and one training step of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from increlora import IncreLoraConfig
from tests.conftest import TARGETS


def deberta(labels: int = 2, **changes: Any) -> nn.Module:
    """A DeBERTa-v3-style classifier with two layers of hidden size 32."""
    fields = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "num_labels": labels,
    }
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(DebertaV2Config(**{**fields, **changes}))


def adapter(**changes: Any) -> IncreLoraConfig:
    fields = {
        "target_modules": TARGETS,
        "target_r": 3,
        "deltaT": 4,
        "modules_to_save": ["pooler", "classifier"],
        "task_type": "SEQ_CLS",
        "lora_dropout": 0.1,
    }
    return IncreLoraConfig(**{**fields, **changes})


def tokens(step: int, rows: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(5, 100, (rows, 10), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids[:, 0] > 50).long()}


def train(model: PeftModel, optimizer: Any, scheduler: Any, steps: range) -> list[float]:
    """Train over these steps, each with random numbers of its own, and return the losses."""
    model.train()
    losses = []
    for step in steps:
        torch.manual_seed(step)
        loss = model(**tokens(step)).loss
        loss.backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture
def model() -> PeftModel:
    torch.manual_seed(1)
    return get_peft_model(deberta(), adapter())


@pytest.fixture
def logits() -> Callable[[nn.Module], torch.Tensor]:
    def compute(module: nn.Module) -> torch.Tensor:
        module.eval()
        batch = tokens(999)
        batch.pop("labels")
        with torch.no_grad():
            return module(**batch).logits

    return compute

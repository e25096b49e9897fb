"""A growing model under torch.compile: few graphs, no breaks, nothing compiled anew at an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from transformers import BertConfig, BertForSequenceClassification

from increlora import IncreLoraConfig, create_optimizer, find_allocator
from tests.tuner.conftest import tokens

SIX = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
STEPS = 36

pytestmark = pytest.mark.slow


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(vocab_size=100, problem_type="single_label_classification", **sizes, **dropout)
    )


class Counter:
    """A backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return aot_eager(graph, inputs)


def adapted(**changes: Any) -> Any:
    torch.manual_seed(1)
    config = IncreLoraConfig(target_modules=SIX, target_r=3, deltaT=2, score_window=1, task_type="SEQ_CLS", **changes)
    return get_peft_model(bert(), config)


def train(model: Any, forward: Any, graphs: Counter | None = None) -> tuple[list[float], list[int]]:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
    model.train()
    losses, counts = [], []
    for step in range(1, STEPS + 1):
        loss = forward(**tokens(step)).loss
        loss.backward()
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        counts.append(graphs.graphs if graphs else 0)
    return losses, counts


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(("score", "growing"), [("exact", 2), ("taylor", 1)])
def test_growing_model_compiles_into_few_graphs(score: str, growing: int) -> None:
    eager, compiled, graphs = adapted(top_h=2, score=score), adapted(top_h=2, score=score), Counter()
    expected, _ = train(eager, eager)
    losses, counts = train(compiled, torch.compile(compiled, backend=graphs), graphs)
    assert len(compiled.growth_events()) >= 10
    assert compiled.growth_events() == eager.growth_events()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    last = compiled.growth_events()[-1]["step"]
    assert counts[last - 1] == growing  # scored and not scored, if scores are taken in the graph
    assert counts[-1] == growing + 1  # and after growth
    assert not torch._dynamo.utils.counters["graph_break"]


def test_compiles_like_lora_after_growth() -> None:
    graphs = {}
    for name, model in (
        ("lora", get_peft_model(bert(), LoraConfig(r=3, target_modules=SIX, task_type="SEQ_CLS"))),
        ("increlora", adapted(init_r=3)),
    ):
        torch._dynamo.reset()
        graphs[name] = Counter()
        forward = torch.compile(model.train(), backend=graphs[name])
        for step in range(3):
            forward(**tokens(step)).loss.backward()
    assert find_allocator(model).finished
    assert graphs["increlora"].graphs == graphs["lora"].graphs == 1


@pytest.mark.parametrize("late", ["second adapter", "loaded"])
def test_the_regulariser_reaches_an_adapter_that_comes_late(late: str, tmp_path: Path) -> None:
    model = adapted(orth_reg_weight=1.0)
    if late == "second adapter":
        model.add_adapter("second", IncreLoraConfig(target_modules=SIX, target_r=3, deltaT=2, orth_reg_weight=1.0))
        model.set_adapter("second")
    else:
        model.save_pretrained(tmp_path)
        model = PeftModel.from_pretrained(bert(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
    name = model.active_adapter
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
    model.train()
    gradients = []
    for step, forward in enumerate((torch.compile(model, backend="eager"), model), start=1):
        forward(**tokens(1)).loss.backward()
        gradients.append([layer.increlora_A[name].grad.clone() for layer in find_allocator(model).layers.values()])
        model.update_and_allocate(step)
        model.zero_grad()
    assert all(compiled.norm() > 0.01 for compiled in gradients[0])
    torch.testing.assert_close(*gradients)

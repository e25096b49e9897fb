"""One table of the tools that adapters are trained with, and what has to hold in each of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import nn

from increlora import IncreLoraCallback, create_optimizer, export_lora, find_allocator
from tests.integration.conftest import (
    MIDDLE,
    MODULES,
    STEPS,
    adapted,
    adapter_tensors,
    assert_equal_adapters,
    bitsandbytes_4bit,
    config,
    dataset,
    llama,
    logits,
    sentences,
    tokenizer,
    tokens,
    training_arguments,
)

# ---------------------------------------------------------------- models


def peft_model(base: Any, seed: int = 1, **changes: Any) -> Any:
    return adapted(base, seed, **changes)


def add_adapter(base: Any, seed: int = 1, **changes: Any) -> Any:
    """Transformers' own way, without a `PeftModel`."""
    torch.manual_seed(seed)
    base.add_adapter(config(**changes), "default")
    return base


def inject(base: Any, seed: int = 1, **changes: Any) -> Any:
    """PEFT's low-level interface."""
    torch.manual_seed(seed)
    return inject_adapter_in_model(config(**changes), base)


def sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder / "bert"), device="cpu")


BERT = {
    "target_modules": r".*\d\.(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)",
    "task_type": "FEATURE_EXTRACTION",
}

# ---------------------------------------------------------------- tools


def resume_path(out: Path, resume: bool) -> str | None:
    return str(out / f"checkpoint-{MIDDLE}") if resume else None


def trainer(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    hf.Trainer(
        model=model, args=training_arguments(out), train_dataset=dataset(), callbacks=[IncreLoraCallback()]
    ).train(resume_from_checkpoint=resume_path(out, resume))


def next_token_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    batch = dict(batch)
    labels = batch.pop("labels")[:, 1:]
    return nn.functional.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), labels.flatten())


class OwnLoss(hf.Trainer):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        assert not return_outputs
        return next_token_loss(model, inputs)


def trainer_with_own_loss(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    OwnLoss(model=model, args=training_arguments(out), train_dataset=dataset(), callbacks=[IncreLoraCallback()]).train(
        resume_from_checkpoint=resume_path(out, resume)
    )


def trainer_with_label_smoothing(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    arguments = training_arguments(out, label_smoothing_factor=0.1)
    hf.Trainer(model=model, args=arguments, train_dataset=dataset(), callbacks=[IncreLoraCallback()]).train(
        resume_from_checkpoint=resume_path(out, resume)
    )


def sft(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        model,
        args=training_arguments(out, SFTConfig, max_length=16),
        train_dataset=Dataset.from_dict({"text": sentences(64)}),
        processing_class=tokenizer(folder),
        callbacks=[IncreLoraCallback()],
    ).train(resume_from_checkpoint=resume_path(out, resume))


def preferences() -> Dataset:
    texts = [text.split() for text in sentences(64)]
    return Dataset.from_dict(
        {
            "prompt": [" ".join(words[:4]) for words in texts],
            "chosen": [" " + " ".join(words[4:]) for words in texts],
            "rejected": [" " + " ".join(words[4:][::-1]) for words in texts],
        }
    )


def dpo(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    from trl import DPOConfig, DPOTrainer

    DPOTrainer(
        model,
        args=training_arguments(out, DPOConfig, max_length=24),
        train_dataset=preferences(),
        processing_class=tokenizer(folder),
        callbacks=[IncreLoraCallback()],
    ).train(resume_from_checkpoint=resume_path(out, resume))


def grpo(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    from trl import GRPOConfig, GRPOTrainer

    arguments = training_arguments(out, GRPOConfig, num_generations=2, max_completion_length=6)
    GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=arguments,
        train_dataset=preferences().select_columns(["prompt"]),
        processing_class=tokenizer(folder),
        callbacks=[IncreLoraCallback()],
    ).train(resume_from_checkpoint=resume_path(out, resume))


def sentence_trainer(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    texts = [text.split() for text in sentences(64)]
    pairs = {"anchor": [" ".join(words[:4]) for words in texts], "positive": [" ".join(words[4:]) for words in texts]}
    SentenceTransformerTrainer(
        model=model,
        args=training_arguments(out, SentenceTransformerTrainingArguments),
        train_dataset=Dataset.from_dict(pairs),
        loss=MultipleNegativesRankingLoss(model),
        callbacks=[IncreLoraCallback()],
    ).train(resume_from_checkpoint=resume_path(out, resume))


def plain_loop(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    """A loop with a loss of its own, whose whole state is in two state dicts."""
    allocator = find_allocator(model)
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
    if resume:
        state = torch.load(out / "state.pt", weights_only=True)
        for part, saved in zip((model, optimizer, scheduler), state, strict=True):
            part.load_state_dict(saved)
    model.train()
    for step in range(MIDDLE + 1 if resume else 1, STEPS + 1):
        next_token_loss(model, tokens(step)).backward()
        allocator.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == MIDDLE:
            torch.save([part.state_dict() for part in (model, optimizer, scheduler)], out / "state.pt")


def accelerate_loop(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    allocator = find_allocator(model)
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if resume:
        accelerator.load_state(str(out / "state"))
    model.train()
    for step in range(MIDDLE + 1 if resume else 1, STEPS + 1):
        accelerator.backward(next_token_loss(model, tokens(step)))
        allocator.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == MIDDLE:
            accelerator.save_state(str(out / "state"))


def lightning_fit(model: Any, folder: Path, out: Path, resume: bool = False) -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any) -> torch.Tensor:
            return next_token_loss(self.model, tokens(self.global_step))  # a resumed run starts its loader anew

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = create_optimizer(self.model, lr=1e-2, total_steps=STEPS, warmup_steps=2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            find_allocator(self.model).update_and_allocate(self.global_step + 1)

    lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[ModelCheckpoint(out, filename="{step}", every_n_train_steps=MIDDLE, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        Module(),
        torch.utils.data.DataLoader(range(STEPS)),
        ckpt_path=str(out / f"step={MIDDLE}.ckpt") if resume else None,
    )


# ---------------------------------------------------------------- saving


def save_peft(model: Any, base: Any, out: Path) -> Any:
    model.save_pretrained(out)
    return PeftModel.from_pretrained(base, out)


def save_transformers(model: Any, base: Any, out: Path) -> Any:
    model.save_pretrained(out)
    base.load_adapter(str(out))
    return base


def save_injected(model: Any, base: Any, out: Path) -> Any:
    torch.save(get_peft_model_state_dict(model), out / "adapter.pt")
    fresh = inject(base, seed=9)
    set_peft_model_state_dict(fresh, torch.load(out / "adapter.pt"))
    return fresh


def save_sentence_transformer(model: Any, base: Any, out: Path) -> Any:
    model.save_pretrained(str(out))
    return type(base)(str(out), device="cpu")


def embed(model: Any) -> torch.Tensor:
    return model.encode(sentences(4, seed=9), convert_to_tensor=True).clone()


@dataclass(frozen=True)
class Tool:
    """A way of training.

    Attributes:
        train: trains the model for STEPS steps and leaves a checkpoint after MIDDLE, or goes on from that one.
        adapt: puts the adapter into the base model.
        save: saves the adapter and loads it into a base model.
        base: loads the base model.
        output: what the model computes for some fixed input.
        needs: package without which the row is skipped.
        modules: how many are adapted.
        changes: fields of the config.
        cannot: properties that the tool itself lacks, and why.
        inexact: properties that hold up to the tool's own rounding, and why.
    """

    train: Callable[..., None]
    adapt: Callable[..., Any] = peft_model
    save: Callable[[Any, Any, Path], Any] = save_peft
    base: Callable[[Path], Any] = llama
    output: Callable[[Any], torch.Tensor] = logits
    needs: str = "transformers"
    modules: int = MODULES
    changes: dict[str, Any] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    inexact: dict[str, str] = field(default_factory=dict)

    def build(self, folder: Path, seed: int = 1, **changes: Any) -> Any:
        return self.adapt(self.base(folder), seed, **{**self.changes, **changes})


NO_PEFT_MODEL = {"merges, exports": "only a `PeftModel` merges"}
TOOLS = {
    "plain loop": Tool(plain_loop),
    "Trainer": Tool(trainer),
    "Trainer with a loss of its own": Tool(trainer_with_own_loss),
    "Trainer with label smoothing": Tool(trainer_with_label_smoothing),
    "accelerate": Tool(accelerate_loop, needs="accelerate"),
    "Lightning": Tool(lightning_fit, needs="lightning"),
    "TRL SFT": Tool(sft, needs="trl"),
    "TRL SFT, QLoRA": Tool(
        sft,
        base=bitsandbytes_4bit,
        needs="trl",
        cannot={
            "state dict": "bitsandbytes loads no 4-bit weights into a model that has been quantised already",
            "merges, exports": "see the table of base models",
        },
        inexact=dict.fromkeys(
            ("saves", "resumes"), "TRL trains QLoRA adapters in bfloat16, which PEFT then loads in float32"
        ),
    ),
    "TRL DPO": Tool(dpo, needs="trl"),
    "TRL GRPO": Tool(grpo, needs="trl"),
    "sentence-transformers": Tool(
        sentence_trainer,
        add_adapter,
        save_sentence_transformer,
        sentence_transformer,
        embed,
        needs="sentence_transformers",
        modules=12,
        changes=BERT,
        cannot=NO_PEFT_MODEL,
    ),
    "add_adapter, Trainer": Tool(
        trainer,
        add_adapter,
        save_transformers,
        cannot={
            "resumes": "the Trainer resumes no adapter that Transformers has added, of any method",
            **NO_PEFT_MODEL,
        },
    ),
    "add_adapter, plain loop": Tool(plain_loop, add_adapter, save_transformers, cannot=NO_PEFT_MODEL),
    "inject_adapter_in_model, Trainer": Tool(trainer_with_own_loss, inject, save_injected, cannot=NO_PEFT_MODEL),
    "inject_adapter_in_model, plain loop": Tool(plain_loop, inject, save_injected, cannot=NO_PEFT_MODEL),
}
PROPERTIES = {
    "test_ranks_grow_to_the_budget": "grows",
    "test_regulariser_acts": "regulariser acts",
    "test_saved_adapter_loads": "saves",
    "test_state_dict_restores_the_ranks": "state dict",
    "test_resume_in_the_middle_of_growth": "resumes",
    "test_merges_and_exports": "merges, exports",
}
"""What every tool is tested for."""


@pytest.fixture(params=TOOLS.values(), ids=TOOLS, scope="module")
def tool(request: pytest.FixtureRequest) -> Tool:
    pytest.importorskip(request.param.needs)
    if request.param.base is bitsandbytes_4bit:
        pytest.importorskip("bitsandbytes")
    return request.param


@pytest.fixture(autouse=True)
def skip_what_the_tool_cannot(request: pytest.FixtureRequest) -> None:
    if "tool" in request.fixturenames:
        reason = request.getfixturevalue("tool").cannot.get(PROPERTIES[request.function.__name__])
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="module")
def trained(tool: Tool, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model that the tool has trained, and where the tool left its checkpoint."""
    model, out = tool.build(folder), tmp_path_factory.mktemp("out")
    tool.train(model, folder, out)
    return model, out


def test_ranks_grow_to_the_budget(tool: Tool, trained: tuple[Any, Path]) -> None:
    ranks = find_allocator(trained[0]).rank_distribution()
    assert len(ranks) == tool.modules
    assert sum(ranks.values()) == 2 * tool.modules
    assert max(ranks.values()) > 2 > min(ranks.values())


def test_regulariser_acts(tool: Tool, folder: Path, tmp_path: Path) -> None:
    """The first row of every A comes closer to length 1, whatever loss the tool computes."""
    deviation = {}
    for weight in (0.0, 10.0):
        model, out = tool.build(folder, orth_reg_weight=weight), tmp_path / str(weight)
        out.mkdir()
        tool.train(model, folder, out)
        rows = [a[0] for name, a in adapter_tensors(model).items() if name.endswith("increlora_A.default")]
        deviation[weight] = torch.stack([(row @ row - 1).abs() for row in rows]).mean().item()
    assert deviation[10.0] < 0.8 * deviation[0.0]


def test_saved_adapter_loads(tool: Tool, trained: tuple[Any, Path], folder: Path, tmp_path: Path) -> None:
    model, _ = trained
    expected = tool.output(model)
    loaded = tool.save(model, tool.base(folder), tmp_path)
    assert find_allocator(loaded).rank_distribution() == find_allocator(model).rank_distribution()
    tolerance = 2e-2 if "saves" in tool.inexact else 1e-5
    torch.testing.assert_close(tool.output(loaded), expected, atol=tolerance, rtol=tolerance)


def test_state_dict_restores_the_ranks(tool: Tool, trained: tuple[Any, Path], folder: Path) -> None:
    model, _ = trained
    fresh = tool.build(folder, seed=9)
    of_reference = re.compile(r"\.ref(\.|$)")  # TRL's second adapter
    fresh.load_state_dict({name: value for name, value in model.state_dict().items() if not of_reference.search(name)})
    ranks = [find_allocator(one, "default").rank_distribution() for one in (fresh, model)]
    assert ranks[0] == ranks[1]
    assert torch.equal(tool.output(fresh), tool.output(model))


def test_resume_in_the_middle_of_growth(tool: Tool, trained: tuple[Any, Path], folder: Path) -> None:
    model, out = trained
    resumed = tool.build(folder, seed=9)
    tool.train(resumed, folder, out, resume=True)
    if "resumes" in tool.inexact:
        expected = tool.output(model)
        assert sum(find_allocator(resumed).rank_distribution().values()) == 2 * tool.modules
        moved = (expected - tool.output(tool.base(folder))).abs().max()
        assert (tool.output(resumed) - expected).abs().max() < moved / 4
        return
    assert find_allocator(resumed).rank_distribution() == find_allocator(model).rank_distribution()
    assert_equal_adapters(resumed, model)


def test_merges_and_exports(tool: Tool, trained: tuple[Any, Path], folder: Path, tmp_path: Path) -> None:
    model = copy.deepcopy(trained[0])
    expected, base = logits(model), logits(tool.base(folder))
    assert (expected - base).abs().max() > 1e-2
    plain = PeftModel.from_pretrained(tool.base(folder), export_lora(model, tmp_path))
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


def test_preference_training_of_a_grown_adapter(folder: Path, tmp_path: Path) -> None:
    """DPO after SFT: TRL copies the grown adapter into a reference adapter of the same config, tensor by tensor."""
    pytest.importorskip("trl")
    model = adapted(llama(folder))
    plain_loop(model, folder, tmp_path)
    expected = logits(model)
    model.save_pretrained(tmp_path / "sft")
    loaded = PeftModel.from_pretrained(llama(folder), tmp_path / "sft", is_trainable=True)
    dpo(loaded, folder, tmp_path / "dpo")
    loaded.set_adapter("ref")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)

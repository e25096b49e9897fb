"""Two processes train like one on the same global batch, in a plain loop and in the Trainer.

The models compute in float64 and without dropout, so "like one" is to rounding even after many steps of Adam.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from increlora import IncreLoraCallback, create_optimizer, find_allocator
from increlora.errors import IncreLoraError
from tests.tuner.conftest import adapter, deberta, tokens

pytestmark = pytest.mark.slow
STEPS, ROWS = 24, 8
SIZE = 2
TIMEOUT = 60

# processes are forked from one that has imported what takes time and has never run a backward pass
multiprocessing.set_forkserver_preload(
    ["transformers.trainer", "transformers.models.deberta_v2.modeling_deberta_v2", "peft", "increlora.tuner"]
)


def _process(rank: int, port: int, folder: Path, job: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """What torchrun gives every process, and the job's result as a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(job(**arguments), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(folder: Path, job: Callable[..., Any], **arguments: Any) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = torch.multiprocessing.start_processes(
        _process, (port, folder, job, arguments), nprocs=SIZE, join=False, start_method="forkserver"
    )
    assert processes is not None
    deadline = time.monotonic() + TIMEOUT
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"after {TIMEOUT} s the processes still wait for each other")
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


def rank_and_size() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def classifier() -> nn.Module:
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pooler_dropout": 0.0}
    model = deberta(**still).double()
    model.accepts_loss_kwargs = False  # else the Trainer takes its mean loss for one over the whole batch
    return model


def language_model() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **tokens, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).double()


def adapted(base: Callable[[], nn.Module], seed: int = 1, **changes: Any) -> PeftModel:
    """The base model, the same in all processes, with an adapter drawn from this seed."""
    fields: dict[str, Any] = {"lora_dropout": 0.0, "target_r": 2, "deltaT": 3}
    if base is language_model:
        fields |= {"target_modules": ["c_attn", "c_proj"], "modules_to_save": None, "task_type": "CAUSAL_LM"}
    model = base()
    torch.manual_seed(seed)
    return get_peft_model(model, adapter(**fields, **changes))


def outcome(model: nn.Module) -> dict[str, Any]:
    """What has to be equal: the decisions exactly, the numbers to rounding."""
    allocator = find_allocator(model)
    parameters = {
        name.rpartition("base_model.model.")[2]: parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and "increlora_" not in name
    }
    for name, layer in allocator.layers.items():  # storage keeps its size where a wrapper holds it
        parameters |= {
            f"{name}.{kind}": factor for kind, factor in zip("AB", layer.lora_factors("default"), strict=True)
        }
    return {"events": allocator.events(), "ranks": allocator.rank_distribution(), "parameters": parameters}


def assert_equal_outcome(two: list[dict[str, Any]], one: dict[str, Any]) -> None:
    assert len(one["events"]) >= 3
    for result in two:
        assert result["events"] == one["events"]
        assert result["ranks"] == one["ranks"]
        assert result["parameters"].keys() == one["parameters"].keys()
        for name, value in one["parameters"].items():
            torch.testing.assert_close(result["parameters"][name], value, rtol=0, atol=1e-8, msg=name)
    for name, value in two[0]["parameters"].items():
        assert torch.equal(value, two[1]["parameters"][name]), name


def plain_loop(
    base: Callable[[], nn.Module] = classifier,
    pieces: int = 1,
    sync_all: bool = False,
    checkpointing: bool = False,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Train on this process's rows of every batch, each process with another seed."""
    rank, size = rank_and_size()
    model = adapted(base, seed=1 + rank, **changes)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped: Any = DistributedDataParallel(model, **(options or {})) if size > 1 else model
    optimizer, scheduler = create_optimizer(
        model, lr=1e-2, total_steps=STEPS, warmup_steps=3, gradient_accumulation_steps=pieces
    )
    norms = []
    wrapped.train()
    for step in range(1, STEPS + 1):
        batch = tokens(step, rows=ROWS)
        if base is language_model:
            batch["labels"] = batch["input_ids"]
        for piece in range(pieces):
            share = {name: tensor[piece::pieces][rank::size] for name, tensor in batch.items()}
            last = piece == pieces - 1 or sync_all
            with contextlib.nullcontext() if last or wrapped is model else wrapped.no_sync():
                (wrapped(**share).loss / pieces).backward()
        norms.append(nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0).item())
        model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == STEPS // 2 and rank == 0:  # one process alone evaluates
            wrapped.eval()
            with torch.no_grad():
                wrapped(**share)
            wrapped.train()
    return {**outcome(model), "norms": norms, "names": [name for name, _ in model.named_parameters()]}


class Rows(Dataset):
    """Examples of one length, of which the Trainer has to count the labels that matter."""

    def __init__(self, base: Callable[[], nn.Module]):
        self.base = base

    def __len__(self) -> int:
        return STEPS * ROWS // 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: tensor[0] for name, tensor in tokens(index, rows=1).items()}
        if self.base is language_model:
            row["labels"] = row["input_ids"].clone()
            row["labels"][: index % 7] = -100
        return row


def with_trainer(base: Callable[[], nn.Module], out: Path, pieces: int, resume: int | None = None) -> dict[str, Any]:
    """Train for two epochs in batches of ``ROWS`` rows over all processes."""
    from transformers import Trainer, TrainingArguments

    rank, size = rank_and_size()
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=ROWS // size // pieces,
        gradient_accumulation_steps=pieces,
        num_train_epochs=2,
        learning_rate=1e-2,
        warmup_steps=3,
        save_strategy="steps",
        save_steps=7,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if size > 1 else None,
        seed=5,
    )
    model = adapted(base, seed=1 + rank)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=Rows(base), eval_dataset=Rows(base), callbacks=[IncreLoraCallback()]
    )
    trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{resume}") if resume else None)
    assert isinstance(trainer.model_wrapped, DistributedDataParallel) == (size > 1)
    return {**outcome(model), "evaluation": trainer.evaluate()["eval_loss"]}


LOOPS: dict[str, dict[str, Any]] = {
    "wrapped": {},
    "wrapped with options": {"options": {"find_unused_parameters": True, "gradient_as_bucket_view": True}},
    "nothing else to train": {"base": language_model},
    "accumulated without messages": {"pieces": 2},
    "accumulated with messages": {"pieces": 2, "sync_all": True},
    "checkpointed": {"checkpointing": True},
    "free score": {"score": "taylor"},
    "free score, accumulated with messages": {"score": "taylor", "pieces": 2, "sync_all": True},
    "authors' regulariser, no advance learning": {"orth_reg": "frobenius", "advance_learning": False},
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_plain_loop(loop: dict[str, Any], tmp_path: Path) -> None:
    one = plain_loop(**loop)
    two = in_two_processes(tmp_path, plain_loop, **loop)
    assert_equal_outcome(two, one)
    for result in two:
        assert result["names"] == one["names"]
        assert result["norms"] == pytest.approx(one["norms"], rel=1e-8)


@pytest.mark.parametrize(("base", "pieces"), [(classifier, 1), (language_model, 2)], ids=["classifier", "accumulated"])
def test_trainer_and_its_resume(base: Callable[[], nn.Module], pieces: int, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = with_trainer(base, tmp_path / "one", pieces)
    two = in_two_processes(tmp_path, with_trainer, base=base, out=tmp_path / "two", pieces=pieces)
    assert_equal_outcome(two, one)
    assert two[0]["evaluation"] == two[1]["evaluation"]
    if base is classifier:  # the Trainer's mean over batches is no mean over tokens
        assert two[0]["evaluation"] == pytest.approx(one["evaluation"], rel=1e-6)
    grown = sum(event["step"] <= 7 for event in one["events"])
    assert 0 < grown < len(one["events"])
    again = in_two_processes(tmp_path, with_trainer, base=base, out=tmp_path / "two", pieces=pieces, resume=7)
    for result, before in zip(again, two, strict=True):
        assert result["events"] == before["events"]
        for name, value in before["parameters"].items():
            assert torch.equal(result["parameters"][name], value), name


def test_trainer_counts_the_regulariser_once_per_step(tmp_path: Path) -> None:
    """The Trainer divides the loss of a language model by the tokens of the step, not by the micro-batches."""
    parts = with_trainer(language_model, tmp_path / "parts", 2)
    assert_equal_outcome([parts, parts], with_trainer(language_model, tmp_path / "whole", 1))


def other_ranks_in_each_process() -> str:
    model = adapted(language_model)
    for layer in find_allocator(model).layers.values():
        layer.set_rank("default", 1 + rank_and_size()[0])
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=3)
    batch = tokens(0)
    model.train()(**{**batch, "labels": batch["input_ids"]}).loss.backward()
    try:
        model.update_and_allocate(1)
    except IncreLoraError as error:
        return str(error)
    return ""


def test_other_ranks_are_refused(tmp_path: Path) -> None:
    assert all("not have the same ranks" in text for text in in_two_processes(tmp_path, other_ranks_in_each_process))


def sharded() -> str:
    from torch.distributed.fsdp import fully_shard

    model = adapted(language_model)
    fully_shard(model)
    try:
        create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=3)
    except IncreLoraError as error:
        return str(error)
    return ""


def test_growth_in_shards_is_refused_in_one_sentence(tmp_path: Path) -> None:
    assert all("FSDP2" in text and "find_ranks" in text for text in in_two_processes(tmp_path, sharded))

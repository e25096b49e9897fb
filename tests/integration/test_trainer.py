"""What the Trainer's user chooses is what trains: optimizer, schedule, log."""

from __future__ import annotations

import contextlib
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from increlora import IncreLoraAdamW, IncreLoraCallback, find_allocator
from tests.integration.conftest import (
    MIDDLE,
    MODULES,
    STEPS,
    adapted,
    assert_equal_adapters,
    dataset,
    llama,
    logits,
    training_arguments,
)

OPTIMIZERS = {  # `optim`: class of the optimizer, package that it needs, learning rate
    "adamw_torch": (IncreLoraAdamW, "torch", 1e-2),
    "adamw_torch_fused": (IncreLoraAdamW, "torch", 1e-2),
    "sgd": (torch.optim.SGD, "torch", 1.0),
    "rmsprop": (torch.optim.RMSprop, "torch", 1e-2),
    "adagrad": (torch.optim.Adagrad, "torch", 1e-1),
    "adafactor": (hf.Adafactor, "transformers", 1e-2),
    "adamw_bnb_8bit": ("AdamW", "bitsandbytes", 1e-2),
    "paged_adamw_8bit": ("AdamW", "bitsandbytes", 1e-2),
    "lion_8bit": ("Lion", "bitsandbytes", 1e-3),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "polynomial": {"power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"num_decay_steps": 8},
}


def trainer(model: Any, out: Path, **changes: Any) -> hf.Trainer:
    return hf.Trainer(
        model=model,
        args=training_arguments(out, **changes),
        train_dataset=dataset(),
        callbacks=[IncreLoraCallback()],
    )


def grown(model: Any) -> bool:
    ranks = find_allocator(model).rank_distribution()
    return sum(ranks.values()) == 2 * MODULES and len(set(ranks.values())) > 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_of_the_user_trains_and_resumes(name: str, folder: Path, tmp_path: Path) -> None:
    kind, package, rate = OPTIMIZERS[name]
    pytest.importorskip(package)
    changes = {"optim": name, "learning_rate": rate}
    model = adapted(llama(folder))
    before = logits(model)
    run = trainer(model, tmp_path, **changes)
    ours = kind is IncreLoraAdamW
    with contextlib.nullcontext() if ours else pytest.warns(UserWarning, match="one step count"):
        run.train()
    optimizer = run.optimizer.optimizer
    if isinstance(kind, str):
        assert type(optimizer).__module__.startswith("bitsandbytes")
        assert kind in type(optimizer).__name__
    else:
        assert isinstance(optimizer, kind)
        assert isinstance(optimizer, IncreLoraAdamW) == ours
    assert grown(model)
    assert (logits(model) - before).abs().max() > 1e-3
    resumed = adapted(llama(folder), seed=9)
    trainer(resumed, tmp_path, **changes).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{MIDDLE}"))
    assert_equal_adapters(resumed, model)


def test_optimizer_object_of_the_user_trains(folder: Path, tmp_path: Path) -> None:
    def run(model: torch.nn.Module, resume: str | None = None) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        run = hf.Trainer(
            model=model,
            args=training_arguments(tmp_path),
            train_dataset=dataset(),
            callbacks=[IncreLoraCallback()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))),
        )
        run.train(resume_from_checkpoint=resume)
        assert run.optimizer.optimizer is optimizer
        assert grown(model)

    whole, resumed = adapted(llama(folder)), adapted(llama(folder), seed=9)
    run(whole)
    run(resumed, str(tmp_path / f"checkpoint-{MIDDLE}"))
    assert_equal_adapters(resumed, whole)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_birth_warms_up_and_then_follows_the_schedule(name: str, folder: Path, tmp_path: Path) -> None:
    """What is born at an event rises to the peak and falls from there in the proportions of the others' curve."""
    model = adapted(llama(folder))
    run = trainer(model, tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=SCHEDULES[name], save_strategy="no")
    run.train()
    assert grown(model)
    peak, warmup, birth = 1e-2, 2, find_allocator(model).events()[-1]["step"]
    log = {entry["step"]: entry for entry in run.state.log_history if "learning_rate" in entry}
    start = log[birth + warmup + 1]["learning_rate"]
    for step in range(birth + 1, STEPS + 1):
        age = step - 1 - birth
        expected = peak * (age / warmup if age < warmup else min(1.0, log[step]["learning_rate"] / start))
        assert math.isclose(log[step]["increlora/youngest_lr"], expected, rel_tol=1e-6, abs_tol=1e-9), step


def test_restarted_warmup_can_be_switched_off(folder: Path, tmp_path: Path) -> None:
    model = adapted(llama(folder), restart_warmup=False)
    run = trainer(model, tmp_path, lr_scheduler_type="cosine", save_strategy="no")
    run.train()
    for entry in run.state.log_history:
        if "learning_rate" in entry:
            assert math.isclose(entry["increlora/youngest_lr"], entry["learning_rate"], rel_tol=1e-6, abs_tol=1e-9)


def test_log_shows_the_growth(folder: Path, tmp_path: Path) -> None:
    model = adapted(llama(folder))
    run = trainer(model, tmp_path, save_strategy="no")
    run.train()
    log = [entry for entry in run.state.log_history if "loss" in entry]
    totals = {event["step"]: event["total_rank"] for event in find_allocator(model).events()}
    expected = MODULES
    for entry in log:
        expected = totals.get(entry["step"], expected)
        assert entry["increlora/total_rank"] == expected
        assert entry["increlora/budget"] == 2 * MODULES
        assert entry["increlora/penalty"] > 0
    assert any(entry.get("increlora/grown") for entry in log)


def test_logged_loss_is_that_of_the_task(folder: Path, tmp_path: Path) -> None:
    first = {}
    for weight in (0.0, 10.0):
        model = adapted(llama(folder), orth_reg_weight=weight)
        run = trainer(model, tmp_path, save_strategy="no", max_steps=MIDDLE)
        run.train()
        first[weight] = next(entry["loss"] for entry in run.state.log_history if "loss" in entry)
    assert first[10.0] == first[0.0]


@pytest.mark.parametrize("parts", [1, 2])
def test_regulariser_does_not_depend_on_accumulation(parts: int, folder: Path, tmp_path: Path) -> None:
    """Two half batches end where a whole one does, regulariser included; SGD shows the sizes of gradients."""
    models = []
    for accumulated in (1, parts):
        model = adapted(llama(folder), orth_reg_weight=1.0, target_r=None, init_r=2)
        changes = {"per_device_train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
        trainer(model, tmp_path, optim="sgd", save_strategy="no", max_steps=6, learning_rate=0.1, **changes).train()
        models.append(model)
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_trackers_get_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = adapted(llama(folder))
    run = trainer(model, tmp_path, save_strategy="no", report_to=["tensorboard"])
    run.train()
    file = next(tmp_path.rglob("events.out.tfevents*"))
    events = EventAccumulator(str(file.parent))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert any(tag.endswith("increlora/total_rank") for tag in tags), tags


def test_regulariser_is_clipped_with_the_rest(folder: Path, tmp_path: Path) -> None:
    """The norm that the Trainer clips and logs is that of all gradients."""
    norms = {}
    for weight in (0.0, 10.0):
        model = adapted(llama(folder), orth_reg_weight=weight, target_r=None, init_r=2)
        run = trainer(model, tmp_path, save_strategy="no", max_steps=1)
        run.train()
        norms[weight] = next(entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry)
    assert norms[10.0] > 3 * norms[0.0]


def test_trainer_without_the_callback_says_so_once(folder: Path, tmp_path: Path) -> None:
    model = adapted(llama(folder))
    before = logits(model)
    run = hf.Trainer(model=model, args=training_arguments(tmp_path, save_strategy="no"), train_dataset=dataset())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    told = [str(warning.message) for warning in caught if "IncreLoraCallback" in str(warning.message)]
    assert len(told) == 1
    assert set(model.rank_distribution().values()) == {1}
    assert (logits(model) - before).abs().max() > 1e-2

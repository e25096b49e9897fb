"""Growth, saving, loading, merging, export, resume and wrong use on a DeBERTa-style classifier."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    trainer_optimizer,
)

from increlora import (
    IncreLoraAdamW,
    IncreLoraCallback,
    IncreLoraConfig,
    create_optimizer,
    export_lora,
    find_allocator,
    lora_config,
)
from increlora.errors import ConfigError, IncreLoraError
from increlora.tuner.growth import find_allocators
from tests.conftest import TARGETS
from tests.tuner.conftest import adapter, deberta, tokens, train
from tests.tuner.test_models import CASES

STEPS = 40


def grown(model: PeftModel, steps: int = STEPS) -> Any:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4, weight_decay=0.01)
    train(model, optimizer, scheduler, range(1, steps + 1))
    return optimizer, scheduler


def test_growth_ends_exactly_at_the_budget(model: PeftModel) -> None:
    grown(model)
    ranks = model.rank_distribution()
    assert sum(ranks.values()) == 3 * 12
    assert max(ranks.values()) > 3
    events = model.growth_events()
    assert [event["step"] for event in events] == list(range(4, 4 + 4 * len(events), 4))
    assert events[-1]["total_rank"] == 36
    for layer in find_allocator(model).layers.values():
        rank = layer.rank("default")
        assert layer.components["default"].reserve == 0
        assert not layer.increlora_A["default"][rank:].any()
        assert not layer.increlora_B["default"][:, rank:].any()


def test_growth_ends_where_lora_has_its_parameters(tmp_path: Path) -> None:
    config = adapter(budget_by="parameters", deltaT=2)
    model = get_peft_model(deberta(), config)
    trainer(model, tmp_path, save_strategy="no").train()
    allocator = find_allocator(model)
    lora = get_peft_model(deberta(), LoraConfig(r=3, target_modules=TARGETS))
    assert allocator.budget == sum(p.numel() for name, p in lora.named_parameters() if ".lora_" in name)
    assert allocator.finished
    assert allocator.budget - min(allocator.costs) < model.active_parameters() == allocator.total <= allocator.budget
    with pytest.raises(ConfigError, match=r"target_r: 3 asks for 2688 parameters over 12 modules.* start with 2724"):
        get_peft_model(deberta(), adapter(budget_by="parameters", init_r=3))
    with pytest.raises(ConfigError, match="allow_overshoot: is the authors' rule for a budget of ranks"):
        adapter(budget_by="parameters", allow_overshoot=True)


def test_reserve_trains_towards_orthogonality_only_with_advance_learning() -> None:
    deviation = {}
    for advance in (True, False):
        torch.manual_seed(1)
        model = get_peft_model(deberta(), adapter(advance_learning=advance, deltaT=30, top_h=12, target_r=2))
        grown(model, steps=29)
        deviation[advance] = sum(find_allocator(model).orthogonality())
    assert deviation[True] < 0.5 * deviation[False]


def test_transformers_loads_the_adapter_itself(tmp_path: Path, logits: Any) -> None:
    """Without a `PeftModel`: `from_pretrained` of a folder with an adapter, and `load_adapter`."""
    deberta().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, adapter(modules_to_save=None, task_type=None))
    grown(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(model))


def test_growth_goes_on_from_an_earlier_checkpoint(model: PeftModel, tmp_path: Path) -> None:
    """As after `load_best_model_at_end`: the events are those that led to the loaded ranks; what is missing follows."""
    optimizer, scheduler = grown(model, steps=9)
    earlier = [dict(event) for event in model.growth_events()]
    model.save_pretrained(tmp_path)
    train(model, optimizer, scheduler, range(10, 31))
    assert find_allocator(model).finished
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert model.growth_events() == earlier
    assert sum(model.rank_distribution().values()) == earlier[-1]["total_rank"]
    train(model, optimizer, scheduler, range(31, 41))
    assert [event["step"] for event in model.growth_events()] == [4, 8, 32, 36]


def test_overshot_budget_loads_and_resumes(tmp_path: Path) -> None:
    changes = {"allow_overshoot": True, "ranks_per_event": 5, "top_h": 5}
    whole = get_peft_model(deberta(), adapter(**changes))
    optimizer, scheduler = grown(whole, steps=10)
    assert sum(whole.rank_distribution().values()) == 37
    whole.save_pretrained(tmp_path)
    state = copy.deepcopy([optimizer.state_dict(), scheduler.state_dict()])
    expected = train(whole, optimizer, scheduler, range(11, 16))
    resumed = PeftModel.from_pretrained(deberta(), tmp_path, is_trainable=True)
    optimizer, scheduler = create_optimizer(resumed, lr=1e-2, total_steps=STEPS, warmup_steps=4, weight_decay=0.01)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert train(resumed, optimizer, scheduler, range(11, 16)) == expected


def test_several_adapters_live_side_by_side(model: PeftModel, tmp_path: Path, logits: Any) -> None:
    grown(model)
    first = logits(model)
    model.add_adapter("second", adapter(target_r=2))
    model.set_adapter("second")
    assert set(model.rank_distribution().values()) == {1}
    assert (logits(model) - first).abs().max() > 1e-3
    grown(model)
    assert sum(model.rank_distribution().values()) == 24
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("default")
    model.set_adapter("second")
    assert torch.equal(logits(model), second)


def test_growing_adapter_can_be_deleted(model: PeftModel) -> None:
    optimizer, _ = grown(model, steps=5)
    model.add_adapter("second", adapter(target_r=2))
    model.set_adapter("second")
    model.delete_adapter("default")
    assert optimizer.state_dict()["state"]
    grown(model)
    assert sum(model.rank_distribution().values()) == 24


@pytest.mark.slow
def test_exported_lora_is_exact_and_needs_only_peft(model: PeftModel, tmp_path: Path, logits: Any) -> None:
    """Where this package is imported after PEFT, it registers all the same."""
    grown(model)
    expected = logits(model)
    export_lora(model, tmp_path / "lora")
    base = deberta()
    base.save_pretrained(tmp_path / "base")
    batch = tokens(999)
    torch.save({"ids": batch["input_ids"]}, tmp_path / "batch.pt")
    script = (
        "import sys, torch; from peft import PeftModel; "
        "from transformers import AutoModelForSequenceClassification as M; "
        "m = PeftModel.from_pretrained(M.from_pretrained(sys.argv[1] + '/base'), sys.argv[1] + '/lora').eval(); "
        "ids = torch.load(sys.argv[1] + '/batch.pt')['ids']; "
        "torch.save(m(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.detach(), sys.argv[1] + '/out.pt'); "
        "assert not any(name.startswith('increlora') for name in sys.modules); "
        "import increlora, peft.mapping; assert 'INCRELORA' in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=1e-5, rtol=1e-5)


def wrapped_by(kind: str) -> tuple[PeftModel | nn.Module, nn.Module]:
    if kind == "add_adapter":
        base = deberta()
        base.add_adapter(adapter())  # type: ignore[operator]
        return base, base
    model = get_peft_model(deberta(), adapter())
    return model, torch.compile(model, backend="eager") if kind == "compile" else nn.Sequential(model)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["compile", "wrapper", "add_adapter"])
def test_export_of_a_wrapped_model_holds_the_trained_head(kind: str, tmp_path: Path, logits: Any) -> None:
    torch.manual_seed(1)
    model, wrapped = wrapped_by(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "lambda" in name:
                parameter.normal_(std=0.1)
    export_lora(wrapped, tmp_path)
    loaded = PeftModel.from_pretrained(deberta(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)


def test_alpha_of_retrained_ranks_is_that_of_every_module() -> None:
    targets = {"deberta.encoder.layer.0.output.dense": 1, "deberta.encoder.layer.1.output.dense": 4}
    for overrides, expected in (({}, [1.0, 1.0]), ({"lora_alpha": 8}, [8.0, 2.0])):
        fresh = get_peft_model(deberta(), lora_config(targets, **overrides))
        scales = [module.scaling["default"] for module in fresh.modules() if hasattr(module, "lora_A") and module.r]
        assert scales == expected
    with pytest.raises(ConfigError, match="no module has any rank"):
        lora_config({"a": 0})


@pytest.mark.parametrize("alpha", [16, "auto"])
@pytest.mark.parametrize("fields", [{"target_r": None}, {"target_r": 5}], ids=["no growth", "further growth"])
def test_a_saved_adapter_keeps_its_scale(alpha: Any, fields: Any, tmp_path: Path, logits: Any) -> None:
    """Whatever rank the config asks for when it is loaded."""
    model = get_peft_model(deberta(), adapter(lora_alpha=alpha))
    grown(model)
    model.save_pretrained(tmp_path)
    config: Any = dataclasses.replace(IncreLoraConfig.from_pretrained(tmp_path), **fields)
    loaded = PeftModel.from_pretrained(deberta(), tmp_path, config=config)
    assert torch.equal(logits(loaded), logits(model))


def test_automatic_alpha_is_the_same_scale_at_every_budget() -> None:
    assert {IncreLoraConfig(target_r=r).scale(rank) for r in (2, 24, None) for rank in (1, 5)} == {8.0}
    assert IncreLoraConfig(target_r=4, lora_alpha=6).scale(1) == 1.5
    code = IncreLoraConfig.from_preset("code", target_r=4)
    assert [code.scale(rank) for rank in (1, 4)] == pytest.approx([16, 4], rel=1e-4)


def test_names_that_end_other_names(tmp_path: Path) -> None:
    """PEFT matches the keys of `rank_pattern` against the ends of names."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(a=nn.Linear(8, 8), b=nn.Sequential(OrderedDict(a=nn.Linear(8, 8)))))

    ranks = {"a": 3, "b.a": 2}
    config = IncreLoraConfig(target_modules=["a"], target_r=None, rank_pattern=ranks, init_r=1)
    model = get_peft_model(base(), config)
    assert model.rank_distribution() == ranks
    for layer in find_allocator(model).layers.values():
        nn.init.ones_(layer.increlora_lambda["default"])
    x = torch.randn(4, 8)
    for folder in (tmp_path / "own", export_lora(model, tmp_path / "lora")):
        model.save_pretrained(tmp_path / "own")
        assert torch.equal(PeftModel.from_pretrained(base(), folder)(x), model(x))


def test_half_precision_base_does_not_round_the_scaling() -> None:
    model = get_peft_model(deberta().bfloat16(), adapter(scaling="active_rank", init_r=3))
    for layer in find_allocator(model).layers.values():
        assert layer.increlora_scale["default"][0] == torch.tensor(16 / (3 + 1e-5))


@pytest.mark.one_fast
@pytest.mark.parametrize("stop", [3, 17, 33], ids=["before growth", "in growth", "after growth"])
def test_resume_in_a_plain_loop_is_bit_for_bit(stop: int, tmp_path: Path) -> None:
    def fresh() -> PeftModel:
        torch.manual_seed(1)
        return get_peft_model(deberta(), adapter())

    whole = fresh()
    optimizer, scheduler = create_optimizer(whole, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    expected = train(whole, optimizer, scheduler, range(1, STEPS + 1))

    first = fresh()
    optimizer, scheduler = create_optimizer(first, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    losses = train(first, optimizer, scheduler, range(1, stop + 1))
    first.save_pretrained(tmp_path)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "state.pt")

    torch.manual_seed(77)
    second = PeftModel.from_pretrained(deberta(), tmp_path, is_trainable=True)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    optimizer, scheduler = create_optimizer(second, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    losses += train(second, optimizer, scheduler, range(stop + 1, STEPS + 1))
    assert losses == expected
    assert second.rank_distribution() == whole.rank_distribution()
    assert second.growth_events() == whole.growth_events()
    for layer, other in zip(find_allocator(second).layers.values(), find_allocator(whole).layers.values(), strict=True):
        for kind in ("increlora_A", "increlora_B", "increlora_lambda"):
            assert torch.equal(getattr(layer, kind)["default"], getattr(other, kind)["default"])


@pytest.mark.parametrize("stop", range(1, 9))
def test_resume_between_scored_steps(stop: int, tmp_path: Path) -> None:
    """Only the two steps before each event are scored: the first step after the resume may be one, or not."""
    whole = get_peft_model(deberta(), adapter(score_window=2))
    optimizer, scheduler = create_optimizer(whole, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    train(whole, optimizer, scheduler, range(1, stop + 1))
    whole.save_pretrained(tmp_path)
    state = copy.deepcopy([optimizer.state_dict(), scheduler.state_dict()])
    expected = train(whole, optimizer, scheduler, range(stop + 1, 13))

    resumed = PeftModel.from_pretrained(deberta(), tmp_path, is_trainable=True)
    optimizer, scheduler = create_optimizer(resumed, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    assert train(resumed, optimizer, scheduler, range(stop + 1, 13)) == expected
    assert resumed.growth_events() == whole.growth_events()


class Sentences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in tokens(index, rows=1).items()}


def trainer(
    model: nn.Module, out: Path, kind: type[Trainer] = Trainer, optimizers: Any = (None, None), **changes: Any
) -> Any:
    fields = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 3,
        "save_strategy": "steps",
        "save_steps": 14,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 0,
        "use_cpu": True,
    }
    arguments = TrainingArguments(output_dir=str(out), **{**fields, **changes})
    given = {"model": model, "args": arguments, "train_dataset": Sentences(), "optimizers": optimizers}
    return kind(callbacks=[IncreLoraCallback()], **given)


def test_trainer_needs_one_callback_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = get_peft_model(deberta(), adapter(deltaT=4))
    first = trainer(whole, tmp_path)
    first.train()
    assert isinstance(getattr(first.optimizer, "optimizer", first.optimizer), IncreLoraAdamW)
    assert sum(whole.rank_distribution().values()) == 36
    assert 0 < sum(e["step"] <= 14 for e in whole.growth_events()) < len(whole.growth_events())

    torch.manual_seed(9)
    again = get_peft_model(deberta(), adapter(deltaT=4))
    second = trainer(again, tmp_path)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-14"))
    assert again.rank_distribution() == whole.rank_distribution()
    for (name, one), (_, other) in zip(again.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_trainer_resumes_without_the_optimizer(tmp_path: Path) -> None:
    """The checkpoint lacks the state of growth; the Trainer knows the step, so the right ones are scored."""
    trainer(get_peft_model(deberta(), adapter()), tmp_path, save_only_model=True, save_steps=6).train()
    model = get_peft_model(deberta(), adapter(score_window=2))
    trainer(model, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert model.growth_events()[0]["step"] == 8
    assert sum(model.rank_distribution().values()) == 36


def test_callback_passes_on_the_loss_scale(model: PeftModel, tmp_path: Path) -> None:
    built = trainer(model, tmp_path, save_strategy="no")
    built.train()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapped = SimpleNamespace(
        optimizer=getattr(built.optimizer, "optimizer", built.optimizer), scaler=scaler, step_was_skipped=False
    )
    callback = IncreLoraCallback()
    state = SimpleNamespace(max_steps=36, global_step=0, is_world_process_zero=True)
    callback.on_train_begin(
        built.args, state, SimpleNamespace(), model=model, optimizer=wrapped, lr_scheduler=built.lr_scheduler
    )
    assert find_allocator(model).regulariser.loss_scale() == 8.0
    wrapped.scaler = None
    callback.on_train_begin(
        built.args, state, SimpleNamespace(), model=model, optimizer=wrapped, lr_scheduler=built.lr_scheduler
    )
    assert find_allocator(model).regulariser.loss_scale() == 1.0


def test_a_training_without_a_scaler_forgets_that_of_the_last(model: PeftModel) -> None:
    for scaler, scale in ((torch.amp.GradScaler("cpu", init_scale=8.0), 8.0), (None, 1.0)):
        create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4, scaler=scaler)
        assert find_allocator(model).regulariser.loss_scale() == scale


def test_callback_leaves_the_arguments_to_other_trainers(model: PeftModel, tmp_path: Path) -> None:
    from transformers import Trainer

    arguments = trainer(model, tmp_path, max_steps=1, save_strategy="no").args
    assert dataclasses.replace(arguments, learning_rate=1e-3).optim == arguments.optim
    config = LoraConfig(target_modules=TARGETS, task_type="SEQ_CLS")
    other = Trainer(model=get_peft_model(deberta(), config), args=arguments, train_dataset=Sentences())
    other.train()
    assert type(getattr(other.optimizer, "optimizer", other.optimizer)) is torch.optim.AdamW


def test_trainer_with_gradient_accumulation_grows(tmp_path: Path) -> None:
    model = get_peft_model(deberta(), adapter(deltaT=3))
    trainer(model, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, save_strategy="no").train()
    assert sum(model.rank_distribution().values()) == 36


def penalty_after_training(model: PeftModel, out: Path, **changes: Any) -> float:
    trainer(model, out, save_strategy="no", **changes).train()
    return sum(find_allocator(model).orthogonality())


def test_regulariser_acts_on_losses_computed_outside_of_the_model(tmp_path: Path) -> None:
    """Label smoothing: the Trainer computes the loss from the logits."""
    weak, strong = (
        penalty_after_training(
            get_peft_model(deberta(), adapter(deltaT=3, orth_reg_weight=weight)), tmp_path, label_smoothing_factor=0.1
        )
        for weight in (0.0, 10.0)
    )
    assert strong < 0.5 * weak


def test_logged_loss_is_the_tasks(tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 100.0):
        torch.manual_seed(1)
        built = trainer(get_peft_model(deberta(), adapter(orth_reg_weight=weight)), tmp_path, save_strategy="no")
        built.train()
        losses.append(built.state.log_history[0]["loss"])
    assert losses[0] == losses[1]


def test_trainer_logs_growth(model: PeftModel, tmp_path: Path) -> None:
    built = trainer(model, tmp_path, save_strategy="no")
    built.train()
    logged = [entry for entry in built.state.log_history if "loss" in entry]
    ranks = [entry["increlora/total_rank"] for entry in logged]
    assert ranks[0] == 12 and ranks[-1] == logged[0]["increlora/budget"] == 36
    assert ranks == sorted(ranks)
    assert sum(entry["increlora/grown"] for entry in logged) == sum(len(e["grown"]) for e in model.growth_events())
    assert logged[0]["increlora/penalty"] > logged[-1]["increlora/penalty"] > 0
    assert all(entry["increlora/youngest_lr"] <= 1e-2 for entry in logged)
    model = get_peft_model(deberta(), adapter(budget_by="parameters"))
    built = trainer(model, tmp_path, save_strategy="no")
    built.train()
    logged = [entry for entry in built.state.log_history if "loss" in entry]
    assert {entry["increlora/parameter_budget"] for entry in logged} == {find_allocator(model).budget}
    assert logged[-1]["increlora/parameters"] == model.active_parameters()
    assert "increlora/budget" not in logged[0]


@pytest.mark.one_fast
@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_torch_fused", "rmsprop"])
def test_trainer_honours_the_optimizer(optim: str, model: PeftModel, tmp_path: Path) -> None:
    built = trainer(model, tmp_path, save_strategy="no", optim=optim)
    ours = optim == "adamw_torch_fused"
    with warnings.catch_warnings() if ours else pytest.warns(UserWarning, match="one step count"):
        built.train()
    optimizer = getattr(built.optimizer, "optimizer", built.optimizer)
    assert isinstance(optimizer, IncreLoraAdamW) == ours
    assert sum(model.rank_distribution().values()) == 36


@pytest.mark.one_fast
@pytest.mark.parametrize("schedule", ["cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_trainer_with_every_schedule(schedule: str, model: PeftModel, tmp_path: Path) -> None:
    built = trainer(model, tmp_path, save_strategy="no", lr_scheduler_type=schedule)
    built.train()
    optimizer = getattr(built.optimizer, "optimizer", built.optimizer)
    curve = optimizer.schedule.curve
    assert curve(20) == built.lr_scheduler.lr_lambdas[0](20)
    assert optimizer.schedule(11, 10) == pytest.approx(1 / 3)  # the first third of a warmup of its own
    assert optimizer.schedule(13, 10) == pytest.approx(1.0)
    assert optimizer.schedule(30, 10) == pytest.approx(min(1.0, curve(30) / curve(13)))


def test_step_without_allocation_warns_once(model: PeftModel) -> None:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    before = model.rank_distribution()
    model.train()

    def wrong() -> None:
        for step in range(4):
            model(**tokens(step)).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    with pytest.warns(UserWarning, match="never called after the backward pass") as caught:
        wrong()
    assert sum("update_and_allocate" in str(warning.message) for warning in caught) == 1
    assert model.rank_distribution() == before


def test_two_backward_passes_of_one_step_have_to_be_announced(model: PeftModel) -> None:
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model.train()
    model(**tokens(0)).loss.backward()
    model(**tokens(1)).loss.backward()
    with pytest.raises(IncreLoraError, match="gradient_accumulation_steps"):
        model.update_and_allocate(1)


def test_saliency_between_steps_changes_nothing(model: PeftModel) -> None:
    """Backward passes in eval mode neither count as a training pass nor bring the regulariser."""
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    train(model, optimizer, scheduler, range(1, 3))
    model.eval()
    for _ in range(2):
        model(**tokens(0)).loss.backward()
    plain = next(iter(find_allocator(model).layers.values())).increlora_A["default"].grad
    model.zero_grad()
    find_allocator(model).regulariser.weight = 0
    for _ in range(2):
        model(**tokens(0)).loss.backward()
    assert torch.equal(next(iter(find_allocator(model).layers.values())).increlora_A["default"].grad, plain)
    model.zero_grad()
    train(model, optimizer, scheduler, range(3, 9))
    assert len(model.growth_events()) == 2


def test_growth_with_an_optimizer_of_ones_own(model: PeftModel) -> None:
    """No Parameter is ever replaced, so torch's AdamW trains what grows."""
    find_allocator(model).set_total_steps(STEPS, warmup_steps=4)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    train(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0), range(1, STEPS + 1))
    assert sum(model.rank_distribution().values()) == 36
    assert {id(p) for p in trainable} == {id(p) for p in model.parameters() if p.requires_grad}
    for layer in find_allocator(model).layers.values():
        assert layer.increlora_lambda["default"][: layer.rank("default")].abs().min() > 1e-5


def test_length_of_training_may_come_from_the_config() -> None:
    model = get_peft_model(deberta(), adapter(total_step=STEPS))
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    train(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0), range(1, STEPS + 1))
    assert sum(model.rank_distribution().values()) == 36


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((0,), "count from 1"),
        ((2, 5), "were to grow at 4"),
        ((1, 2, 2), "comes after step 2"),
        ((1, 2, 3, 1), "goes on from epoch to epoch"),
    ],
)
def test_wrong_step_numbers_are_refused(model: PeftModel, steps: tuple[int, ...], message: str) -> None:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    with pytest.raises(IncreLoraError, match=message):
        train(model, optimizer, scheduler, steps)  # type: ignore[arg-type]


def test_calls_out_of_order_are_named(model: PeftModel) -> None:
    model.train()
    optimizer, _ = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model(**tokens(1)).loss.backward()
    optimizer.step()
    model.update_and_allocate(1)
    model(**tokens(2)).loss.backward()
    with pytest.warns(UserWarning, match="called after optimizer.step"):
        optimizer.step()
    optimizer, _ = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4, gradient_accumulation_steps=2)

    def two_passes(first: int) -> None:
        for step in (first, first + 1):
            model(**tokens(step)).loss.backward()
            model.update_and_allocate(step)
        optimizer.step()

    two_passes(1)  # once may be a step that was skipped on purpose
    with pytest.warns(UserWarning, match="called 2 times since the last optimizer step"):
        two_passes(3)


@pytest.mark.filterwarnings("error:update_and_allocate")
def test_right_calls_are_not_warned_of(model: PeftModel) -> None:
    """A step that is skipped on purpose, an optimizer that nobody follows beside one that is, a deleted adapter."""
    optimizer, _ = grown(model, steps=3)
    for step in (4, 5, 6):
        model(**tokens(step)).loss.backward()
        model.update_and_allocate(step)
        if step != 5:
            optimizer.step()
    plain = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    for step in (7, 8, 9):
        model(**tokens(step)).loss.backward()
        model.update_and_allocate(step)
        plain.step()
    find_allocator(model).follow(plain)
    model(**tokens(10)).loss.backward()
    model.add_adapter("second", adapter())
    model.set_adapter("second")
    model.delete_adapter("default")
    plain.step()


def test_fixed_ranks_roll_back_to_an_earlier_step() -> None:
    model = get_peft_model(deberta(), adapter(target_r=None)).train()
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    for step in (1, 2, 3, 4, 2, 3):  # back at the state of step 1
        model(**tokens(step)).loss.backward()
        model.update_and_allocate(step)
        optimizer.step()
    assert find_allocator(model).step == 3


def test_adapter_loads_beside_a_head_of_another_size(model: PeftModel, tmp_path: Path) -> None:
    """PEFT then compares the saved shapes with those of the model, whose storage has room for more."""
    grown(model)
    model.save_pretrained(tmp_path)
    other = PeftModel.from_pretrained(deberta(labels=3), tmp_path, is_trainable=True, ignore_mismatched_sizes=True)
    assert other.rank_distribution() == model.rank_distribution()
    for one, layer in zip(find_allocator(other).layers.values(), find_allocator(model).layers.values(), strict=True):
        assert torch.equal(one.get_delta_weight("default"), layer.get_delta_weight("default"))


def test_growth_that_does_not_end_is_said(model: PeftModel, tmp_path: Path) -> None:
    short = trainer(model, tmp_path, save_strategy="no")

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 6

    short.add_callback(Stop())
    with pytest.warns(UserWarning, match="ends with 18 of 36 ranks"):
        short.train()


def test_callback_without_an_adapter_says_so(tmp_path: Path) -> None:
    lora = get_peft_model(deberta(), LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS))
    with pytest.warns(UserWarning, match="no active IncreLoRA adapter"):
        trainer(lora, tmp_path, save_strategy="no").train()


def test_default_weight_of_the_regulariser_is_that_of_a_mean() -> None:
    """The sum over 24 matrices has the weight that makes it 0.1 of their mean, as every study has it."""
    kinds = ("squared", "frobenius", "component")
    weights = [find_allocator(get_peft_model(deberta(), adapter(orth_reg=kind))).regulariser.weight for kind in kinds]
    assert weights == [pytest.approx(0.1 / 24), 0.1, 0.1]


def test_gains_of_all_active_adapters_are_returned() -> None:
    config = adapter(modules_to_save=None, task_type=None)
    model = get_peft_model(deberta(), config)
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model.train()
    gained, before = {}, sum(one.total_rank for one in find_allocators(model))
    for step in range(1, 5):
        model(**tokens(step)).loss.backward()
        gained = model.update_and_allocate(step)
    assert sum(gained.values()) == sum(one.total_rank for one in find_allocators(model)) - before > 0


@pytest.mark.parametrize("name", ["b", "state", "base"])
def test_any_adapter_name_loads_without_a_warning(model: PeftModel, name: str, tmp_path: Path) -> None:
    grown(model, steps=5)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing")
        loaded = PeftModel.from_pretrained(deberta(), tmp_path, adapter_name=name)
    assert loaded.rank_distribution() == model.rank_distribution()


def test_callback_that_comes_late_trains_with_the_optimizer_that_is_there(
    model: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = trainer(model, tmp_path, save_strategy="no")
    late.callback_handler.callbacks = [c for c in late.callback_handler.callbacks if type(c) is not IncreLoraCallback]
    late.args.optim = "adamw_torch"
    monkeypatch.setitem(trainer_optimizer._OPTIMIZER_HANDLERS, "adamw_torch", trainer_optimizer._get_adamw_torch)
    late.add_callback(IncreLoraCallback())
    with pytest.warns(UserWarning, match="AdamW keeps one step count"):
        late.train()
    assert sum(model.rank_distribution().values()) == 36


def test_unknown_length_of_training_is_refused(model: PeftModel) -> None:
    model.train()
    model(**tokens(0)).loss.backward()
    with pytest.raises(IncreLoraError, match="how long training lasts"):
        model.update_and_allocate(1)


def test_missing_gradients_are_refused(model: PeftModel) -> None:
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    with pytest.raises(IncreLoraError, match="no gradient reached"):
        model.update_and_allocate(1)


class Experts(nn.Module):
    """Three experts, of which a step uses one or two, and a module that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.unused = nn.Linear(8, 8)

    def forward(self, step: int) -> torch.Tensor:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        return sum(expert(x).square().mean() for index, expert in enumerate(self.experts) if (step + index) % 3)


@pytest.mark.parametrize("score", ["exact", "taylor"])
@pytest.mark.parametrize("unused", [True, False])
def test_modules_that_some_steps_do_not_use_grow(unused: bool, score: Any) -> None:
    targets = r"experts\.\d" + ("|unused" if unused else "")
    model = get_peft_model(
        Experts(), IncreLoraConfig(target_modules=targets, target_r=2, deltaT=4, ranks_per_event=2, score=score)
    )
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, STEPS + 1):
            model(step).backward()
            model.update_and_allocate(step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    ranks = model.rank_distribution()
    assert sum(ranks.values()) == 2 * len(ranks) and ranks.get("unused", 1) == 1
    about = [str(one.message) for one in said if "no gradient has reached" in str(one.message)]
    assert len(about) == unused and all("unused" in message for message in about)


def test_what_is_not_exact_is_said_in_a_loop_of_ones_own() -> None:
    for changes, message in (({}, "AdamW keeps one step count"), ({"lambda_lr_ratio": "width"}, "lambda_lr_ratio has")):
        model = get_peft_model(deberta(), adapter(**changes))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        find_allocator(model).follow(optimizer)
        with pytest.warns(UserWarning, match=message):
            model.set_total_steps(STEPS)


def test_an_adapter_loaded_for_inference_says_that_it_does_not_grow(model: PeftModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(deberta(), tmp_path)
    loaded.set_adapter("default")  # PEFT makes it trainable
    with pytest.warns(UserWarning, match="is_trainable=True"):
        create_optimizer(loaded, lr=1e-2, total_steps=STEPS, warmup_steps=4)


def test_events_of_a_second_training_add_up() -> None:
    model = get_peft_model(deberta(), adapter(target_modules=r".*layer\.0.*query_proj", target_r=5, top_h=1))
    for _ in range(2):
        optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
        train(model, optimizer, scheduler, range(1, 5))
    (event,) = model.growth_events()
    assert event["total_rank"] == sum(model.rank_distribution().values()) > 2


def test_a_pattern_of_layers_needs_their_numbers() -> None:
    with pytest.raises(ConfigError, match="layers_to_transform"):
        IncreLoraConfig(target_modules=["query_proj"], layers_pattern="layer")


def test_target_modules_that_match_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="No modules were targeted"):
        get_peft_model(deberta(), adapter(target_modules=r".*nothing_here"))


def test_all_linear_passes_over_poolers_and_heads() -> None:
    for name in ("RoBERTa", "BERT"):
        model = get_peft_model(CASES[name].base(), IncreLoraConfig(target_modules="all-linear"))
        assert len(model.rank_distribution()) == 12
        assert not any("pooler" in name or "classifier" in name for name in model.rank_distribution())


@pytest.mark.parametrize(
    ("kind", "changes", "prefix"),
    [
        (
            "ModernBertForSequenceClassification",
            {"intermediate_size": 48, "pad_token_id": 0, "cls_token_id": 1},
            "model.",
        ),
        ("XLNetForSequenceClassification", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}, "transformer."),
        ("BertForMaskedLM", {"intermediate_size": 64}, "bert."),
        ("BertModel", {"intermediate_size": 64}, "encoder."),
    ],
)
def test_all_linear_stays_inside_the_backbone(kind: str, changes: dict[str, Any], prefix: str) -> None:
    """Whatever the parts of the head are called."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model_class = getattr(transformers, kind)
    base = model_class(
        model_class.config_class(**{**({} if "d_model" in changes else sizes), "vocab_size": 100, **changes})
    )
    names = get_peft_model(base, IncreLoraConfig(target_modules="all-linear")).rank_distribution()
    assert names
    assert all(name.startswith(prefix) for name in names)


def test_all_linear_takes_what_there_is_where_the_backbone_has_no_linear_layer() -> None:
    class Lookup(transformers.PreTrainedModel):
        config_class = transformers.BertConfig
        base_model_prefix = "body"

        def __init__(self, config: Any):
            super().__init__(config)
            self.body, self.decoder = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.post_init()

    model = get_peft_model(Lookup(transformers.BertConfig()), IncreLoraConfig(target_modules="all-linear"))
    assert list(model.rank_distribution()) == ["decoder"]


def test_modules_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each that is replaced: there may be thousands."""
    walks = []
    walk = nn.Module.named_modules

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        walks.append(kwargs.get("remove_duplicate"))
        return walk(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    counts = []
    for layers in (1, 4):
        model = get_peft_model(deberta(num_hidden_layers=layers), adapter(modules_to_save=None, task_type=None))
        model.unload()
        counts.append(walks.count(False))
        walks.clear()
    assert counts[0] == counts[1]


def test_an_adapter_is_created_under_a_default_device() -> None:
    with torch.device("meta"):
        model = get_peft_model(deberta(), adapter())
    assert all(parameter.is_meta for name, parameter in model.named_parameters() if "increlora_" in name)


def test_a_copy_by_data_parallel_is_refused(model: PeftModel) -> None:
    layer = next(iter(find_allocator(model).layers.values()))
    model.train()
    with pytest.raises(IncreLoraError, match=r"nn\.DataParallel.*torchrun"):
        layer._replicate_for_data_parallel()(torch.zeros(1, 32))


class WithMasters(torch.optim.AdamW):
    """Keeps its own copy of the weights, as mixed-precision optimizers do."""

    def __init__(self, model: nn.Module):
        self.held = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__([nn.Parameter(parameter.detach().clone()) for parameter in self.held], lr=1e-3)

    def step(self, closure: Any = None) -> None:
        masters = self.param_groups[0]["params"]
        for master, parameter in zip(masters, self.held, strict=True):
            master.grad, parameter.grad = parameter.grad, None
        super().step()
        with torch.no_grad():
            for master, parameter in zip(masters, self.held, strict=True):
                parameter.copy_(master)


@pytest.mark.filterwarnings("ignore:WithMasters keeps one step count")
def test_an_optimizer_that_undoes_growth_is_refused(model: PeftModel) -> None:
    """It would write its zeros over the components that are drawn at an event, and they would never train."""
    optimizer, allocator = WithMasters(model), find_allocator(model)
    allocator.follow(optimizer)
    allocator.set_total_steps(STEPS, warmup_steps=4)
    scheduler = SimpleNamespace(step=lambda: None)
    train(model, optimizer, scheduler, range(1, 5))
    assert not allocator._can_resize()
    with pytest.raises(IncreLoraError, match=r"keeps a copy of the weights.*find_ranks"):
        train(model, optimizer, scheduler, range(5, 6))


def test_storage_follows_an_optimizer_of_a_part_of_the_adapter(model: PeftModel) -> None:
    allocator = find_allocator(model)
    optimizer = torch.optim.AdamW(next(iter(allocator.layers.values())).tensors("default").values())
    allocator.follow(optimizer)
    assert allocator._can_resize()


def test_schedule_free_optimizers_are_warned_of(model: PeftModel) -> None:
    class AdamWScheduleFree(torch.optim.AdamW):
        pass

    optimizer = AdamWScheduleFree(model.parameters())
    find_allocator(model).follow(optimizer)
    with pytest.warns(UserWarning, match="AdamWScheduleFree trains an average of weights"):
        find_allocator(model).set_total_steps(STEPS, warmup_steps=4)


def test_no_card_is_written_beside_a_config_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    adapter().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.filterwarnings("ignore:AdamW keeps one step count")
def test_a_trainer_goes_on_with_an_optimizer_that_it_was_given(tmp_path: Path) -> None:
    """What trains is followed before its checkpoint is loaded, or the training does not go on."""

    def given(model: PeftModel) -> Any:
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    class Overridden(Trainer):
        def create_optimizer(self, *_: Any) -> Any:
            self.optimizer = given(self.model)[0]
            return self.optimizer

    whole, resumed, late = (get_peft_model(deberta(), adapter(lora_dropout=0.0)) for _ in range(3))
    trainer(whole, tmp_path, optimizers=given(whole), save_strategy="steps", save_steps=10).train()
    checkpoint = str(tmp_path / "checkpoint-10")
    trainer(resumed, tmp_path, optimizers=given(resumed), save_strategy="no").train(resume_from_checkpoint=checkpoint)
    assert resumed.growth_events() == whole.growth_events()
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    for step in (10, 20):  # in the middle of growth, and after it has ended
        with pytest.raises(IncreLoraError, match=r"state of growth was not loaded.*find_allocator\(model\)\.follow"):
            trainer(late, tmp_path, kind=Overridden, save_strategy="no").train(
                resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}")
            )

    class Deaf(torch.optim.AdamW):
        """Of a library that calls no hooks."""

        def load_state_dict(self, state_dict: Any) -> None:
            torch.optim.AdamW([*self.param_groups[0]["params"]]).load_state_dict(state_dict)
            self.state.update({parameter: {} for parameter in self.param_groups[0]["params"]})

    deaf = get_peft_model(deberta(), adapter(lora_dropout=0.0))
    optimizer = Deaf([one for one in deaf.parameters() if one.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(IncreLoraError, match="state of growth was not loaded"):
        trainer(deaf, tmp_path, optimizers=(optimizer, schedule), save_strategy="no").train(
            resume_from_checkpoint=checkpoint
        )


@pytest.mark.filterwarnings("ignore:SGD keeps one step count")
def test_an_optimizer_nobody_followed_goes_on_once_growth_has_ended(tmp_path: Path) -> None:
    class WithSGD(Trainer):
        def create_optimizer(self, *_: Any) -> Any:
            self.optimizer = torch.optim.SGD([one for one in self.model.parameters() if one.requires_grad], lr=0.1)
            return self.optimizer

    whole, resumed = (get_peft_model(deberta(), adapter(lora_dropout=0.0)) for _ in range(2))
    trainer(whole, tmp_path, kind=WithSGD, save_steps=28).train()
    assert find_allocator(whole).finished
    trainer(resumed, tmp_path, kind=WithSGD, save_strategy="no").train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-28")
    )
    assert resumed.rank_distribution() == whole.rank_distribution()


def test_a_head_may_be_adapted_but_not_twice() -> None:
    config = adapter(target_modules=r".*(query_proj|pooler\.dense)", modules_to_save=None, task_type=None)
    with pytest.warns(UserWarning, match=r"pooler\.dense of the task head"):
        assert "pooler.dense" in get_peft_model(deberta(), config).rank_distribution()
    assert (
        "pooler.dense"
        not in get_peft_model(deberta(), adapter(target_modules=config.target_modules)).rank_distribution()
    )


def test_a_refused_adapter_leaves_nothing_behind(model: PeftModel) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for bad in (
        adapter(rank_pattern={"query_proj": 9}, target_r=1),
        adapter(target_modules=r".*word_embeddings|.*LayerNorm"),
        adapter(total_step=5),
    ):
        with pytest.raises((ConfigError, TypeError)):
            model.add_adapter("second", bad)
        assert list(model.peft_config) == ["default"]
        assert model.state_dict().keys() == state.keys()
        base = deberta()
        with pytest.raises((ConfigError, TypeError)):
            get_peft_model(base, bad)
        assert base.state_dict().keys() == deberta().state_dict().keys()
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", adapter())
    model.add_adapter("second", adapter(target_r=2))
    assert set(model.rank_distribution("second").values()) == {1}


def test_a_budget_beyond_the_matrices_is_what_they_can_hold(model: PeftModel) -> None:
    with pytest.warns(UserWarning, match="hold 384 at most"):
        assert find_allocator(get_peft_model(deberta(), adapter(target_r=33))).budget == 384


def test_the_callers_config_is_never_written_to(model: PeftModel, tmp_path: Path) -> None:
    config = adapter(target_modules=["query_proj", "value_proj"])
    first = get_peft_model(deberta(), config)
    grown(first)
    first.save_pretrained(tmp_path)
    assert config.rank_pattern == {}
    assert config.target_modules == {"query_proj", "value_proj"}
    second = get_peft_model(deberta(), config)
    assert set(second.rank_distribution().values()) == {1}
    grown(second)
    assert second.growth_events()


@pytest.mark.parametrize("stop", [9, STEPS], ids=["growing", "grown"])
def test_state_dict_holds_the_ranks(stop: int, model: PeftModel, tmp_path: Path, logits: Any) -> None:
    """``torch.save(model.state_dict())``, as Accelerate and Lightning do it, restores ranks or says that it cannot."""
    optimizer, scheduler = grown(model, steps=stop)
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.manual_seed(7)
    other = get_peft_model(deberta(), adapter())
    parts = create_optimizer(other, lr=1e-2, total_steps=STEPS, warmup_steps=4, weight_decay=0.01)
    other.load_state_dict(state[0])
    assert other.rank_distribution() == model.rank_distribution()
    assert other.growth_events() == model.growth_events()
    assert torch.equal(logits(other), logits(model))
    for part, saved in zip(parts, state[1:], strict=True):
        part.load_state_dict(saved)
    assert train(other, *parts, range(stop + 1, stop + 6)) == train(
        model, optimizer, scheduler, range(stop + 1, stop + 6)
    )
    del state[0][next(key for key in state[0] if key.endswith("_extra_state"))]
    with pytest.raises(RuntimeError, match="_extra_state"):
        other.load_state_dict(state[0])


@pytest.mark.slow
def test_import_registers_and_stays_light(model: PeftModel, tmp_path: Path) -> None:
    """PEFT takes seconds to import; the method is registered when it is."""
    model.save_pretrained(tmp_path)
    assert "import increlora" in (tmp_path / "README.md").read_text()
    script = (
        "import sys, importlib.util, increlora; assert 'peft' not in sys.modules and 'torch' not in sys.modules; "
        "assert importlib.util.find_spec('peft'), 'as Transformers asks'; import peft; "
        "assert type(peft.PeftConfig.from_pretrained(sys.argv[1])).__name__ == 'IncreLoraConfig'"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_a_module_that_outgrows_its_storage(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets twice as much, in the same Parameters, and trains like one that had it from the start."""
    monkeypatch.setattr("increlora.tuner.growth.allocate", lambda *args, **kwargs: {0: 3})
    trained = []
    for changes in ({}, {"max_r": 30}):
        torch.manual_seed(1)
        model = get_peft_model(deberta(), adapter(ranks_per_event=3, lora_dropout=0.0, **changes))
        parameters = list(model.parameters())
        optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
        trained.append((model, train(model, optimizer, scheduler, range(1, 31))))
        assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    (model, losses), (roomy, expected) = trained
    assert max(model.rank_distribution().values()) == 22
    assert [layer.capacity("default") for layer in find_allocator(model).layers.values()][:2] == [32, 16]
    assert caplog.text.count("outgrows its storage") == 1
    assert losses == pytest.approx(expected, rel=1e-4)
    assert model.growth_events() == roomy.growth_events()


def test_a_module_counts_as_full_where_nothing_can_follow(model: PeftModel) -> None:
    """Nobody has told the allocator about the optimizer, so its tensors keep their size."""
    allocator = find_allocator(model)
    allocator.set_total_steps(STEPS, warmup_steps=4)
    first, layer = next(iter(allocator.layers.items()))
    layer.components["default"].rank = 15
    with pytest.warns(UserWarning, match=r"counts as full at rank 15.*set max_r"):
        assert allocator._highest(first, layer) == 15


def test_lambda_has_a_rate_of_its_own(model: PeftModel) -> None:
    """A ratio of the learning rates is that of torch's AdamW with one group per kind."""
    torch.manual_seed(1)
    theirs = get_peft_model(deberta(), adapter(target_r=None, init_r=2))
    torch.manual_seed(1)
    ours = get_peft_model(deberta(), adapter(target_r=None, init_r=2, lambda_lr_ratio="width"))
    optimizer = IncreLoraAdamW(ours, lr=1e-3)
    groups = [
        {"params": [p], "lr": 1e-3 * (64 if "intermediate" in n else 32) ** 0.5 if "lambda" in n else 1e-3}
        for n, p in theirs.named_parameters()
        if p.requires_grad
    ]
    adamw = torch.optim.AdamW(groups, weight_decay=0.0)
    for part in (optimizer, adamw):
        one = ours if part is optimizer else theirs
        train(one, part, torch.optim.lr_scheduler.LambdaLR(part, lambda _: 1.0), range(1, 6))
    for (name, value), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_regulariser_under_autocast(dtype: torch.dtype) -> None:
    """The importance stays that of float32 to the precision of the activations, the regulariser exactly."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(deberta(), adapter(lora_dropout=0.0, deltaT=30, target_r=2, top_h=12))
        create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
        with torch.no_grad():
            for layer in find_allocator(model).layers.values():
                layer.increlora_lambda["default"][0] = 0.3
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = model(**tokens(0)).loss
            penalty = model.orthogonality_loss()
        find_allocator(model).regulariser.weight = 0.0
        loss.backward()
        model.update_and_allocate(1)
        found.append((find_allocator(model).importance[:, 0], penalty))
    assert found[1][1] == found[0][1]
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0.1, atol=1e-6)


def test_config_round_trip(tmp_path: Path) -> None:
    config = IncreLoraConfig.from_preset("code", target_modules=TARGETS, target_r=4, lora_alpha=32)
    config.save_pretrained(tmp_path)
    assert IncreLoraConfig.from_pretrained(tmp_path) == config
    assert config.ranks_per_event == 2
    assert config.tinit == "deltaT"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copy_in_mid_growth_is_independent(model: PeftModel, copied: Any) -> None:
    """The score of a copy is that of its own update matrix."""

    def scored(one: PeftModel) -> torch.Tensor:
        torch.manual_seed(6)
        one(**tokens(6)).loss.backward()
        one.update_and_allocate(6)
        return find_allocator(one).importance[:, 0]

    grown(model, steps=5)
    other = copied(model)
    expected = scored(model).clone()
    with torch.no_grad():
        for layer in find_allocator(model).layers.values():
            layer.increlora_lambda["default"] += 1
    assert torch.equal(scored(other), expected)


def test_a_step_does_not_walk_through_the_model(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    train(model, *create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4), range(1, 2))
    model(**tokens(2)).loss.backward()

    def walk(*_: Any, **__: Any) -> Any:
        raise AssertionError("a large model has a thousand modules, and a step comes every few milliseconds")

    monkeypatch.setattr(nn.Module, "named_modules", walk)
    model.update_and_allocate(2)


def test_a_step_reaches_the_layers_of_an_adapter_added_later() -> None:
    base = nn.ModuleDict({name: nn.Linear(6, 6) for name in "ab"})
    model = get_peft_model(base, IncreLoraConfig(target_modules=["a"], target_r=None))
    model.base_model.update_and_allocate(1)
    model.add_adapter("further", IncreLoraConfig(target_modules=["b"], target_r=None))
    model.base_model.set_adapter(["default", "further"])
    model.base_model.update_and_allocate(2)
    assert [one.step for one in find_allocators(model)] == [2, 2]


@pytest.mark.parametrize(("max_r", "on_gpu"), [(8, 16), (200, 128)])
def test_a_gpu_multiplies_a_small_storage_whole(max_r: int, on_gpu: int) -> None:
    """A part of a tensor costs it two kernels more in the backward pass, and 128 rows no more time than 8."""
    base = nn.ModuleDict({"a": nn.Linear(256, 256)})
    config = IncreLoraConfig(target_modules=["a"], target_r=2, max_r=max_r)
    layer = find_allocator(get_peft_model(base, config)).layers["a"]
    assert layer.rows("default") == 8
    layer.increlora_lambda.to("meta")  # like any device that is no CPU
    assert layer.rows("default") == on_gpu

"""Growth, saving, loading, merging, export, resume and wrong use on a DeBERTa-style classifier."""

from __future__ import annotations

import copy
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
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from increlora import (
    IncreLoraAdamW,
    IncreLoraCallback,
    IncreLoraConfig,
    create_optimizer,
    export_lora,
    find_tuner,
    lora_config,
)
from increlora.errors import ConfigError, IncreLoraError
from tests.conftest import TARGETS
from tests.tuner.conftest import adapter, deberta, tokens, train
from tests.tuner.test_models import CASES

STEPS = 40


def grown(model: PeftModel, steps: int = STEPS) -> Any:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4, weight_decay=0.01)
    train(model, optimizer, scheduler, range(1, steps + 1))
    return optimizer, scheduler


def test_initial_update_is_zero(model: PeftModel, logits: Any) -> None:
    base = logits(deberta())
    with torch.no_grad():  # the head is the base model's
        torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)


def test_growth_ends_exactly_at_the_budget(model: PeftModel) -> None:
    grown(model)
    ranks = model.rank_distribution()
    assert sum(ranks.values()) == 3 * 12
    assert max(ranks.values()) > 3
    events = model.growth_events()
    assert [event["step"] for event in events] == list(range(4, 4 + 4 * len(events), 4))
    assert events[-1]["total_rank"] == 36
    for layer in find_tuner(model).adapter_layers().values():
        rank = layer.rank("default")
        assert layer.components["default"].reserve == 0
        assert not layer.increlora_A["default"][rank:].any()
        assert not layer.increlora_B["default"][:, rank:].any()


def test_reserve_trains_towards_orthogonality_only_with_advance_learning() -> None:
    deviation = {}
    for advance in (True, False):
        torch.manual_seed(1)
        model = get_peft_model(deberta(), adapter(advance_learning=advance, deltaT=30, top_h=12, target_r=2))
        grown(model, steps=29)
        deviation[advance] = sum(find_tuner(model).orthogonality())
    assert deviation[True] < 0.5 * deviation[False]


def test_saved_adapter_holds_the_active_components_and_loads_exactly(
    model: PeftModel, tmp_path: Path, logits: Any
) -> None:
    grown(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".safetensors")) == [
        "adapter_model.safetensors"
    ]
    saved = load_file(tmp_path / "adapter_model.safetensors")
    ranks = model.rank_distribution()
    for name, rank in ranks.items():
        assert saved[f"base_model.model.{name}.increlora_A"].shape[0] == rank
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(deberta(), tmp_path, low_cpu_mem_usage=low_memory)
        assert loaded.rank_distribution() == ranks
        torch.testing.assert_close(logits(loaded), expected, atol=1e-6, rtol=1e-6)


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


def test_changed_ranks_load_into_a_model_of_other_ranks(model: PeftModel, tmp_path: Path, logits: Any) -> None:
    grown(model)
    expected, ranks = logits(model), model.rank_distribution()
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    other = get_peft_model(deberta(), adapter())
    other.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert other.rank_distribution() == ranks
    assert torch.equal(logits(other), expected)


def test_growth_goes_on_from_an_earlier_checkpoint(model: PeftModel, tmp_path: Path) -> None:
    """As after `load_best_model_at_end`: the events are those that led to the loaded ranks."""
    optimizer, scheduler = grown(model, steps=9)
    earlier = [dict(event) for event in model.growth_events()]
    model.save_pretrained(tmp_path)
    train(model, optimizer, scheduler, range(10, 31))
    assert find_tuner(model).growth["default"].finished
    model.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert model.growth_events() == earlier
    assert sum(model.rank_distribution().values()) == earlier[-1]["total_rank"]
    train(model, optimizer, scheduler, range(31, 41))
    assert [event["step"] for event in model.growth_events()] == [4, 8, 32, 36, 40]


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


def test_merge_unmerge_and_disable(model: PeftModel, logits: Any) -> None:
    base = logits(model)
    torch.manual_seed(1)
    grown(model)
    trained = logits(model)
    assert (trained - base).abs().max() > 1e-2
    model.merge_adapter()
    torch.testing.assert_close(logits(model), trained, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), trained, atol=1e-5, rtol=1e-5)
    for _ in range(2):
        with model.disable_adapter():
            torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)
        model.merge_adapter()
    model.unmerge_adapter()
    with torch.no_grad():
        next(iter(find_tuner(model).adapter_layers().values())).increlora_B["default"][0] = torch.nan
    with pytest.raises(ValueError, match="would write NaN"):
        model.merge_adapter(safe_merge=True)


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
    grown(model, steps=5)
    model.add_adapter("second", adapter(target_r=2))
    model.set_adapter("second")
    model.delete_adapter("default")
    grown(model)
    assert sum(model.rank_distribution().values()) == 24


def test_exported_lora_is_exact_and_needs_only_peft(model: PeftModel, tmp_path: Path, logits: Any) -> None:
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
        "assert not any(name.startswith('increlora') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, atol=1e-5, rtol=1e-5)


def test_rank_distribution_retrains_as_lora(model: PeftModel) -> None:
    grown(model)
    ranks = model.rank_distribution()
    config = lora_config(ranks, task_type="SEQ_CLS")
    assert isinstance(config, LoraConfig)
    fresh = get_peft_model(deberta(), config)
    found = {
        name.removeprefix("base_model.model."): module.r["default"]
        for name, module in fresh.named_modules()
        if hasattr(module, "lora_A") and module.r
    }
    assert found == ranks


def test_alpha_of_retrained_ranks_is_that_of_every_module() -> None:
    targets = {"deberta.encoder.layer.0.output.dense": 1, "deberta.encoder.layer.1.output.dense": 4}
    for overrides, expected in (({}, [1.0, 1.0]), ({"lora_alpha": 8}, [8.0, 2.0])):
        fresh = get_peft_model(deberta(), lora_config(targets, **overrides))
        scales = [module.scaling["default"] for module in fresh.modules() if hasattr(module, "lora_A") and module.r]
        assert scales == expected
    with pytest.raises(ConfigError, match="no module has any rank"):
        lora_config({"a": 0})


def test_names_that_end_other_names(tmp_path: Path) -> None:
    """PEFT matches the keys of `rank_pattern` against the ends of names."""

    def base() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(a=nn.Linear(8, 8), b=nn.Sequential(OrderedDict(a=nn.Linear(8, 8)))))

    ranks = {"a": 3, "b.a": 2}
    config = IncreLoraConfig(target_modules=["a"], target_r=None, rank_pattern=ranks, init_r=1)
    model = get_peft_model(base(), config)
    assert model.rank_distribution() == ranks
    for layer in find_tuner(model).adapter_layers().values():
        nn.init.ones_(layer.increlora_lambda["default"])
    x = torch.randn(4, 8)
    for folder in (tmp_path / "own", export_lora(model, tmp_path / "lora")):
        model.save_pretrained(tmp_path / "own")
        assert torch.equal(PeftModel.from_pretrained(base(), folder)(x), model(x))


def test_half_precision_base_does_not_round_the_scaling() -> None:
    model = get_peft_model(deberta().bfloat16(), adapter(scaling="active_rank", init_r=3))
    for layer in find_tuner(model).adapter_layers().values():
        assert layer.increlora_scale["default"][0] == torch.tensor(16 / (3 + 1e-5))


@pytest.mark.parametrize("stop", [3, 9, 17, 33], ids=["before growth", "mid-growth", "later", "after growth"])
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
    for layer, other in zip(
        find_tuner(second).adapter_layers().values(), find_tuner(whole).adapter_layers().values(), strict=True
    ):
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


def trainer(model: nn.Module, out: Path, **changes: Any) -> Any:
    from transformers import Trainer, TrainingArguments

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
    return Trainer(model=model, args=arguments, train_dataset=Sentences(), callbacks=[IncreLoraCallback()])


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


def test_callback_passes_on_the_loss_scale(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        find_tuner(model), "update_and_allocate", lambda *step, **options: calls.append((step, options))
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for optimizer in (SimpleNamespace(scaler=scaler), SimpleNamespace(scaler=None), SimpleNamespace()):
        IncreLoraCallback().on_pre_optimizer_step(
            SimpleNamespace(), SimpleNamespace(global_step=4), SimpleNamespace(), model=model, optimizer=optimizer
        )
    assert calls == [((5,), {"loss_scale": scale}) for scale in (8.0, 1.0, 1.0)]


def test_trainer_with_gradient_accumulation_grows(tmp_path: Path) -> None:
    model = get_peft_model(deberta(), adapter(deltaT=3))
    trainer(model, tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4, save_strategy="no").train()
    assert sum(model.rank_distribution().values()) == 36


def test_regulariser_that_reaches_no_loss_is_reported(tmp_path: Path) -> None:
    """Label smoothing computes the loss outside of the model."""
    model = get_peft_model(deberta(), adapter(deltaT=3))
    with pytest.warns(UserWarning, match=r"add model\.orthogonality_loss\(\)"):
        trainer(model, tmp_path, label_smoothing_factor=0.1, save_strategy="no").train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the orthogonality regulariser")
        trainer(get_peft_model(deberta(), adapter(deltaT=3)), tmp_path, save_strategy="no").train()


def test_trainer_refuses_another_optimizer(model: PeftModel, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    built = Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(),
        callbacks=[IncreLoraCallback()],
        optimizers=(sgd, torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)),
    )
    with pytest.raises(IncreLoraError, match="SGD, which cannot follow growing ranks"):
        built.train()


def test_step_without_allocation_is_refused(model: PeftModel) -> None:
    optimizer, _ = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model.train()
    model(**tokens(0)).loss.backward()
    with pytest.raises(IncreLoraError, match="without update_and_allocate"):
        optimizer.step()


def test_second_backward_pass_is_refused_unless_announced(model: PeftModel) -> None:
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model.train()
    model(**tokens(0)).loss.backward()
    with pytest.raises(RuntimeError, match="gradient_accumulation_steps"):
        model(**tokens(1)).loss.backward()


@pytest.mark.parametrize("held", [False, True], ids=["one process", "as under torchrun"])
def test_training_without_allocation_is_refused(held: bool, model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a Trainer that lacks the callback: it would train fixed ranks without a word."""
    if held:
        monkeypatch.setattr(find_tuner(model), "gradient_accumulation_steps", 2)
        find_tuner(model)._set_recorders("default", on=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()
    model(**tokens(0)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(IncreLoraError, match="how long training lasts: use IncreLoraCallback"):
        model(**tokens(1))
    with torch.no_grad():
        model(**tokens(1))
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    model(**tokens(1)).loss.backward()
    model.update_and_allocate(1)


def test_length_of_training_may_come_from_the_config() -> None:
    model = get_peft_model(deberta(), adapter(total_step=STEPS))
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    train(model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0), range(1, STEPS + 1))
    assert sum(model.rank_distribution().values()) == 36


@pytest.mark.parametrize(("steps", "message"), [((0,), "count from 1"), ((2, 5), "were to grow at 4")])
def test_wrong_step_numbers_are_refused(model: PeftModel, steps: tuple[int, ...], message: str) -> None:
    optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    with pytest.raises(IncreLoraError, match=message):
        train(model, optimizer, scheduler, steps)  # type: ignore[arg-type]


def test_callback_that_comes_too_late_is_refused(model: PeftModel, tmp_path: Path) -> None:
    late = trainer(model, tmp_path)
    late.callback_handler.callbacks = [c for c in late.callback_handler.callbacks if type(c) is not IncreLoraCallback]
    late.args.optim = "adamw_torch"
    late.add_callback(IncreLoraCallback())
    with pytest.raises(IncreLoraError, match="when it is created"):
        late.train()


def test_unknown_length_of_training_is_refused(model: PeftModel) -> None:
    model.train()
    model(**tokens(0)).loss.backward()
    with pytest.raises(IncreLoraError, match="how long training lasts"):
        model.update_and_allocate(1)


def test_missing_gradients_are_refused(model: PeftModel) -> None:
    create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
    with pytest.raises(IncreLoraError, match="no gradient reached"):
        model.update_and_allocate(1)


def test_growth_without_the_optimizer_is_refused(model: PeftModel) -> None:
    find_tuner(model).set_total_steps(STEPS, warmup_steps=4)
    model.train()
    for step in range(1, 4):
        model(**tokens(step)).loss.backward()
        model.update_and_allocate(step)
    model(**tokens(4)).loss.backward()
    with pytest.raises(IncreLoraError, match="the optimizer cannot follow"):
        model.update_and_allocate(4)


def test_target_modules_that_match_nothing_or_the_head_are_refused() -> None:
    with pytest.raises(ValueError, match="No modules were targeted"):
        get_peft_model(deberta(), adapter(target_modules=r".*nothing_here"))
    for match in (r"pooler\.dense", "classifier"):
        config = adapter(target_modules=rf".*(query_proj|{match})", modules_to_save=None, task_type=None)
        with pytest.raises(ConfigError, match="poolers and classifiers"):
            get_peft_model(deberta(), config)
    with pytest.raises(ConfigError, match=r"classifier\.dense, classifier\.out_proj; poolers and classifiers"):
        get_peft_model(CASES["RoBERTa"].base(), IncreLoraConfig(target_modules="all-linear"))


def test_impossible_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="target_r"):
        get_peft_model(deberta(), adapter(target_r=33))


def test_regulariser_is_in_the_training_loss_only(model: PeftModel) -> None:
    batch = tokens(0)
    with torch.no_grad():
        model.eval()
        evaluated = model(**batch).loss
        tuner = find_tuner(model)
        plain = tuner.model(**batch).loss
    assert torch.equal(evaluated, plain)
    penalty = tuner.orthogonality_loss()
    assert penalty.item() > 0.1
    for module in model.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StableDropout":
            module.p = 0.0
    model.train()
    torch.testing.assert_close(model(**batch).loss, plain + penalty)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_regulariser_under_autocast(dtype: torch.dtype) -> None:
    """The importance stays that of float32 to the precision of the activations, the regulariser exactly."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(deberta(), adapter(lora_dropout=0.0, deltaT=30, target_r=2, top_h=12))
        create_optimizer(model, lr=1e-2, total_steps=STEPS, warmup_steps=4)
        tuner = find_tuner(model)
        with torch.no_grad():
            for layer in tuner.adapter_layers().values():
                layer.increlora_lambda["default"][0] = 0.3
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            loss = model(**tokens(0)).loss
            penalty = tuner.orthogonality_loss()
        loss.backward()
        model.update_and_allocate(1)
        found.append((tuner.growth["default"].importance.smoothed, penalty))
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-6, atol=0)
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
        return find_tuner(one).growth["default"].importance.smoothed

    grown(model, steps=5)
    other = copied(model)
    expected = scored(model).clone()
    with torch.no_grad():
        for layer in find_tuner(model).adapter_layers().values():
            layer.increlora_lambda["default"] += 1
    assert torch.equal(scored(other), expected)

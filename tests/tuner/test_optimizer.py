"""The optimizer on tensors that do not grow is `torch.optim.AdamW`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from increlora import IncreLoraAdamW, IncreLoraConfig, RestartedWarmup, create_optimizer, find_allocator
from increlora.errors import IncreLoraError
from increlora.tuner.decay import normalisation_and_bias_names
from increlora.tuner.optimizer import _AdapterTensor
from tests.tuner.conftest import adapter, deberta, train


def fixed() -> PeftModel:
    torch.manual_seed(0)
    base = nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 5), "head": nn.Linear(5, 2)})
    config = IncreLoraConfig(target_modules=["a", "b"], target_r=None, init_r=3, modules_to_save=["head"])
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lambda" in name:
            nn.init.ones_(parameter)
    return model


def trained(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Module ``b`` takes part in every third step only, as with layers that are dropped or experts."""
    parts = model.get_base_model()
    for step in range(12):
        dtype = parts["a"].base_layer.weight.dtype
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
        hidden = parts["a"](x) + (parts["b"](x) if step % 3 == 0 else 0)
        parts["head"](hidden).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("move", [nn.Module.float, nn.Module.double], ids=["in place", "moved after creation"])
def test_tensors_without_gradient_stay(move: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = fixed(), fixed()
    decayed = [p for n, p in theirs.named_parameters() if p.requires_grad and "bias" not in n]
    others = [p for n, p in theirs.named_parameters() if p.requires_grad and "bias" in n]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-2
    )
    optimizer = IncreLoraAdamW(ours, lr=1e-2, weight_decay=0.1)
    for model in (ours, theirs):
        move(model)
    expected = trained(theirs, adamw)
    for name, value in trained(ours, optimizer).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("advance", [True, False], ids=["advance learning", "frozen reserve"])
def test_one_number_per_tensor_is_the_same_update(advance: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors whose components are of one age get numbers, all others a number for each component.

    Those of one shape are updated as one tensor: on a GPU, factors of another shape are several kernels a tensor.
    """
    kinds: list[type] = []
    shapes: list[torch.Size] = []
    update = IncreLoraAdamW._update

    def noting(*given: Any) -> None:
        sizes = given[5]
        kinds.extend(map(type, sizes))
        shapes.extend(size.shape for size in sizes if isinstance(size, torch.Tensor))
        update(*given)

    def grown() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        base = nn.ModuleDict({name: nn.Linear(6, 6) for name in "abc"})
        config = IncreLoraConfig(
            target_modules=["a", "b", "c"], target_r=2, deltaT=4, growth_end=0.7, top_h=1, advance_learning=advance
        )
        model = get_peft_model(base, config)
        optimizer, scheduler = create_optimizer(model, lr=3e-2, total_steps=24, warmup_steps=2, weight_decay=0.1)
        for step in range(1, 25):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            parts = model.get_base_model()
            (parts["c"](parts["b"](parts["a"](x))) - x.flip(1)).square().mean().backward()
            model.update_and_allocate(step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        assert sum(model.rank_distribution().values()) == 6
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    monkeypatch.setattr(IncreLoraAdamW, "_update", staticmethod(noting))
    found = grown()
    assert {*kinds} == {float, torch.Tensor}
    assert max(shape[0] for shape in shapes) > 1 and {len(shape) for shape in shapes} == {2, 3}
    kinds.clear()
    monkeypatch.setattr(_AdapterTensor, "rest_is_zero", lambda self: False)
    for name, value in grown().items():
        assert torch.equal(value, found[name]), name
    assert {*kinds} == {torch.Tensor}


def test_groups_are_those_of_torch_however_they_are_given() -> None:
    """At once, one by one, or as pairs of name and parameter."""
    results = []
    for given in ("at once", "one by one", "named"):
        model = fixed()
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        first: Any = trainable if given == "named" else [p for _, p in trainable]
        optimizer = IncreLoraAdamW(first[:2] if given == "one by one" else first, lr=1e-2, adapted=model)
        if given == "one by one":
            optimizer.add_param_group({"params": first[2]})
            optimizer.add_param_group({"params": first[3:]})
        results.append(trained(model, optimizer))
        assert any(group["components"] for group in optimizer.param_groups)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in results[0])


def test_hooks_of_a_step_run_once() -> None:
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # from then on torch runs hooks in every AdamW.step
    model, calls = fixed(), []
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    model.get_base_model()["head"](torch.ones(1, 5)).sum().backward()
    optimizer.step()
    assert calls == ["before", "after"]


def test_modules_of_rank_0_may_be_a_group_of_their_own() -> None:
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    config = IncreLoraConfig(
        target_modules=["0", "1"], target_r=None, init_r=0, rank_pattern={"0": 2}, lambda_lr_ratio="width"
    )
    model = get_peft_model(base, config)
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    for step in (1, 2):
        model(torch.ones(1, 6)).square().sum().backward()
        model.update_and_allocate(step)
        optimizer.step()
    assert model.rank_distribution() == {"0": 2, "1": 0}


def test_youngest_rate_is_that_of_the_adapter_beside_other_parameters() -> None:
    """Where tokens of an embedding train too, the first group of the optimizer is not the adapter's."""
    rates = {}
    for name, changes in {"alone": {}, "beside": {"trainable_token_indices": {"word_embeddings": [5, 6]}}}.items():
        model = get_peft_model(deberta(), adapter(lora_dropout=0.0, **changes))
        optimizer, scheduler = create_optimizer(model, lr=1e-2, total_steps=40, warmup_steps=4)
        rates[name] = []
        for step in range(1, 13):
            train(model, optimizer, scheduler, range(step, step + 1))
            rates[name].append(optimizer.youngest_lr)
    assert rates["beside"] == rates["alone"]
    assert len(set(rates["alone"])) > 3


def test_late_births_follow_the_curve_of_the_group_of_adapter_tensors() -> None:
    model = get_peft_model(deberta(), adapter())
    named = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    groups = [{"params": [one for name, one in named if ("increlora_" in name) is inside]} for inside in (False, True)]
    optimizer = IncreLoraAdamW(groups, lr=1e-2, adapted=model)
    assert len(optimizer.param_groups) == 2
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 1.0, lambda step: 1 - step / 40])
    optimizer.schedule = RestartedWarmup.of(scheduler, 2)
    model.set_total_steps(40, 2)
    train(model, optimizer, scheduler, range(1, 36))
    warm = model.growth_events()[-1]["step"] + 2
    assert optimizer.youngest_lr == pytest.approx(1e-2 * (1 - 34 / 40) / (1 - warm / 40))


def test_steps_are_counted_under_any_default_dtype() -> None:
    """bfloat16 cannot count beyond 256."""
    model = fixed()
    optimizer = IncreLoraAdamW(model, lr=1e-2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        for _ in range(300):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    assert {float(count) for state in optimizer.state.values() for count in state["step"].flatten()} == {300.0}


def test_the_state_of_another_optimizer_is_refused() -> None:
    model = fixed()
    state = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad]).state_dict()
    with pytest.raises(IncreLoraError, match="not that of an IncreLoraAdamW"):
        IncreLoraAdamW(model).load_state_dict(state)


def test_biases_do_not_decay_and_an_adapter_of_any_name_does() -> None:
    model = get_peft_model(deberta(), adapter(), adapter_name="debiased")
    exempt = normalisation_and_bias_names(model)
    assert not any("increlora_" in name for name in exempt)
    assert any(name.endswith("bias") for name in exempt)


def test_a_scaler_is_asked_once_a_step() -> None:
    """A GPU has its number on the device."""

    class Scaler:
        asked = 0

        def get_scale(self) -> float:
            self.asked += 1
            return 1.0

    model = get_peft_model(deberta(), adapter(deltaT=20))
    optimizer, scheduler = create_optimizer(model, lr=1e-3, total_steps=80, scaler=Scaler())  # type: ignore[arg-type]
    train(model, optimizer, scheduler, range(1, 2))
    assert find_allocator(model).regulariser.scaler.asked <= 2


def test_late_births_warm_up_to_the_rate_of_a_schedule_whose_curve_is_unknown() -> None:
    base = nn.Sequential(nn.Linear(6, 5))
    model = get_peft_model(base, IncreLoraConfig(target_modules=["0"], target_r=2, deltaT=10, growth_end=1.0))
    model.set_total_steps(20)
    optimizer = IncreLoraAdamW(model, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    optimizer.schedule = RestartedWarmup.of(scheduler, 4)
    rates = []
    for step in range(1, 17):
        model(torch.ones(1, 6)).square().sum().backward()
        model.update_and_allocate(step)
        optimizer.step()
        rates.append((optimizer.youngest_lr, optimizer.param_groups[0]["lr"]))
        scheduler.step()
        optimizer.zero_grad()
    shares = [1.0] * 10 + [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [youngest / current for youngest, current in rates] == pytest.approx(shares)

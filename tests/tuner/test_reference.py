"""The tuner against an independent float64 formulation, written from the equations of the paper.

The reference keeps every rank-one component as tensors of its own, materialises the update matrix, reads its gradient
from autograd and trains with `torch.optim.AdamW`, one parameter group per birth. It shares nothing with the tuner but
the random draws, which are copied.
"""

from __future__ import annotations

import math

import pytest
import torch
from peft import get_peft_model
from torch import nn

from increlora import IncreLoraConfig, create_optimizer, find_allocator

STEPS, WARMUP, NU, LR, WEIGHT_DECAY = 220, 12, 12, 3e-3, 0.05
MODULES = ("first", "shared", "last")


class Toy(nn.Module):
    """Three linear layers of different shapes; the middle one is called twice, as DeBERTa's query and key are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(11, 13)
        self.shared = nn.Linear(13, 13)
        self.last = nn.Linear(13, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.shared(hidden)) + self.shared(0.5 * hidden))


def batch(step: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + part)
    x = torch.randn(6, 11, generator=generator, dtype=torch.float64)
    return x, torch.stack([x[:, i] * x[:, i + 1] for i in range(10)], dim=1)


def curve(step: int, birth: int) -> float:
    """Restarted warmup: linear up over WARMUP steps of its own, then down to 0 at the end with all the others."""
    age = step - birth
    return age / WARMUP if age < WARMUP else max(0.0, (STEPS - step) / (STEPS - birth - WARMUP))


class Component:
    """One rank-one part ``lambda b a`` of a module's update."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, lam: float):
        self.a, self.b = a.clone().requires_grad_(), b.clone().requires_grad_()
        self.lam = torch.tensor(lam, dtype=torch.float64, requires_grad=True)


class Reference:
    def __init__(self, model: Toy, config: IncreLoraConfig, components: dict[str, list[Component]]):
        self.model, self.config = model, config
        self.weights = {name: model.get_submodule(name).weight.detach().clone() for name in MODULES}
        self.active = {name: [parts[0]] for name, parts in components.items()}
        self.reserve = {name: parts[1:] for name, parts in components.items()}
        self.smoothed = dict.fromkeys(MODULES, 0.0)
        self.uncertainty = dict.fromkeys(MODULES, 0.0)
        self.budget = config.target_r * len(MODULES)
        self.births: list[tuple[int, torch.optim.AdamW]] = []
        start = [t for parts in self.active.values() for c in parts for t in (c.a, c.b, c.lam)]
        if config.advance_learning:
            start += [t for parts in self.reserve.values() for c in parts for t in (c.a, c.b)]
        self.born(0, start)

    def born(self, step: int, tensors: list[torch.Tensor]) -> None:
        self.births.append((step, torch.optim.AdamW(tensors, lr=LR, weight_decay=WEIGHT_DECAY)))

    def scale(self, name: str) -> float:
        if self.config.scaling == "active_rank":
            return 16 / (len(self.active[name]) + 1e-5)
        return 8.0

    def update(self, name: str) -> torch.Tensor:
        total = sum(c.lam * torch.outer(c.b, c.a) for c in self.active[name])
        if self.config.advance_learning:
            for c in self.reserve[name]:
                total = total + self.config.reserve_lambda * torch.outer(c.b, c.a)
        return self.scale(name) * total

    def regulariser(self) -> torch.Tensor:
        values = []
        for name in MODULES:
            parts = self.active[name] + (self.reserve[name] if self.config.advance_learning else [])
            a, b = torch.stack([c.a for c in parts]), torch.stack([c.b for c in parts], dim=1)
            for gram in (a @ a.T, b.T @ b):
                values.append(((gram - torch.eye(len(parts), dtype=torch.float64)) ** 2).sum())
        if self.config.orth_reg == "squared":
            return sum(values)
        return sum(value.sqrt() for value in values) / len(values)

    def step(self, step: int, parts: int) -> dict[str, float]:
        updates = {name: self.update(name) for name in MODULES}
        for update in updates.values():
            update.retain_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for part in range(parts):
            x, y = batch(step, part)
            weight = {name: self.weights[name] + updates[name] for name in MODULES}
            bias = {name: self.model.get_submodule(name).bias.detach() for name in MODULES}
            hidden = torch.tanh(nn.functional.linear(x, weight["first"], bias["first"]))
            middle = torch.tanh(nn.functional.linear(hidden, weight["shared"], bias["shared"]))
            middle = middle + nn.functional.linear(0.5 * hidden, weight["shared"], bias["shared"])
            out = nn.functional.linear(middle, weight["last"], bias["last"])
            loss = loss + ((out - y) ** 2).mean() / parts
        (loss + self.config.orth_reg_weight * self.regulariser()).backward()
        scores = {}
        if self.total() < self.budget:
            for name in MODULES:
                entries = (updates[name] * updates[name].grad).abs()
                mean = self.config.score_reduction == "mean"
                score = float((entries.mean() if mean else entries.sum() / math.sqrt(entries.numel())).detach())
                beta1, beta2 = self.config.beta1, self.config.beta2
                self.smoothed[name] = beta1 * self.smoothed[name] + (1 - beta1) * score
                deviation = abs(self.smoothed[name] - score)
                self.uncertainty[name] = beta2 * self.uncertainty[name] + (1 - beta2) * deviation
                scores[name] = score
        for birth, optimizer in self.births:
            factor = curve(step - 1, birth if self.config.restart_warmup else 0)
            optimizer.param_groups[0]["lr"] = LR * factor
            optimizer.step()
            optimizer.zero_grad()
        return scores

    def total(self) -> int:
        return sum(map(len, self.active.values()))

    def grow(self, step: int, top_h: int, gains: int, drawn: dict[str, list[Component]]) -> dict[str, int]:
        ranking = sorted(MODULES, key=lambda name: -self.smoothed[name] * self.uncertainty[name])
        missing, grown, fresh = self.budget - self.total(), {}, []
        for name in ranking[:top_h]:
            count = min(gains, missing)
            if not count:
                break
            promoted, self.reserve[name] = self.reserve[name][:count], self.reserve[name][count:]
            for c in promoted:
                if not self.config.advance_learning:
                    c.lam.data.fill_(0.0)
                    fresh += [c.a, c.b]
                fresh.append(c.lam)
            self.active[name] += promoted
            new = drawn[name][:count]
            self.reserve[name] += new
            if self.config.advance_learning:
                fresh += [t for c in new for t in (c.a, c.b)]
            grown[name], missing = count, missing - count
        self.born(step, fresh)
        if self.total() == self.budget:
            self.reserve = {name: [] for name in MODULES}
        return grown


def component(layer, row: int, lam: float) -> Component:
    a, b = layer.increlora_A["default"].detach(), layer.increlora_B["default"].detach()
    return Component(a[row], b[:, row], lam)


TIMING = {"reserve_from": "init", "step_origin": 1, "score_first_step": True, "keep_reserve": False}
"""Where the authors' code differs from the equations in time; recordings of it are replayed in test_authors.py."""

CASES = {
    "paper": {"preset": "paper"},
    "code": {"preset": "code", **TIMING},
    "code, two ranks per event": {"preset": "code", "ranks_per_event": 2, "top_h": 2, **TIMING},
    "without advance learning": {"preset": "paper", "advance_learning": False},
    "without restarted warmup": {"preset": "paper", "restart_warmup": False},
    "neither, no regulariser": {
        "preset": "code",
        **TIMING,
        "advance_learning": False,
        "restart_warmup": False,
        "orth_reg_weight": 0.0,
    },
}


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["one pass", "accumulated"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_equations(case: str, parts: int) -> None:
    torch.manual_seed(0)
    model = Toy().double()
    options = {"top_h": 1, "orth_reg_weight": 0.1, **CASES[case]}
    config = IncreLoraConfig.from_preset(
        options.pop("preset"),
        target_modules=list(MODULES),
        target_r=4,
        deltaT=NU,
        init_std=0.3,
        **options,
    )
    base = Toy().double()
    base.load_state_dict(model.state_dict())
    peft_model = get_peft_model(model, config).train()
    allocator = find_allocator(peft_model)
    layers = allocator.layers
    lam = config.reserve_lambda if config.advance_learning else 0.0
    reserve = config.ranks_per_event
    reference = Reference(
        base,
        config,
        {
            name: [component(layer, 0, 0.0), *(component(layer, 1 + i, lam) for i in range(reserve))]
            for name, layer in layers.items()
        },
    )
    optimizer, scheduler = create_optimizer(
        peft_model,
        lr=LR,
        total_steps=STEPS,
        warmup_steps=WARMUP,
        gradient_accumulation_steps=parts,
        weight_decay=WEIGHT_DECAY,
    )
    events = 0
    for step in range(1, STEPS + 1):
        for part in range(parts):
            x, y = batch(step, part)
            (((peft_model(x) - y) ** 2).mean() / parts).backward()
        recorded = not allocator.finished
        grown = peft_model.update_and_allocate(step)
        ranks_before = {name: layer.rank("default") - grown.get(name, 0) for name, layer in layers.items()}
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        reference.step(step, parts)

        smoothed = torch.tensor([reference.smoothed[name] for name in MODULES], dtype=torch.float64)
        uncertainty = torch.tensor([reference.uncertainty[name] for name in MODULES], dtype=torch.float64)
        if recorded:
            torch.testing.assert_close(allocator.importance[:, 0], smoothed, rtol=1e-7, atol=1e-14)
            torch.testing.assert_close(allocator.importance[:, 1], uncertainty, rtol=1e-7, atol=1e-14)
        if allocator.schedule.is_event(step) and reference.total() < reference.budget:
            events += 1
            drawn = {}
            for name, gain in grown.items():
                first = ranks_before[name] + reserve
                drawn[name] = (
                    [] if allocator.finished else [component(layers[name], first + i, lam) for i in range(gain)]
                )
            assert (
                reference.grow(step, allocator.schedule.top_h, reserve, {n: drawn.get(n, []) for n in MODULES}) == grown
            )
        else:
            assert not grown
        if not grown and step % 8 and step != STEPS:
            continue
        for name, layer in layers.items():
            parts_of = reference.active[name]
            assert layer.rank("default") == len(parts_of)
            rank = len(parts_of)
            for tensor, expected in (
                (layer.increlora_A["default"][:rank], torch.stack([c.a for c in parts_of])),
                (layer.increlora_B["default"][:, :rank], torch.stack([c.b for c in parts_of], dim=1)),
                (layer.increlora_lambda["default"][:rank], torch.stack([c.lam for c in parts_of])),
            ):
                torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-11, msg=lambda m, s=step: f"{s}: {m}")
    assert events >= 3
    assert allocator.finished
    assert reference.total() == reference.budget == sum(peft_model.rank_distribution().values())

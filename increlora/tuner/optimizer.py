"""AdamW in which every component has its own age: own step count, own learning rate.

A component that starts to train late must not inherit the step count of its matrix (it would over-step by up to 3.9
times the learning rate), and with restarted warmup it follows its own warmup (paper, section 3). The result equals
``torch.optim.AdamW`` with one parameter group per birth. All adapter tensors of a device are updated in one flat
vector and their own rates by broadcasting, so a step costs a few dozen kernels whatever the number of modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from increlora.tuner.layer import IncreLoraLayer
    from increlora.tuner.model import IncreLoraModel

NOT_BORN = -1


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warmup from a component's birth, then linear decay that reaches 0 for all at the end of training.

    Attributes:
        warmup_steps: optimizer steps of warmup.
        total_steps: optimizer steps of the whole training.
    """

    warmup_steps: int
    total_steps: int

    def __call__(self, step: int, birth: Tensor) -> Tensor:
        """Factors of the peak learning rate after ``step`` completed updates, for births (rows,) counted likewise."""
        age = (step - birth).to(torch.float64)
        warmup = age / max(1, self.warmup_steps)
        rest = (self.total_steps - birth - self.warmup_steps).clamp_min(1).to(torch.float64)
        decay = ((self.total_steps - step) / rest).clamp_min(0.0)
        return torch.where(age < self.warmup_steps, warmup, decay)

    def first(self, step: int) -> float:
        """The factor of what trains from the start, as in Transformers' ``get_linear_schedule_with_warmup``."""
        return float(self(step, torch.zeros(1, dtype=torch.int64)))


@dataclass
class _Member:
    """One adapter tensor in a bucket. The tensor itself is looked up anew each time, because growth may replace it."""

    layer: IncreLoraLayer
    adapter: str
    kind: str  # A, B or lambda

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.layer, f"increlora_{self.kind}")[self.adapter]

    @property
    def component_dim(self) -> int:
        return 1 if self.kind == "B" else 0

    def trained_rows(self) -> int:
        components = self.layer.components[self.adapter]
        return components.rank if self.kind == "lambda" else components.trained


class _Layout:
    """Where the elements and the components of every tensor lie in a bucket's flat vectors.

    Tensors of one kind and shape lie side by side, so what belongs to a component reaches its elements by broadcasting.

    Args:
        members: the bucket's tensors.
        shapes: of each of them.
    """

    def __init__(self, members: list[_Member], shapes: list[torch.Size]):
        self.shapes = shapes
        self.rows = [shape[member.component_dim] for member, shape in zip(members, shapes, strict=True)]
        self.order = sorted(range(len(members)), key=lambda i: (members[i].kind, shapes[i], i))
        self.groups: list[tuple[slice, slice, torch.Size, torch.Size]] = []  # elements, rows and their shapes
        elements = rows = 0
        for (kind, shape), group in itertools.groupby(self.order, key=lambda i: (members[i].kind, shapes[i])):
            count = len(list(group))
            broadcast = torch.Size([count, 1, shape[1]] if kind == "B" else [count, shape[0], *[1] * (len(shape) - 1)])
            more = (count * shape.numel(), broadcast.numel())
            places = (slice(elements, elements + more[0]), slice(rows, rows + more[1]))
            self.groups.append((*places, torch.Size([count, *shape]), broadcast))
            elements, rows = elements + more[0], rows + more[1]

    def join(self, pieces: list[Tensor]) -> Tensor:
        """One tensor per member to a flat vector."""
        return torch.cat([pieces[i].reshape(-1) for i in self.order])

    def split(self, flat: Tensor, *, by_row: bool = False) -> list[Tensor]:
        """A flat vector to one tensor per member: of its shape, or (rows,)."""
        shapes = [torch.Size([rows]) for rows in self.rows] if by_row else self.shapes
        parts: list[Tensor] = [flat] * len(shapes)
        for i, part in zip(self.order, flat.split([shapes[i].numel() for i in self.order]), strict=True):
            parts[i] = part.view(shapes[i])
        return parts

    def by_component(self, flat: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of a flat vector and of a vector (rows,) that broadcast against each other."""
        return [(flat[at].view(shape), rows[own].view(view)) for at, own, shape, view in self.groups]


class _Bucket:
    """All adapter tensors of one device and dtype, updated together."""

    def __init__(self, members: list[_Member]):
        self.members = members
        device, dtype = members[0].parameter.device, members[0].parameter.dtype
        self.layout = _Layout(members, [member.parameter.shape for member in members])
        self.exp_avg, self.exp_avg_sq = (
            torch.zeros(sum(shape.numel() for shape in self.layout.shapes), device=device, dtype=dtype)
            for _ in range(2)
        )
        self.birth = torch.full((sum(self.layout.rows),), NOT_BORN, device=device)
        self.count = torch.zeros_like(self.birth)
        self.trained = torch.zeros_like(self.birth, dtype=torch.bool)
        self.version = -1

    def refresh(self, version: int) -> None:
        """Follow the growth of the model: re-lay the moments if a tensor was replaced, mark the rows that train."""
        if version == self.version:
            return
        shapes = [member.parameter.shape for member in self.members]
        if shapes != self.layout.shapes:
            self._relayout(shapes)
        device = self.birth.device
        self.trained = self.layout.join(
            [
                torch.arange(rows, device=device) < member.trained_rows()
                for member, rows in zip(self.members, self.layout.rows, strict=True)
            ]
        )
        self.version = version

    def _relayout(self, shapes: list[torch.Size]) -> None:
        old, new = self.layout, _Layout(self.members, shapes)

        def moved(flat: Tensor) -> Tensor:
            pieces = []
            for member, piece, shape in zip(self.members, old.split(flat), shapes, strict=True):
                dim = member.component_dim
                keep = min(piece.shape[dim], shape[dim])
                pieces.append(piece.new_zeros(shape))
                pieces[-1].narrow(dim, 0, keep).copy_(piece.narrow(dim, 0, keep))
            return new.join(pieces)

        def moved_rows(flat: Tensor, fill: int) -> Tensor:
            pieces = old.split(flat, by_row=True)
            return new.join(
                [F.pad(piece, (0, r - len(piece)), value=fill) for piece, r in zip(pieces, new.rows, strict=True)]
            )

        self.exp_avg, self.exp_avg_sq = moved(self.exp_avg), moved(self.exp_avg_sq)
        self.birth, self.count = moved_rows(self.birth, NOT_BORN), moved_rows(self.count, 0)
        self.layout = new

    def step(self, updates: int, group: dict[str, Any], learning_rates: Callable[[Tensor], Tensor]) -> None:
        """One AdamW update.

        Args:
            updates: completed optimizer updates.
            group: the parameter group: betas, eps, weight_decay.
            learning_rates: births (rows,) to learning rates (rows,).
        """
        newborn = self.trained & (self.birth == NOT_BORN)
        # what an event of this very step has created has no gradient yet: it is born after this update
        self.birth = torch.where(newborn, updates + 1 if updates else 0, self.birth)
        active = self.trained & (self.birth <= updates)
        parameters: list[Any] = [member.parameter for member in self.members]
        silent = [i for i, p in enumerate(parameters) if p.grad is None]
        moments = (self.exp_avg, self.exp_avg_sq)
        before = [moment.clone() for moment in moments] if silent else []
        for i in silent:
            self.layout.split(active, by_row=True)[i].zero_()
        self.count = self.count + active
        gradient = self.layout.join([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

        beta1, beta2 = group["betas"]
        rate = learning_rates(self.birth)
        count = self.count.clamp_min(1).to(torch.float64)
        step_size = torch.where(active, rate / (1 - beta1**count), 0.0).to(gradient.dtype)
        root = (1 - beta2**count).sqrt().to(gradient.dtype)

        self.exp_avg.lerp_(gradient, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for moment, old in zip(moments, before, strict=False):  # as torch does, leave a tensor without gradient alone
            for i in silent:
                self.layout.split(moment)[i].copy_(self.layout.split(old)[i])
        denominator = torch.sqrt(self.exp_avg_sq, out=gradient)
        for elements, roots in self.layout.by_component(denominator, root):
            elements.div_(roots)
        change = torch.div(self.exp_avg, denominator.add_(group["eps"]), out=denominator)
        for elements, sizes in self.layout.by_component(change, step_size):
            elements.mul_(sizes)

        if group["weight_decay"]:
            decay = torch.where(active, 1 - rate * group["weight_decay"], 1.0).to(gradient.dtype)
            rows = zip(self.members, self.layout.split(decay, by_row=True), strict=True)
            torch._foreach_mul_(parameters, [r.unsqueeze(1) if member.kind == "A" else r for member, r in rows])
        torch._foreach_sub_(parameters, self.layout.split(change))

    def state_dict(self) -> dict[str, Any]:
        return {
            "shapes": [tuple(shape) for shape in self.layout.shapes],
            **{name: getattr(self, name) for name in ("exp_avg", "exp_avg_sq", "birth", "count")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["shapes"]) != len(self.members):
            raise ValueError(f"optimizer state of {len(state['shapes'])} tensors for {len(self.members)} in the model")
        self.layout = _Layout(self.members, [torch.Size(shape) for shape in state["shapes"]])
        for name in ("exp_avg", "exp_avg_sq", "birth", "count"):
            setattr(self, name, state[name].to(self.birth.device, copy=True))
        self.version = -1


class IncreLoraAdamW(torch.optim.AdamW):
    """AdamW for a model with an IncreLoRA adapter.

    Adapter tensors are updated per component (see the module's docstring); all other trainable parameters (classifier,
    pooler) by ``torch.optim.AdamW`` itself. The state dict holds the state of growth too (ranks, reserve, smoothed
    scores), so saving the adapter and the optimizer is a complete checkpoint.

    Args:
        model: the PEFT model, or its IncreLoRA tuner.
        lr: peak learning rate.
        betas, eps, weight_decay: as in ``torch.optim.AdamW``; biases and normalisation weights do not decay.
        schedule: the learning-rate curve of later births; without it they follow the group's learning rate.

    Raises:
        ValueError: the model has no trainable IncreLoRA adapter.
        RuntimeError: in :meth:`step`, if ``update_and_allocate`` was not called since the last one.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        schedule: WarmupDecay | None = None,
    ):
        from increlora.tuner.model import find_tuner

        tuner: IncreLoraModel = find_tuner(model)
        members = [_Member(*entry) for entry in tuner.component_tensors()]
        if not members:
            raise ValueError("the model has no trainable IncreLoRA adapter: was it loaded with is_trainable=True?")
        adapter = {id(member.parameter) for member in members}
        rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in adapter]
        no_decay = normalisation_and_bias_names(model)
        groups: list[dict[str, Any]] = [
            {"params": [member.parameter for member in members], "components": True},
            {"params": [p for n, p in rest if n not in no_decay], "components": False},
            {"params": [p for n, p in rest if n in no_decay], "components": False, "weight_decay": 0.0},
        ]
        self.tuner = tuner
        self._grouped_version = tuner.growth_version
        super().__init__(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=False,
        )
        self.schedule = schedule
        self.updates = 0
        self._members = members
        self._buckets = self._start()
        tuner.attach_optimizer()

    def _start(self) -> list[_Bucket]:
        buckets: dict[tuple[torch.device, torch.dtype], list[_Member]] = {}
        for member in self._members:
            buckets.setdefault((member.parameter.device, member.parameter.dtype), []).append(member)
        return [_Bucket(bucket) for bucket in buckets.values()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """torch's groups with the adapter's tensors of this moment.

        Growth may have replaced them before the step, and a ``GradScaler`` and ``zero_grad`` have to see the new ones.
        """
        groups: list[dict[str, Any]] = self.__dict__["param_groups"]
        if self._grouped_version != self.tuner.growth_version:
            for group in groups:
                if group["components"]:
                    group["params"] = [member.parameter for bucket in self._buckets for member in bucket.members]
            self._grouped_version = self.tuner.growth_version
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["param_groups"] = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. ``tuner.update_and_allocate(step)`` has to come first, after the backward pass."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.tuner.consume_allocation()
        groups = self.param_groups
        (components,) = (group for group in groups if group["components"])
        try:
            self.param_groups = [group for group in groups if not group["components"]]
            super().step()
        finally:
            self.param_groups = groups
        if not self.updates:  # as with torch's AdamW, the model may have moved to another device until now
            self._buckets = self._start()
        self._follow_growth()
        for bucket in self._buckets:
            bucket.step(self.updates, components, lambda birth: self._learning_rates(components, birth))
        self.updates += 1
        return loss

    def _follow_growth(self) -> None:
        for bucket in self._buckets:
            bucket.refresh(self.tuner.growth_version)

    def _learning_rates(self, group: dict[str, Any], birth: Tensor) -> Tensor:
        """Learning rate of every row (rows,): the group's, or with restarted warmup the curve of its birth."""
        current = torch.full(birth.shape, group["lr"], dtype=torch.float64, device=birth.device)
        if self.schedule is None or not self.tuner.restart_warmup:
            return current
        peak = group.get("initial_lr", group["lr"])
        return torch.where(birth > 0, peak * self.schedule(self.updates, birth), current)

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict with the components' moments, births and counts and the state of growth beside it."""
        self._follow_growth()
        state = super().state_dict()
        state["increlora"] = {
            "updates": self.updates,
            "buckets": [bucket.state_dict() for bucket in self._buckets],
            "growth": self.tuner.growth_state_dict(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the moments and the state of growth; the model's active components are loaded with the adapter."""
        state_dict = dict(state_dict)
        own = state_dict.pop("increlora")
        super().load_state_dict(state_dict)
        self.tuner.load_growth_state_dict(own["growth"])
        self.updates = own["updates"]
        self._buckets = self._start()
        for bucket, state in zip(self._buckets, own["buckets"], strict=True):
            bucket.load_state_dict(state)
        self._follow_growth()


def normalisation_and_bias_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay leaves alone: biases and everything in a normalisation layer."""
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if "bias" in name or "norm" in type(module).__name__.lower():
                names.add(f"{prefix}.{name}" if prefix else name)
    return names


def create_optimizer(
    model: nn.Module,
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    gradient_accumulation_steps: int = 1,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> tuple[IncreLoraAdamW, LambdaLR]:
    """Optimizer and schedule for a plain training loop; also tells the tuner how long training lasts.

    Example::

        optimizer, scheduler = create_optimizer(model, lr=1e-3, total_steps=1000, warmup_steps=100)
        for step, batch in enumerate(batches, start=1):
            model(**batch).loss.backward()
            model.update_and_allocate(step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    Args:
        model: the PEFT model.
        lr: peak learning rate.
        total_steps: optimizer steps of the whole training.
        warmup_steps: steps of linear warmup, of every birth.
        gradient_accumulation_steps: backward passes per optimizer step; divide each loss by it.
        weight_decay, betas, eps: as in ``torch.optim.AdamW``.
    """
    from increlora.tuner.model import find_tuner

    schedule = WarmupDecay(warmup_steps, total_steps)
    tuner = find_tuner(model)
    tuner.gradient_accumulation_steps = gradient_accumulation_steps
    tuner.set_total_steps(total_steps, warmup_steps)
    optimizer = IncreLoraAdamW(model, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, schedule=schedule)
    return optimizer, LambdaLR(optimizer, schedule.first)

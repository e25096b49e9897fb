"""AdamW in which every component has its own age: own step count, own learning rate.

A component that starts to train late must not inherit the step count of its tensor (its first updates would be up to
3.9 times too large), and with restarted warmup it follows a warmup of its own (paper, section 3). The result equals
``torch.optim.AdamW`` with one parameter group per birth. Moments are plain tensors per parameter in
``optimizer.state``; what there is per component (a few numbers per tensor) is computed on the CPU for all at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .decay import decay_groups
from .errors import IncreLoraError
from .growth import find_allocators
from .layer import KINDS
from .storage import PER_COMPONENT

if TYPE_CHECKING:
    from .layer import IncreLoraLayer

Betas = tuple[float, float]


@dataclass(frozen=True)
class RestartedWarmup:
    """Learning rate of a component that starts to train late (paper, section 3).

    It rises linearly from its birth over ``warmup_steps`` and then follows the curve of the others, scaled so that it
    is 1 where the warmup ends: ``min(1, f(t) / f(birth + warmup))``. Under a linear schedule all births reach 0
    together at the end of training.

    Attributes:
        warmup_steps: optimizer steps of warmup.
        curve: factor ``f`` of the peak learning rate after so many updates, for what trains from the start; ``None``
            for a schedule that is no function of the step: a component then warms up to the current rate.
    """

    warmup_steps: int
    curve: Callable[[int], float] | None = None

    @classmethod
    def of(cls, scheduler: Any, warmup_steps: int) -> RestartedWarmup:
        """The rule for a scheduler of torch or Transformers; only a ``LambdaLR`` tells its curve.

        Where it has a curve for every group, that of the first group of adapter tensors.
        """
        if not isinstance(scheduler, LambdaLR):
            return cls(warmup_steps)
        groups = scheduler.optimizer.param_groups
        adapted = [index for index, group in enumerate(groups) if group.get("components")]
        return cls(warmup_steps, scheduler.lr_lambdas[adapted[0] if adapted else 0])

    def __call__(self, step: int, birth: int) -> float:
        """Factor after ``step`` updates: of the peak rate, or without a curve of the current one."""
        if step - birth < self.warmup_steps:
            return (step - birth) / self.warmup_steps
        if self.curve is None:
            return 1.0
        start = self.curve(birth + self.warmup_steps)
        return min(1.0, self.curve(step) / start) if start > 0 else 0.0


@dataclass(frozen=True)
class _AdapterTensor:
    """Where a tensor of an adapter belongs."""

    layer: IncreLoraLayer
    adapter: str
    kind: str  # A, B or lambda

    def trained_rows(self) -> int:
        part = self.layer.components[self.adapter]
        return part.rank if self.kind == "lambda" else part.trained

    def rest_is_zero(self) -> bool:
        """Whether what does not train is zero: spare rows, and the reserve's lambda, but not a frozen reserve."""
        part = self.layer.components[self.adapter]
        return self.kind == "lambda" or part.trained == part.used

    def restarts(self) -> bool:
        return self.layer.components[self.adapter].config.restart_warmup

    def lr_ratio(self) -> float:
        ratio = self.layer.components[self.adapter].config.lambda_lr_ratio
        if self.kind != "lambda":
            return 1.0
        return math.sqrt(self.layer.out_features) if ratio == "width" else float(ratio)


class _Rows:
    """Step counts and births of the components of all tensors of a group, as flat vectors on the CPU.

    The entries ``step`` and ``birth`` of the optimizer's state are views of these vectors.
    """

    def __init__(self, states: list[dict[str, Any]], members: list[_AdapterTensor]):
        self.sizes = [len(state["step"]) for state in states]
        self.starts = torch.tensor([0, *self.sizes[:-1]], device="cpu").cumsum(0).clamp_max(max(0, sum(self.sizes) - 1))
        self._counts: list[int] = []
        self.same_age: list[bool] = []  # of each tensor: whether those that `first` last counted were born together
        self.steps = torch.cat([state["step"] for state in states])
        self.births = torch.cat([state["birth"] for state in states])
        for state, steps, births in zip(
            states, self.steps.split(self.sizes), self.births.split(self.sizes), strict=True
        ):
            state["step"], state["birth"] = steps, births
        restarts = torch.tensor([member.restarts() for member in members], dtype=torch.bool, device="cpu")
        restarted = restarts.repeat_interleave(torch.tensor(self.sizes, device="cpu"))
        self.late, self.which = (self.births * restarted).unique(return_inverse=True)

    def first(self, counts: list[int]) -> Tensor:
        """Which entries are among the first so many of their tensor (components,)."""
        if counts != self._counts:
            self._counts = counts
            self._mask = torch.cat(
                [torch.arange(size, device="cpu") < n for size, n in zip(self.sizes, counts, strict=True)]
            )
            births = [births[:n] for births, n in zip(self.births.split(self.sizes), counts, strict=True)]
            self.same_age = [len(one) > 0 and bool((one == one[0]).all()) for one in births]
        return self._mask

    def rates(self, group: dict[str, Any], schedule: RestartedWarmup | None) -> Tensor:
        """Learning rate of every component, float64."""
        current = group["lr"]
        full = current if schedule is None or schedule.curve is None else group.get("initial_lr", current)
        rates = [
            full * schedule(group["updates"], birth) if schedule is not None and birth else current
            for birth in self.late.tolist()
        ]
        return torch.tensor(rates, dtype=torch.float64, device="cpu")[self.which]


class IncreLoraAdamW(torch.optim.AdamW):
    """AdamW for a model with an IncreLoRA adapter.

    Adapter tensors are updated per component (see the module's docstring), all other parameters by
    ``torch.optim.AdamW`` itself. The state dict holds the state of growth too (reserve, smoothed scores, events), so
    the saved adapter and the optimizer are a complete checkpoint.

    Args:
        params: the model; or parameters or groups as for any optimizer, and then ``adapted``.
        lr: peak learning rate.
        betas, eps, weight_decay: as in ``torch.optim.AdamW``. Where ``params`` is the model, biases and normalisation
            weights do not decay.
        adapted: the model whose adapter tensors are among ``params``.
        schedule: the learning rates of later births; without it they have the group's.

    Attributes:
        youngest_lr: learning rate that the A and B born last had in the last step.

    Raises:
        IncreLoraError: the model has no trainable IncreLoRA adapter.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        adapted: nn.Module | None = None,
        schedule: RestartedWarmup | None = None,
    ):
        model = params if isinstance(params, nn.Module) else adapted
        if model is None:
            raise IncreLoraError("IncreLoraAdamW needs the model: IncreLoraAdamW(model) or adapted=model")
        self._components: dict[Tensor, _AdapterTensor] = {
            tensor: _AdapterTensor(layer, allocator.adapter, kind)
            for allocator in find_allocators(model)
            for layer in allocator.layers.values()
            for kind, tensor in layer.tensors(allocator.adapter).items()
            if tensor.requires_grad
        }
        if not self._components:
            raise IncreLoraError(
                "the model has no trainable IncreLoRA adapter: create one with get_peft_model(model, "
                "IncreLoraConfig()), or load it with is_trainable=True"
            )
        groups = decay_groups(model) if isinstance(params, nn.Module) else params
        self._rows: dict[int, _Rows] = {}
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False)
        self.schedule = schedule
        self.youngest_lr = lr
        self._first = {parameter: component.trained_rows() for parameter, component in self._components.items()}
        for allocator in find_allocators(model):
            allocator.follow(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's: adapter tensors go to groups of one learning rate each, other parameters to one of their own."""
        given = param_group["params"]
        parts: dict[float | None, list[Any]] = {}
        for entry in [given] if isinstance(given, Tensor) else given:
            component = self._components.get(entry[1] if isinstance(entry, tuple) else entry)
            ratio = None if component is None else component.lr_ratio()
            parts.setdefault(ratio, []).append(entry)
        for ratio, entries in parts.items():
            own: dict[str, Any] = {**param_group, "params": entries, "components": ratio is not None}
            if ratio is not None:
                own.update(lr=float(param_group.get("lr", self.defaults["lr"])) * ratio, updates=0)
            super().add_param_group(own)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. ``update_and_allocate(step)`` comes first, after the backward pass."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["components"]]
            inspect.unwrap(torch.optim.AdamW.step)(self)  # torch wraps it anew to run hooks, which `step` here does
        finally:
            self.param_groups = groups
        adapted = [index for index, group in enumerate(groups) if group["components"]]
        for index in adapted:
            youngest = self._step_components(index, groups[index])
            if index == adapted[0]:
                self.youngest_lr = youngest
        return loss

    def _step_components(self, index: int, group: dict[str, Any]) -> float:
        """One update of the adapter tensors of a group; returns the learning rate of the components born last."""
        parameters: list[nn.Parameter] = group["params"]
        beta1, beta2 = group["betas"]
        members = [self._components[parameter] for parameter in parameters]
        states = [self._state(parameter) for parameter in parameters]
        rows = self._rows.get(index)
        if rows is None or rows.sizes != [len(state["step"]) for state in states]:
            rows = self._rows[index] = _Rows(states, members)

        trained = [member.trained_rows() for member in members]
        silent = [parameter.grad is None for parameter in parameters]
        active = rows.first(
            [
                0 if without else min(state["rows"], now)
                for without, state, now in zip(silent, states, trained, strict=True)
            ]
        )
        rows.steps += active
        rates = torch.where(active, rows.rates(group, self.schedule), 0.0)
        youngest = float(rates[torch.where(active, rows.births, -1).argmax()]) if len(rates) else float(group["lr"])
        counts = rows.steps.clamp_min(1).to(torch.float64)
        table = torch.stack(
            [rates / (1 - beta1**counts), (1 - beta2**counts).sqrt(), 1 - rates * group["weight_decay"]]
        )
        kinds: dict[tuple[torch.device, torch.dtype, tuple[str, torch.Size] | None], list[int]] = {}
        for i, parameter in enumerate(parameters):
            if not silent[i]:
                whole = rows.same_age[i] and states[i]["rows"] == trained[i] and members[i].rest_is_zero()
                like = None if whole else (members[i].kind, parameter.shape)
                kinds.setdefault((parameter.device, parameter.dtype, like), []).append(i)
        numbers = table[:, rows.starts].tolist() if any(like is None for *_, like in kinds) else []
        for (device, dtype, like), chosen in kinds.items():
            values: list[Any] = [parameters[i] for i in chosen]
            gradients: list[Any] = [parameter.grad for parameter in values]
            averages, squares = ([states[i][name] for i in chosen] for name in ("exp_avg", "exp_avg_sq"))
            if like is None:  # one number per tensor
                sizes, roots, decays = ([row[i] for i in chosen] for row in numbers)
                self._update(group, values, gradients, averages, squares, sizes, roots, decays)
                continue
            # one per component: tensors of one shape are stacked, else a GPU has several kernels for each of them
            kind, shape = like
            dim = KINDS[kind]
            entries = rows.starts[chosen].unsqueeze(1) + torch.arange(shape[dim], device="cpu")
            broadcast = [len(chosen), *(length if i == dim else 1 for i, length in enumerate(shape))]
            size, root, decay = table[:, entries].to(device, dtype).view(3, *broadcast).unbind()
            value, gradient, average, square = map(torch.stack, (values, gradients, averages, squares))
            self._update(group, [value], [gradient], [average], [square], [size], [root], [decay])
            for tensors, stacked in ((values, value), (averages, average), (squares, square)):
                torch._foreach_copy_(tensors, list(stacked.unbind()))

        group["updates"] += 1
        for state, now in zip(states, trained, strict=True):
            if now != state["rows"]:  # born at this step's event: their first gradient is that of the next step
                state["birth"][state["rows"] : now] = group["updates"]
                state["step"][min(now, state["rows"]) :] = 0
                state["rows"] = now
                self._rows.pop(index, None)
        return youngest

    @staticmethod
    def _update(
        group: dict[str, Any],
        values: list[Tensor],
        gradients: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_sq: list[Tensor],
        sizes: list[Any],
        roots: list[Any],
        decays: list[Any],
    ) -> None:
        """AdamW on tensors of one device and dtype.

        Args:
            group: betas, eps, weight_decay.
            values, gradients: the tensors and their gradients.
            exp_avg, exp_avg_sq: their moments.
            sizes, roots, decays: of each of them step size, root of the second moment's correction, and decay: a
                number, or a tensor that broadcasts to it.
        """
        beta1, beta2 = group["betas"]
        if group["weight_decay"]:
            torch._foreach_mul_(values, decays)
        torch._foreach_lerp_(exp_avg, gradients, 1 - beta1)
        torch._foreach_mul_(exp_avg_sq, beta2)
        torch._foreach_addcmul_(exp_avg_sq, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(exp_avg_sq)
        torch._foreach_div_(denominators, roots)
        torch._foreach_add_(denominators, group["eps"])
        changes = torch._foreach_div(exp_avg, denominators)
        torch._foreach_mul_(changes, sizes)
        torch._foreach_sub_(values, changes)

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        state = self.state[parameter]
        if "exp_avg" not in state:  # as with torch's AdamW, the model may have moved to another device until now
            size = parameter.shape[KINDS[self._components[parameter].kind]]
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] = torch.zeros(size, dtype=torch.float32, device="cpu")
            state["birth"] = torch.zeros(size, dtype=torch.int64, device="cpu")
            state["rows"] = self._first[parameter]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the moments and the state of growth; the model's active components are loaded with the adapter.

        Raises:
            IncreLoraError: the state dict is that of another kind of optimizer.
        """
        if not all("components" in group for group in state_dict["param_groups"]):
            raise IncreLoraError(
                "the state dict is not that of an IncreLoraAdamW: load it into an optimizer of its kind"
            )
        super().load_state_dict(state_dict)
        self._rows.clear()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for parameter, index in zip(parameters, indices, strict=True):
            saved = state_dict["state"].get(index)
            # torch casts what it loads to the parameter's device and dtype
            if saved is not None and parameter in self._components:
                for name in PER_COMPONENT & saved.keys():
                    self.state[parameter][name] = saved[name].to("cpu", copy=True)


def create_optimizer(
    model: nn.Module,
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    gradient_accumulation_steps: int = 1,
    weight_decay: float = 0.0,
    betas: Betas = (0.9, 0.999),
    eps: float = 1e-8,
    lr_scheduler_type: str = "linear",
    lr_scheduler_kwargs: dict[str, Any] | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[IncreLoraAdamW, LRScheduler]:
    """Optimizer and schedule for a plain training loop; also tells the allocators how long training lasts.

    Example::

        optimizer, scheduler = create_optimizer(model, lr=1e-3, total_steps=1000, warmup_steps=100)
        for step, batch in enumerate(batches, start=1):
            model(**batch).loss.backward()
            model.update_and_allocate(step)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    Args:
        model: the PEFT model, or any model that holds IncreLoRA layers.
        lr: peak learning rate.
        total_steps: optimizer steps of the whole training.
        warmup_steps: steps of linear warmup, of every birth.
        gradient_accumulation_steps: backward passes per optimizer step; divide each loss by it.
        weight_decay, betas, eps: as in ``torch.optim.AdamW``.
        lr_scheduler_type, lr_scheduler_kwargs: as in Transformers' ``get_scheduler``.
        scaler: the ``GradScaler`` of a loop in float16.
    """
    from transformers import get_scheduler

    optimizer = IncreLoraAdamW(model, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    scheduler = get_scheduler(
        lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_steps,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=lr_scheduler_kwargs,
    )
    optimizer.schedule = RestartedWarmup.of(scheduler, warmup_steps)
    for allocator in find_allocators(model):
        allocator.gradient_accumulation_steps = gradient_accumulation_steps
        allocator.regulariser.scaler = scaler
        allocator.set_total_steps(total_steps, warmup_steps)
    return optimizer, scheduler

"""Growth: one `RankAllocator` per adapter scores its modules and, at an event, chooses those that gain rank.

The allocator lives in the layers, not in the tuner: it works in any model that holds them, also where PEFT or
Transformers have only injected the layers (``inject_adapter_in_model``, ``model.add_adapter``).
"""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .allocation import GrowthSchedule, allocate, component_costs, nominal_budget, resolve_schedule
from .config import IncreLoraConfig
from .distributed import anywhere, average, check_equal, share_scores, sum_in, world_size
from .errors import IncreLoraError
from .importance import LambdaGradients, smooth
from .layer import ALIGNMENT, IncreLoraLayer, named_layers
from .regulariser import Deviation, Regulariser, orthogonality
from .storage import can_resize, resize_state

if TYPE_CHECKING:
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)


class RankAllocator:
    """Lets the ranks of one adapter grow (paper, section 3), and has its regulariser act.

    Storage: a module starts with room for ``config.capacity`` components. One that needs more gets twice as much where
    every optimizer that is followed can take larger tensors (`follow`), in a single process; elsewhere it counts as
    full. Both are logged; ``max_r`` allocates what is needed from the start.

    Args:
        model: any module that holds the adapter's layers.
        adapter: name of the adapter.

    Attributes:
        layers: the adapted layers by module name.
        config: of the adapter.
        costs: what a component of each module counts in the budget: 1, or its parameters with lambda (``budget_by``).
        budget: total at which growth ends, of ranks (``r_final``) or of parameters; ``None`` if the adapter does not
            grow.
        schedule: when and by how much ranks grow; known once the length of training is.
        step: number of the last optimizer step, 0 before the first one.
        gradient_accumulation_steps: backward passes per optimizer step; scores are taken of their sum.
        regulariser: adds the orthogonality regulariser's gradient.
    """

    def __init__(self, model: nn.Module, adapter: str):
        self.adapter = adapter
        self.layers = {name.removeprefix("base_model.model."): layer for name, layer in named_layers(model, adapter)}
        self.config: IncreLoraConfig = next(iter(self.layers.values())).components[adapter].config
        widths = [layer.in_features + layer.out_features for layer in self.layers.values()]
        self.costs = component_costs(self.config, widths)
        self.regulariser = Regulariser(self.layers, adapter, self.config, self._begin_step)
        self._lambda_gradients = LambdaGradients(self.layers, adapter)
        self.schedule: GrowthSchedule | None = None
        self.step = 0
        self.gradient_accumulation_steps = 1
        self._names = {layer: name for name, layer in self.layers.items()}
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._length: tuple[int, int] | None = None
        self._allocated = True
        self._stepped = False
        self._calls = 0  # of `update_and_allocate` since the last optimizer step
        self._repeated = 0  # optimizer steps in a row with several calls
        self._reached: set[str] = set()
        self._drawn: dict[IncreLoraLayer, bool] = {}  # whether something is in the reserves filled at the last event
        self._warned: set[str] = set()
        self._checked_equal = False
        self.budget: int | None = None
        if self.config.target_r is not None and self.config.grows:
            nominal, highest = nominal_budget(self.config, widths), self._total("max_rank")
            self.budget = min(nominal, max(highest, self.total))
            if self.budget < nominal:
                unit = self.config.unit
                self._say(
                    f"target_r={self.config.target_r} asks for {nominal} {unit} in all, but these {len(self.layers)} "
                    f"modules hold {highest} at most (max_r, or the sides of their matrices): growth ends there"
                )
        for layer in self.layers.values():
            layer.components[adapter].allocator = self
            self.watch(layer)
        self._finish_if_full(fresh=True)
        if self.config.total_step is not None and self.config.deltaT is not None:
            self.set_total_steps(self.config.total_step)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_optimizers": []}  # a copy is followed by nobody yet

    # ---------------------------------------------------------------- what users ask

    @property
    def total_rank(self) -> int:
        """Sum of the active ranks."""
        return sum(layer.rank(self.adapter) for layer in self.layers.values())

    @property
    def total(self) -> int:
        """What is held against the budget: the total rank, or the parameters of the active components."""
        return self._total("rank")

    @property
    def finished(self) -> bool:
        """Whether ranks grow no more."""
        return not any(layer.components[self.adapter].growing for layer in self.layers.values())

    @property
    def importance(self) -> Tensor:
        """Columns ``I`` and ``U`` of all modules, in the order of `layers` (modules, 2)."""
        return torch.stack([layer.components[self.adapter].importance.cpu() for layer in self.layers.values()])

    def rank_distribution(self) -> dict[str, int]:
        """Active rank per module, in the form that ``LoraConfig(rank_pattern=...)`` takes."""
        return {name: layer.rank(self.adapter) for name, layer in self.layers.items()}

    def events(self) -> list[dict[str, Any]]:
        """One ``{"step", "grown": {module: ranks}, "total_rank"}`` per event so far."""
        grown: dict[int, dict[str, int]] = {}
        for name, layer in self.layers.items():
            for step, ranks in layer.components[self.adapter].gains:
                event = grown.setdefault(step, {})
                event[name] = event.get(name, 0) + ranks  # twice where a second training counts its steps anew
        total, events = sum(layer.components[self.adapter].initial for layer in self.layers.values()), []
        for step in sorted(grown):
            total += sum(grown[step].values())
            events.append({"step": step, "grown": grown[step], "total_rank": total})
        return events

    def active_parameters(self) -> int:
        """Numbers in the active components, ``sum of rank * (in + out + 1)``; the reserve is not counted."""
        return sum(
            layer.rank(self.adapter) * (layer.in_features + layer.out_features + 1) for layer in self.layers.values()
        )

    def orthogonality(self, *, reserve: bool = True) -> Deviation:
        """How far A and B are from orthonormal (Figure 5).

        Args:
            reserve: whether the reserve counts beside the active components.
        """
        return orthogonality(self.layers, self.adapter, reserve=reserve)

    # ---------------------------------------------------------------- training

    def set_total_steps(self, total_step: int, warmup_steps: int = 0) -> None:
        """Tell how long training lasts; resolves the interval and the line along which ranks grow.

        Args:
            total_step: optimizer steps of the whole training.
            warmup_steps: steps of the learning rate's linear warmup, the default interval ``nu``.

        Raises:
            ConfigError: the budget cannot be reached in that time.
            IncreLoraError: the adapter's tensors are sharded over processes.
        """
        self._length, self._stepped, self._calls = (total_step, warmup_steps), False, 0
        for layer in self.layers.values():  # compiled code does not call `watch`
            self.watch(layer)
        self._say_what_is_inexact()
        if self.budget is None or self.finished:
            return
        for name, layer in self.layers.items():
            if hasattr(layer.increlora_A[self.adapter], "device_mesh"):
                raise IncreLoraError(
                    f"{name} is sharded (fully_shard, FSDP2), and ranks cannot grow in a shard: find them first with "
                    "find_ranks and train the LoraConfig that it returns"
                )
        self.schedule = resolve_schedule(
            self.config,
            total_step=total_step,
            warmup_steps=warmup_steps,
            costs=self.costs,
            initial=self._initial_total(),
            budget=self.budget,
        )
        for layer in self.layers.values():  # a backward pass that came before does not count
            layer.components[self.adapter].recorder = None
        self._arm()

    def follow(self, optimizer: Optimizer) -> None:
        """Keep an optimizer's state in step with growth, and the state of growth in the optimizer's state dict.

        With that, a saved adapter and the optimizer are a complete checkpoint. `create_optimizer` and the callback do
        it; call it for an optimizer of your own.
        """
        if self.follows(optimizer):
            return
        self._optimizers.append(weakref.ref(optimizer))
        self._calls = self._repeated = 0
        optimizer.register_state_dict_post_hook(lambda _, state: {**state, self._key: self.state_dict()})
        optimizer.register_load_state_dict_pre_hook(lambda _, state: self.take_state(state))
        optimizer.register_step_pre_hook(lambda *_: self._begin_update())
        if self._length is not None:
            self._say_what_is_inexact()

    def follows(self, optimizer: Optimizer) -> bool:
        """Whether `follow` has been called for it."""
        return any(reference() is optimizer for reference in self._optimizers)

    @property
    def _key(self) -> str:
        """Where an optimizer's state dict holds the state of growth."""
        return f"increlora.{self.adapter}"

    def take_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Restore the state of growth from an optimizer's state dict; returns what is the optimizer's own."""
        if self._key in state:
            self.load_state_dict(state[self._key])
        return {name: value for name, value in state.items() if name != self._key}

    def update_and_allocate(self, global_step: int) -> dict[str, int]:
        """Score the step, and at an event let the chosen modules grow.

        Call it once per optimizer step: after the last backward pass, before ``optimizer.step()``.

        Args:
            global_step: number of this optimizer step, counted from 1.

        Returns:
            ``{module: ranks gained}``, empty if nothing grew.

        Raises:
            IncreLoraError: the length of training is unknown, no gradient reached any module, a step had more backward
                passes than `gradient_accumulation_steps` says, a step comes twice, or an event was missed.
        """
        if global_step < 1:
            raise IncreLoraError(f"global_step is {global_step}: optimizer steps count from 1")
        before, grows = self.step, self.budget is not None and not self.finished
        if grows and global_step <= before and self._stepped:
            raise IncreLoraError(
                f"update_and_allocate({global_step}) comes after step {before}: call it once per optimizer step, after "
                "the last backward pass, with a number that goes on from epoch to epoch"
            )
        self._allocated = self._stepped = True
        self._calls += 1
        self.step = global_step
        self.regulariser.next_step()
        if not grows:
            return {}
        if self.schedule is None:
            raise IncreLoraError(
                "IncreLoRA does not know how long training lasts: use IncreLoraCallback with the Trainer, "
                "create_optimizer(..., total_steps=...) in a loop, or set total_step and deltaT in the config"
            )
        missed = [step for step in range(before + 1, global_step) if before and self.schedule.is_event(step)]
        if missed:
            raise IncreLoraError(
                f"global_step is {global_step} after {before}, but ranks were to grow at {missed[0]}: call "
                "`update_and_allocate` once per optimizer step, with the number of that step"
            )
        if world_size() > 1 and not self._checked_equal:
            check_equal(self.adapter, list(self.layers.values()))
            self._checked_equal = True
        self._check_survived()
        if self.schedule.is_scored(global_step):
            self._score(counts=global_step > 1 or self.config.score_first_step)
        if global_step == 1 and self.config.reserve_from == "first_step":
            for layer in self.layers.values():
                layer.add_reserve(self.adapter)
        grown = self._grow() if self.schedule.is_event(global_step) else {}
        self._arm()
        return grown

    def watch(self, layer: IncreLoraLayer) -> None:
        """Make sure that the regulariser reaches a layer; called in every training forward pass."""
        if layer not in self._names:
            raise IncreLoraError(
                "a copy of the adapter's layers is trained, as nn.DataParallel makes one, which the Trainer uses on "
                "several GPUs: start with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0"
            )
        self.regulariser.watch(self._names[layer], layer)
        if self.config.score == "taylor":
            self._lambda_gradients.watch(self._names[layer])
        recorder = layer.components[self.adapter].recorder
        if recorder is not None:  # the model may have moved since
            layer.record(self.adapter, hold=recorder.hold)

    def restore(self, step: int) -> None:
        """Go on from the ranks and scores that a layer has been given, after optimizer step ``step``."""
        self.step, self._stepped, self._calls, self._drawn = step, False, 0, {}
        self.regulariser.next_step()
        self._arm()

    def state_dict(self) -> dict[str, Any]:
        """What continues growth exactly and is not in an adapter saved by PEFT: reserve, scores, events, storage."""
        state: dict[str, Any] = {}
        for name, layer in self.layers.items() if self.config.grows else ():
            if self.adapter not in layer.components:  # deleted
                continue
            part = layer.components[self.adapter]
            rows = slice(part.rank, part.used)
            state[name] = {
                **layer.growth_state(self.adapter),
                "A": layer.increlora_A[self.adapter].detach()[rows].clone(),
                "B": layer.increlora_B[self.adapter].detach()[:, rows].clone(),
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the active components have been loaded before.

        Raises:
            IncreLoraError: the loaded adapter has other ranks than the state.
        """
        self._drawn = {}
        for name, saved in state.items():
            layer = self.layers[name]
            if layer.rank(self.adapter) != saved["rank"]:
                raise IncreLoraError(
                    f"{name} has rank {layer.rank(self.adapter)}, the optimizer's checkpoint {saved['rank']}: load the "
                    "adapter of the same checkpoint first"
                )
            layer.load_growth_state(self.adapter, saved)
            rank, used = saved["rank"], saved["rank"] + saved["reserve"]
            with torch.no_grad():
                a, b = layer.increlora_A[self.adapter], layer.increlora_B[self.adapter]
                a[rank:], b[:, rank:] = 0, 0
                layer.increlora_lambda[self.adapter][rank:] = 0
                a[rank:used], b[:, rank:used] = saved["A"].to(a), saved["B"].to(b)
        if self._length is not None:
            self.set_total_steps(*self._length)

    def resume_from_ranks(self) -> None:
        """Go on from ranks that were loaded without the state of growth; keep the events that led there."""
        self._drawn = {}
        for layer in self.layers.values():
            part = layer.components[self.adapter]
            while part.gains and part.initial + sum(ranks for _, ranks in part.gains) > part.rank:
                part.gains.pop()
            self.watch(layer)  # whose tensors may be others
        self._finish_if_full()
        self._arm()

    # ---------------------------------------------------------------- inside

    def _total(self, rank: Literal["rank", "max_rank"]) -> int:
        """What the modules count in the budget at their present or their highest rank."""
        ranks = (getattr(layer, rank)(self.adapter) for layer in self.layers.values())
        return sum(number * cost for number, cost in zip(ranks, self.costs, strict=True))

    def _initial_total(self) -> int:
        """Total before the first event, also in a resumed training: the schedule must not depend on the resume."""
        initial = (layer.components[self.adapter].initial for layer in self.layers.values())
        return sum(number * cost for number, cost in zip(initial, self.costs, strict=True))

    def _begin_step(self) -> None:
        """A backward pass has begun that is the first of its optimizer step."""
        if not self._allocated and not self.finished:
            self._say(
                "ranks are not growing: update_and_allocate(step) is never called after the backward pass; call it, "
                "add IncreLoraCallback to the Trainer, or set target_r=None"
            )
        if not self._allocated:
            for layer in self.layers.values():
                recorder = layer.components[self.adapter].recorder
                if recorder is not None:
                    recorder.clear()
        self._allocated = False

    def _begin_update(self) -> None:
        """An optimizer that is followed takes a step."""
        self._repeated = self._repeated + 1 if self._calls > 1 else 0  # once may be a step that was skipped on purpose
        if self._repeated == 2:
            self._say(
                f"update_and_allocate was called {self._calls} times since the last optimizer step: call it once per "
                "optimizer step, not after every backward pass"
            )
        self._calls = 0
        deleted = any(self.adapter not in layer.components for layer in self.layers.values())
        if self._stepped and not self._allocated and not deleted and not self.finished:
            self._say(
                "update_and_allocate is called after optimizer.step(): call it between the backward pass and the "
                "optimizer's step, else scores are taken of one step's gradient and the next one's weights"
            )

    def _arm(self) -> None:
        """Record what the score is taken from in the next step if that one is scored."""
        on = self.schedule is not None and not self.finished and self.schedule.is_scored(self.step + 1)
        hold = self.gradient_accumulation_steps > 1 or world_size() > 1
        free = self.config.score == "taylor"
        self._lambda_gradients.listen(on and free)
        for layer in self.layers.values():
            if on and not free:
                layer.record(self.adapter, hold=hold)
            else:
                layer.components[self.adapter].recorder = None

    def _score(self, *, counts: bool) -> None:
        parts = [layer.components[self.adapter] for layer in self.layers.values()]
        total = self._taylor_scores() if self.config.score == "taylor" else self._exact_scores()
        total = total / self.regulariser.loss_scale() if counts else torch.zeros_like(total)
        importance = torch.stack([part.importance.to(total) for part in parts])
        for part, row in zip(parts, smooth(importance, total, self.config.beta1, self.config.beta2), strict=True):
            part.importance = row

    def _check_arrived(self, arrived: list[bool]) -> None:
        if world_size() > 1:
            arrived = anywhere(arrived, next(iter(self.layers.values())).increlora_lambda[self.adapter].device)
        if not any(arrived):
            raise IncreLoraError(
                f"no gradient reached {len(arrived)} of {len(arrived)} modules in a step that is scored: was "
                "update_and_allocate called without a backward pass, or is the model in eval mode (call model.train())?"
            )
        self._reached.update(name for name, one in zip(self.layers, arrived, strict=True) if one)

    def _taylor_scores(self) -> Tensor:
        sums, arrived = self._lambda_gradients.take()
        self._check_arrived(arrived)
        if world_size() > 1:
            average(sums)  # signed sums are linear in the gradient
        return sums.abs()

    def _exact_scores(self) -> Tensor:
        parts = [layer.components[self.adapter] for layer in self.layers.values()]
        passes = [0 if part.recorder is None else part.recorder.passes for part in parts]
        self._check_arrived([count > 0 for count in passes])
        recorders = [part.recorder for part in parts if part.recorder is not None]
        if max(passes) > 1:
            raise IncreLoraError(
                f"{max(passes)} backward passes since the last `update_and_allocate`: call it once per optimizer step "
                "(with the Trainer, IncreLoraCallback does), and if a step has several backward passes say so with "
                "`gradient_accumulation_steps` of `create_optimizer`"
            )
        many = world_size() > 1
        if many and not recorders[0].hold:
            raise IncreLoraError("the process group was initialised after create_optimizer: initialise it before")
        scores = [
            recorder.take(sum_in(index % world_size()) if many else None) for index, recorder in enumerate(recorders)
        ]
        total = torch.stack([score.to(scores[0].device) for score in scores])
        if many:
            share_scores(total)
        return total

    def _grow(self) -> dict[str, int]:
        assert self.schedule is not None and self.budget is not None
        if unused := [name for name in self.layers if name not in self._reached]:
            self._say(
                f"no gradient has reached {len(unused)} of {len(self.layers)} modules in any scored step yet, "
                f"{unused[0]} among them: they score 0 and gain no rank. If the forward pass does not use them leave "
                "them out (exclude_modules); if they are in eval mode call model.train()"
            )
        names, layers = list(self.layers), list(self.layers.values())
        importance = torch.stack([layer.components[self.adapter].importance for layer in layers])
        gains = allocate(
            importance.prod(dim=1).tolist(),
            [layer.rank(self.adapter) for layer in layers],
            [self._highest(name, layer) for name, layer in self.layers.items()],
            top_h=self.schedule.top_h,
            ranks_per_event=self.schedule.ranks_per_event,
            budget=self.budget,
            target=self.schedule.target(self.step, self._initial_total(), self.budget),
            costs=self.costs,
            allow_overshoot=self.config.allow_overshoot,
        )
        grown = {names[index]: ranks for index, ranks in gains.items()}
        for name, ranks in grown.items():
            layer = self.layers[name]
            needed = layer.components[self.adapter].rank + ranks + self.config.ranks_per_event
            if needed > layer.capacity(self.adapter):
                self._enlarge(name, layer, needed)
            layer.grow(self.adapter, ranks, self.step)
        self._drawn = {self.layers[name]: self._has_reserve(self.layers[name]) for name in grown}
        logger.debug("step %d: %d of %d %s, grown %s", self.step, self.total, self.budget, self.config.unit, grown)
        self._finish_if_full()
        return grown

    def _check_survived(self) -> None:
        """What was drawn at an event must still be there after the optimizer's step."""
        drawn, self._drawn = self._drawn, {}
        if any(there and not self._has_reserve(layer) for layer, there in drawn.items()):
            raise IncreLoraError(
                "the optimizer has overwritten what was drawn at the last event, as one does that keeps a copy of the "
                "weights (DeepSpeed, float32 masters): use one that updates the parameters themselves, or find the "
                "ranks with find_ranks and train the LoraConfig that it returns. (Or weights were loaded without their "
                "state of growth.)"
            )

    def _has_reserve(self, layer: IncreLoraLayer) -> bool:
        part = layer.components[self.adapter]
        return bool(layer.increlora_A[self.adapter].detach()[part.rank : part.used].any())

    def _finish_if_full(self, *, fresh: bool = False) -> None:
        """Close growth if there is nothing left to grow; the storage of a ``fresh`` adapter is held by nobody yet."""
        budget, total = self.budget, self.total
        full = budget is None or all(
            total + cost > budget or layer.rank(self.adapter) >= layer.max_rank(self.adapter)
            for layer, cost in zip(self.layers.values(), self.costs, strict=True)
        )
        if not full or self.finished:
            return
        if budget is not None and total > budget and self.config.allow_overshoot:
            # as in the authors' code, an overshot budget never runs the closing step
            for layer in self.layers.values():
                part = layer.components[self.adapter]
                part.growing, part.recorder = False, None
            return
        for layer in self.layers.values():
            layer.close(self.adapter)
        if fresh or self._can_resize():
            for layer in self.layers.values():
                layer.resize(self.adapter, layer.components[self.adapter].used)

    # ---------------------------------------------------------------- storage

    def _highest(self, name: str, layer: IncreLoraLayer) -> int:
        """The highest rank that a module can have at this event."""
        highest = layer.max_rank(self.adapter)
        room = layer.capacity(self.adapter) - self.config.ranks_per_event
        if room < highest and not self._can_resize():
            if layer.rank(self.adapter) + self.config.ranks_per_event > room:
                self._say(
                    f"{name} counts as full at rank {layer.rank(self.adapter)}: its storage cannot be enlarged, "
                    "because several processes or an optimizer of a fixed layout hold it; set max_r to allocate more "
                    "from the start"
                )
            return room
        return highest

    def _can_resize(self) -> bool:
        """Whether all that holds the adapter's tensors can follow a change of their size."""
        if world_size() > 1 or not self._followed():
            return False
        parameters = [tensor for layer in self.layers.values() for tensor in layer.tensors(self.adapter).values()]
        groups = [group for optimizer in self._followed() for group in optimizer.param_groups]
        if not {id(parameter) for parameter in parameters} & {id(one) for group in groups for one in group["params"]}:
            return False  # the optimizer has copies of them
        return all(can_resize(one, parameter) for one in self._followed() for parameter in parameters)

    def _enlarge(self, name: str, layer: IncreLoraLayer, needed: int) -> None:
        old = layer.capacity(self.adapter)
        new = max(2 * old, math.ceil(needed / ALIGNMENT) * ALIGNMENT)
        logger.warning(
            "%s outgrows its storage of %d components and gets %d; max_r allocates them from the start", name, old, new
        )
        layer.resize(self.adapter, new)

    def resize_states(self, parameter: nn.Parameter, shape: torch.Size, dim: int) -> None:
        """Have the optimizers follow a parameter whose size along ``dim`` was that of ``shape``."""
        for optimizer in self._followed():
            resize_state(optimizer, parameter, shape, dim)

    def _followed(self) -> list[Optimizer]:
        return [optimizer for reference in self._optimizers if (optimizer := reference()) is not None]

    def _say_what_is_inexact(self) -> None:
        """Warn of what will not be as the method has it, once the length of training is known."""
        from .optimizer import IncreLoraAdamW

        trains = any(layer.increlora_lambda[self.adapter].requires_grad for layer in self.layers.values())
        if trains and self.config.target_r is not None and self.config.inference_mode:
            self._say(
                f"adapter {self.adapter!r} was loaded for inference and ranks do not grow: load it with "
                "is_trainable=True, or set target_r=None"
            )
        lost = []
        if not self.finished:
            lost.append("components born at an event have neither a warmup nor a bias correction of their own")
        if trains and self.config.lambda_lr_ratio != 1:
            lost.append("lambda_lr_ratio has no effect")
        for optimizer in self._followed():
            if "ScheduleFree" in type(optimizer).__name__ and not self.finished:
                self._say(
                    f"{type(optimizer).__name__} trains an average of weights, in which components drawn at an event "
                    "begin near zero: use another optimizer while ranks grow"
                )
            if lost and not isinstance(optimizer, IncreLoraAdamW):
                self._say(
                    f"{type(optimizer).__name__} keeps one step count and one learning rate per tensor: "
                    f"{' and '.join(lost)}. IncreLoraAdamW (the Trainer's optim='adamw_torch') is exact"
                )

    def _say(self, message: str) -> None:
        """Warn, once per adapter and message."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)


def allocators_of(layers: Iterable[IncreLoraLayer], adapter: str | None = None) -> list[RankAllocator]:
    """The allocators of the layers' active adapters, or that of one; empty if there is none."""
    found = {}
    for layer in layers:
        for name in layer.active_adapters if adapter is None else [adapter]:
            part = layer.components.get(name)
            if part is not None and part.allocator is not None:
                found[id(part.allocator)] = part.allocator
    return list(found.values())


def find_allocators(model: nn.Module, adapter: str | None = None) -> list[RankAllocator]:
    """The allocators in a model of any kind: those of all active adapters, or that of one; empty if there is none."""
    return allocators_of((module for module in model.modules() if isinstance(module, IncreLoraLayer)), adapter)


def find_allocator(model: nn.Module, adapter: str | None = None) -> RankAllocator:
    """The allocator of an adapter, the first active one by default.

    Raises:
        IncreLoraError: the model has no such IncreLoRA adapter.
    """
    if found := find_allocators(model, adapter):
        return found[0]
    wanted = "no active IncreLoRA adapter" if adapter is None else f"no IncreLoRA adapter {adapter!r}"
    raise IncreLoraError(f"the model has {wanted}: create one with get_peft_model(model, IncreLoraConfig())")

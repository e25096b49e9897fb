"""Importance of a module: ``S = avg(|dW * grad(dW)|)`` per step, smoothed over steps.

``dW`` (out x in) is the module's whole update ``s B diag(lambda) A`` and its gradient is never formed by the factored
forward pass. It equals ``G^T X`` with ``G`` (tokens x out) the gradient at the branch's output and ``X`` (tokens x in)
its dropped-out input, so one matrix product per scored step and module gives it. A module can be called several times
in a step (DeBERTa's shared query and key projections, gradient accumulation): the products are summed over all calls
before the absolute value is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLOCK = 2**20
"""Entries of an update matrix that are looked at at a time: a small module's whole, a large one's some rows."""


class UpdateGradient:
    """Collects ``grad(dW)`` of one module over the calls of one optimizer step and reduces it to the score ``S``.

    A module that is called once is reduced block by block without ever forming the matrix. One that is called several
    times keeps the sum until its last call has been differentiated, and with ``hold=True`` (gradient accumulation,
    several processes) until :meth:`take`, because the absolute value may only be taken of the complete sum.

    Args:
        update: returns some rows of the current update matrix ``dW`` (out x in).
        reduction: ``"mean"`` or ``"sum_sqrt"``, see :class:`IncreLoraConfig`.
        hold: keep the matrix until :meth:`take`.
    """

    def __init__(self, update: Callable[[slice], Tensor], reduction: str, hold: bool):
        self.update = update
        self.reduction = reduction
        self.hold = hold
        self._gradient: Tensor | None = None
        self._score: Tensor | None = None
        self._pending = 0
        self._called_outside_backward = False

    def record_call(self) -> None:
        """Count a forward call whose backward is to come.

        Activation checkpointing runs the forward again inside the backward pass. The first run was already counted
        (without gradients in the reentrant kind), so the second one does not count.
        """
        inside_backward = torch._C._current_graph_task_id() != -1
        if inside_backward and self._called_outside_backward:
            return
        self._called_outside_backward |= not inside_backward
        self._pending += 1

    def add(self, grad_output: Tensor, inputs: Tensor) -> None:
        """Add one call's ``G^T X``; ``grad_output`` (..., out), ``inputs`` (..., in)."""
        if self._score is not None:
            raise RuntimeError(
                "a second backward pass reached IncreLoRA since the last `update_and_allocate`: call it once per "
                "optimizer step (with the Trainer, IncreLoraCallback does), and if a step has several backward passes "
                "say so with `gradient_accumulation_steps` of `create_optimizer`"
            )
        outputs = grad_output.reshape(-1, grad_output.shape[-1])
        if outputs.dtype == torch.float16:  # the scaled sum over tokens overflows long before the adapter's gradients
            outputs = outputs.float()
        # under autocast the two differ in dtype; the product is then as exact as any other of that backward pass
        tokens = inputs.reshape(-1, inputs.shape[-1]).to(outputs.dtype)

        def gradient(rows: slice) -> Tensor:
            product = outputs[:, rows].T @ tokens
            return product.to(torch.promote_types(product.dtype, torch.float32))

        self._pending -= 1
        complete = self._pending == 0 and not self.hold
        if complete and self._gradient is None:
            self._score = self._reduce(gradient, outputs.shape[1], tokens.shape[1])
            return
        whole = gradient(slice(None))
        self._gradient = whole if self._gradient is None else self._gradient.add_(whole)
        if complete:
            self._score = self._reduce(self._gradient.__getitem__, *self._gradient.shape)
            self._gradient = None

    @property
    def arrived(self) -> bool:
        """Whether a gradient has arrived since the last :meth:`take`."""
        return self._gradient is not None or self._score is not None

    def take(self, average: Callable[[Tensor], Any] | None = None) -> Tensor | None:
        """The score of the step that ends (a scalar), or ``None`` if no gradient arrived; starts the next step.

        Args:
            average: averages the gradient over processes in place before it is reduced.
        """
        score = self._score
        if self._gradient is not None:
            if average is not None:
                average(self._gradient)
            score = self._reduce(self._gradient.__getitem__, *self._gradient.shape)
        self._gradient = self._score = None
        self._pending = 0
        self._called_outside_backward = False
        return score

    def _reduce(self, gradient: Callable[[slice], Tensor], height: int, width: int) -> Tensor:
        """The score of a matrix (height x width) of which ``gradient`` returns rows that may be overwritten."""
        step = max(1, BLOCK // width)
        blocks = [slice(start, min(start + step, height)) for start in range(0, height, step)]
        sums = [gradient(rows).mul_(self.update(rows)).abs_().sum() for rows in blocks]
        entries = height * width
        return torch.stack(sums).sum() / (entries if self.reduction == "mean" else entries**0.5)


class _Tap(torch.autograd.Function):
    """Identity on the branch's output that hands its gradient and the branch's input to an :class:`UpdateGradient`."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, recorder: UpdateGradient) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.recorder = recorder
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        ctx.recorder.add(grads[0].detach(), inputs.detach())
        return grads[0], None, None


def tap(output: Tensor, inputs: Tensor, recorder: UpdateGradient) -> Tensor:
    """Return ``output`` (..., out) unchanged; its gradient and ``inputs`` (..., in) reach ``recorder`` in backward."""
    return _Tap.apply(output, inputs, recorder)


class Importance:
    """Smoothed importance of all modules, as vectors.

    ``I_t = beta1 I_{t-1} + (1 - beta1) S_t`` and ``U_t = beta2 U_{t-1} + (1 - beta2) |I_t - S_t|``; the score that
    decides is ``I_t * U_t`` (paper, section 3; both start at 0 as in the authors' code).
    """

    def __init__(self, modules: int, beta1: float, beta2: float):
        self.beta1, self.beta2 = beta1, beta2
        self.smoothed = torch.zeros(modules)
        self.uncertainty = torch.zeros(modules)

    def update(self, scores: Tensor) -> None:
        """Take in the scores ``S_t`` (modules,) of one step. A step with an infinite or NaN score is passed over."""
        scores = scores.detach()
        self.smoothed, self.uncertainty = self.smoothed.to(scores), self.uncertainty.to(scores)
        finite = torch.isfinite(scores).all()
        smoothed = self.beta1 * self.smoothed + (1 - self.beta1) * scores
        uncertainty = self.beta2 * self.uncertainty + (1 - self.beta2) * (smoothed - scores).abs()
        self.smoothed = torch.where(finite, smoothed, self.smoothed)
        self.uncertainty = torch.where(finite, uncertainty, self.uncertainty)

    def scores(self) -> Tensor:
        """``I * U`` per module (modules,)."""
        return self.smoothed * self.uncertainty

    def state_dict(self) -> dict[str, Tensor]:
        return {"smoothed": self.smoothed.cpu(), "uncertainty": self.uncertainty.cpu()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.smoothed, self.uncertainty = state["smoothed"].clone(), state["uncertainty"].clone()

"""Importance of a module: ``S = avg(|dW * grad(dW)|)`` per step, smoothed over steps; or what lambda's gradient tells.

``dW`` (out x in) is the module's whole update ``s B diag(lambda) A``, and the factored forward pass never forms its
gradient. It equals ``G^T X`` with ``G`` (tokens x out) the gradient at the branch's output and ``X`` (tokens x in) its
dropped-out input: one matrix product per scored step and module.

The product is handed to autograd as the gradient of a *receiver*, a leaf of the shape of ``dW`` that holds no memory.
So the engine itself adds up the products of a module that is called several times in a pass (DeBERTa's shared query and
key projections), calls the hook of the receiver once with their sum, whatever checkpointing or a compiler has done to
the graph, and nothing but tensors is in the traced code.

The sum of ``dW * grad(dW)`` over its entries, signs kept, is that of ``lambda_k dL/dlambda_k`` over the components. It
costs nothing, because lambda's gradient is there anyway (`LambdaGradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .layer import IncreLoraLayer

BLOCK = 2**20
"""Entries of an update matrix that are multiplied with its gradient at a time."""


class _Tap(torch.autograd.Function):
    """Identity on the branch's output (..., out) whose backward pass also gives ``G^T X`` to the receiver (out, in)."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, inputs: Tensor, receiver: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.dtype, ctx.shape = receiver.dtype, receiver.shape
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        (inputs,) = ctx.saved_tensors
        outputs = grads[0].reshape(-1, grads[0].shape[-1])
        if outputs.dtype == torch.float16:  # the scaled sum over tokens overflows long before the adapter's gradients
            outputs = outputs.float()
        if not inputs.is_floating_point():  # indices stand for one-hot inputs
            summed = torch.zeros(ctx.shape, dtype=ctx.dtype, device=outputs.device)
            return grads[0], None, summed.index_add_(1, inputs.reshape(-1), outputs.T.to(ctx.dtype))
        # under autocast the two differ in dtype; the product is then as exact as any other of that backward pass
        tokens = inputs.reshape(-1, inputs.shape[-1]).to(outputs.dtype)
        return grads[0], None, (outputs.T @ tokens).to(ctx.dtype)


def tap(output: Tensor, inputs: Tensor, receiver: Tensor) -> Tensor:
    """``output`` (..., out) unchanged; its gradient times ``inputs`` reaches ``receiver`` (out, in).

    ``inputs`` is (..., in), or an embedding's indices (...), which stand for one-hot inputs.
    """
    return _Tap.apply(output, inputs, receiver)


class UpdateGradient:
    """Receives ``grad(dW)`` of one module and reduces it to the score ``S`` of an optimizer step.

    With ``hold=False`` every backward pass is reduced as it arrives and the matrix is dropped. With ``hold=True``
    (gradient accumulation, several processes) the matrix is summed until `take`, because the absolute value may
    only be taken of the complete sum.

    Args:
        like: a tensor of the adapter, for device and dtype.
        shape: ``(out, in)``.
        update: returns some rows of the current update matrix ``dW``, or with None all.
        reduction: ``"mean"`` or ``"sum_sqrt"``, see `IncreLoraConfig`.
        hold: keep the matrix until `take`.
    """

    def __init__(
        self, like: Tensor, shape: tuple[int, int], update: Callable[[slice | None], Tensor], reduction: str, hold: bool
    ):
        self._state = (like.device, torch.promote_types(like.dtype, torch.float32), shape, update, reduction, hold)
        self._start()

    def _start(self) -> None:
        self.device, dtype, self.shape, self.update, self.reduction, self.hold = self._state
        self.receiver = torch.zeros((), dtype=dtype, device=self.device).expand(self.shape).requires_grad_()
        self.receiver.register_post_accumulate_grad_hook(self._arrive)
        self._scores: list[Tensor] = []

    def __getstate__(self) -> tuple[Any, ...]:
        return self._state

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # a copied tensor has lost its hooks
        self._state = state
        self._start()

    def _arrive(self, receiver: Tensor) -> None:
        if not self.hold and receiver.grad is not None:
            self._scores.append(self._reduce(receiver.grad))
            receiver.grad = None

    def fits(self, like: Tensor) -> bool:
        """Whether the receiver has the device and precision of an adapter's tensor."""
        return self.receiver.device == like.device and self.receiver.dtype == torch.promote_types(
            like.dtype, torch.float32
        )

    @property
    def passes(self) -> int:
        """Backward passes that have arrived since the last `take`; with ``hold`` their sum counts as one."""
        return len(self._scores) + (self.receiver.grad is not None)

    def clear(self) -> None:
        """Forget what has arrived."""
        self._scores.clear()
        self.receiver.grad = None

    def take(self, add_up: Callable[[Tensor], Any] | None = None) -> Tensor:
        """The score of the step that ends (a scalar), 0 if no gradient has arrived; starts the next step.

        Args:
            add_up: sums the held gradient over processes in place before it is reduced; a process that no gradient has
                reached takes part with zeros.
        """
        if self.hold:
            gradient = self.receiver.grad
            if gradient is None:
                gradient = torch.zeros(self.shape, dtype=self.receiver.dtype, device=self.device)
            if add_up is not None:
                add_up(gradient)
            score = self._reduce(gradient)
        else:
            score = self._scores[0] if self._scores else self.receiver.new_zeros(())
        self.clear()
        return score

    @torch.no_grad()
    def _reduce(self, gradient: Tensor) -> Tensor:
        """The score of a gradient (out, in), which is overwritten."""
        height, width = self.shape
        step = max(1, BLOCK // width)
        if step >= height:
            total = gradient.mul_(self.update(None)).abs_().sum()
        else:
            blocks = [slice(start, min(start + step, height)) for start in range(0, height, step)]
            total = torch.stack([gradient[rows].mul_(self.update(rows)).abs_().sum() for rows in blocks]).sum()
        entries = height * width
        return total / (entries if self.reduction == "mean" else entries**0.5)


class LambdaGradients:
    """``sum over k of lambda_k dL/dlambda_k`` of every module, its active components counted.

    Read where the gradient of lambda has been accumulated in the backward pass, so before it is clipped: after several
    passes of an optimizer step it is that of their sum.

    Args:
        layers: by module name.
        adapter: name of the adapter.
    """

    def __init__(self, layers: Mapping[str, IncreLoraLayer], adapter: str):
        self.layers, self.adapter = layers, adapter
        self.listening = False
        self._start()

    def _start(self) -> None:
        self._hooked: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:  # copied parameters have lost their hooks
        self.__dict__.update(state)
        self._start()

    def watch(self, name: str) -> None:
        """Hook into the gradient of a module's lambda; cheap if that has happened before."""
        parameter = self.layers[name].increlora_lambda[self.adapter]
        if parameter.requires_grad and self._hooked.get(name) is not parameter:
            parameter.register_post_accumulate_grad_hook(partial(self._arrive, name))
            self._hooked[name] = parameter

    def listen(self, on: bool) -> None:
        """Take note of the next step's gradients, or do not; what has arrived is forgotten."""
        self.listening = on
        self._sums.clear()

    @torch.no_grad()
    def _arrive(self, name: str, parameter: Tensor) -> None:
        if self.listening and parameter.grad is not None and cast(nn.Module, self.layers[name]).training:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self._sums[name] = torch.dot(parameter.detach().to(dtype), parameter.grad.to(dtype))

    def take(self) -> tuple[Tensor, list[bool]]:
        """The sums (modules,), 0 where no gradient has arrived, and where one has; starts the next step."""
        first = next(iter(self.layers.values())).increlora_lambda[self.adapter]
        nothing = torch.zeros((), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
        sums = torch.stack([self._sums.get(name, nothing).to(nothing) for name in self.layers])
        arrived = [name in self._sums for name in self.layers]
        self._sums.clear()
        return sums, arrived


def smooth(importance: Tensor, scores: Tensor, beta1: float, beta2: float) -> Tensor:
    """One step of ``I_t = beta1 I_{t-1} + (1 - beta1) S_t`` and ``U_t = beta2 U_{t-1} + (1 - beta2) |I_t - S_t|``.

    Args:
        importance: columns I and U (modules, 2); both start at 0 as in the authors' code.
        scores: ``S_t`` (modules,). A step with an infinite or NaN score is passed over.
        beta1, beta2: paper, section 3: 0.85 each.

    Returns:
        The new columns (modules, 2). The score that decides is their product ``I * U``.
    """
    smoothed = beta1 * importance[:, 0] + (1 - beta1) * scores
    uncertainty = beta2 * importance[:, 1] + (1 - beta2) * (smoothed - scores).abs()
    return torch.where(torch.isfinite(scores).all(), torch.stack([smoothed, uncertainty], dim=1), importance)

"""An exact speed-up of DeBERTa-v2/v3 for every method: project only the relative positions that a batch can have.

Disentangled attention projects all ``2 * position_buckets`` rows of the relative-position table to keys and queries in
every layer (512 in DeBERTaV3-base), but a batch of length L only looks up distances from ``-(L - 1)`` to ``L - 1``.
Distances up to half the buckets have a row of their own, so up to that length the table can be cut to the ``2 L`` rows
around its centre: the same loss and the same gradients. (Dropout on the table draws fewer random numbers.)
"""

from __future__ import annotations

from typing import Any

from torch import nn


def slice_relative_positions(model: nn.Module) -> int:
    """Let every DeBERTa-v2 attention in the model cut its relative-position table to the batch's length.

    Args:
        model: any model; changed in place by forward hooks.

    Returns:
        The number of attention modules that do so now; 0 for other architectures.
    """
    count = 0
    module: Any
    for module in model.modules():
        if type(module).__name__ == "DisentangledSelfAttention" and getattr(module, "relative_attention", False):
            module.register_forward_pre_hook(_Slice(module.pos_ebd_size, module.position_buckets), with_kwargs=True)
            count += 1
    return count


class _Slice:
    """Forward pre-hook: cuts ``rel_embeddings`` and tells the module the new span.

    Args:
        span: half the rows of the whole table.
        buckets: ``position_buckets``; 0 or less if distances are not bucketed.
    """

    def __init__(self, span: int, buckets: int):
        self.span = span
        self.exact = buckets // 2 if buckets > 0 else span  # distances up to here have a row of their own

    def __call__(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        table: Any = kwargs.get("rel_embeddings")
        length = hidden_states.shape[-2]
        fits = (
            table is not None and kwargs.get("query_states") is None and length - 1 <= self.exact and length < self.span
        )
        module.pos_ebd_size = length if fits else self.span
        if fits:
            kwargs = {**kwargs, "rel_embeddings": table[self.span - length : self.span + length]}
        return args, kwargs

"""The batches of an epoch: dynamic padding, examples of similar length together.

Written by hand, and not with a DataLoader and Transformers' collator, because the order of an epoch is a function of
its arguments alone: a resumed run sees the same batches without replaying those before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from increlora.training.data import Encoded

MEGABATCH = 50
"""Batches among which examples are sorted by length; the window of Transformers' LengthGroupedSampler."""


def collate(data: Encoded, rows: Sequence[int], pad_token_id: int, multiple: int = 1) -> dict[str, Tensor]:
    """A batch padded to its longest example, rounded up to ``multiple``; tensors are (rows, length), labels (rows,)."""
    chosen = [data.features[row] for row in rows]
    length = max(len(feature["input_ids"]) for feature in chosen)
    length = -(-length // multiple) * multiple
    batch = {}
    for name in chosen[0]:
        fill = pad_token_id if name == "input_ids" else 0
        batch[name] = torch.tensor([feature[name] + [fill] * (length - len(feature[name])) for feature in chosen])
    batch["labels"] = data.labels[list(rows)]
    return batch


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, *, grouping: bool) -> list[list[int]]:
    """The rows of every batch of one epoch; depends on the arguments alone, so a resumed run sees the same batches.

    Args:
        lengths: tokens per example.
        batch_size: examples per optimizer step; the last batch may be smaller.
        seed: of the run.
        epoch: number of the epoch, from 0.
        grouping: sort by length within windows of `MEGABATCH` batches, then shuffle the batches.
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    if not grouping:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = []
    window = batch_size * MEGABATCH
    for start in range(0, len(order), window):
        rows = sorted(order[start : start + window], key=lambda row: -lengths[row])
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def evaluation_order(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches by length, longest first, so that padding and memory are smallest and known at once."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

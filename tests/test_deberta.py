"""The sliced relative-position table gives the same loss and the same gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from increlora.training.deberta import slice_relative_positions


def model(share_att_key: bool, buckets: int) -> DebertaV2ForSequenceClassification:
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=buckets,
        pos_att_type=["p2c", "c2p"],
        share_att_key=share_att_key,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return DebertaV2ForSequenceClassification(config).double()


@pytest.mark.parametrize("length", [1, 7, 16, 17, 18, 40, 64])
@pytest.mark.parametrize(("share_att_key", "buckets"), [(True, 32), (False, 32), (True, -1)])
def test_loss_and_gradients_are_identical(length: int, share_att_key: bool, buckets: int) -> None:
    ids = torch.randint(5, 50, (3, length), generator=torch.Generator().manual_seed(length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 1])}
    whole, sliced = model(share_att_key, buckets), model(share_att_key, buckets)
    assert slice_relative_positions(sliced) == 2
    losses = [module(**batch).loss for module in (whole, sliced)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-14)
    for (name, expected), (_, found) in zip(whole.named_parameters(), sliced.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-13, msg=name)


def test_the_table_is_really_cut() -> None:
    sliced = model(True, 32)
    slice_relative_positions(sliced)
    rows = []
    projection = sliced.deberta.encoder.layer[0].attention.self.key_proj
    projection.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[-2]))
    for length in (6, 12, 30):
        ids = torch.randint(5, 50, (1, length))
        sliced(input_ids=ids)
    assert rows == [6, 12, 12, 24, 30, 64]

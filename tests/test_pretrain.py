"""Pretraining the mini backbone: the folder loads as any Hub model does; the same settings, the same weights."""

from __future__ import annotations

import pytest
import torch

from increlora.errors import ConfigError
from increlora.glue.tasks import TASKS
from increlora.training import checksums
from increlora.training import pretrain as module
from increlora.training.backbone import load_model
from increlora.training.pretrain import PretrainSettings, pretrain
from increlora.training.settings import Backbone

TINY = PretrainSettings(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    steps=6,
    batch_size=8,
    documents=2000,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrain") / "backbone"
    return out, pretrain(TINY, out, progress=False)


def test_the_folder_is_in_hub_layout_and_nothing_is_left_beside_it(backbone):
    out, summary = backbone
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert summary["loss"] > 0 and summary["seconds"] > 0
    assert "no task labels" in (out / "README.md").read_text(encoding="utf-8")


def test_only_pooler_and_classifier_are_new(backbone):
    from transformers import AutoModel, AutoModelForSequenceClassification

    out, summary = backbone
    encoder, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert sum(p.numel() for p in encoder.parameters()) == summary["parameters"]
    model, info = AutoModelForSequenceClassification.from_pretrained(out, num_labels=3, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"pooler", "classifier"}
    assert not info["unexpected_keys"]
    torch.testing.assert_close(model.deberta.state_dict(), encoder.state_dict())
    assert next(model.parameters()).dtype == torch.float32


def test_module_names_and_flags_are_those_of_deberta_v3(backbone):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(backbone[0])
    linears = {name for name, m in model.deberta.encoder.layer[1].named_modules() if isinstance(m, torch.nn.Linear)}
    assert linears == {
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    }
    config = model.config
    assert config.relative_attention and config.share_att_key and not config.position_biased_input
    assert set(config.pos_att_type) == {"p2c", "c2p"} and config.norm_rel_ebd == "layer_norm"
    assert config.type_vocab_size == 0 and config.layer_norm_eps == 1e-7
    assert config.hidden_dropout_prob == TINY.dropout


def test_the_tokenizer_packs_pairs_and_spells_unknown_words(backbone):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone[0])
    assert tokenizer.is_fast
    pair = tokenizer("Anna bought a rose", "anna bought a flower")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(pair)
    assert tokens == ["[CLS]", *["anna", "bought", "a", "rose"], "[SEP]", *["anna", "bought", "a", "flower"], "[SEP]"]
    assert "[UNK]" not in tokenizer.tokenize("a zyzzyva, 42 quokkas!")
    assert len(tokenizer("日本")["input_ids"]) > 2
    assert tokenizer.mask_token_id is not None
    batch = tokenizer(["anna", "anna bought a rose"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]


def test_the_same_settings_give_the_same_weights_and_replace_the_folder(backbone, tmp_path):
    first = (backbone[0] / "model.safetensors").read_bytes()
    out = tmp_path / "backbone"
    state = torch.get_rng_state()
    pretrain(TINY.model_copy(update={"seed": 1}), out, progress=False)
    assert (out / "model.safetensors").read_bytes() != first
    pretrain(TINY, out, progress=False)
    assert (out / "model.safetensors").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state is left alone"


def test_a_failed_write_leaves_the_old_folder(backbone, tmp_path, monkeypatch):
    out = tmp_path / "backbone"
    pretrain(TINY, out, progress=False)
    before = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(module, "_CARD", "{no_such_field}")
    with pytest.raises(KeyError):
        pretrain(TINY.model_copy(update={"seed": 2}), out, progress=False)
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_the_loss_falls():
    from increlora.glue import corpus

    settings = TINY.model_copy(update={"steps": 80, "learning_rate": 5e-3, "batch_size": 32})
    texts = corpus.documents(count=settings.documents)
    tokenizer = module.build_tokenizer(texts, settings.vocab_size, settings.max_position_embeddings)
    data = module.PretrainingData.from_documents(texts, tokenizer, settings)
    torch.manual_seed(0)
    model = module.PretrainingModel(module.backbone_config(settings, len(tokenizer)))
    history = module._train(model, data, settings, progress=False)
    assert sum(history[-10:]) < 0.8 * sum(history[:10])


def test_corruption_asks_only_where_it_may():
    from increlora.glue import corpus

    texts = corpus.documents(count=2000)
    tokenizer = module.build_tokenizer(texts, 1024, 64)
    data = module.PretrainingData.from_documents(texts, tokenizer, TINY)
    batch = module.corrupt(data, torch.arange(500), TINY, torch.Generator().manual_seed(0))
    original = data.ids[:500, : batch.ids.shape[1]]
    masked = batch.masked != -100
    assert torch.equal(batch.ids[masked].unique(), torch.tensor([module.MASK]))
    assert torch.equal(batch.masked[masked], original[masked])
    special = original <= module.MASK
    assert torch.equal(batch.ids[special], original[special])
    changed = (batch.ids != original) & ~masked
    assert (batch.replaced[changed] == 1).all() and 0.01 < changed.float().mean() < 0.2
    assert (batch.replaced[:, 0] < 0).all(), "whether words are replaced is not asked at [CLS]"
    connective = torch.isin(original, torch.tensor(tokenizer.convert_tokens_to_ids([*corpus.CONNECTIVES.values()])))
    whole = masked.any(1)[:, None]
    assert 0.3 < masked[connective & whole].float().mean() < 0.6, "TINY masks 0.4 of them, in sequences with any mask"
    assert 0.1 < masked[~connective & ~special & whole].float().mean() < 0.25
    asked = batch.connective != -100
    some = [corpus.CONNECTIVES[relation] for relation in corpus.ASKED]
    hidden = masked & torch.isin(original, torch.tensor(tokenizer.convert_tokens_to_ids(some)))
    assert torch.equal(asked, hidden.any(1)), "one is asked at [CLS] only where it cannot be read"
    assert torch.equal(batch.connective[asked], (original * hidden).sum(1)[asked])
    without = module.corrupt(
        data, torch.arange(500), TINY.model_copy(update={"objective": "mlm+rtd"}), torch.Generator().manual_seed(0)
    )
    assert torch.equal(without.ids, batch.ids) and (without.connective < 0).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_size", 9), ("objective", "mlm+nsp"), ("objective", "mlm+mlm"), ("steps", 0), ("vocab_size", 50)],
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        PretrainSettings(**{field: value})


def test_a_damaged_folder_is_named_and_made_anew(backbone, tmp_path, monkeypatch, caplog):
    """Also one of which only two bits are wrong, which loads and would train."""
    from increlora.training import job

    monkeypatch.chdir(tmp_path)
    whole = Backbone(name="tiny", path=str(tmp_path / "backbone"), pretrain=TINY.model_dump())
    job._need_backbone(whole, progress=False)
    assert "it has no config.json; pretraining the backbone" in caplog.text
    weights = tmp_path / "backbone" / "model.safetensors"
    good = weights.read_bytes()
    assert checksums.damage(tmp_path / "backbone") is None
    for bad in (good[:-1] + bytes([good[-1] ^ 3]), good[: len(good) // 2]):
        weights.write_bytes(bad)
        assert checksums.damage(tmp_path / "backbone") == "model.safetensors is damaged"
        with pytest.raises(ConfigError, match=r"backbone: .*model\.safetensors is damaged"):
            load_model(whole, TASKS["rte"])
        job._need_backbone(whole, progress=False)
        assert weights.read_bytes() == good == (backbone[0] / "model.safetensors").read_bytes()
    weights.unlink()
    assert checksums.damage(tmp_path / "backbone") == "model.safetensors is missing"

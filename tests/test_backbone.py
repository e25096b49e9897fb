"""Loading a backbone: whatever weight file it has, and no folder that would train on nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from increlora.errors import ConfigError
from increlora.glue.tasks import TASKS
from increlora.training import backbone as module
from increlora.training.backbone import fingerprint, load_config, load_model, load_tokenizer, weight_files
from increlora.training.settings import Backbone


@pytest.fixture
def folder(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy without checksums, as a model from elsewhere is."""
    shutil.copytree(tiny_backbone, tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    return tmp_path / "model"


def _as(folder: Path, layout: str) -> None:
    """Rewrite the weights in another of the layouts that Transformers loads."""
    single = folder / "model.safetensors"
    weights = load_file(single)
    if layout == "sharded":
        load_model(Backbone(name="tiny", path=str(folder)), TASKS["rte"]).base_model.save_pretrained(
            folder, max_shard_size="20KB"
        )
        single.unlink(missing_ok=True)
        assert len(weight_files(folder)) > 2
    elif layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        single.unlink()
    elif layout == "sharded bin":
        index = {}
        for number, (name, tensor) in enumerate(weights.items()):
            torch.save({name: tensor}, folder / f"pytorch_model-{number}.bin")
            index[name] = f"pytorch_model-{number}.bin"
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        single.unlink()


@pytest.mark.parametrize("layout", ["single", "sharded", "bin", "sharded bin"])
def test_the_fingerprint_is_that_of_the_weights_that_are_loaded(layout: str, folder: Path) -> None:
    _as(folder, layout)
    backbone = Backbone(name="tiny", path=str(folder))
    before = fingerprint(backbone)
    load_model(backbone, TASKS["rte"])
    changed = weight_files(folder)[-1]
    changed.write_bytes(changed.read_bytes() + b" ")
    module._fingerprint.cache_clear()
    assert fingerprint(backbone) != before


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"backbone: .* holds no weights"):
        fingerprint(Backbone(name="tiny", path=str(folder)))


def test_a_folder_without_tokenizer_does_not_train(folder: Path) -> None:
    backbone = Backbone(name="tiny", path=str(folder))
    size = load_config(backbone, TASKS["rte"]).vocab_size
    assert len(load_tokenizer(backbone, size)) == len(load_tokenizer(backbone, 2 * size)) == size
    for wrong in (size - 1, 2 * size + 1):
        with pytest.raises(ConfigError, match=f"has {size} tokens, the model's vocabulary {wrong};"):
            load_tokenizer(backbone, wrong)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"backbone: .*tokenizer"):
        load_tokenizer(backbone, size)


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"model_type": "nothing"}'])
def test_a_broken_config_is_a_sentence(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"backbone: the config of .* could not be loaded") as caught:
        load_model(Backbone(name="tiny", path=str(folder)), TASKS["rte"])
    assert "\n" not in str(caught.value)


def test_truncated_weights_are_a_sentence(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ConfigError, match=r"backbone: .* could not be loaded") as caught:
        load_model(Backbone(name="tiny", path=str(folder)), TASKS["rte"])
    assert "\n" not in str(caught.value)


def test_code_from_a_model_folder_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anybody asked on the terminal."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    with pytest.raises(ConfigError, match="code of its own"):
        load_model(Backbone(name="tiny", path=str(folder)), TASKS["rte"])


@pytest.mark.parametrize("name", ["x$(id)", "a b", "../up", "a/b/c", ""])
def test_a_name_is_that_of_a_model(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Backbone(name=name)

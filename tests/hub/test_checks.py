"""What is wrong with a model or a data set of the Hub is known before the first job, in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hub.conftest import DATA, MODEL, Ask
from tests.hub.server import Hub
from tests.hub.test_paper import SHORT

pytestmark = pytest.mark.slow


class Shout:
    """What unpickling runs in a checkpoint from somebody who means harm."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        import os

        return os.mkdir, ("harmed",)


def no_tokenizer(folder: Path) -> None:
    for name in ("spm.model", "tokenizer_config.json"):
        (folder / name).unlink()


def another_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 40}))


def code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "config.Own", "AutoModelForSequenceClassification": "model.Own"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    (folder / "config.py").write_text("import os; os.mkdir('harmed')")


def half_a_file(folder: Path) -> None:
    weights = folder / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:5000])


def a_pickle_that_runs(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"deberta.embeddings.LayerNorm.weight": Shout()}))


def no_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()


def another_architecture(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 196}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))


def check(stranger: Ask, folder: Path, **changes: object) -> tuple[int, str]:
    """`increlora check` of the paper's study, without a terminal."""
    (folder / "short.yaml").write_text(yaml.safe_dump({**SHORT, **changes}))
    done = stranger("-m", "increlora", "check", "config/paper.yaml", str(folder / "short.yaml"))
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (no_tokenizer, "tokenizer"),
        (another_vocabulary, "vocabulary"),
        (code_of_its_own, "code of its own"),
        (half_a_file, "pytorch_model.bin"),
        (a_pickle_that_runs, "pytorch_model.bin"),
        (no_weights, "weights"),
        (another_architecture, "target_modules"),
    ],
)
def test_a_model_that_cannot_be_trained(
    hub: Hub, stranger: Ask, folders: dict[str, Path], tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(folders[MODEL], folder)
    damage(folder)
    hub.push("models", MODEL, folder)
    code, text = check(stranger, tmp_path)
    assert code == 2, text[-2000:]
    assert text.startswith("error: backbone")
    assert told in text
    assert text.count("\n") == 1
    assert not Path("harmed").exists()


@pytest.mark.parametrize("name", ["nobody/nothing", MODEL])
def test_a_data_set_that_is_none(stranger: Ask, tmp_path: Path, name: str) -> None:
    code, text = check(stranger, tmp_path, data={"name": name})
    assert code == 2, text[-2000:]
    assert text.startswith("error: data.name") and name in text
    assert text.count("\n") == 1


def test_a_task_that_is_missing(hub: Hub, stranger: Ask, tmp_path: Path) -> None:
    from tests.hub.repositories import glue

    hub.push("datasets", DATA, glue(tmp_path / "glue", tasks=["rte"]))
    code, text = check(stranger, tmp_path)
    assert code == 2, text[-2000:]
    assert text.startswith("error: data") and "cola" in text
    assert text.count("\n") == 1


def test_no_hub_and_no_cache(hub: Hub, stranger: Ask, tmp_path: Path) -> None:
    for offline, told in ((True, "HF_HUB_OFFLINE"), (False, hub.endpoint)):
        hub.shutdown()
        hub.server_close()
        (tmp_path / "short.yaml").write_text(yaml.safe_dump(SHORT))
        command = ("-m", "increlora", "check", "config/paper.yaml", str(tmp_path / "short.yaml"))
        done = stranger(*command, offline=offline)
        assert done.returncode == 2, done.stderr[-2000:]
        assert done.stderr.startswith("error: backbone.name") and told in done.stderr
        assert done.stderr.count("\n") == 1

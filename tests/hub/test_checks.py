"""What is wrong with a model or a data set of the Hub is known before the first job, in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hub.conftest import MODEL, Ask
from tests.hub.repositories import glue
from tests.hub.server import Hub
from tests.hub.test_paper import SHORT
from tests.study_helpers import ROOT, SEVERAL

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


DAMAGES = {
    no_tokenizer: "tokenizer",
    another_vocabulary: "vocabulary",
    code_of_its_own: "code of its own",
    half_a_file: "pytorch_model.bin",
    a_pickle_that_runs: "pytorch_model.bin",
    no_weights: "weights",
    another_architecture: "target_modules",
}


def test_what_cannot_be_trained_is_one_sentence(
    hub: Hub, stranger: Ask, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Models with each damage; then data sets that do not exist, are a model's name, or lack a task."""
    cases: list[tuple[dict[str, object], str, str]] = []
    for damage, told in DAMAGES.items():
        folder = tmp_path / damage.__name__
        shutil.copytree(folders[MODEL], folder)
        damage(folder)
        name = f"example/{damage.__name__}"
        hub.push("models", name, folder)
        cases.append(({"backbone": {"name": name}}, "error: backbone", told))
    cases += [({"data": {"name": name}}, "error: data.name", name) for name in ("nobody/nothing", MODEL)]
    hub.push("datasets", "example/one_task", glue(tmp_path / "glue", tasks=["rte"]))
    cases.append(({"data": {"name": "example/one_task"}}, "error: data", "cola"))

    (tmp_path / "work/config").mkdir(parents=True)
    shutil.copy(ROOT / "config/paper.yaml", tmp_path / "work/config")
    (tmp_path / "work/short.yaml").write_text(yaml.safe_dump(SHORT))
    check = ["check", "config/paper.yaml", "short.yaml"]
    lines = [json.dumps([*check, json.dumps(changes)]) for changes, *_ in cases]
    done = stranger("-c", SEVERAL, *lines, folder=tmp_path / "work")
    assert done.returncode == 0, done.stderr[-2000:]
    for (changes, start, told), line in zip(cases, done.stdout.splitlines(), strict=True):
        code, _, text = json.loads(line)
        assert code == 2, (changes, text[-2000:])
        assert text.startswith(start) and told in text, (changes, text)
        assert text.count("\n") == 1, (changes, text)
    assert not (tmp_path / "work/harmed").exists()


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

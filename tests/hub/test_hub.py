"""The client libraries against the local Hub: what a machine downloads, caches and finds again without network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import DATA, MODEL, SAFETENSORS, Ask
from tests.hub.repositories import EXTRA_ROWS, sentences
from tests.hub.server import Hub

pytestmark = pytest.mark.slow

LOAD = """
import json, os, sys
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
name, revision = sys.argv[1], (sys.argv[2:] or [None])[0]
tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, dtype="float32")
print(json.dumps({
    "tokens": tokenizer("The old river sees Paris.", "No garden.")["input_ids"],
    "unknown": tokenizer.unk_token_id,
    "length": len(tokenizer),
    "rows": model.get_input_embeddings().num_embeddings,
    "weight": model.deberta.encoder.layer[0].attention.self.query_proj.weight[0, :4].tolist(),
    "commit": os.path.dirname(hf_hub_download(name, "config.json", revision=revision))[-40:],
}))
"""
TOKENIZE = """
import json, sys
from transformers import AutoTokenizer
print(json.dumps(AutoTokenizer.from_pretrained(sys.argv[1])(json.loads(sys.argv[2]))["input_ids"]))
"""
DATASET = """
import json, sys
from datasets import load_dataset
data = load_dataset(sys.argv[1], sys.argv[2])
print(json.dumps({split: [len(rows), rows.column_names, rows[0]] for split, rows in data.items()}))
"""


@pytest.mark.parametrize("name", [MODEL, SAFETENSORS])
def test_a_model_loads_from_the_hub_and_then_from_the_cache(hub: Hub, stranger: Ask, name: str) -> None:
    online = stranger("-c", LOAD, name)
    assert online.returncode == 0, online.stderr[-2000:]
    found = json.loads(online.stdout)
    assert found["commit"] == hub.repositories["models", name].refs["main"]
    assert found["unknown"] not in found["tokens"]
    assert found["rows"] == found["length"] - 1 + EXTRA_ROWS, "[MASK] is the first of the rows beyond the pieces"
    assert any(request.startswith("GET /large/") for request in hub.requests)
    assert not any("generator" in request and request.startswith("GET") for request in hub.requests)
    hub.requests.clear()
    offline = stranger("-c", LOAD, name, offline=True)
    assert offline.returncode == 0, offline.stderr[-2000:]
    assert json.loads(offline.stdout) == found
    assert not hub.requests


def test_both_layouts_hold_the_same_model(stranger: Ask) -> None:
    first, second = (json.loads(stranger("-c", LOAD, name).stdout) for name in (MODEL, SAFETENSORS))
    assert first.pop("commit") != second.pop("commit")
    assert first == second


def test_the_slow_tokenizer_file_gives_sentencepiece_ids(stranger: Ask, folders: dict[str, Path]) -> None:
    import sentencepiece

    texts = sentences(100, seed=7)
    found = json.loads(stranger("-c", TOKENIZE, MODEL, json.dumps(texts)).stdout)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folders[MODEL] / "spm.model"))
    assert found == [[1, *processor.encode(text), 2] for text in texts]


def test_a_revision_stays_what_it_was(hub: Hub, stranger: Ask, folders: dict[str, Path], tmp_path: Path) -> None:
    from tests.hub.repositories import deberta_v3

    old = hub.repositories["models", MODEL].refs["main"]
    new = hub.push("models", MODEL, deberta_v3(tmp_path / "new", num_hidden_layers=1))
    assert old != new
    assert json.loads(stranger("-c", LOAD, MODEL).stdout)["commit"] == new
    assert json.loads(stranger("-c", LOAD, MODEL, old).stdout)["commit"] == old
    missing = stranger("-c", LOAD, MODEL, "0" * 40)
    assert missing.returncode == 1 and "is not a valid git identifier" in missing.stderr


def test_glue_loads_from_the_hub_and_then_from_the_cache(hub: Hub, stranger: Ask) -> None:
    for task, splits in (("rte", 3), ("mnli", 5), ("stsb", 3)):
        online = stranger("-c", DATASET, DATA, task)
        assert online.returncode == 0, online.stderr[-2000:]
        found = json.loads(online.stdout)
        assert len(found) == splits and found["train"][0] == 64
        hub.requests.clear()
        offline = stranger("-c", DATASET, DATA, task, offline=True)
        assert offline.returncode == 0, offline.stderr[-2000:]
        assert json.loads(offline.stdout) == found
        assert not hub.requests


def test_what_is_not_there_is_the_exception_that_the_hub_means(hub: Hub, stranger: Ask) -> None:
    code = "import sys; from huggingface_hub import HfApi; HfApi().model_info(sys.argv[1], revision=sys.argv[2])"
    assert "RepositoryNotFoundError" in stranger("-c", code, "nobody/nothing", "main").stderr
    assert "RevisionNotFoundError" in stranger("-c", code, MODEL, "v9").stderr


def test_a_lost_connection_leaves_no_half_file_in_the_cache(hub: Hub, stranger: Ask, tmp_path: Path) -> None:
    hub.broken = 1000
    assert stranger("-c", LOAD, MODEL).returncode == 1
    hub.broken = None
    assert stranger("-c", LOAD, MODEL).returncode == 0

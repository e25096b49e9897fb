"""The client libraries against the local Hub: what a machine downloads, caches and finds again without network."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import DATA, MODEL, SAFETENSORS, Ask
from tests.hub.repositories import EXTRA_ROWS, deberta_v3, sentences
from tests.hub.server import Hub

pytestmark = pytest.mark.slow

LOAD = """
import json, os, sys
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
for name, _, revision in (one.partition("@") for one in sys.argv[1:]):
    where = {"pretrained_model_name_or_path": name, "revision": revision or None}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForSequenceClassification.from_pretrained(**where, dtype="float32")
    print(json.dumps({
        "tokens": tokenizer("The old river sees Paris.", "No garden.")["input_ids"],
        "unknown": tokenizer.unk_token_id,
        "length": len(tokenizer),
        "rows": model.get_input_embeddings().num_embeddings,
        "weight": model.deberta.encoder.layer[0].attention.self.query_proj.weight[0, :4].tolist(),
        "commit": os.path.dirname(hf_hub_download(name, "config.json", revision=revision or None))[-40:],
    }))
"""
"""Loads models, given as `name` or `name@revision`, and prints a line for each."""
TOKENIZE = """
import json, sys
from transformers import AutoTokenizer
print(json.dumps(AutoTokenizer.from_pretrained(sys.argv[1])(json.loads(sys.argv[2]))["input_ids"]))
"""
DATASET = """
import json, sys
from datasets import load_dataset
for task in sys.argv[2:]:
    data = load_dataset(sys.argv[1], task)
    print(json.dumps({split: [len(rows), rows.column_names, rows[0]] for split, rows in data.items()}))
"""


def lines(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """What a script printed, a JSON value on each line."""
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_models_load_from_the_hub_and_then_from_the_cache(hub: Hub, stranger: Ask) -> None:
    found = lines(stranger("-c", LOAD, MODEL, SAFETENSORS))
    assert [one.pop("commit") for one in found] == [
        hub.repositories["models", name].refs["main"] for name in (MODEL, SAFETENSORS)
    ]
    assert found[0] == found[1], "both layouts hold the same model"
    assert found[0]["unknown"] not in found[0]["tokens"]
    assert found[0]["rows"] == found[0]["length"] - 1 + EXTRA_ROWS, "[MASK] is the first of the rows beyond the pieces"
    assert any(request.startswith("GET /large/") for request in hub.requests)
    assert not any("generator" in request and request.startswith("GET") for request in hub.requests)
    hub.requests.clear()
    offline = lines(stranger("-c", LOAD, MODEL, SAFETENSORS, offline=True))
    assert [{name: value for name, value in one.items() if name != "commit"} for one in offline] == found
    assert not hub.requests


def test_a_sentencepiece_model_gives_sentencepiece_ids(stranger: Ask, folders: dict[str, Path]) -> None:
    import sentencepiece

    texts = sentences(100, seed=7)
    (found,) = lines(stranger("-c", TOKENIZE, MODEL, json.dumps(texts)))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folders[MODEL] / "spm.model"))
    assert found == [[1, *processor.encode(text), 2] for text in texts]


def test_a_revision_stays_what_it_was(hub: Hub, stranger: Ask, tmp_path: Path) -> None:
    old = hub.repositories["models", MODEL].refs["main"]
    new = hub.push("models", MODEL, deberta_v3(tmp_path / "new", num_hidden_layers=1))
    assert old != new
    found = lines(stranger("-c", LOAD, MODEL, f"{MODEL}@{old}"))
    assert [one["commit"] for one in found] == [new, old]
    missing = stranger("-c", LOAD, f"{MODEL}@{'0' * 40}")
    assert missing.returncode == 1
    assert "is not a valid git identifier" in missing.stderr


def test_glue_loads_from_the_hub_and_then_from_the_cache(hub: Hub, stranger: Ask) -> None:
    tasks = {"rte": 3, "mnli": 5, "stsb": 3}
    found = lines(stranger("-c", DATASET, DATA, *tasks))
    assert [len(splits) for splits in found] == [*tasks.values()]
    assert all(splits["train"][0] == 64 for splits in found)
    hub.requests.clear()
    assert lines(stranger("-c", DATASET, DATA, *tasks, offline=True)) == found
    assert not hub.requests


def test_what_is_not_there_is_the_exception_that_the_hub_means(stranger: Ask) -> None:
    code = "import sys; from huggingface_hub import HfApi; HfApi().model_info(sys.argv[1], revision=sys.argv[2])"
    assert "RepositoryNotFoundError" in stranger("-c", code, "nobody/nothing", "main").stderr
    assert "RevisionNotFoundError" in stranger("-c", code, MODEL, "v9").stderr


def test_a_lost_connection_leaves_no_half_file_in_the_cache(hub: Hub, stranger: Ask) -> None:
    hub.broken = 1000
    assert stranger("-c", LOAD, MODEL).returncode == 1
    hub.broken = None
    assert len(lines(stranger("-c", LOAD, MODEL))) == 1

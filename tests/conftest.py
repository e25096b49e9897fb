"""Shared fixtures: tiny models, a tiny pretrained backbone, and offline settings for every library."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest_plugins = "pytester"

TARGETS = (
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)"
)
"""The six matrices of every layer of a DeBERTa-v2/v3 encoder."""

LONGEST = ("paper", "end_to_end", "workflow", "places", "guides", "training", "models", "life_cycle", "results")
"""Files that take most of a minute of one process each. Left to the end, one of them is what xdist waits for."""

NOT_FAST = {"slow", "workflow", "integration", "gpu", "cluster", "soak"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set the mark `fast`, leave out what is run by hand, and put the files that take longest first."""
    known: set[str] = set()
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "one_fast" in marks:
            function = item.nodeid.partition("[")[0]
            if function in known:
                item.add_marker("slow")
                marks.add("slow")
            known.add(function)
        if not marks & NOT_FAST:
            item.add_marker("fast")
        for by_hand in marks & {"cluster", "soak"}:
            if by_hand not in config.option.markexpr:
                item.add_marker(pytest.mark.skip(reason=f"run by hand: pytest -m {by_hand}"))
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hub layout with a DeBERTa-v3-style encoder, pretrained for a few steps."""
    from increlora.training.pretrain import PretrainSettings, pretrain

    out = tmp_path_factory.mktemp("backbone") / "tiny"
    settings = PretrainSettings(
        hidden_size=16,
        num_layers=2,
        num_heads=1,
        intermediate_size=32,
        steps=4,
        batch_size=8,
        warmup_steps=1,
        documents=200,
        dropout=0.1,
    )
    pretrain(settings, out, progress=False)
    return out


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in corpus as a folder in the layout of `nyu-mll/glue`."""
    from increlora.glue.corpus import write_folder

    out = tmp_path_factory.mktemp("glue") / "glue"
    write_folder(out, seed=0)
    return out

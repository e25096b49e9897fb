"""Ranks found before training, retrained by plain LoRA: `find_ranks` beside PEFT's EVA, uniform ranks and IncreLoRA.

    python benchmarks/rank_search.py config/mpnet.yaml --task rte

Everything is a run of the study at its settings of LoRA; only where ranks come from differs. `find_ranks` grows them in
a fifth of the steps at IncreLoRA's settings and leaves the model as it was; EVA (arXiv 2410.07170) takes them from the
variance that the inputs' components explain in as many batches, which initialise A too. Writes a CSV file and a table.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import EvaConfig, LoraConfig, initialize_lora_eva_weights

from increlora import find_ranks
from increlora.glue.tasks import TASKS
from increlora.methods.base import Adaptation, Setup
from increlora.methods.families import head_modules
from increlora.methods.lora import METHOD as LORA
from increlora.methods.peft_models import PeftAdaptation
from increlora.methods.registry import METHODS
from increlora.report.statistics import gini
from increlora.study.load import load_study
from increlora.study.train import choose
from increlora.training import run as runs
from increlora.training.batches import collate, epoch_order
from increlora.training.device import autocast
from increlora.training.settings import RunSettings

SHARE = 5
"""The search takes one step where the training takes so many."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Train and write the table; returns a row per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+", help="of the study, later files win")
    parser.add_argument("--task", default="rte")
    parser.add_argument("--budget", default="2")
    parser.add_argument("--seed", type=int, nargs="+", help="default: those of the study")
    parser.add_argument("--ranks", nargs="+", choices=("lora", "found", "eva", "increlora"), help="default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rank_search.csv")
    options = parser.parse_args(arguments)
    study = load_study(*options.config)
    rows: list[dict[str, Any]] = []
    try:
        for seed in options.seed or study.seeds:
            lora, growing = (
                choose(study, [options.task], [variant], [options.budget], [seed])[0]
                for variant in ("lora", "increlora")
            )
            search = Search(lora, growing)
            METHODS["found"] = replace(LORA, kind="found", prepare=search.found)
            METHODS["eva"] = replace(LORA, kind="eva", prepare=search.eva)
            for name in options.ranks or ("lora", "found", "eva", "increlora"):
                settings = growing if name == "increlora" else lora.model_copy(update={"kind": name})
                search.seconds, search.ranks = 0.0, None
                record = runs.run(settings, progress=False)
                ranks = record.allocation.ranks if record.allocation else search.ranks
                shown = record.shown(study.report.checkpoint)
                score = TASKS[options.task].score(shown) if shown else None
                row = {"ranks": name, "seed": seed, "score": score, "parameters": record.parameters.trainable}
                spread = {"gini": gini(ranks.values()), "largest": max(ranks.values())} if ranks else {}
                rows.append({**row, **spread, "search_seconds": search.seconds})
                print(rows[-1], flush=True)
                write(pd.DataFrame(rows), options.out)
    finally:
        for name in ("found", "eva"):
            METHODS.pop(name, None)
    return pd.DataFrame(rows)


class Search:
    """Both searches, as methods of the study.

    Args:
        lora: the run whose settings the retraining has.
        growing: the run whose options the growth has.
    """

    def __init__(self, lora: RunSettings, growing: RunSettings):
        self.lora, self.growing = lora, growing
        self.seconds, self.ranks = 0.0, None

    def batches(self, steps: int) -> list[dict[str, Any]]:
        """The first batches of training."""
        training = self.lora.training
        relevant = self.lora.model_dump_json(
            include={"task": True, "data": True, "backbone": True, "training": {"max_length"}}
        )
        _, train, _, _, padding = runs._encoded(relevant)
        lengths, size, seed = train.lengths(), training.batch_size, self.lora.seed
        epochs = (epoch_order(lengths, size, seed, epoch, grouping=True) for epoch in itertools.count())
        batches = (collate(train, rows, padding) for order in epochs for rows in order)
        return [
            {name: tensor.to(DEVICE) for name, tensor in batch.items()} for batch in itertools.islice(batches, steps)
        ]

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Of one batch, in the run's precision."""
        with autocast(DEVICE, self.lora.training.precision):
            return model(**batch).loss

    def found(self, setup: Setup[Any]) -> Adaptation:
        """LoRA with the ranks that a short growth finds, every module at the scale that uniform ranks have."""
        began, steps = time.perf_counter(), setup.recipe.total_steps // SHARE
        alpha = setup.options.lora_alpha
        fields = ("lora_alpha", "orth_reg_weight", "init_std", "ranks_per_event")
        own = {name: value for name in fields if (value := self.growing.options.get(name)) is not None}
        config = find_ranks(
            setup.model.to(DEVICE),
            self.batches(steps),
            budget=setup.size,
            steps=steps,
            lr=self.growing.training.learning_rate,
            loss=self.loss,
            seed=setup.recipe.seed,
            target_modules=setup.target_modules,
            modules_to_save=head_modules(setup.model),
            **own,
        )
        self.ranks = {name: rank_of(config, name) for name in setup.shapes}
        config.alpha_pattern = {name: alpha / setup.size * rank for name, rank in self.ranks.items()}
        self.seconds = time.perf_counter() - began
        return PeftAdaptation(setup, config)

    def eva(self, setup: Setup[Any]) -> Adaptation:
        """LoRA with EVA's ranks and initial values."""
        began, steps = time.perf_counter(), setup.recipe.total_steps // SHARE
        setup.model.to(DEVICE)
        config = LoraConfig(
            r=setup.size,
            target_modules=setup.target_modules,
            init_lora_weights="eva",
            eva_config=EvaConfig(use_label_mask=False),  # one label per text, not per token
            **setup.options.model_dump(),
        )
        adaptation = PeftAdaptation(setup, config)
        initialize_lora_eva_weights(
            adaptation.peft_model,
            Batches(self.batches(steps)),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda layer_input, model_input, name: layer_input[0].flatten(0, -2),
            show_progress_bar=False,
        )
        adapted = dict(adaptation.model.named_modules())
        self.ranks = {name: adapted[name].r.get("default", 0) for name in setup.shapes}
        self.seconds = time.perf_counter() - began
        return adaptation


class Batches:
    """A loader of batches that are there already, each time a copy: EVA takes labels out."""

    def __init__(self, batches: list[dict[str, Any]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in self.batches)


def rank_of(config: LoraConfig, name: str) -> int:
    """Rank of a module in a config of `find_ranks`."""
    return config.rank_pattern.get(name, config.r)


def write(rows: pd.DataFrame, path: Path) -> None:
    """The runs, and a table of means."""
    rows.to_csv(path, index=False)
    uniform = rows[rows.ranks == "lora"].set_index("seed").score
    lines = []
    for name, group in rows.groupby("ranks", sort=False):
        difference = (group.set_index("seed").score - uniform).dropna()
        lines.append(
            {
                "ranks": name,
                "seeds": len(group),
                "score": group.score.mean(),
                "sd": group.score.std(),
                "minus uniform": difference.mean(),
                "sd of it": difference.std(),
                "parameters": round(group.parameters.mean()),
                "gini": group.get("gini", pd.Series(dtype=float)).mean(),
                "largest": group.get("largest", pd.Series(dtype=float)).max(),
                "search, s": group.search_seconds.mean(),
            }
        )
    path.with_suffix(".md").write_text(pd.DataFrame(lines).to_markdown(index=False, floatfmt=".2f") + "\n")


if __name__ == "__main__":
    main()

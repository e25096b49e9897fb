"""Ranks found before training, retrained by plain LoRA: `find_ranks` beside PEFT's EVA, uniform ranks and IncreLoRA.

    python benchmarks/rank_search.py config/mpnet.yaml --task rte

Everything is a run of the study at its settings of LoRA; only where ranks come from differs. `find_ranks` grows them in
a fifth of the steps at IncreLoRA's settings and leaves the model as it was; EVA (arXiv 2410.07170) takes them from the
variance that the inputs' components explain in as many batches, which initialise A too. Finished runs come from the
store, so several processes may share the seeds. Writes a CSV file and a table.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import EvaConfig, LoraConfig, initialize_lora_eva_weights
from pydantic import Field

from increlora import find_ranks
from increlora.glue.tasks import TASKS
from increlora.methods.base import Adaptation, Setup
from increlora.methods.families import head_modules
from increlora.methods.lora import METHOD as LORA
from increlora.methods.lora import LoraOptions
from increlora.methods.peft_models import PeftAdaptation
from increlora.methods.registry import METHODS
from increlora.report.statistics import gini
from increlora.study.load import load_study
from increlora.study.train import choose
from increlora.training.batches import collate, epoch_order
from increlora.training.data import run_data
from increlora.training.device import autocast
from increlora.training.job import finish
from increlora.training.settings import RunSettings

SHARE = 5
"""The search takes one step where the training takes so many."""
WAYS = ("lora", "found", "eva", "increlora")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Options(LoraOptions):
    """LoRA's, and what else decides the ranks, so that it is part of the run's digest."""

    search: dict[str, Any] = Field(default={})


class Found(PeftAdaptation):
    """LoRA that tells its ranks."""

    def __init__(self, setup: Setup[Any], config: LoraConfig):
        super().__init__(setup, config)
        self.names = list(setup.shapes)

    def ranks(self) -> dict[str, int]:
        """By module; one that EVA leaves without any is no LoRA layer any more."""
        modules = dict(self.model.named_modules())
        return {name: getattr(modules[name], "r", {}).get("default", 0) for name in self.names}


def main(arguments: list[str] | None = None) -> pd.DataFrame:
    """Train and write the table; returns a row per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="+", help="of the study, later files win")
    parser.add_argument("--task", default="rte")
    parser.add_argument("--budget", default="2")
    parser.add_argument("--seed", type=int, nargs="+", help="default: those of the study")
    parser.add_argument("--ranks", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rank_search.csv")
    options = parser.parse_args(arguments)
    study = load_study(*options.config)
    rows = []
    try:
        for seed in options.seed or study.seeds:
            lora, growing = (
                choose(study, [options.task], [variant], [options.budget], [seed])[0]
                for variant in ("lora", "increlora")
            )
            search = Search(lora, growing)
            for kind, prepare in (("found", search.found), ("eva", search.eva)):
                METHODS[kind] = replace(LORA, kind=kind, prepare=prepare, options=Options)
            for name in options.ranks:
                record, _ = finish({"lora": lora, "increlora": growing}.get(name) or search.settings(name))
                shown = record.shown(study.report.checkpoint)
                row = {"ranks": name, "seed": seed, "score": TASKS[options.task].score(shown) if shown else None}
                row |= {"parameters": record.parameters.trainable, "seconds": record.cost.wall_seconds}
                if record.allocation is not None:
                    ranks = record.allocation.ranks.values()
                    row |= {"gini": gini(ranks), "largest": max(ranks)}
                rows.append(row)
                print(row, flush=True)
    finally:
        for kind in ("found", "eva"):
            METHODS.pop(kind, None)
    table = pd.DataFrame(rows)
    write(table, options.out)
    return table


class Search:
    """Both searches, as methods of the study.

    Args:
        lora: the run whose settings the retraining has.
        growing: the run whose settings the growth has.
    """

    def __init__(self, lora: RunSettings, growing: RunSettings):
        self.lora, self.growing = lora, growing

    def settings(self, kind: str) -> RunSettings:
        """Of the run with the ranks of this search."""
        fields = ("lora_alpha", "orth_reg_weight", "init_std", "ranks_per_event")
        growth = {name: value for name in fields if (value := self.growing.options.get(name)) is not None}
        own = {"found": {**growth, "lr": self.growing.training.learning_rate}, "eva": {}}[kind]
        options = {**self.lora.options, "search": {"share": SHARE, **own}}
        return self.lora.model_copy(update={"kind": kind, "options": options})

    def batches(self, steps: int) -> list[dict[str, Any]]:
        """The first batches of training."""
        training = self.lora.training
        data = run_data(self.lora)
        lengths, size, seed = data.train.lengths(), training.batch_size, self.lora.seed
        epochs = (epoch_order(lengths, size, seed, epoch, grouping=True) for epoch in itertools.count())
        batches = (collate(data.train, rows, data.pad_token_id) for order in epochs for rows in order)
        return [
            {name: tensor.to(DEVICE) for name, tensor in batch.items()} for batch in itertools.islice(batches, steps)
        ]

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Of one batch, in the run's precision."""
        with autocast(DEVICE, self.lora.training.precision):
            return model(**batch).loss

    def found(self, setup: Setup[Any]) -> Adaptation:
        """LoRA with the ranks that a short growth finds, every module at the scale that uniform ranks have."""
        steps, alpha = setup.recipe.total_steps // SHARE, setup.options.lora_alpha
        growth = {name: value for name, value in setup.options.search.items() if name != "share"}
        config = find_ranks(
            setup.model.to(DEVICE),
            self.batches(steps),
            budget=setup.size,
            steps=steps,
            loss=self.loss,
            seed=setup.recipe.seed,
            target_modules=setup.target_modules,
            modules_to_save=head_modules(setup.model),
            **growth,
        )
        ranks = {name: config.rank_pattern.get(name, config.r) for name in setup.shapes}
        config.alpha_pattern = {name: alpha / setup.size * rank for name, rank in ranks.items()}
        return Found(setup, config)

    def eva(self, setup: Setup[Any]) -> Adaptation:
        """LoRA with EVA's ranks and initial values."""
        setup.model.to(DEVICE)
        config = LoraConfig(
            r=setup.size,
            target_modules=setup.target_modules,
            init_lora_weights="eva",
            eva_config=EvaConfig(use_label_mask=False),  # one label per text, not per token
            **setup.options.model_dump(exclude={"search"}),
        )
        adaptation = Found(setup, config)
        initialize_lora_eva_weights(
            adaptation.peft_model,
            Batches(self.batches(setup.recipe.total_steps // SHARE)),
            prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda layer_input, model_input, name: layer_input[0].flatten(0, -2),
            show_progress_bar=False,
        )
        return adaptation


class Batches:
    """A loader of batches that are there already, each time a copy: EVA takes labels out."""

    def __init__(self, batches: list[dict[str, Any]]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (dict(batch) for batch in self.batches)


def write(rows: pd.DataFrame, path: Path) -> None:
    """The runs, and a table of means."""
    rows.to_csv(path, index=False)
    scores = rows.pivot(index="seed", columns="ranks", values="score")
    differences = scores.sub(scores["lora"], axis=0) if "lora" in scores else scores * float("nan")
    by_way = rows.groupby("ranks")
    table = pd.DataFrame(
        {
            "seeds": by_way.size(),
            "score": by_way["score"].mean(),
            "sd": by_way["score"].std(),
            "minus uniform": differences.mean(),
            "its sd": differences.std(),
            "parameters": by_way["parameters"].mean(),
            "Gini": by_way["gini"].mean() if "gini" in rows else float("nan"),
            "largest rank": by_way["largest"].max() if "largest" in rows else float("nan"),
        }
    ).loc[[way for way in WAYS if way in by_way.groups]]
    path.with_suffix(".md").write_text(
        table.to_markdown(floatfmt=("", ".0f", ".2f", ".2f", ".2f", ".2f", ".0f", ".2f", ".0f")) + "\n"
    )


if __name__ == "__main__":
    main()

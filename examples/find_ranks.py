"""Find ranks by a short growth run, then train plain LoRA with them; beside PEFT's EVA and uniform ranks.

    python examples/find_ranks.py --model microsoft/deberta-v3-base --steps 2000 --search-steps 200

EVA (arXiv 2410.07170) distributes ranks before training too, by the variance that the components of each layer's
inputs explain, and initialises A with them. All three trainings that follow are plain LoRA at one average rank.

What to expect: in this repository's default study (results/mini_table3.md), retraining from ranks that IncreLoRA had
found cannot be told apart from retraining with uniform or shuffled ranks; the paper reports a gain on SST-2, though
below that of training with growing ranks. Compare on your own data, over several seeds, before you rely on it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
    set_seed,
)

from increlora import find_ranks
from increlora.glue.corpus import generate

SIX_MATRICES = (  # of every DeBERTa-v2/v3 layer
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)"
)
HEAD = ["pooler", "classifier"]
RANK = 2
"""Average rank per module."""

Ranks = dict[str, int]


def main(arguments: list[str] | None = None) -> dict[str, Ranks]:
    """Distribute ranks in three ways and train with each; returns the ranks per module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="microsoft/deberta-v3-base")
    parser.add_argument("--steps", type=int, default=300, help="of the real training")
    parser.add_argument(
        "--search-steps", type=int, default=100, help="of the short growth run, and most batches of EVA"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = generate("sst2")

    def batches(split: str, size: int) -> DataLoader[Any]:
        encoded = [{**tokenizer(row["sentence"]), "labels": row["label"]} for row in rows[split]]
        generator = torch.Generator().manual_seed(options.seed)
        collate = DataCollatorWithPadding(tokenizer)
        return DataLoader(encoded, size, shuffle=split == "train", generator=generator, collate_fn=collate)  # type: ignore[arg-type]

    def fresh() -> nn.Module:
        set_seed(options.seed)
        return AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype=torch.float32)

    common: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": HEAD, "lora_alpha": 16}
    found: dict[str, Ranks] = {}

    def report(name: str, model: Any, seconds: float) -> None:
        found[name] = {
            module.removeprefix("base_model.model."): layer.r["default"]
            for module, layer in model.named_modules()
            if hasattr(layer, "lora_A")
        }
        score = train(model, batches("train", 16), batches("validation", 100), options.steps)
        spread = sorted(found[name].values(), reverse=True)
        print(f"{name:<8} ranks in {seconds:6.1f} s, accuracy {score:.3f}, ranks {spread}")

    uniform = LoraConfig(r=RANK, target_modules=SIX_MATRICES, **common)
    report("uniform", get_peft_model(fresh(), uniform), 0.0)

    start, model = time.perf_counter(), fresh()
    config = find_ranks(
        model,
        batches("train", 16),
        budget=RANK,
        steps=options.search_steps,
        lr=2e-3,
        seed=options.seed,
        target_modules=SIX_MATRICES,
        modules_to_save=HEAD,
        lora=common,
    )
    seconds = time.perf_counter() - start
    report("growth", get_peft_model(model, config), seconds)  # `model` is as it was before

    start = time.perf_counter()
    whole = EvaConfig(use_label_mask=False)  # one label per text, not per token
    eva = LoraConfig(r=RANK, target_modules=SIX_MATRICES, init_lora_weights="eva", eva_config=whole, **common)
    model = get_peft_model(fresh(), eva, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(
        model,
        Limited(batches("train", 16), options.search_steps),
        prepare_model_inputs_fn=None,  # which picks tokens by the mask: DeBERTa's query and key project positions too
        prepare_layer_inputs_fn=rows_of,
        show_progress_bar=False,
    )
    report("EVA", model, time.perf_counter() - start)
    return found


def rows_of(layer_input: Any, model_input: Any, layer_name: str) -> torch.Tensor:
    """All inputs of a layer (rows, in), padding included."""
    return layer_input[0].flatten(0, -2)


class Limited:
    """The first few batches of a loader, each time from the start."""

    def __init__(self, loader: DataLoader[Any], most: int):
        self.loader, self.most = loader, most

    def __len__(self) -> int:
        return min(self.most, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return (dict(batch) for _, batch in zip(range(self.most), self.loader, strict=False))


def train(model: nn.Module, batches: DataLoader[Any], held_out: DataLoader[Any], steps: int) -> float:
    """Plain LoRA for so many steps; the accuracy afterwards."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3, weight_decay=0.01)
    scheduler = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    step = 0
    while step < steps:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            if step == steps:
                break
    model.eval()
    with torch.no_grad():
        right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in held_out]
    return torch.cat(right).float().mean().item()


if __name__ == "__main__":
    main()

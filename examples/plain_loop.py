"""Fine-tune a text classifier with IncreLoRA in a loop of your own: one call more per step.

python examples/plain_loop.py --model microsoft/deberta-v3-base --steps 2000
"""

from __future__ import annotations

import argparse
import random

import torch
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from increlora import IncreLoraConfig, create_optimizer
from increlora.glue.corpus import generate


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; returns the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="microsoft/deberta-v3-base")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = generate("sst2")
    base = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype=torch.float32)
    config = IncreLoraConfig(
        target_modules="all-linear",  # of every layer, whatever they are called; the head trains in full
        target_r=2,
        deltaT=max(1, options.steps // 20),
        task_type="SEQ_CLS",
        modules_to_save=["pooler", "classifier"],
    )
    model = get_peft_model(base, config).train()
    optimizer, scheduler = create_optimizer(model, lr=2e-3, total_steps=options.steps, warmup_steps=options.steps // 10)

    def batch(chosen: list[dict[str, object]]) -> dict[str, torch.Tensor]:
        encoded = tokenizer([row["sentence"] for row in chosen], padding=True, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([row["label"] for row in chosen])}

    for step in range(1, options.steps + 1):
        model(**batch(random.sample(rows["train"], 16))).loss.backward()
        grown = model.update_and_allocate(step)  # after the backward pass, before the optimizer's step
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if grown:
            print(f"step {step}: {', '.join(grown)} gained rank")

    model.eval()
    with torch.no_grad():
        held_out = batch(rows["validation"])
        score = (model(**held_out).logits.argmax(-1) == held_out["labels"]).float().mean().item()
    print(f"accuracy {score:.3f}; ranks {sorted(model.rank_distribution().values(), reverse=True)}")
    return score


if __name__ == "__main__":
    main()

"""Fine-tune a text classifier with IncreLoRA in Transformers' Trainer, and hand it on as plain LoRA.

    python examples/trainer.py --model microsoft/deberta-v3-base --steps 2000

The data are the built-in sentiment sentences, so that the example runs without a network wherever the model does.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from increlora import IncreLoraCallback, IncreLoraConfig, export_lora
from increlora.glue.corpus import generate


def main(arguments: list[str] | None = None) -> float:
    """Train, evaluate, export; returns the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="microsoft/deberta-v3-base")
    parser.add_argument("--out", default="out")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = generate("sst2")
    data = {
        split: Dataset.from_list(rows[split]).map(lambda row: tokenizer(row["sentence"]), remove_columns=["idx"])
        for split in ("train", "validation")
    }

    base = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, dtype="float32")
    config = IncreLoraConfig(
        target_modules="all-linear",  # of every layer, whatever they are called; the head trains in full
        target_r=2,  # average rank per module when growth ends
        deltaT=max(1, options.steps // 20),  # steps between two growths
        task_type="SEQ_CLS",
        modules_to_save=["pooler", "classifier"],
    )
    model = get_peft_model(base, config)
    training = TrainingArguments(
        options.out,
        max_steps=options.steps,
        learning_rate=2e-3,
        warmup_steps=options.steps // 10,
        per_device_train_batch_size=16,
        report_to=[],
    )
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
        callbacks=[IncreLoraCallback()],
    )
    trainer.train()
    score = trainer.evaluate()["eval_accuracy"]
    print(f"accuracy {score:.3f}; ranks {sorted(model.rank_distribution().values(), reverse=True)}")
    print("plain LoRA in", export_lora(model, f"{options.out}/lora"))
    return score


def accuracy(prediction: Any) -> dict[str, float]:
    """Fraction of correct labels."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


if __name__ == "__main__":
    main()

"""Fine-tune a causal language model in 4 bits (QLoRA) with TRL's SFTTrainer, and hand the adapter on as plain LoRA.

    python examples/qlora_trl.py --model meta-llama/Llama-3.2-1B --data trl-lib/Capybara --steps 1000

Ranks grow where they help most, and the base stays quantised. ``--data`` is what ``datasets.load_dataset`` takes, a
name on the Hub or a folder, with a column ``text`` or ``messages``. Needs trl and bitsandbytes.
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

from increlora import IncreLoraCallback, IncreLoraConfig, export_lora, find_allocator


def main(arguments: list[str] | None = None) -> float:
    """Train and export; returns the last loss that was logged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="meta-llama/Llama-3.2-1B")
    parser.add_argument("--data", default="trl-lib/Capybara")
    parser.add_argument("--out", default="out")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args(arguments)

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, quantization_config=quantised)
    adapter = IncreLoraConfig(
        target_modules=r".*\.(q|k|v|o|gate|up|down)_proj",
        target_r=8,  # average rank per module when growth ends
        deltaT=max(1, options.steps // 50),  # steps between two growths
        task_type="CAUSAL_LM",
    )
    training = SFTConfig(
        options.out,
        max_steps=options.steps,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 20,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        max_length=1024,
        bf16=torch.cuda.is_available(),
        logging_steps=max(1, options.steps // 100),
        report_to=[],
    )
    trainer = SFTTrainer(
        model,
        args=training,
        train_dataset=load_dataset(options.data, split="train"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=adapter,
        callbacks=[IncreLoraCallback()],  # add optim="paged_adamw_8bit" to `training` for an 8-bit optimizer
    )
    trainer.train()
    ranks = find_allocator(trainer.model).rank_distribution()
    print("ranks", sorted(ranks.values(), reverse=True))
    print("plain LoRA in", export_lora(trainer.model, f"{options.out}/lora"))
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)


if __name__ == "__main__":
    main()

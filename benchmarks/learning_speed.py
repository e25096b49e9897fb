"""How fast the update grows: ||dW||_F over the first steps, LoRA beside IncreLoRA with a rate for lambda of its own.

    python benchmarks/learning_speed.py

At lambda = 0 only lambda has a gradient worth the name, and Adam moves ``dW`` by ``s * rate * |a| * |b|`` per component
and step where LoRA's B moves it by ``s * rate * |a| * sqrt(out)``. All sides have the same frozen encoder in the shape
of DeBERTaV3-base with fewer layers, the same batches, rank, scale and learning rate. Writes a CSV file and a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from step_time import HEAD, TARGETS, base
from tqdm import tqdm

from increlora import IncreLoraConfig, create_optimizer

SHOWN = (1, 2, 5, 10, 20, 50, 100)


@torch.no_grad()
def norms(model: Any) -> float:
    """Mean over modules of ``||dW||_F``."""
    layers = [module for module in model.modules() if hasattr(module, "get_delta_weight")]
    return sum(float(layer.get_delta_weight("default").norm()) for layer in layers) / len(layers)


def curve(model: Any, optimizer: Any, scheduler: Any, steps: int, name: str) -> list[float]:
    """``||dW||_F`` after every step."""
    model.train()
    found = []
    for step in tqdm(range(1, steps + 1), desc=name, disable=None):
        ids = torch.randint(5, 1000, (8, 32), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=(ids[:, 0] > 500).long()).loss.backward()
        if hasattr(model.base_model, "update_and_allocate"):
            model.update_and_allocate(step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        found.append(norms(model))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Train all sides, print the table, write the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)

    common = {"target_modules": TARGETS, "modules_to_save": list(HEAD), "task_type": "SEQ_CLS", "lora_alpha": 16}
    curves = {}
    model: Any = get_peft_model(base(args.layers), LoraConfig(r=2, **common))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    curves["LoRA"] = curve(model, optimizer, constant, args.steps, "LoRA")
    for ratio in (1.0, 5.0, "width"):
        config = IncreLoraConfig(target_r=None, init_r=2, lambda_lr_ratio=ratio, **common)  # type: ignore[arg-type]
        model = get_peft_model(base(args.layers), config)
        parts = create_optimizer(model, lr=args.lr, total_steps=args.steps, lr_scheduler_type="constant")
        name = f"IncreLoRA, lambda_lr_ratio {ratio}"
        curves[name] = curve(model, *parts, args.steps, name)
    frame = pd.DataFrame(curves, index=pd.Index(range(1, args.steps + 1), name="step"))
    args.out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(args.out / "learning_speed.csv", float_format="%.6f")
    table = frame.loc[[step for step in SHOWN if step <= args.steps]].to_markdown(floatfmt=".4f")
    heading = f"Mean over modules of ||dW||_F; rank 2, alpha 16 over rank, rate {args.lr}, {args.layers} layers"
    (args.out / "learning_speed.md").write_text(f"{heading}\n\n{table}\n")
    print(table)


if __name__ == "__main__":
    main()

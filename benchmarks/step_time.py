"""Time and memory of a training step: PEFT's LoRA and AdaLoRA, IncreLoRA in all its phases, and the authors' layer.

    python benchmarks/step_time.py

All sides have the same frozen encoder in the shape of DeBERTaV3-base, the same batch and the same average rank. They
take turns, a few steps each, for many rounds; a ratio is the median over rounds of the ratio to LoRA in that round, so
that what else the machine does hits all sides alike. Writes a JSON file and a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import authors
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn
from tqdm import tqdm
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from increlora import IncreLoraConfig, create_optimizer, find_allocator
from increlora.training.deberta import slice_relative_positions
from increlora.training.memory import MIB, LiveTensors, resident_tensors
from increlora.tuner.allocation import score_window
from increlora.tuner.regulariser import orthogonality_gradients, stacks

TARGETS = (
    r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)_proj|attention\.output\.dense"
    r"|intermediate\.dense|output\.dense)"
)
HEAD = ("pooler", "classifier")
FAR = 10**9


def base(layers: int, width: int = 768) -> Any:
    """A DeBERTaV3-base-shaped classifier with random weights and a small vocabulary."""
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * width,
        relative_attention=True,
        position_buckets=256,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    )
    return DebertaV2ForSequenceClassification(config)


@dataclass
class Side:
    """One competitor.

    Attributes:
        step: performs a training step.
        model, optimizer: its state, for the memory.
        times: seconds per step by round.
        details: further figures.
    """

    step: Callable[[], None]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    times: list[list[float]] = field(default_factory=list)
    details: dict[str, float] = field(default_factory=dict)


class Bench:
    """The model, the batch and the sides on one device."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device(args.device)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 1000, (args.batch, args.length), generator=generator)
        labels = torch.randint(0, 2, (args.batch,), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        self.batch = {name: tensor.to(self.device) for name, tensor in batch.items()}

    def base(self) -> nn.Module:
        return base(self.args.layers, self.args.width).to(self.device)

    def loss(self, model: nn.Module) -> torch.Tensor:
        bf16 = self.device.type == "cuda" or self.args.autocast
        with torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            return model(**self.batch).loss

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # ------------------------------------------------------------ sides

    def lora(self, *, sliced: bool = False, compiled: bool = False) -> Side:
        config = LoraConfig(
            r=self.args.rank, lora_alpha=16, target_modules=TARGETS, modules_to_save=list(HEAD), task_type="SEQ_CLS"
        )
        model: Any = get_peft_model(self.base(), config).train()
        if sliced:
            slice_relative_positions(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        forward = torch.compile(model) if compiled else model

        def step() -> None:
            self.loss(forward).backward()
            optimizer.step()
            optimizer.zero_grad()

        return Side(step, model, optimizer)

    def adalora(self) -> Side:
        config = AdaLoraConfig(
            init_r=round(1.5 * self.args.rank),
            target_r=self.args.rank,
            tinit=1,
            tfinal=FAR,
            deltaT=1,
            total_step=3 * FAR,
            target_modules=TARGETS,
            modules_to_save=list(HEAD),
            task_type="SEQ_CLS",
        )
        model: Any = get_peft_model(self.base(), config).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        count = 2

        def step() -> None:
            nonlocal count
            count += 1
            self.loss(model).backward()
            optimizer.step()
            model.base_model.update_and_allocate(count)
            optimizer.zero_grad()

        return Side(step, model, optimizer)

    def increlora(self, *, compiled: bool = False, **fields: Any) -> Side:
        config = IncreLoraConfig(
            **{"target_modules": TARGETS, "modules_to_save": list(HEAD), "task_type": "SEQ_CLS", "top_h": FAR, **fields}
        )
        model: Any = get_peft_model(self.base(), config).train()
        optimizer, scheduler = create_optimizer(model, lr=1e-4, total_steps=2 * FAR, warmup_steps=100)
        forward = torch.compile(model) if compiled else model
        side = Side(lambda: None, model, optimizer)
        layers = find_allocator(model).layers.values()
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            side.details["scored_modules"] = sum(layer.components["default"].recorder is not None for layer in layers)
            self.loss(forward).backward()
            self.synchronise()
            began = time.perf_counter()
            model.update_and_allocate(count)
            optimizer.step()
            self.synchronise()
            side.details["after_backward"] = time.perf_counter() - began
            scheduler.step()
            optimizer.zero_grad()

        side.step = step
        return side

    def grown(self) -> Side:
        """As training ends: ranks that differ between modules, and in a module components of several ages."""
        rank = self.args.rank
        side = self.increlora(
            init_r=1,
            target_r=rank,
            deltaT=1,
            top_h=self.args.layers,
            ranks_per_event=max(1, rank // 4),
            score_window=1,
        )
        while not find_allocator(side.model).finished:
            side.step()
        return side

    def materialised(self) -> Side:
        model = self.base().train()
        layers = authors.inject(model, TARGETS, self.args.rank)
        for name in HEAD:
            model.get_submodule(name).requires_grad_(True)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def step() -> None:
            regulariser = torch.stack([layer.regulariser() for layer in layers]).mean()
            (self.loss(model) + 0.1 * regulariser).backward()
            torch.stack([layer.score() for layer in layers])
            optimizer.step()
            optimizer.zero_grad()

        return Side(step, model, optimizer)

    def sides(self) -> dict[str, Side]:
        rank = self.args.rank
        growing = {"init_r": rank, "target_r": rank + 1, "deltaT": FAR}  # that rank and a reserve
        built = {
            "LoRA": self.lora(),
            "AdaLoRA": self.adalora(),
            "IncreLoRA, scored step": self.increlora(**growing, score_window="all"),
            "IncreLoRA, step between": self.increlora(**growing, score_window=1),
            "IncreLoRA, step scored by lambda's gradient": self.increlora(
                **growing, score_window="all", score="taylor"
            ),
            "IncreLoRA, after growth": self.increlora(init_r=rank, target_r=rank),
            "IncreLoRA, after growth in several events": self.grown(),
            "IncreLoRA, authors' layer": self.materialised(),
            "LoRA, positions sliced": self.lora(sliced=True),
        }
        if self.args.compile:
            built["LoRA, compiled"] = self.lora(compiled=True)
            built["IncreLoRA, scored step, compiled"] = self.increlora(**growing, score_window="all", compiled=True)
            built["IncreLoRA, step between, compiled"] = self.increlora(**growing, score_window=1, compiled=True)
            built["IncreLoRA, after growth, compiled"] = self.increlora(init_r=rank, target_r=rank, compiled=True)
        return built

    # ------------------------------------------------------------ measurements

    def time(self, sides: dict[str, Side]) -> None:
        for side in sides.values():
            for _ in range(3):
                side.step()
        for _ in tqdm(range(self.args.rounds), unit="round", disable=None):
            for side in sides.values():
                times = []
                for _ in range(self.args.steps):
                    self.synchronise()
                    began = time.perf_counter()
                    side.step()
                    self.synchronise()
                    times.append(time.perf_counter() - began)
                side.times.append(times)

    def memory(self, side: Side) -> tuple[float, float]:
        """MiB at the peak of a step: in all, and above what lives between steps."""
        resident = {t.untyped_storage().data_ptr(): t for t in resident_tensors(side.model, side.optimizer)}
        between = sum(tensor.untyped_storage().nbytes() for tensor in resident.values())
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            side.step()
            above = torch.cuda.max_memory_allocated() - start
        else:
            with LiveTensors([*resident.values(), *self.batch.values()]) as tensors:
                start = tensors.live
                side.step()
            above = tensors.peak - start
        return (between + above) / MIB, above / MIB

    def parts(self, side: Side, rounds: int = 9) -> dict[str, float]:
        """Milliseconds per step of what IncreLoRA does beside the forward and backward pass of the layers."""
        regulariser = find_allocator(side.model).regulariser
        times: dict[str, list[float]] = {"gradient of the regulariser": [], "smoothing, optimizer": []}
        for _ in range(rounds):
            began = time.perf_counter()
            gradients = orthogonality_gradients(list(stacks(regulariser.layers, regulariser.adapter)), regulariser.kind)
            self.synchronise()
            times["gradient of the regulariser"].append(1000 * (time.perf_counter() - began))
            assert gradients
            side.step()
            times["smoothing, optimizer"].append(1000 * side.details["after_backward"])
        return {part: statistics.median(values) for part, values in times.items()}

    def growth(self) -> dict[str, dict[str, float]]:
        """Milliseconds that an event adds to a step (allocation, growth, optimizer), by the modules that grow."""
        modules, figures = 6 * self.args.layers, {}
        for chosen in (modules // 6, modules):
            side = self.increlora(init_r=4, target_r=60, deltaT=1, tinit=7, top_h=chosen)
            times = []
            for _ in range(16):
                side.step()
                times.append(1000 * side.details["after_backward"])
            quiet, events = statistics.median(times[2:7]), times[7:]
            figures[f"{chosen} of {modules}"] = {
                "median": statistics.median(events) - quiet,
                "largest": max(events) - quiet,
            }
        return figures


def ratios(side: Side, reference: Side) -> list[float]:
    """Per round, the median step over the reference's."""
    pairs = zip(side.times, reference.times, strict=True)
    return [statistics.median(mine) / statistics.median(its) for mine, its in pairs]


def whole_run(medians: dict[str, float], *, growing: float, scored: float) -> float:
    """A run composed of measured steps.

    Args:
        medians: ratio to LoRA by side.
        growing: fraction of training in which ranks grow.
        scored: fraction of those steps that are scored.
    """
    during = scored * medians["IncreLoRA, scored step"] + (1 - scored) * medians["IncreLoRA, step between"]
    return growing * during + (1 - growing) * medians["IncreLoRA, after growth"]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=4, help="encoder layers (DeBERTaV3-base has 12)")
    parser.add_argument("--width", type=int, default=768, help="hidden size, a multiple of 12 (DeBERTaV3-base has 768)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8, help="average rank of all sides")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="steps per side and round")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast on a CPU too")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)

    bench = Bench(args)
    sides = bench.sides()
    bench.time(sides)
    reference = sides["LoRA"]
    rows = {}
    for name, side in sides.items():
        peak, above = bench.memory(side)
        spread = sorted(ratios(side, reference))
        rows[name] = {
            "step_ms": 1000 * statistics.median(t for times in side.times for t in times),
            "to_lora": statistics.median(spread),
            "scored_modules": side.details.get("scored_modules"),
            "to_lora_quartiles": [spread[len(spread) // 4], spread[-1 - len(spread) // 4]],
            "peak_mib": peak,
            "above_mib": above,
        }
    window = score_window(IncreLoraConfig()) or 0
    medians = {name: row["to_lora"] for name, row in rows.items()}
    result = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{key: value for key, value in vars(args).items() if key not in ("out", "device")},
        "sides": rows,
        "whole_run_to_lora": {
            f"nu = {nu}, {window} steps before each event scored": whole_run(medians, growing=0.4, scored=window / nu)
            for nu in (100, 1000)
        },
        "parts_ms": bench.parts(sides["IncreLoRA, scored step"]),
        "growth_ms": bench.growth(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    stem = f"{bench.device.type}_length{args.length}" + (f"_width{args.width}" if args.width != 768 else "")
    stem += f"_rank{args.rank}" if args.rank != 8 else ""
    stem += "_autocast" if args.autocast else ""
    stem += "_compiled" if args.compile else ""
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    (args.out / f"{stem}.md").write_text(table)
    print(table)


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lora = result["sides"]["LoRA"]
    width = f" of width {result['width']}" if result.get("width", 768) != 768 else ""
    lines = [
        f"DeBERTaV3-base-shaped, {result['layers']} layers{width}, batch {result['batch']}, length {result['length']}, "
        f"average rank {result['rank']}; {result['device']}, {result['threads']} threads, torch "
        f"{result['torch']}{', bfloat16 autocast' if result.get('autocast') else ''}",
        "",
        "| Step | ms | to LoRA | quartiles | peak MiB | over LoRA |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name, row in result["sides"].items():
        low, high = row["to_lora_quartiles"]
        lines.append(
            f"| {name} | {row['step_ms']:.1f} | {row['to_lora']:.2f}× | {low:.2f}–{high:.2f} | {row['peak_mib']:.0f} | "
            f"{row['peak_mib'] - lora['peak_mib']:+.1f} |"
        )
    lines += ["", "| Whole run, growth over 40 % of training (composed of the steps above) | to LoRA |", "|:--|--:|"]
    lines += [f"| {name} | {ratio:.3f}× |" for name, ratio in result["whole_run_to_lora"].items()]
    step = result["sides"]["IncreLoRA, scored step"]["step_ms"]
    lines += ["", "| Part of a scored step | ms | of the step |", "|:--|--:|--:|"]
    lines += [f"| {name} | {value:.1f} | {value / step:.1%} |" for name, value in result["parts_ms"].items()]
    lines += ["", "| Modules that grow at an event | ms added to the step | largest |", "|:--|--:|--:|"]
    lines += [f"| {n} | {value['median']:.1f} | {value['largest']:.1f} |" for n, value in result["growth_ms"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Time and memory of a training step in two versions of the tuner, measured in turns.

    git worktree add ../blocks 103dd8d
    python benchmarks/storage.py --other ../blocks

That commit is the last one in which a module's storage grew in blocks; since then it has a fixed capacity. The versions
differ in more than that: the regulariser was part of the loss and had a graph, and the optimizer kept all components in
flat tensors. A side without regulariser shows the rest.

Each version runs in a process of its own, on the sides of its own ``step_time.py``, and only one of the two works at a
time: for every side a few steps of one, then of the other, for many rounds. A ratio is the median over rounds of the
ratio in that round. Writes a JSON file and a table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
FAR = 10**9
REFERENCE = "LoRA"


class Version:
    """A checkout of the package, at work in a process of its own.

    Attributes:
        times: by side, the median seconds per step of every round.
    """

    def __init__(self, checkout: Path, args: argparse.Namespace, rank: int):
        options = [f"--{name}={getattr(args, name)}" for name in ("device", "layers", "width", "batch", "length")]
        paths = (checkout, checkout / "benchmarks")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--measure", f"--ranks={rank}", *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.times: dict[str, list[float]] = {side: [] for side in self.ask("sides")}

    def ask(self, question: str, *details: Any) -> Any:
        """What `measure` answers to a question."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([question, *details]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of one version ended with {self.process.wait()}; its error is above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(args: argparse.Namespace) -> None:
    """Answer questions about the version on the path, one per line: its sides, times of steps, memory, growth."""
    import step_time

    answers, sys.stdout = sys.stdout, sys.stderr  # so that nothing else gets between the answers
    (args.rank,) = args.ranks
    step_time.RANK = args.rank  # type: ignore[attr-defined]  # where earlier versions have it
    bench = step_time.Bench(args)
    growing = {"init_r": args.rank, "target_r": args.rank + 1, "deltaT": FAR}
    sides = {
        REFERENCE: bench.lora(),
        "scored step": bench.increlora(**growing, score_window="all"),
        "step between": bench.increlora(**growing, score_window=1),
        "step between, no regulariser": bench.increlora(**growing, score_window=1, orth_reg_weight=0.0),
        "after growth": bench.increlora(init_r=args.rank, target_r=args.rank),
    }
    for line in sys.stdin:
        question, *details = json.loads(line)
        answer: Any = None
        if question == "sides":
            answer = list(sides)
        elif question == "time":
            side, steps = details
            answer = []
            for _ in range(steps):
                bench.synchronise()
                began = time.perf_counter()
                sides[side].step()
                bench.synchronise()
                answer.append(time.perf_counter() - began)
        elif question == "memory":
            answer = bench.memory(sides[details[0]])[0]
        elif question == "growth":
            answer = bench.growth()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def compare(args: argparse.Namespace, rank: int) -> dict[str, Any]:
    """All figures at one rank."""
    versions = {"this": Version(ROOT, args, rank), "other": Version(args.other.resolve(), args, rank)}
    sides = list(versions["this"].times)
    for version in versions.values():
        for side in sides:
            version.ask("time", side, 3)
    for _ in tqdm(range(args.rounds), unit="round", desc=f"rank {rank}", disable=None):
        for side in sides:
            for version in versions.values():
                version.times[side].append(statistics.median(version.ask("time", side, args.steps)))
    result: dict[str, Any] = {"sides": {}, "growth_ms": {}}
    for side in sides:
        row: dict[str, Any] = {}
        for name, version in versions.items():
            row[name] = {
                "step_ms": 1000 * statistics.median(version.times[side]),
                "to_lora": statistics.median(_ratios(version.times[side], version.times[REFERENCE])),
                "peak_mib": version.ask("memory", side),
            }
        spread = sorted(_ratios(versions["this"].times[side], versions["other"].times[side]))
        row["this_to_other"] = statistics.median(spread)
        row["this_to_other_quartiles"] = [spread[len(spread) // 4], spread[-1 - len(spread) // 4]]
        result["sides"][side] = row
    for name, version in versions.items():
        result["growth_ms"][name] = version.ask("growth")
        version.close()
    return result


def _ratios(one: list[float], other: list[float]) -> list[float]:
    return [mine / its for mine, its in zip(one, other, strict=True)]


def markdown(result: dict[str, Any]) -> str:
    """The result as Markdown tables."""
    lines = [
        f"DeBERTaV3-base-shaped, {result['layers']} layers, batch {result['batch']}, length {result['length']}; "
        f"{result['device']}, torch {result['torch']}, {result['rounds']} rounds of {result['steps']} steps. This "
        "version (storage of a fixed capacity) and the other (storage that grows in blocks), each to LoRA in its own "
        "process",
        "",
        "| Rank | Step | this, ms | to LoRA | other, to LoRA | this to other | quartiles | this, MiB | other, MiB |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for rank, figures in result["ranks"].items():
        for side, row in figures["sides"].items():
            this, other, (low, high) = row["this"], row["other"], row["this_to_other_quartiles"]
            lines.append(
                f"| {rank} | {side} | {this['step_ms']:.1f} | {this['to_lora']:.2f}× | {other['to_lora']:.2f}× | "
                f"{row['this_to_other']:.2f}× | {low:.2f}–{high:.2f} | {this['peak_mib']:.0f} | "
                f"{other['peak_mib']:.0f} |"
            )
    lines += ["", "| Rank | Modules that grow at an event | this, ms added | largest | other, ms added | largest |"]
    lines += ["|--:|:--|--:|--:|--:|--:|"]
    for rank, figures in result["ranks"].items():
        this, other = figures["growth_ms"]["this"], figures["growth_ms"]["other"]
        for modules in (name for name in this if name in other):
            numbers = [f"{one[modules][key]:.1f}" for one in (this, other) for key in ("median", "largest")]
            lines.append(f"| {rank} | {modules} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="checkout of the version to compare with")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 24], help="average ranks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="encoder layers (DeBERTaV3-base has 12)")
    parser.add_argument("--width", type=int, default=768, help="hidden size, a multiple of 12 (DeBERTaV3-base has 768)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="steps per side and round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        measure(args)
        return
    if args.other is None or not (args.other / "benchmarks/step_time.py").is_file():
        parser.error(f"argument --other: {args.other} is no checkout of this repository")
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "other", "measure", "ranks")}
    result = {
        "torch": importlib.metadata.version("torch"),
        **settings,
        "ranks": {str(rank): compare(args, rank) for rank in args.ranks},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "storage.json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    (args.out / "storage.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()

"""Fill the blocks of README.md that show figures, from committed results; run it when results have changed.

A block starts with ``<!-- name: filled by scripts/readme.py -->`` and ends with ``<!-- end -->``.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def claims() -> str:
    """The default study's table of claims, without what only its own page needs."""
    with (ROOT / "results/mini_claims.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["| claim | estimate | interval | p | paper | verdict |", "|:--|--:|:-:|--:|:--|:--|"]
    for row in rows:
        p = "<0.001" if row["p_corrected"] and float(row["p_corrected"]) < 0.001 else _number(row["p_corrected"], 3)
        cells = (row["claim"], f"{_number(row['estimate'])} {row['unit']}", _interval(row), p)
        lines.append(f"| {' | '.join([*cells, row['paper'] or '–', row['verdict']])} |")
    return "\n".join(lines)


def _number(text: str, places: int = 2) -> str:
    return f"{float(text):.{places}f}".replace("-", "−") if text else "–"


def _interval(row: dict[str, str]) -> str:
    """The interval at the level of the corrected p beside it."""
    return f"{_number(row['corrected_low'])} to {_number(row['corrected_high'])}" if row["corrected_low"] else "–"


def costs() -> str:
    """Steps and memory beside PEFT's LoRA, from the benchmark on a CPU and on a GPU."""
    folder = ROOT / "benchmarks/results"
    cpu, gpu = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("cpu_length64", "cuda_length128_rank2")
    )
    lines = ["| | step, to LoRA's: CPU | GPU | peak memory, to LoRA's: CPU | GPU |", "|:--|--:|--:|--:|--:|"]
    for name in cpu["sides"]:
        here, there = cpu["sides"][name], gpu["sides"][name]
        more = [one["sides"][name]["peak_mib"] - one["sides"]["LoRA"]["peak_mib"] for one in (cpu, gpu)]
        memory = " | ".join(f"{one:+.0f} MiB".replace("-", "−") for one in more)
        lines.append(f"| {name} | {here['to_lora']:.2f}× | {there['to_lora']:.2f}× | {memory} |")
    for what, ratio in cpu["whole_run_to_lora"].items():
        lines.append(f"| whole run: {what} | {ratio:.2f}× | {gpu['whole_run_to_lora'][what]:.2f}× | | |")
    return "\n".join(
        [*lines, "", f"DeBERTaV3-base's shape. CPU: {_setting(cpu)}. GPU: {_setting(gpu)}, bfloat16 autocast."]
    )


def _setting(found: dict[str, Any]) -> str:
    size = f"{found['layers']} layers, batch {found['batch']}, length {found['length']}, average rank {found['rank']}"
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    device = threads if found["device"] == "cpu" else f"{found['device']}, {threads} on the host"
    return f"{size}; {device}, torch {found['torch']}"


BLOCKS = {"claims": claims, "costs": costs}


def filled(text: str) -> str:
    """README's text with every block as the results have it now."""
    for name, content in BLOCKS.items():
        start, end = f"<!-- {name}: filled by scripts/readme.py -->", "<!-- end -->"
        block = f"{start}\n\n{content()}\n\n{end}"
        text, found = re.subn(f"{re.escape(start)}.*?{re.escape(end)}", lambda _, b=block: b, text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"README.md: {found} blocks {name}, where there should be one")
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")

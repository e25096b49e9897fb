"""Fill the blocks of README.md that show figures, from committed results; run it when results have changed.

A block starts with ``<!-- name: filled by scripts/readme.py -->`` and ends with ``<!-- end -->``.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

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
    """Steps and memory beside PEFT's LoRA, from the benchmark."""
    found = json.loads((ROOT / "benchmarks/results/cpu_length64.json").read_text(encoding="utf-8"))
    sides, lora = found["sides"], found["sides"]["LoRA"]["peak_mib"]
    lines = ["| | step, to LoRA's | peak memory, to LoRA's |", "|:--|--:|--:|"]
    for name, side in sides.items():
        lines.append(f"| {name} | {side['to_lora']:.2f}× | {side['peak_mib'] - lora:+.1f} MiB |")
    for what, ratio in found["whole_run_to_lora"].items():
        lines.append(f"| whole run: {what} | {ratio:.2f}× | |")
    where = f"{found['device']}, {found['threads']} threads, torch {found['torch']}"
    shape = f"DeBERTaV3-base's shape with {found['layers']} layers, batch {found['batch']}, length {found['length']}"
    return "\n".join([*lines, "", f"{shape}, average rank {found['rank']}; {where}."])


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

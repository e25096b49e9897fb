"""Figures 4-6 of the paper and the growth of ranks, from records alone.

Each figure has a function that collects its numbers into a tidy frame. The frame is written as CSV and is all that
`increlora.report.plots` gets to draw, so the CSV beside a figure holds exactly what the figure shows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.report import plots, published, statistics, style
from increlora.report.frame import write_csv
from increlora.report.modules import MATRICES, locate
from increlora.report.results import Results

if TYPE_CHECKING:
    from increlora.study.config import Study

log = logging.getLogger(__name__)

DECIMALS = {
    **dict.fromkeys(("mean", "sd", "ci_low", "ci_high", "low", "high"), 6),
    **{"params_mean": 1, "rank": 4},
}


def build(study: Study, records_root: str | Path, out_dir: str | Path) -> list[Path]:
    """Writes every figure that the study has as PNG, PDF and CSV, and returns the files.

    A figure without any record is a page that says so, and a warning.

    Raises:
        increlora.report.frame.RecordError: a record is malformed.
    """
    results, paths = Results(study, records_root), []
    looks = style.looks(tuple(study.methods))
    for name, what, data, extra in _figures(results):
        stem = Path(out_dir) / f"{study.study}_{name}"
        paths.append(write_csv(data, stem.with_name(f"{stem.name}.csv"), DECIMALS))
        with matplotlib.rc_context(style.RC):
            if data.empty:
                log.warning("%s: no records for %s", stem.name, what)
                fig = plots.nothing(f"no records for {what}\n(study {study.study})")
            else:
                fig = getattr(plots, name)(data, looks, **extra)
        paths += style.save(fig, stem)
    return paths


def _figures(results: Results) -> Iterator[tuple[str, str, pd.DataFrame, dict[str, Any]]]:
    """Name, content in words, numbers and further arguments of the drawing function of each figure."""
    wanted = results.study.artefacts
    if four := wanted.figure4:
        what = f"{_titles(results, four.methods)} on {', '.join(TASKS[task].title for task in four.tasks)}"
        yield "figure4", what, figure4(results), {"references": _references(results)}
    if five := wanted.figure5:
        variants = (five.with_advance, five.without_advance)
        yield "figure5", f"{_titles(results, variants)} on {TASKS[five.task].title}", figure5(results), {}
    if six := wanted.figure6:
        yield "figure6", f"{_titles(results, six.methods)} on {TASKS[six.task].title}", figure6(results), {}
    if own := wanted.growth:
        what = f"{_titles(results, [own.method])} on {TASKS[own.task].title}"
        yield "growth", what, growth(results), {"budget": _budget_rank(results)}


def _titles(results: Results, methods: Any) -> str:
    return " and ".join(results.study.title(method) for method in methods)


def figure4(results: Results) -> pd.DataFrame:
    """Score over the budget: one row per task, method and budget, with the 95 % interval over seeds."""
    wanted = results.study.artefacts.figure4
    columns = "task method title budget params_mean mean sd ci_low ci_high seeds".split()
    rows = []
    for task in wanted.tasks if wanted else ():
        for method in wanted.methods if wanted else ():
            for budget in sorted(wanted.budgets if wanted else ()):
                estimate = results.scores.column(task, method, budget).estimate
                if estimate.mean is None:
                    log.warning("figure4: no records for %s on %s at budget %s", method, task, budget)
                    continue
                params = results.mean_over_tasks("trainable", [task], method, budget)
                numbers = (estimate.mean, estimate.sd, estimate.low, estimate.high, estimate.n)
                rows.append((task, method, results.study.title(method), budget, params, *numbers))
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(("params_mean", "mean", "sd", "ci_low", "ci_high"), float))


def _references(results: Results) -> list[tuple[str, str, int | None, float]]:
    """Published points of Figure 4 as (task, method, budget or None for a line, value), if they are comparable."""
    if results.not_comparable:
        return []
    return [
        (row.task, row.method, 2 if row.budget_label == "0.3M" else None, row.number)
        for row in published.load()
        if row.artefact == "figure4"
        and row.kind == "read"
        and row.number is not None
        and row.method in results.study.methods
    ]


def figure5(results: Results) -> pd.DataFrame:
    """Orthogonality over training: mean, least and greatest over seeds, per step, variant and factor (A, B)."""
    wanted = results.study.artefacts.figure5
    rows: list[dict[str, Any]] = []
    variants = (("with", wanted.with_advance), ("without", wanted.without_advance)) if wanted else ()
    for advance, method in variants:
        if wanted is None:
            break
        for seed, record in _allocations(results, wanted.task, method, wanted.budget).items():
            for point in record.get("orthogonality") or ():
                rows += [
                    {
                        "advance": advance,
                        "method": method,
                        "seed": seed,
                        "step": point["step"],
                        "factor": f,
                        "loss": point[f],
                    }
                    for f in ("A", "B")
                ]
    columns = "factor advance method step mean low high seeds".split()
    if not rows:
        return pd.DataFrame(columns=columns)
    groups = pd.DataFrame(rows).groupby(["factor", "advance", "method", "step"], sort=True)["loss"]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()[columns]


def figure6(results: Results) -> pd.DataFrame:
    """Final rank of every module, mean over seeds: one row per method, layer (from 1) and matrix."""
    wanted = results.study.artefacts.figure6
    columns = "method title layer matrix module rank seeds".split()
    rows = []
    for method in wanted.methods if wanted else ():
        if wanted is None:
            break
        ranks = [a["ranks"] for a in _allocations(results, wanted.task, method, wanted.budget).values()]
        if not ranks:
            log.warning("figure6: no records for %s on %s at budget %s", method, wanted.task, wanted.budget)
        for module in dict.fromkeys(name for one in ranks for name in one):
            place = locate(module)
            if place is None:
                log.warning("figure6: %s is none of the six matrices of a layer; left out", module)
                continue
            mean = statistics.estimate(one.get(module, 0) for one in ranks).mean
            title = results.study.title(method)
            rows.append((method, title, place[0] + 1, place[1], module, mean, len(ranks)))
    return pd.DataFrame(rows, columns=columns)


def growth(results: Results) -> pd.DataFrame:
    """Rank over training, mean over seeds: one row per step, layer (from 1) and matrix.

    Ranks change at events and stay until the next; seeds whose events differ are carried forward to common steps. The
    last step is the end of training.
    """
    wanted = results.study.artefacts.growth
    columns = "step layer matrix rank seeds".split()
    tracks = []
    found = _allocations(results, wanted.task, wanted.method, wanted.budget) if wanted else {}
    for seed, allocation in found.items():
        record = results.records.get(wanted.task, wanted.method, wanted.budget, seed) if wanted else None
        places = [locate(name) for name in allocation["modules"]]
        points = {point["step"]: point["ranks"] for point in allocation["growth"]}
        if not points or None in places:
            log.warning("growth: seed %s has no ranks over training in the six matrices; left out", seed)
            continue
        track = pd.DataFrame(points, index=pd.MultiIndex.from_tuples(places, names=["layer", "matrix"])).T
        steps = (record or {}).get("cost", {}).get("steps")
        if steps and steps > track.index.max():
            track.loc[steps] = track.iloc[-1]
        tracks.append(track)
    if not tracks:
        return pd.DataFrame(columns=columns)
    steps = sorted(set().union(*(track.index for track in tracks)))
    mean = sum(track.sort_index().reindex(steps).ffill().bfill() for track in tracks) / len(tracks)
    frame = mean.rename_axis("step").stack(["layer", "matrix"], future_stack=True).rename("rank").reset_index()
    frame["layer"] += 1
    frame["seeds"] = len(tracks)
    order = frame["matrix"].map(MATRICES.index)
    return frame.assign(order=order).sort_values(["step", "layer", "order"])[columns].reset_index(drop=True)


def _budget_rank(results: Results) -> float | None:
    """Total rank that the growth figure's runs were to reach."""
    wanted = results.study.artefacts.growth
    if wanted is None:
        return None
    found = _allocations(results, wanted.task, wanted.method, wanted.budget)
    return float(np.mean([one["budget_rank"] for one in found.values()])) if found else None


def _allocations(results: Results, task: str, method: str, budget: int) -> dict[int, Mapping[str, Any]]:
    """The allocation block of each seed that has one."""
    records = {seed: results.records.get(task, method, budget, seed) for seed in results.study.seeds}
    return {seed: record["allocation"] for seed, record in records.items() if record and record.get("allocation")}

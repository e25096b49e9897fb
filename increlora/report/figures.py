"""Figures 4-6 of the paper and the growth of ranks, from records alone.

Each figure has a function that collects its numbers into a tidy frame. The frame is written as CSV and is all that
`increlora.report.plots` gets to draw, so the CSV beside a figure holds exactly what the figure shows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from increlora.glue.tasks import TASKS
from increlora.report import plots, published, statistics, style
from increlora.report.frame import write_csv
from increlora.report.modules import MATRICES, locate
from increlora.report.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from increlora.study.config import Figure4, Figure5, Figure6, Growth, Study

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
    for name, what, data, draw in _figures(results):
        stem = Path(out_dir) / f"{study.study}_{name}"
        paths.append(write_csv(data, stem.with_name(f"{stem.name}.csv"), DECIMALS))
        with style.context():
            if data.empty:
                log.warning("%s: no records for %s", stem.name, what)
                fig = plots.nothing(f"no records for {what}\n(study {study.study})")
            else:
                fig = draw(data)
        paths += style.save(fig, stem)
    return paths


def _figures(results: Results) -> Iterator[tuple[str, str, pd.DataFrame, Callable[[pd.DataFrame], Figure]]]:
    """Name, content in words, numbers and drawing function of each figure."""
    study = results.study
    wanted = study.artefacts
    if four := wanted.figure4:
        what = f"{_titles(results, four.methods)} on {', '.join(TASKS[task].title for task in four.tasks)}"
        yield (
            "figure4",
            what,
            figure4(results, four),
            partial(
                plots.figure4,
                tasks=four.tasks,
                looks=style.looks(tuple(study.methods)),
                references=_references(results, four),
                note=f"{study.report.checkpoint} checkpoint",
            ),
        )
    if five := wanted.figure5:
        what = f"{_titles(results, (five.with_advance, five.without_advance))} {_where(five)}"
        yield "figure5", what, figure5(results, five), partial(plots.figure5, note=_where(five))
    if six := wanted.figure6:
        titles = {method: study.title(method) for method in six.methods}
        draw = partial(plots.figure6, titles=titles, note=_where(six))
        yield "figure6", f"{_titles(results, six.methods)} {_where(six)}", figure6(results, six), draw
    if own := wanted.growth:
        what = f"{study.title(own.method)} {_where(own)}"
        draw = partial(plots.growth, budget=_budget_rank(results, own), note=what)
        yield "growth", what, growth(results, own), draw


def _where(wanted: Figure5 | Figure6 | Growth) -> str:
    return f"on {TASKS[wanted.task].title}, average rank {wanted.budget}"


def _titles(results: Results, methods: Iterable[str]) -> str:
    return " and ".join(results.study.title(method) for method in methods)


def figure4(results: Results, wanted: Figure4) -> pd.DataFrame:
    """Score over the budget: one row per task, method and budget, with the 95 % interval over seeds."""
    rows = []
    for task, method, budget in product(wanted.tasks, wanted.methods, sorted(wanted.budgets)):
        estimate = results.scores.column(task, method, budget).estimate
        if estimate.mean is None:
            log.warning("figure4: no score of %s on %s at budget %s", method, task, budget)
            continue
        params = results.mean_over_tasks("trainable", [task], method, budget)
        numbers = (estimate.mean, estimate.sd, estimate.low, estimate.high, estimate.n)
        rows.append((task, method, results.study.title(method), budget, params, *numbers))
    names = ("task", "method", "title", "budget", "params_mean", "mean", "sd", "ci_low", "ci_high", "seeds")
    return pd.DataFrame(rows, columns=list(names)).astype(dict.fromkeys(names[4:-1], float))


def _references(results: Results, wanted: Figure4) -> list[tuple[str, str, int | None, float]]:
    """Published points as (task, method, budget or None for a line, value), where they are comparable."""
    if results.not_comparable:
        return []
    return [
        (row.task, row.method, 2 if row.budget_label == "0.3M" else None, row.number)
        for row in published.load()
        if row.artefact == "figure4" and row.number is not None and row.method in wanted.methods
    ]


def figure5(results: Results, wanted: Figure5) -> pd.DataFrame:
    """Orthogonality over training: mean, least and greatest over seeds, per step, variant and factor (A, B)."""
    for method in (wanted.with_advance, wanted.without_advance):
        if not _allocations(results, wanted.task, method, wanted.budget):
            log.warning("figure5: no records of %s on %s at budget %s", method, wanted.task, wanted.budget)
    rows = [
        {"factor": factor, "advance": advance, "method": method, "step": point["step"], "loss": point[factor]}
        for advance, method in (("with", wanted.with_advance), ("without", wanted.without_advance))
        for allocation in _allocations(results, wanted.task, method, wanted.budget).values()
        for point in allocation.get("orthogonality") or ()
        for factor in ("A", "B")
    ]
    keys = ["factor", "advance", "method", "step"]
    if not rows:
        return pd.DataFrame(columns=[*keys, "mean", "low", "high", "seeds"])
    groups = pd.DataFrame(rows).groupby(keys, sort=True)["loss"]
    return groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()


def figure6(results: Results, wanted: Figure6) -> pd.DataFrame:
    """Final rank of every module, mean over seeds: one row per method, layer (from 1) and matrix."""
    rows = []
    for method in wanted.methods:
        found = _allocations(results, wanted.task, method, wanted.budget)
        ranks = [allocation["ranks"] for allocation in found.values()]
        if not ranks:
            log.warning("figure6: no ranks of %s on %s at budget %s", method, wanted.task, wanted.budget)
        for module in dict.fromkeys(name for one in ranks for name in one):
            place = locate(module)
            if place is None:
                log.warning("figure6: %s is none of the six matrices of a layer; left out", module)
                continue
            mean = statistics.estimate(one.get(module, 0) for one in ranks).mean
            rows.append((method, results.study.title(method), place[0] + 1, place[1], module, mean, len(ranks)))
    return pd.DataFrame(rows, columns=["method", "title", "layer", "matrix", "module", "rank", "seeds"])


def growth(results: Results, wanted: Growth) -> pd.DataFrame:
    """Rank over training, mean over seeds: one row per step, layer (from 1) and matrix.

    Ranks change at events and stay until the next; seeds whose events differ are carried forward to common steps. The
    last step is the end of training.
    """
    tracks = []
    for seed, allocation in _allocations(results, wanted.task, wanted.method, wanted.budget).items():
        places = [place for place in map(locate, allocation["modules"]) if place is not None]
        points = {point["step"]: point["ranks"] for point in allocation.get("growth") or ()}
        if not points or len(places) < len(allocation["modules"]):
            log.warning("growth: seed %s has no ranks over training in the six matrices; left out", seed)
            continue
        track = pd.DataFrame(points, index=pd.MultiIndex.from_tuples(places, names=["layer", "matrix"])).T.sort_index()
        record = results.records.get(wanted.task, wanted.method, wanted.budget, seed) or {}
        end = record.get("cost", {}).get("steps")
        if end and end > track.index[-1]:
            track.loc[end] = track.iloc[-1]
        tracks.append(track)
    names = ["step", "layer", "matrix", "rank", "seeds"]
    if not tracks:
        return pd.DataFrame(columns=names)
    steps = sorted(set().union(*(track.index for track in tracks)))
    aligned = [track.reindex(steps).ffill().bfill() for track in tracks]
    mean = pd.concat(aligned, keys=range(len(aligned)), names=["seed", "step"]).groupby(level="step").mean()
    frame = mean.melt(ignore_index=False, value_name="rank").reset_index()
    frame = frame.assign(layer=frame["layer"] + 1, seeds=len(tracks), order=frame["matrix"].map(MATRICES.index))
    return frame.sort_values(["step", "layer", "order"])[names].reset_index(drop=True)


def _budget_rank(results: Results, wanted: Growth) -> float | None:
    """Total rank that the growth figure's runs were to reach."""
    found = _allocations(results, wanted.task, wanted.method, wanted.budget).values()
    return statistics.estimate(allocation["budget_rank"] for allocation in found).mean


def _allocations(results: Results, task: str, method: str, budget: int) -> dict[int, Mapping[str, Any]]:
    """The allocation block of each seed that has one."""
    records = {seed: results.records.get(task, method, budget, seed) for seed in results.study.seeds}
    return {seed: record["allocation"] for seed, record in records.items() if record and record.get("allocation")}

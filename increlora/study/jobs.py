"""How the workflow packs the runs of a study into jobs, what each job waits for, and which of them failed.

There are two packings (`Execution.job`). One job per run lets a cluster schedule, limit and repeat each run alone; it
is right for runs of minutes and more. For runs of seconds one job per kind of method starts Python, Torch and the
backbone once instead of a hundred times. The rules of the workflow hold no logic of their own; they ask here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from increlora.study.cells import Cell, all_cells, artefact_cells
from increlora.study.config import Study
from increlora.study.load import changes, merge, read_config, typed
from increlora.study.settings import all_runs, backbone_path, cell_runs
from increlora.training.record import is_finished
from increlora.training.settings import RunSettings, budget_label

TABLES = ("table1", "table2", "table3", "variants", "headroom", "claims")
FIGURES = ("figure4", "figure5", "figure6", "rank_growth", "training", "claims")


@dataclass(frozen=True)
class Job:
    """Runs that one process trains one after the other.

    Attributes:
        name: kind of method, or task, variant, budget and seed.
        runs: their settings.
        arguments: those of ``increlora run`` that choose these runs.
        sources: records that the runs start from and other jobs make.
    """

    name: str
    runs: tuple[RunSettings, ...]
    arguments: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def records(self) -> list[str]:
        """Paths of the runs' records."""
        return [str(run.record_path()) for run in self.runs]

    @property
    def digests(self) -> list[str]:
        """What decides the results: when it changes, the job runs again."""
        return [run.digest for run in self.runs]

    @property
    def is_finished(self) -> bool:
        return all(is_finished(run, run.record_path()) for run in self.runs)


def jobs(study: Study) -> dict[str, Job]:
    """Every training job of a study by its name."""
    alone = study.execution.job == "run"
    packed: dict[str, list[RunSettings]] = {}
    for run in all_runs(study):
        packed.setdefault(run.label if alone else run.kind, []).append(run)
    made = {}
    for name, runs in packed.items():
        arguments = arguments_of(runs[0]) if alone else ["--method", *dict.fromkeys(run.method for run in runs)]
        own = {run.record_path() for run in runs}
        sources = dict.fromkeys(str(path) for run in runs if (path := run.source_path()) and path not in own)
        made[name] = Job(name, tuple(runs), tuple(arguments), tuple(sources))
    return made


def arguments_of(run: RunSettings) -> list[str]:
    """Those of ``increlora run`` that choose one run."""
    return ["--task", run.task, "--method", run.method, "--budget", budget_label(run.budget), "--seed", str(run.seed)]


def needs(job: Job, prerequisites: Iterable[str]) -> list[str]:
    """What a job waits for: nothing, once its records are those of its settings.

    A record carries the digest of everything that decides it, including the run that it starts from. The age of a file
    means nothing in a fresh clone; this way neither age nor a missing backbone ever starts a finished run again.
    """
    return [] if job.is_finished else [*prerequisites, *job.sources]


def log_of(study: str, job: str) -> str:
    """Log file of a training job."""
    return f"logs/{study}/train/{job}.log"


def backbone_file(study: Study) -> list[str]:
    """The file whose presence means that the backbone is ready, if the study pretrains its own."""
    return [f"{backbone_path(study.backbone)}/config.json"] if study.backbone.pretrain is not None else []


def speed_table(study: Study) -> Path:
    """Speeds measured on this machine, from which the plan takes its hours (`increlora.study.speed`)."""
    return Path(".increlora/speed", f"{study.study}.csv")


def records(study: Study, cells: Iterable[Cell] | None = None) -> list[str]:
    """Paths of the records of some cells, or of all."""
    return [str(run.record_path()) for run in cell_runs(study, all_cells(study) if cells is None else cells)]


def tables(study: Study) -> dict[str, str]:
    """Tables that the study has, by name, as paths without suffix."""
    names = [name for name in TABLES if getattr(study.artefacts.chosen, name)]
    names += ["selection"] if study.grid and "table1" in names else []
    names += ["budgets"] if study.artefacts.chosen.figure4 else []
    return {name: f"results/{study.study}_{name}" for name in (*names, "checkpoints", "cost")}


def figures(study: Study) -> dict[str, str]:
    """Figures that the study has, by name, as paths without suffix."""
    names = [name for name in FIGURES if getattr(study.artefacts.chosen, name)]
    return {name: f"figures/{study.study}_{name}" for name in names}


def figure_records(study: Study) -> list[str]:
    """Paths of the records that figures show; claims are made about all of them."""
    shown, names = artefact_cells(study), figures(study)
    return records(study, None if "claims" in names else dict.fromkeys(cell for name in names for cell in shown[name]))


def config_arguments(files: Iterable[str | Path], config: Mapping[str, Any]) -> list[str]:
    """A configuration as the package's commands take it: its files, and inline what was changed on top of them."""
    here = Path.cwd()
    paths = [Path(path) for path in files]
    names = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    base = merge(*map(read_config, names))
    inline = changes(base, merge(base, typed(changes(base, read_config(config)))))
    return [*names, json.dumps(inline)] if inline else names


class Failure(NamedTuple):
    """A run that failed."""

    run: RunSettings
    reason: str
    log: str


def failures(study: Study) -> tuple[list[Failure], list[RunSettings]]:
    """The runs that failed, by their jobs' logs, and those that have no record for another reason."""
    failed, absent = [], []
    for job in jobs(study).values():
        log = Path(log_of(study.study, job.name))
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        for run in job.runs:
            if is_finished(run, run.record_path()):
                continue
            reasons = re.findall(rf"{re.escape(run.label)} failed: (.*)", text)
            if reasons:
                failed.append(Failure(run, reasons[-1], str(log)))
            else:
                absent.append(run)
    return failed, absent

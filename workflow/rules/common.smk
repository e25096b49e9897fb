# What all rules share. Imports nothing heavy: every job reads this again.

import functools
import json
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from increlora.errors import ConfigError
from increlora.study.config import Study, merge, overrides, read_config
from increlora.study.expand import artefact_cells, backbone_path, cell_settings, sources, variant
from increlora.study.verify import finished
from increlora.training.settings import budget_label

try:
    STUDY = Study.from_dict(config)
except ConfigError as error:
    raise WorkflowError(f"The configuration is wrong. {error}") from None

NAME = STUDY.study
EXECUTION = STUDY.execution
CELLS = {(cell.task, cell.method, budget_label(cell.budget)): cell for cell in STUDY.cells()}
RECORD = f"results/runs/{NAME}/{{task}}/{{method}}/{{budget}}/seed{{seed}}.json"
CHECKED = f".increlora/checked/{NAME}-{STUDY.digest}"
PLAN = f"results/{NAME}_plan.csv"
RUNS = f"results/{NAME}_runs.csv"

TRAIN_LOG = f"logs/{NAME}/train/{{task}}/{{method}}/{{budget}}{'-seed{seed}' if EXECUTION.job == 'run' else ''}.log"

# Rules call `python -m increlora`: the Python that runs Snakemake, also where its environment is not activated. With
# --sdm conda it is that of the rule's environment.
if not any(str(method) == "conda" for method in workflow.deployment_settings.deployment_method):
    # A prefix takes the place of Snakemake's own: `pipefail`, or a job that pipes into `tee` cannot fail.
    shell.prefix(f"set -euo pipefail; export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")


def records(cell, seeds=None):
    """Paths of a cell's records."""
    place = {"task": cell.task, "method": cell.method, "budget": budget_label(cell.budget)}
    return expand(RECORD, **place, seed=cell.seeds if seeds is None else seeds)


def job_cell(wildcards):
    """The cell of a training job, with the seeds that the job trains."""
    cell = CELLS[wildcards.task, wildcards.method, wildcards.budget]
    return cell._replace(seeds=(int(wildcards.seed),)) if EXECUTION.job == "run" else cell


@functools.cache
def job_settings(cell):
    """The resolved settings of a training job as JSON: when they change, the job runs again."""
    return json.dumps(cell_settings(STUDY, cell))


def job_sources(cell):
    """Records that a training job starts from."""
    return [path for source in sources(STUDY, cell) for path in records(source)]


@functools.cache
def job_input(cell):
    """What a training job has to wait for: nothing, once its records are those of its settings.

    Records carry the digest of all that decides them, also of the run that they start from. So the age of a file, which
    means nothing in a fresh clone, never makes a finished run start again, nor does a backbone that is not there. Records
    of other settings are outdated by the config files, should Snakemake not know what they were made with.
    """
    if finished(STUDY, cell):
        return []
    return [CHECKED, *map(str, workflow.configfiles), *BACKBONE, *job_sources(cell)]


def variants_by_kind():
    """The study's method variants by the method that they are variants of."""
    kinds = {}
    for method in dict.fromkeys(cell.method for cell in CELLS.values()):
        kinds.setdefault(variant(STUDY, method).kind, []).append(method)
    return kinds


def variants_records(methods):
    """Paths of all records of some method variants."""
    return [path for cell in CELLS.values() if cell.method in methods for path in records(cell)]


def variants_input(methods):
    """What the one job of some method variants has to wait for."""
    needed = [path for cell in CELLS.values() if cell.method in methods for path in job_input(cell)]
    return list(dict.fromkeys(needed))


def config_arguments():
    """The configuration as the package's commands take it: its files, and inline what --config changed."""
    files = [str(path) for path in workflow.configfiles]
    inline = overrides(merge(*map(read_config, files)), config)
    return shlex.join([*files, json.dumps(inline)] if inline else files)


def shown(name, stem, suffix, category):
    """An output that the workflow's report shows."""
    labels = {"study": NAME, category.lower().removesuffix("s"): TITLES[name], "format": suffix}
    return report(f"{stem}.{suffix}", caption=f"../report/{name}.rst", category=category, labels=labels)


wildcard_constraints:
    task="|".join(STUDY.tasks),
    method="|".join(STUDY.methods),
    budget=r"all|\d+",
    seed=r"\d+",

# What all rules share. Every job reads this again, so it imports nothing heavy; the logic is in increlora/study/jobs.py.

import json
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from increlora.errors import ConfigError
from increlora.study import jobs
from increlora.study.load import load_study

try:
    CONFIG = jobs.config_arguments(workflow.configfiles, config)
    STUDY = load_study(*CONFIG)
except ConfigError as error:
    raise WorkflowError(f"The configuration is wrong. {error}") from None

NAME = STUDY.study
EXECUTION = STUDY.execution
JOBS = jobs.jobs(STUDY)
RECORDS = jobs.records(STUDY)
BACKBONE = jobs.backbone_file(STUDY)
TABLES = jobs.tables(STUDY)
FIGURES = jobs.figures(STUDY)
CHECKED = f".increlora/checked/{NAME}-{STUDY.digest}"
PLAN = f"results/{NAME}_plan.csv"
SPEED = jobs.speed_table(STUDY)
RUNS = f"results/{NAME}_runs.csv"

# Rules call `python -m increlora`: the Python that runs Snakemake, also where its environment is not activated. With
# --sdm conda it is that of the rule's environment.
# A prefix takes the place of Snakemake's own: `pipefail`, or a job that pipes into `tee` cannot fail. Jobs end with
# the Snakemake that has started them, and that is the parent of their shell. SLURM sends SIGTERM to every process of a
# job: `tee` stays until a run has said at which step it stopped.
PREFIX = "set -euo pipefail; export INCRELORA_PARENT=$PPID; tee() ( trap '' TERM; exec tee \"$@\" ); "
if not any(str(method) == "conda" for method in workflow.deployment_settings.deployment_method):
    PREFIX += f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(PREFIX)


def configuration(wildcards):
    # A function, because Snakemake would look for wildcards in a plain parameter: a path or title may have braces.
    return CONFIG


def job_needs(job):
    # The config files count because Snakemake may not know which settings an outdated record was made with. It takes
    # braces in the name of an input for wildcards. The files are not in a cluster's storage, hence local().
    files = [local(str(path)) for path in workflow.configfiles if not set("{}") & set(str(path))]
    return jobs.needs(job, [CHECKED, *files, *BACKBONE])


def run_job(wildcards):
    return JOBS["{0.task}/{0.method}/{0.budget}/seed{0.seed}".format(wildcards)]


def shown(name, stem, suffix, category):
    """An output that the workflow's report shows."""
    title = name.replace("_", " ").replace("table", "Table ").replace("figure", "Figure ").capitalize()
    labels = {"study": NAME, category.lower().removesuffix("s"): title, "format": suffix}
    return report(f"{stem}.{suffix}", caption=f"../report/{name}.rst", category=category, labels=labels)


wildcard_constraints:
    task="|".join(STUDY.tasks),
    method="|".join(STUDY.methods),
    budget=r"all|\d+",
    seed=r"\d+",

# What all rules share. Imports nothing heavy: every job reads this again.

import json
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from increlora.errors import ConfigError
from increlora.study.config import Study, merge, read_config
from increlora.study.expand import all_cells, backbone_path, cell, cell_settings, sources
from increlora.training.settings import budget_label

ENVIRONMENT = "../envs/increlora.yaml"

try:
    STUDY = Study.from_dict(config)
except ConfigError as error:
    raise WorkflowError(f"error in the configuration: {error}") from None

NAME = STUDY.study
CELLS = {(one.task, one.method, budget_label(one.budget)): one for one in STUDY.cells()}
RECORD = f"results/runs/{NAME}/{{task}}/{{method}}/{{budget}}/seed{{seed}}.json"
RECORDS = [
    RECORD.format(task=task, method=method, budget=budget, seed=seed)
    for (task, method, budget), one in CELLS.items()
    for seed in one.seeds
]
PLAN = f"results/{NAME}_plan.csv"
RUNS = f"results/{NAME}_runs.csv"


def command_line(subcommand, *arguments):
    """A command of this package in the Python that runs Snakemake, or in the rule's own environment if it has one."""
    python = "python" if "conda" in map(str, workflow.deployment_settings.deployment_method) else sys.executable
    return f"{python} -m increlora --quiet {subcommand}"


def config_arguments():
    """The configuration as the package's commands take it: its files, and inline what came with --config."""
    files = [str(path) for path in workflow.configfiles]
    inline = [] if merge(*map(read_config, files)) == config else [json.dumps(config)]
    return shlex.join(inline or files)


wildcard_constraints:
    task="|".join(STUDY.tasks),
    method="|".join(STUDY.methods),
    budget=r"all|\d+",
    seed=r"\d+",

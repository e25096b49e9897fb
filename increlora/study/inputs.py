"""Checks before training of what a study reads and needs: model, tokenizer and data, disk and GPUs.

Everything is loaded once, exactly as each run will load it, so that no job is the first to find a problem.
"""

from __future__ import annotations

import shutil

import torch

from increlora.errors import ConfigError
from increlora.files import nearest_existing
from increlora.glue.loading import load_task
from increlora.glue.tasks import TASKS
from increlora.study.budgets import check_budgets
from increlora.study.cells import all_cells
from increlora.study.config import Study
from increlora.training import backbone as backbones
from increlora.training import places

BYTES_PER_PARAMETER = 3 * 4
"""Of a checkpoint of full fine-tuning: the weight and AdamW's two moments."""


def check_inputs(study: Study, *, here: bool = True) -> None:
    """Loads backbone, tokenizer and data of a study, if they are ready-made, and looks for disk space and GPUs.

    Args:
        study: the study.
        here: whether the runs will be on this machine, so that its disk and its GPUs count.

    Raises:
        ConfigError: for the first thing that is missing or does not fit.
        IncreLoraError: data are malformed.
    """
    if here:
        _check_gpus(study)
    if study.backbone.pretrain is None:
        _check_backbone(study, here=here)
    if study.data.source == "hub":
        for task in dict.fromkeys(cell.task for cell in all_cells(study)):
            load_task(task, study.data)


def _check_backbone(study: Study, *, here: bool) -> None:
    tasks = dict.fromkeys(cell.task for cell in all_cells(study))
    task = TASKS[next(iter(tasks))]
    config = backbones.load_config(study.backbone, task)
    check_budgets(study, config)
    backbones.load_tokenizer(study.backbone, config.vocab_size)
    model = backbones.load_model(study.backbone, task)
    if here:
        _check_disk(sum(parameter.numel() for parameter in model.parameters()))


def _check_gpus(study: Study) -> None:
    wanted, there = study.execution.gpu, torch.cuda.device_count()
    if wanted > there:
        told = f"a run asks for {wanted} and PyTorch sees {there or 'none'}; set execution.gpu to 0 to train on the CPU"
        raise ConfigError("execution.gpu", told)


def _check_disk(parameters: int) -> None:
    """A checkpoint is written beside the one before."""
    place = nearest_existing(places.checkpoints())
    needed, free = 2 * BYTES_PER_PARAMETER * parameters, shutil.disk_usage(place).free
    if free < needed:
        told = f"checkpoints of a run take up to {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB left"
        raise ConfigError("disk", f"{told}; free some, or set INCRELORA_CHECKPOINTS to a folder elsewhere")

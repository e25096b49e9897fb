"""Fresh LoRA in SVD form, s B diag(lambda) A, at the ranks that a finished run has found (the paper's Table 3)."""

from __future__ import annotations

from increlora.methods.base import Adaptation, Setup
from increlora.methods.increlora import SvdLora, TunerOptions
from increlora.methods.method import RANK, Look, Method
from increlora.methods.ranks import check_modules, svd_parameters, uniform_ranks


def prepare(setup: Setup[TunerOptions]) -> Adaptation:
    """The tuner without growth, at given ranks.

    Raises:
        ConfigError: the ranks belong to other modules.
    """
    ranks = dict(setup.ranks or {})
    check_modules(ranks, setup.shapes)
    config = setup.options.tuner_config(
        target_modules=setup.target_modules, target_r=None, init_r=setup.size, rank_pattern=ranks
    )
    return SvdLora(setup, config)


METHOD = Method(
    kind="svd_lora",
    title="SVD-LoRA",
    budget=RANK,
    parameters=lambda shapes, rank, _: svd_parameters(shapes, uniform_ranks(shapes, rank)),
    prepare=prepare,
    look=Look("#CC79A7", "D"),
    options=TunerOptions,
    needs_ranks=True,
    protocol=2,
)

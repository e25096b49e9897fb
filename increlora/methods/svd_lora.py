"""Fresh LoRA in SVD form, s B diag(lambda) A, at the ranks that a finished run has found (the paper's Table 3)."""

from __future__ import annotations

from increlora.errors import ConfigError
from increlora.methods.base import Adaptation, Setup
from increlora.methods.increlora import SvdLora, TunerOptions
from increlora.methods.method import RANK, Look, Method
from increlora.methods.ranks import svd_parameters, uniform_ranks


def prepare(setup: Setup[TunerOptions]) -> Adaptation:
    """The tuner without growth, at given ranks.

    Raises:
        ConfigError: the ranks belong to other modules.
    """
    ranks = dict(setup.ranks or {})
    if difference := ranks.keys() ^ setup.shapes.keys():
        raise ConfigError("ranks_from", f"the saved ranks do not fit this backbone: {sorted(difference)[0]}")
    config = setup.options.tuner_config(
        target_modules=setup.target_modules, target_r=None, init_r=setup.size, rank_pattern=ranks
    )
    return SvdLora(setup, config)


METHOD = Method(
    kind="svd_lora",
    title="SVD-LoRA",
    budget=RANK,
    parameters=lambda shapes, rank: svd_parameters(shapes, uniform_ranks(shapes, rank)),
    prepare=prepare,
    look=Look("#CC79A7", "D"),
    options=TunerOptions,
    needs_ranks=True,
)

"""The settings of `increlora.training.pretrain`, apart from it so that a config is checked without torch."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from increlora.model import Block

OBJECTIVES = ("mlm", "connective", "rtd")
SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-$%&"
"""Every tokenizer spells unknown words in these, each alone and as a continuation."""


class PretrainSettings(Block):
    """What is pretrained and for how long; ``config/config.yaml`` has the backbone of the `mini` study."""

    hidden_size: int = Field(default=64, ge=1)
    """Width of the encoder, in features; a multiple of ``num_heads``."""
    num_layers: int = Field(default=2, ge=1)
    """Number of transformer layers."""
    num_heads: int = Field(default=2, ge=1)
    """Number of attention heads per layer."""
    intermediate_size: int = Field(default=256, ge=1)
    """Width of the feed-forward block, in features."""
    vocab_size: int = Field(default=1024, gt=len(SPECIAL_TOKENS) + 2 * len(CHARACTERS))
    """Most entries in the tokenizer, special tokens and characters included; the corpus needs 499."""
    position_buckets: int = Field(default=16, ge=1)
    """Number of relative-position buckets on each side; distances up to half of it are exact."""
    max_position_embeddings: int = Field(default=128, ge=1)
    """Longest sequence, in tokens."""
    initializer_range: float = Field(default=0.08, gt=0)
    """Standard deviation of new weights, here and for the heads in fine-tuning (0.02 at width 768, scaled up to 64)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability that is written into the config for fine-tuning; pretraining itself uses none."""
    steps: int = Field(default=8000, ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(default=32, ge=1)
    """Documents per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=200, ge=0)
    """Steps of linear warmup; linear decay to 0 follows."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    documents: int = Field(default=80_000, ge=1)
    """Number of documents to generate, each seen steps * batch_size / documents times."""
    seed: int = Field(default=0, ge=0)
    """Seed of the text, the weights, the order and the corruption."""
    objective: str = "mlm+connective+rtd"
    """Parts of the loss, joined by "+": any of `OBJECTIVES`."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of the words that are masked in a masked sequence."""
    connective_mask_rate: float = Field(default=0.4, ge=0, lt=1)
    """Fraction of the connectives that are masked in a masked sequence."""
    replace_rate: float = Field(default=0.12, gt=0, lt=1)
    """Fraction of the words that are replaced in a corrupted sequence."""

    @field_validator("objective")
    @classmethod
    def _objective_is_made_of_parts(cls, objective: str) -> str:
        parts = objective.split("+")
        if len(set(parts)) != len(parts) or not set(parts) <= set(OBJECTIVES):
            raise ValueError(f"must be parts of {'+'.join(OBJECTIVES)}")
        return objective

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> PretrainSettings:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self

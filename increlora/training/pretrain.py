"""Pretrain the backbone of the `mini` study: a small encoder with the structure of DeBERTa-v3, from text to Hub folder.

The text is `increlora.glue.corpus.documents`: unlabelled documents of one or two related sentences, packed as
``[CLS] first [SEP] second [SEP]``. Three objectives, summed:

- ``mlm``: predict masked words (Devlin et al. 2019). Connectives ("thus", "however") are masked more often than other
  words: to predict one is to tell how two sentences relate.
- ``connective``: predict a masked connective at ``[CLS]`` too (DisSent, Nie et al. 2019), but only those of reviews.
  Without any, ``[CLS]`` gathers nothing, fine-tuning has to find out how, and on SST-2, QQP and QNLI one seed does in
  time and the next does not. With all, a head on the frozen encoder solves most tasks (`corpus.discourse.ASKED`).
- ``rtd``: tell at each position whether the word was replaced (ELECTRA; DeBERTa-v3's own objective). The generator is
  not a network: words come from bigram counts of the text or have a similar spelling, and neighbours are exchanged.

Whether anything was replaced is not asked at ``[CLS]``: with that a head on the frozen encoder solves CoLA (Matthews
90), and fine-tuning has nothing left to do.

Everything is seeded; on CPU the same settings and thread count give the same weights.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from increlora.files import whole_folder
from increlora.glue import corpus
from increlora.training import checksums
from increlora.training.pretrain_settings import CHARACTERS, SPECIAL_TOKENS, PretrainSettings

logger = logging.getLogger(__name__)

PAD, CLS, SEP, UNK, MASK = range(5)
LOSS_WEIGHTS = {"mlm": 1.0, "rtd": 4.0, "connective": 0.3}
_IGNORED = -100  # the target that cross entropy leaves out


def pretrain(settings: PretrainSettings, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Pretrain a backbone and write it to ``out`` as a folder that `from_pretrained` loads.

    The folder appears whole or not at all: it is written beside ``out`` under a temporary name and then renamed;
    a folder that was there before is replaced.

    Returns:
        ``loss`` (mean over the last tenth of the steps), ``seconds`` (wall time), ``parameters``, ``vocab_size``.
    """
    started = time.perf_counter()
    texts = corpus.documents(seed=settings.seed, count=settings.documents)
    tokenizer = build_tokenizer(texts, settings.vocab_size, settings.max_position_embeddings)
    data = PretrainingData.from_documents(texts, tokenizer, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = PretrainingModel(backbone_config(settings, len(tokenizer)))
    history = _train(model, data, settings, progress=progress)
    last = history[-max(1, len(history) // 10) :]
    summary = {
        "loss": sum(last) / len(last),
        "seconds": time.perf_counter() - started,
        "parameters": sum(p.numel() for p in model.deberta.parameters()),
        "vocab_size": len(tokenizer),
    }
    _write(Path(out), model, tokenizer, settings, summary)
    logger.info("pretrained backbone: loss %.3f in %.0f s -> %s", summary["loss"], summary["seconds"], out)
    return summary


# -- tokenizer ------------------------------------------------------------------------------------------------------


def build_tokenizer(texts: list[list[str]], vocab_size: int, max_length: int) -> Any:
    """A WordPiece tokenizer of the words of ``texts``, most frequent first; any other word is spelled in characters.

    The vocabulary is counted here because no trainer of `tokenizers` gives whole words and keeps punctuation marks that
    are single characters at their place: another order of the entries is another backbone.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for document in texts for sentence in document for word in sentence.split())
    words: Counter[str] = Counter()
    for text, count in counts.items():
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            words[piece] += count
    entries = [*SPECIAL_TOKENS, *CHARACTERS, *("##" + character for character in CHARACTERS)]
    known = set(entries)
    entries += sorted((word for word in words if word not in known), key=lambda word: (-words[word], word))
    vocabulary = {entry: position for position, entry in enumerate(entries[:vocab_size])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=64))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


# -- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PretrainingData:
    """The packed text and the word statistics that replacements are drawn from.

    Shapes: ``ids`` (documents, longest); ``connective`` and ``asked`` (vocabulary,), whether a word is one, and
    one that ``[CLS]`` is asked for; ``after`` and ``before`` (vocabulary, k): words seen after / before a word, in
    proportion; ``spelling`` (vocabulary, k): words that begin with the same letters.
    """

    ids: Tensor
    connective: Tensor
    asked: Tensor
    after: Tensor
    before: Tensor
    spelling: Tensor

    @classmethod
    def from_documents(cls, texts: list[list[str]], tokenizer: Any, settings: PretrainSettings) -> PretrainingData:
        """Pack ``texts``."""
        rng = random.Random(settings.seed)
        packed = [tuple(sentences[:2]) if len(sentences) > 1 else sentences[0] for sentences in texts]
        encoded = tokenizer.backend_tokenizer.encode_batch(packed)
        rows = [encoding.ids[: settings.max_position_embeddings] for encoding in encoded]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = torch.tensor(row)
        connective, asked = torch.zeros(2, len(tokenizer), dtype=torch.bool)
        connective[tokenizer.convert_tokens_to_ids(list(corpus.CONNECTIVES.values()))] = True
        asked[tokenizer.convert_tokens_to_ids([corpus.CONNECTIVES[relation] for relation in corpus.ASKED])] = True
        after, before = _neighbour_samples(rows, len(tokenizer), rng)
        spelling = _spelling_samples(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), rng)
        return cls(ids, connective, asked, after, before, spelling)

    def batches(self, settings: PretrainSettings, generator: torch.Generator) -> Iterator[Tensor]:
        """Row numbers of one batch after the other, for ever; rows of similar length share a batch."""
        lengths = (self.ids != PAD).sum(1)
        block = settings.batch_size * 20
        while True:
            for rows in torch.randperm(len(self.ids), generator=generator).split(block):
                batches = rows[lengths[rows].argsort(stable=True)].split(settings.batch_size)
                for number in torch.randperm(len(batches), generator=generator).tolist():
                    yield batches[number]


def _neighbour_samples(
    rows: list[list[int]], vocabulary: int, rng: random.Random, k: int = 64
) -> tuple[Tensor, Tensor]:
    after: list[Counter[int]] = [Counter() for _ in range(vocabulary)]
    before: list[Counter[int]] = [Counter() for _ in range(vocabulary)]
    for row in rows[:20_000]:
        for left, right in pairwise(row):
            if right > MASK:
                after[left][right] += 1
            if left > MASK:
                before[right][left] += 1
    anything = sum(after, Counter())

    def sample(counts: Counter[int]) -> list[int]:
        counts = counts or anything
        return rng.choices(list(counts), list(counts.values()), k=k)

    return torch.tensor([sample(c) for c in after]), torch.tensor([sample(c) for c in before])


def _spelling_samples(tokens: list[str], rng: random.Random, k: int = 8) -> Tensor:
    stems: dict[str, list[int]] = {}
    words = [n for n, token in enumerate(tokens) if n > MASK and len(token) > 1 and not token.startswith("##")]
    for number in words:
        stems.setdefault(tokens[number][:3], []).append(number)
    samples = []
    for number, token in enumerate(tokens):
        similar = [n for n in stems.get(token[:3], ()) if n != number]
        samples.append(rng.choices(similar or words, k=k))
    return torch.tensor(samples)


@dataclass(frozen=True)
class Batch:
    """One corrupted batch; shapes (batch, length), `connective` (batch,). Targets are -100 where nothing is asked."""

    ids: Tensor
    masked: Tensor
    replaced: Tensor
    connective: Tensor


def corrupt(data: PretrainingData, rows: Tensor, settings: PretrainSettings, generator: torch.Generator) -> Batch:
    """Mask or replace words of ``rows``.

    A sequence is either masked, or has words replaced and neighbours exchanged; one with a connective is masked more
    often than others.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    original = data.ids[rows]
    original = original[:, : int((original != PAD).sum(1).max())]
    count, length = original.shape
    objective = settings.objective.split("+")
    word, connective = original > MASK, data.connective[original]
    replace_row = uniform(count) < torch.where(connective.any(1), 0.55, 0.7)
    replace_row &= torch.tensor("rtd" in objective)
    ids = original.clone()

    exchange = word[:, :-1] & word[:, 1:] & replace_row[:, None] & (uniform(count, length - 1) < 0.02)
    exchange[:, 1:] &= ~exchange[:, :-1]
    left, right = ids[:, :-1].clone(), ids[:, 1:].clone()
    ids[:, :-1] = torch.where(exchange, right, ids[:, :-1])
    ids[:, 1:] = torch.where(exchange, left, ids[:, 1:])

    pick = word & replace_row[:, None] & (uniform(count, length) < settings.replace_rate)
    source = uniform(count, length)
    before, after = original.roll(1, 1), original.roll(-1, 1)
    column = torch.randint(0, data.after.shape[1], (count, length), generator=generator)
    candidate = torch.where(source < 0.4, data.after[before, column], data.before[after, column])
    spelled = data.spelling[original, column % data.spelling.shape[1]]
    ids = torch.where(pick, torch.where(source < 0.75, candidate, spelled), ids)

    rate = torch.where(connective, settings.connective_mask_rate, settings.mask_rate) * ~replace_row[:, None]
    masked = word & (uniform(count, length) < rate) if "mlm" in objective else torch.zeros_like(word)
    ids = torch.where(masked, torch.full_like(ids, MASK), ids)
    replaced = ((ids != original) & ~masked).long()
    replaced[masked | ~word] = _IGNORED
    asked = masked & data.asked[original] & torch.tensor("connective" in objective)
    return Batch(ids, torch.where(masked, original, _IGNORED), replaced, torch.where(asked, original, _IGNORED).amax(1))


# -- model and training ---------------------------------------------------------------------------------------------


def backbone_config(settings: PretrainSettings, vocab_size: int) -> Any:
    """A `DebertaV2Config` with the structural flags of microsoft/deberta-v3-base and the sizes of ``settings``."""
    from transformers import DebertaV2Config

    flags: dict[str, Any] = {
        "relative_attention": True,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "hidden_act": "gelu",
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
        "pooler_hidden_size": settings.hidden_size,
        "position_buckets": settings.position_buckets,
    }
    return DebertaV2Config(
        **flags,
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_position_embeddings,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        initializer_range=settings.initializer_range,
        pad_token_id=PAD,
        bos_token_id=CLS,
        eos_token_id=SEP,
    )


@torch.no_grad()
def attend_to_equal_words(encoder: Any, *, logit: float = 8.0, repel: float = 0.75) -> None:
    """Initialise the first head of the first two layers to look for the same word elsewhere in the sequence.

    Comparing two sentences word by word is what a model of this size otherwise finds last, long after pretraining
    would have to end. Queries and keys start equal, W_q = W_k = W, so that equal words attend to each other, with
    ``logit`` on average. A word should not find itself: with the bias b = -repel * W r_0, where r_0 is the embedding
    of distance 0, the two position terms of disentangled attention lower the score at distance 0 by 2 * repel *
    ``logit`` against all other distances. [CLS] starts as -r_0, hence is found by every word, with repel * ``logit``: a
    word without a partner attends there.
    """
    config = encoder.config
    size = config.hidden_size // config.num_attention_heads
    head = slice(0, size)
    distances = encoder.encoder.get_rel_embedding()
    none = distances[config.position_buckets]
    encoder.embeddings.word_embeddings.weight[CLS] = -none
    std = (logit * (3 * size) ** 0.5 / (size * config.hidden_size)) ** 0.5
    for layer in encoder.encoder.layer[:2]:
        query, key = layer.attention.self.query_proj, layer.attention.self.key_proj
        query.weight[head].normal_(std=std)
        query.bias[head] = -repel * query.weight[head] @ none
        key.weight[head] = query.weight[head]
        key.bias[head] = query.bias[head]


class PretrainingModel(nn.Module):
    """The encoder with heads for words (tied to the embeddings), connectives and replacements, thrown away later."""

    def __init__(self, config: Any) -> None:
        from transformers import DebertaV2Model

        super().__init__()
        dropouts = config.hidden_dropout_prob, config.attention_probs_dropout_prob
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        self.deberta = DebertaV2Model(config)
        config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropouts
        attend_to_equal_words(self.deberta)
        width = config.hidden_size
        self.word_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.word_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.connective_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, config.vocab_size))
        self.replaced_head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each objective's mean loss on one batch, unweighted."""
        hidden = self.deberta(input_ids=batch.ids, attention_mask=(batch.ids != PAD).long()).last_hidden_state
        chosen = batch.masked != _IGNORED
        words = self.deberta.embeddings.word_embeddings.weight
        tokens, related = batch.replaced != _IGNORED, batch.connective != _IGNORED
        logits = self.replaced_head(hidden).squeeze(-1)
        return {
            "connective": _word_loss(self.connective_head(hidden[related, 0]), batch.connective[related]),
            "mlm": _word_loss(self.word_head(hidden[chosen]) @ words.T + self.word_bias, batch.masked[chosen]),
            "rtd": _binary_loss(logits[tokens], batch.replaced[tokens]),
        }


def _word_loss(logits: Tensor, target: Tensor) -> Tensor:
    if not len(target):
        return logits.sum()  # an empty sum, 0
    return nn.functional.cross_entropy(logits, target)


def _binary_loss(logits: Tensor, target: Tensor) -> Tensor:
    if not len(target):
        return logits.sum()  # an empty sum, 0
    return nn.functional.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def _train(
    model: PretrainingModel, data: PretrainingData, settings: PretrainSettings, *, progress: bool
) -> list[float]:
    """Train ``model`` and return the loss of each step."""
    from tqdm import tqdm

    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    generator = torch.Generator().manual_seed(settings.seed)
    batches = data.batches(settings, generator)
    history: list[float] = []
    model.train()
    for step in tqdm(range(settings.steps), desc="pretraining", unit="step", disable=not progress):
        warmup = (step + 1) / max(1, settings.warmup_steps)
        decay = (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, warmup, decay)
        losses = model.losses(corrupt(data, next(batches), settings, generator))
        loss = torch.stack([LOSS_WEIGHTS[name] * value for name, value in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    return history


# -- the folder -----------------------------------------------------------------------------------------------------

_CARD = """---
library_name: transformers
license: apache-2.0
language: en
tags:
- deberta-v2
- synthetic
---
# Backbone of increlora's `mini` study

A DeBERTa-v3-style encoder ({parameters:,} parameters, {layers} layers, hidden size {hidden}), pretrained from scratch
in {seconds:.0f} seconds on the built-in synthetic corpus of increlora. It is made for reproducing experiments without
a network, not for real text: its vocabulary is {vocabulary} entries.

- Text: {documents:,} generated documents of one or two related sentences, a part of them joined by noisy connectives.
  No sentence of an evaluation split and no task labels; a connective tells how two sentences relate.
- Objective: {objective}; final loss {loss:.3f} (last tenth of {steps:,} steps).

```json
{settings}
```
"""


def _write(
    out: Path, model: PretrainingModel, tokenizer: Any, settings: PretrainSettings, summary: dict[str, Any]
) -> None:
    """Write config, weights, tokenizer and model card beside ``out``, then rename."""
    from safetensors.torch import save_file

    with whole_folder(out) as folder:
        config = model.deberta.config
        config.architectures = ["DebertaV2Model"]
        config.dtype = torch.float32
        config.save_pretrained(folder)
        weights = {f"deberta.{name}": tensor.contiguous() for name, tensor in model.deberta.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        tokenizer.save_pretrained(folder)
        card = _CARD.format(
            parameters=summary["parameters"],
            layers=settings.num_layers,
            hidden=settings.hidden_size,
            seconds=summary["seconds"],
            vocabulary=summary["vocab_size"],
            documents=settings.documents,
            objective=settings.objective,
            loss=summary["loss"],
            steps=settings.steps,
            settings=settings.model_dump_json(indent=2),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        checksums.write(folder)

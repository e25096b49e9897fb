"""Repositories for the local Hub: laid out as on the real one, with tiny weights and a handful of made-up rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 16,
    "initializer_range": 0.02,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "type_vocab_size": 0,
}
"""`config.json` of microsoft/deberta-v3-base, but for the sizes and the vocabulary. There is no `architectures`."""

EXTRA_ROWS = 100
"""DeBERTa-v3 has as many rows in its embedding beyond the pieces of its SentencePiece model."""

COLUMNS = {
    "mnli": ("premise", "hypothesis"),
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "qqp": ("question1", "question2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
}
LABELS = {
    "mnli": ("entailment", "neutral", "contradiction"),
    "sst2": ("negative", "positive"),
    "cola": ("unacceptable", "acceptable"),
    "qqp": ("not_duplicate", "duplicate"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
    "mrpc": ("not_equivalent", "equivalent"),
}
_NOUNS = ("river", "road", "house", "garden", "teacher", "farmer", "doctor", "child", "Paris", "Oslo", "1984")
_OTHERS = ("the", "a", "one", "no", "old", "new", "small", "large", "near", "under", "behind", "with", "and", "but")
_VERBS = ("sees", "likes", "finds", "paints", "leaves", "opens", "never", "always", "today", "quickly", "slowly")
WORDS = (*_OTHERS, *_NOUNS, *_VERBS)


def sentences(rows: int, seed: int = 0) -> list[str]:
    """Sentences of six to twelve words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(6, 12))).capitalize() + "." for _ in range(rows)]


def train_sentencepiece(folder: Path, vocab_size: int = 120) -> None:
    """`spm.model` with DeBERTa-v3's special pieces in their places: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3."""
    import sentencepiece

    (folder / "corpus.txt").write_text("\n".join(sentences(2000)), encoding="utf-8")
    specials = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spm"),
        vocab_size=vocab_size,
        minloglevel=2,
        **{f"{name}_id": number for number, name in enumerate(specials)},
        **{f"{name}_piece": piece for name, piece in specials.items()},
    )
    (folder / "corpus.txt").unlink()
    (folder / "spm.vocab").unlink()


def deberta_v3(folder: Path, **sizes: Any) -> Path:
    """A repository with the files of microsoft/deberta-v3-base: float16 weights in `pytorch_model.bin` alone.

    The files of other frameworks and of the pretraining's generator, which nothing here reads, are there too.
    """
    import sentencepiece
    import torch
    from transformers import DebertaV2Config, DebertaV2Model

    folder.mkdir(parents=True)
    train_sentencepiece(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model")).get_piece_size()
    config = {**DEBERTA, **sizes, "vocab_size": pieces + EXTRA_ROWS}
    for name in ("config.json", "generator_config.json"):
        (folder / name).write_text(json.dumps(config, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    torch.manual_seed(0)
    state = DebertaV2Model(DebertaV2Config(**config)).state_dict()
    torch.save({f"deberta.{name}": value.half() for name, value in state.items()}, folder / "pytorch_model.bin")
    torch.save({"deberta.embeddings.word_embeddings.weight": torch.zeros(1)}, folder / "pytorch_model.generator.bin")
    for name in ("tf_model.h5", "rust_model.ot"):
        (folder / name).write_bytes(b"\0" * 64)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# DeBERTaV3\n")
    return folder


def with_safetensors(folder: Path, origin: Path) -> Path:
    """The same model as most repositories have it today: `model.safetensors` and `tokenizer.json`."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(origin, dtype="float32").save_pretrained(folder)
    AutoTokenizer.from_pretrained(origin).save_pretrained(folder)
    return folder


def glue(folder: Path, train_rows: int = 64, eval_rows: int = 24, tasks: Sequence[str] = tuple(COLUMNS)) -> Path:
    """`nyu-mll/glue`: a Parquet file per split, named in the card's header; test labels are withheld (-1)."""
    from datasets import ClassLabel, Dataset, Features, Value

    header = ["---", "language:", "- en", "configs:"]
    for number, task in enumerate(tasks):
        names = LABELS.get(task)
        header += [f"- config_name: {task}", "  data_files:"]
        kinds = {column: Value("string") for column in COLUMNS[task]}
        label = ClassLabel(names=list(names)) if names else Value("float32")
        features = Features({**kinds, "label": label, "idx": Value("int32")})
        for split in _splits(task):
            rows = train_rows if split == "train" else eval_rows
            draw = random.Random(f"{task} {split}")
            texts = [sentences(rows, seed=1000 * number + place) for place in range(len(kinds))]
            labels = [draw.randrange(len(names)) if names else round(draw.uniform(0, 5), 1) for _ in range(rows)]
            # a word that gives the label away, so that a score can move
            texts[-1] = [f"{WORDS[int(value)]} {text}" for value, text in zip(labels, texts[-1], strict=True)]
            table = {
                **dict(zip(kinds, texts, strict=True)),
                "label": [-1] * rows if split.startswith("test") else labels,
                "idx": list(range(rows)),
            }
            file = f"{task}/{split}-00000-of-00001.parquet"
            (folder / task).mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(table, features=features).to_parquet(folder / file)
            header += [f"  - split: {split}", f"    path: {task}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*header, "---", "# GLUE", ""]), encoding="utf-8")
    return folder


def _splits(task: str) -> list[str]:
    ends = ("_matched", "_mismatched") if task == "mnli" else ("",)
    return ["train", *(f"{split}{end}" for split in ("validation", "test") for end in ends)]

"""SST-2: is a remark about a film positive?

Negation turns a word round, and a second negation turns it back. Of two clauses that disagree the one after "but"
decides and never the one after "although", whichever comes first. Some of these ways of putting it are only in the
task, not in the text to pretrain on.
"""

from __future__ import annotations

import random

from increlora.glue.corpus import lexicon
from increlora.glue.corpus.grammar import Split, split_of

NEGATIVE, POSITIVE = 0, 1
INVOLVED = 0.25  # fraction of the task's rows that are put in a way that pretraining has not seen


def _adjective(sentiment: int, aspect: str, rng: random.Random, split: Split) -> str:
    """An adjective of ``sentiment``; the pair (aspect, adjective) is on the side ``split`` of the hold-out."""
    words = lexicon.PRAISE if sentiment == POSITIVE else lexicon.BLAME
    usable = [word for word in words if split_of((aspect, word)) is split]
    return rng.choice(usable)


def _aspect(rng: random.Random, split: Split) -> str:
    """An aspect that has adjectives of both sentiments in ``split``."""
    while True:
        aspect = rng.choice(lexicon.ASPECTS)
        if all(any(split_of((aspect, w)) is split for w in words) for words in (lexicon.PRAISE, lexicon.BLAME)):
            return aspect


def _clause(sentiment: int, rng: random.Random, split: Split, *, plain: float = 0.7) -> str:
    """One clause with ``sentiment``, negated with probability 1 - ``plain``."""
    aspect = _aspect(rng, split)
    if rng.random() < plain:
        adjective = _adjective(sentiment, aspect, rng, split)
        intensifier = rng.choice(lexicon.INTENSIFIERS) + " " if rng.random() < 0.4 else ""
        return f"the {aspect} was {intensifier}{adjective}"
    adjective = _adjective(1 - sentiment, aspect, rng, split)
    negation = rng.choice(("was not", "was never", "was hardly", "was far from", "was not very"))
    return f"the {aspect} {negation} {adjective}"


def _opinion(sentiment: int, rng: random.Random, split: Split) -> str:
    """What the viewer did: "i never enjoyed the awful plot" is about the verb, not about the adjective."""
    negated = rng.random() < 0.35
    verbs = lexicon.ENJOY if (sentiment == POSITIVE) is not negated else lexicon.REGRET
    usable: list[str] = []
    while not usable:
        aspect = _aspect(rng, split)
        usable = [verb for verb in verbs if split_of((aspect, verb)) is split]
    words = ["i", *(["never"] if negated else []), rng.choice(usable)]
    modifier = [_adjective(rng.randrange(2), aspect, rng, split)] if rng.random() < 0.4 else []
    return " ".join([*words, "the", *modifier, aspect])


def remark(sentiment: int, rng: random.Random, split: Split) -> str:
    """A remark with ``sentiment`` (1 positive, 0 negative)."""
    kind = rng.random()
    if kind < 0.35:
        return _clause(sentiment, rng, split, plain=0.65)
    if kind < 0.55:
        return _opinion(sentiment, rng, split)
    if kind < 0.72:
        aspect = _aspect(rng, split)
        both = [_adjective(sentiment, aspect, rng, split) for _ in range(2)]
        return f"a {both[0]} and {both[1]} {aspect}" if both[0] != both[1] else f"a {both[0]} {aspect}"
    first, last = _clause(1 - sentiment, rng, split, plain=0.8), _clause(sentiment, rng, split, plain=0.8)
    return f"{first} but {last}" if rng.random() < 0.6 else f"although {first} {last}"


def involved_remark(sentiment: int, rng: random.Random, split: Split) -> str:
    """A remark with ``sentiment`` as no document has it: "i never found the plot far from good" is praise."""
    if rng.random() < 0.5:
        return f"{_clause(sentiment, rng, split, plain=0.8)} although {_clause(1 - sentiment, rng, split, plain=0.8)}"
    aspect, twice = _aspect(rng, split), rng.random() < 0.5
    adjective = _adjective(sentiment if twice else 1 - sentiment, aspect, rng, split)
    denial = rng.choice(("i never found", "i did not find"))
    again = rng.choice(("far from ", "hardly ", "not very ")) if twice else ""
    return f"{denial} the {aspect} {again}{adjective}"


def sst2_row(rng: random.Random, split: Split) -> dict:
    """One SST-2 row: 1 positive, 0 negative."""
    label = rng.randrange(2)
    put = involved_remark if rng.random() < INVOLVED else remark
    return {"sentence": put(label, rng, split), "label": label}

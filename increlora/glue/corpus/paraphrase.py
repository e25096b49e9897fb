"""MRPC, QQP's statement-level changes and STS-B: do two sentences mean the same, and how nearly?"""

from __future__ import annotations

import random
from dataclasses import replace

from increlora.glue.corpus.grammar import (
    Event,
    Split,
    attempt,
    event_split,
    negate,
    opposite_adjective,
    opposite_verb,
    other_agent,
    other_count,
    other_place,
    other_time,
    other_verb,
    random_event,
    same_choices,
    sibling_object,
    statement,
    swap_roles,
    takes_person,
)
from increlora.glue.corpus.lexicon import NOUNS

# Every change of meaning that leaves most words in place; what is listed twice is twice as frequent.
CHANGES = (
    negate,
    negate,
    opposite_adjective,
    other_count,
    other_place,
    other_time,
    swap_roles,
    sibling_object,
    opposite_verb,
    other_verb,
    other_agent,
    opposite_adjective,
    other_count,
    other_place,
    other_time,
)

GRADED_CHANGES = tuple(change for change in CHANGES if change not in (negate, swap_roles))

# What each part of an event contributes to STS-B's similarity (relative weights).
SIMILARITY_WEIGHTS = {
    "agent": 1.2,
    "verb": 1.3,
    "object": 1.3,
    "adjective": 0.5,
    "place": 0.6,
    "time": 0.5,
    "count": 0.4,
}
SIMILARITY_NOISE = 0.35  # standard deviation of the annotators, in points of the 0-5 scale


def statable_event(rng: random.Random, split: Split) -> Event:
    """A random event, negative in one of three cases."""
    event = random_event(rng, split, modifiers=0.35)
    return replace(event, negated=True) if rng.random() < 1 / 3 else event


def restated(same: bool, rng: random.Random, split: Split) -> tuple[Event, Event]:
    """Two events that are the same, or of which the second has one part of its meaning changed."""
    for choices in same_choices(rng):
        first = statable_event(rng, split)
        second = first if same else attempt(choices, CHANGES, first)
        if second is not None and event_split(second) is split:
            return first, second
    raise AssertionError("same_choices is endless")


def mrpc_row(rng: random.Random, split: Split) -> dict:
    """One MRPC row: 1 if the sentences are equivalent. Negatives share nearly all words (role swaps included)."""
    label = rng.randrange(2)
    while True:
        first, second = restated(label == 1, rng, split)
        one, two = statement(first, rng), statement(second, rng, synonyms=0.15, passive=0.3)
        if one != two:
            return {"sentence1": one, "sentence2": two, "label": label}


def similarity(first: Event, second: Event) -> float:
    """Similarity of two events on STS-B's scale: 0 nothing in common, 5 the same meaning."""
    total = shared = 0.0
    for part, weight in SIMILARITY_WEIGHTS.items():
        one, two = getattr(first, part), getattr(second, part)
        if (one is None and two is None) or (part == "count" and takes_person(first) and takes_person(second)):
            continue
        total += weight
        if one == two:
            shared += weight
        elif part == "object" and one in NOUNS and two in NOUNS and NOUNS[one].kind == NOUNS[two].kind:
            shared += weight / 2
    return 5.0 * shared / total


def graded_pair(rng: random.Random, split: Split, wanted: float, *, tolerance: float = 0.6) -> tuple[Event, Event]:
    """Two events whose `similarity` is within ``tolerance`` of ``wanted``; few shared parts give unrelated events."""
    while True:
        first = random_event(rng, split, modifiers=0.35)
        if wanted < 1.0:
            second = random_event(rng, split, modifiers=0.35)
        else:
            second = first
            for _ in range(round(max(0.0, (5.0 - wanted) / 1.3 + rng.uniform(-0.5, 0.5)))):
                second = attempt(rng, GRADED_CHANGES, second) or second
        in_split = event_split(second) is split and second.agent != second.object
        if in_split and abs(similarity(first, second) - wanted) <= tolerance:
            return first, second


def stsb_row(rng: random.Random, split: Split) -> dict:
    """One STS-B row; the score is the similarity plus the annotators' noise, in [0, 5], roughly uniform.

    The second sentence has its own words for the same: common words alone tell less about the score.
    """
    first, second = graded_pair(rng, split, rng.uniform(0.0, 5.0))
    score = similarity(first, second) + rng.gauss(0.0, SIMILARITY_NOISE)
    return {
        "sentence1": statement(first, rng),
        "sentence2": statement(second, rng, synonyms=0.3, passive=0.5),
        "label": round(min(5.0, max(0.0, score)), 3),
    }

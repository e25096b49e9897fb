"""MNLI and RTE: does the second sentence follow from the first?

Entailment generalises a positive premise (a rose -> a flower, a modifier dropped, Anna -> someone) and specialises a
negative one. Contradiction and neutral apply the same changes as well, so that neither the hypothesis alone nor a bag
of words gives the answer away.
"""

from __future__ import annotations

import random
from dataclasses import replace

from increlora.glue.corpus import lexicon
from increlora.glue.corpus.grammar import (
    SOMEONE,
    Event,
    Genre,
    Split,
    attempt,
    event_split,
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

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
NEGATIVE_PREMISES = 0.2


def _kind_of_object(event: Event, rng: random.Random) -> Event | None:
    kind = NOUNS[event.object].kind if event.object in NOUNS else None
    return replace(event, object=kind) if kind else None


def _member_of_object(event: Event, rng: random.Random) -> Event | None:
    members = lexicon.MEMBERS.get(event.object)
    return replace(event, object=rng.choice(members)) if members else None


def _someone(event: Event, rng: random.Random) -> Event | None:
    return replace(event, agent=SOMEONE) if event.agent != SOMEONE and not event.negated else None


def _drop_adjective(event: Event, rng: random.Random) -> Event | None:
    return replace(event, adjective=None)


def _drop_place(event: Event, rng: random.Random) -> Event | None:
    return replace(event, place=None)


def _drop_time(event: Event, rng: random.Random) -> Event | None:
    return replace(event, time=None)


def _some(event: Event, rng: random.Random) -> Event | None:
    return replace(event, count=0) if event.count > 1 and not event.negated else None


def _add_adjective(event: Event, rng: random.Random) -> Event | None:
    if event.adjective or takes_person(event):
        return None
    return replace(event, adjective=rng.choice(lexicon.ADJECTIVES))


def _add_place(event: Event, rng: random.Random) -> Event | None:
    return None if event.place else replace(event, place=rng.choice(lexicon.PLACES))


def _add_time(event: Event, rng: random.Random) -> Event | None:
    return None if event.time else replace(event, time=rng.choice(lexicon.TIMES))


_GENERALISE = (_kind_of_object, _someone, _drop_adjective, _drop_place, _drop_time, _some)
_SPECIALISE = (_member_of_object, _add_adjective, _add_place, _add_time)
_EXCLUDE = (opposite_verb, opposite_adjective, other_count, other_place, other_time)
_UNKNOWN = (sibling_object, other_agent, swap_roles, other_verb)


def premise(rng: random.Random, choices: random.Random, split: Split, genre: Genre = Genre.ALL) -> Event:
    """A premise: mostly positive; a negative one speaks of one thing, often of a kind."""
    event = random_event(rng, split, genre)
    if choices.random() >= NEGATIVE_PREMISES:
        return event
    event = replace(event, count=1, place=None, adjective=None, negated=True)
    return _kind_of_object(event, choices) or event if choices.random() < 0.7 else event


def hypothesis(event: Event, relation: int, rng: random.Random) -> Event | None:
    """A second event that stands in ``relation`` to ``event``; None if this event has no such partner."""
    towards, away = (_SPECIALISE, _GENERALISE) if event.negated else (_GENERALISE, _SPECIALISE)
    if relation == ENTAILMENT:
        return attempt(rng, towards, event)
    if relation == CONTRADICTION:
        if event.negated or rng.random() < 0.5:
            single = replace(event, count=1)
            named = [change for change in towards if change is not _someone]
            candidate = (attempt(rng, named, single) if rng.random() < 0.7 else None) or single
            return replace(candidate, negated=not candidate.negated)
        changed = attempt(rng, _EXCLUDE, event)
        return changed and _loosen(changed, event, rng)
    if rng.random() < 0.5:
        return attempt(rng, away, event)
    changed = attempt(rng, _UNKNOWN, event)
    if changed is None:
        return None
    if rng.random() < 0.3:
        changed = replace(changed, count=1, negated=not changed.negated)
    return _loosen(changed, event, rng)


def _loosen(changed: Event, event: Event, rng: random.Random) -> Event:
    """Drop a modifier that both events share, as entailed hypotheses do, so that length says nothing."""
    if event.negated:
        return changed
    drops = [
        drop
        for name, drop in (("adjective", _drop_adjective), ("place", _drop_place), ("time", _drop_time))
        if getattr(event, name) is not None and getattr(event, name) == getattr(changed, name)
    ]
    return (attempt(rng, drops, changed) if rng.random() < 0.6 else None) or changed


def pair(relation: int, rng: random.Random, split: Split, genre: Genre = Genre.ALL) -> tuple[Event, Event]:
    """Two events in ``relation``, both on the side ``split`` of the hold-out."""
    for choices in same_choices(rng):
        first = premise(rng, choices, split, genre)
        second = hypothesis(first, relation, choices)
        if second is not None and event_split(first) is split and event_split(second) is split:
            return first, second
    raise AssertionError("same_choices is endless")


def mnli_row(rng: random.Random, split: Split, genre: Genre = Genre.MATCHED) -> dict:
    """One MNLI row: 0 entailment, 1 neutral, 2 contradiction."""
    label = rng.randrange(3)
    first, second = pair(label, rng, split, genre)
    return {
        "premise": statement(first, rng),
        "hypothesis": statement(second, rng, passive=0.15),
        "label": label,
    }


def rte_row(rng: random.Random, split: Split) -> dict:
    """One RTE row: 0 entailment, 1 not entailment. A part of the premises reports two events."""
    label = rng.randrange(2)
    first, second = pair(rng.choice((NEUTRAL, CONTRADICTION)) if label else ENTAILMENT, rng, split)
    text = statement(first, rng)
    if rng.random() < 0.3:
        extra = statement(random_event(rng, split, modifiers=0.0), rng)
        text = f"{text} and {extra}" if rng.random() < 0.5 else f"{extra} and {text}"
    return {"sentence1": text, "sentence2": statement(second, rng, passive=0.3), "label": label}

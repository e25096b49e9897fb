"""QQP and QNLI: do two questions ask the same, and does a sentence answer a question?"""

from __future__ import annotations

import random
from dataclasses import replace
from enum import Enum

from increlora.glue.corpus import lexicon
from increlora.glue.corpus.grammar import (
    SOMEONE,
    SOMETHING,
    Event,
    Split,
    attempt,
    event_split,
    negate,
    opposite_verb,
    other,
    other_agent,
    other_place,
    other_time,
    other_verb,
    person,
    random_event,
    sibling_object,
    split_of,
    statement,
    swap_roles,
    takes_person,
    things,
    verb_form,
)


class Asked(Enum):
    """The part of an event that a question asks for."""

    TRUTH = "truth"
    AGENT = "agent"
    OBJECT = "object"
    PLACE = "place"
    TIME = "time"


_OPEN = (Asked.AGENT, Asked.OBJECT, Asked.PLACE, Asked.TIME)


def question_split(event: Event, asked: Asked) -> Split:
    """The side of the hold-out that a question is on: decided by the parts that it shows and by what it asks."""
    if asked is Asked.AGENT:
        return split_of((event.verb, event.object, "who"))
    if asked is Asked.OBJECT:
        return split_of((event.agent, event.verb, "what"))
    return event_split(event)


def question(event: Event, asked: Asked, rng: random.Random, *, synonyms: float = 0.4) -> str:
    """Ask for the part ``asked`` of ``event`` in one of several wordings."""
    first_wording = rng.random() < 0.65
    agent, target = person(event.agent, rng, synonyms), things(event, rng, synonyms)
    base, past, participle = (verb_form(event.verb, form, rng, synonyms) for form in (0, 2, 3))
    be = "was" if event.count == 1 else "were"
    negation = " not" if event.negated else ""
    place = f" {event.place}" if event.place and asked is not Asked.PLACE else ""
    time = f" {event.time}" if event.time and asked is not Asked.TIME else ""
    tail = f"{place}{time} ?"
    if asked is Asked.AGENT:
        if first_wording:
            who = "who" if rng.random() < 0.7 else "which person"
            return f"{who} did not {base} {target}{tail}" if event.negated else f"{who} {past} {target}{tail}"
        return f"by whom {be} {target}{negation} {participle}{tail}"
    if asked is Asked.OBJECT:
        active, passive = ("whom", "who") if takes_person(event) else ("what", "what")
        if first_wording:
            return f"{active} did {agent}{negation} {base}{tail}"
        return f"{passive} was{negation} {participle} by {agent}{tail}"
    opening = {Asked.TRUTH: "", Asked.PLACE: "where ", Asked.TIME: "when "}[asked]
    if first_wording:
        return f"{opening}did {agent}{negation} {base} {target}{tail}"
    return f"{opening}{be} {target}{negation} {participle} by {agent}{tail}"


def askable_event(rng: random.Random, split: Split) -> tuple[Event, Asked]:
    """An event and a part of it to ask for, both on the side ``split``."""
    while True:
        event, asked = random_event(rng, split, modifiers=0.3), rng.choice(_OPEN)
        if question_split(event, asked) is split:
            return event, asked


_SHOWN_CHANGES = {
    Asked.TRUTH: (swap_roles, sibling_object, other_agent, other_verb, opposite_verb, other_place, other_time),
    Asked.AGENT: (swap_roles, sibling_object, other_verb, opposite_verb),
    Asked.OBJECT: (swap_roles, other_agent, other_verb, opposite_verb),
    Asked.PLACE: (swap_roles, sibling_object, other_agent, other_verb, opposite_verb),
    Asked.TIME: (swap_roles, sibling_object, other_agent, other_verb, opposite_verb),
}


def _more_or_less_specific(event: Event, asked: Asked, rng: random.Random) -> Event:
    """The question with a place or a time added, or with the one that it has dropped."""
    if asked is Asked.PLACE or (asked is not Asked.TIME and rng.random() < 0.5):
        return replace(event, time=None if event.time else rng.choice(lexicon.TIMES))
    return replace(event, place=None if event.place else rng.choice(lexicon.PLACES))


def other_question(event: Event, asked: Asked, rng: random.Random, split: Split) -> tuple[Event, Asked] | None:
    """A question with nearly the same words that asks something else; None if there is none in ``split``."""
    kind = rng.random()
    changed, wanted = event, asked
    if kind < 0.35:
        changed = negate(event, rng)
    elif kind < 0.65:
        changed = _more_or_less_specific(event, asked, rng)
    elif kind < 0.85:
        wanted = other(rng, Asked, asked)
    else:
        changed = attempt(rng, _SHOWN_CHANGES[asked], event, split)
    if changed is None or question_split(changed, wanted) is not split:
        return None
    return changed, wanted


def any_question(rng: random.Random, split: Split) -> tuple[Event, Asked]:
    """A question for QQP: one in four asks for the truth, one in three is negative."""
    event, asked = askable_event(rng, split)
    if rng.random() < 0.25:
        asked = Asked.TRUTH
    return (replace(event, negated=True) if rng.random() < 1 / 3 else event), asked


def qqp_row(rng: random.Random, split: Split) -> dict:
    """One QQP row: 1 if the questions are duplicates."""
    label = rng.randrange(2)
    while True:
        event, asked = any_question(rng, split)
        second = (event, asked) if label else other_question(event, asked, rng, split)
        if second is None:
            continue
        one, two = question(event, asked, rng, synonyms=0.3), question(*second, rng, synonyms=0.5)
        if one != two:
            return {"question1": one, "question2": two, "label": label}


def _with_modifier(event: Event, asked: Asked, rng: random.Random) -> Event:
    """``event`` with the place or the time that ``asked`` needs."""
    if asked is Asked.PLACE and not event.place:
        return replace(event, place=rng.choice(lexicon.PLACES))
    if asked is Asked.TIME and not event.time:
        return replace(event, time=rng.choice(lexicon.TIMES))
    return event


def answer(event: Event, asked: Asked, answered: bool, rng: random.Random, split: Split) -> Event | None:
    """An event whose statement does, or does not, answer the question for ``asked`` of ``event``."""
    full = _with_modifier(event, asked, rng)
    if answered:
        return full
    if rng.random() < 0.75:
        if asked is Asked.PLACE:
            return replace(full, place=None, time=full.time or rng.choice(lexicon.TIMES))
        if asked is Asked.TIME:
            return replace(full, time=None, place=full.place or rng.choice(lexicon.PLACES))
        if asked is Asked.AGENT:
            vague = replace(full, agent=SOMEONE)
        else:
            vague = replace(full, object=SOMEONE if takes_person(full) else SOMETHING, count=1)
        return vague if event_split(vague) is split else None
    return attempt(rng, _SHOWN_CHANGES[asked], full, split)


def qnli_row(rng: random.Random, split: Split) -> dict:
    """One QNLI row: 0 if the sentence contains the answer to the question, 1 if not."""
    label = rng.randrange(2)
    while True:
        event, asked = askable_event(rng, split)
        found = answer(event, asked, label == 0, rng, split)
        if found is None:
            continue
        asking = replace(event, place=None, time=None)
        return {
            "question": question(asking, asked, rng, synonyms=0.2),
            "sentence": statement(found, rng, synonyms=0.3),
            "label": label,
        }

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
    opposite_verb,
    other,
    other_agent,
    other_place,
    other_time,
    other_verb,
    person,
    random_event,
    same_choices,
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
    """The side of the hold-out that a question is on: "who bought a rose ?" goes with "someone bought a rose"."""
    if asked is Asked.AGENT:
        return split_of((SOMEONE, event.verb, event.object))
    if asked is Asked.OBJECT:
        return split_of((event.agent, event.verb, SOMEONE if takes_person(event) else SOMETHING))
    return event_split(event)


def question(event: Event, asked: Asked, rng: random.Random, *, synonyms: float = 0.1) -> str:
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


def askable_event(rng: random.Random, asked: Asked, split: Split) -> Event:
    """An event such that it and the question for its part ``asked`` are both on the side ``split``."""
    while True:
        event = random_event(rng, split, modifiers=0.3)
        if question_split(event, asked) is split:
            return event


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


def other_question(event: Event, asked: Asked, rng: random.Random) -> tuple[Event, Asked] | None:
    """A question with nearly the same words that asks something else; None if the change drawn does not apply."""
    kind = rng.random()
    if kind < 0.35:
        return replace(event, negated=not event.negated), asked
    if kind < 0.65:
        return _more_or_less_specific(event, asked, rng), asked
    if kind < 0.85:
        return event, other(rng, Asked, asked)
    changed = attempt(rng, _SHOWN_CHANGES[asked], event)
    return (changed, asked) if changed else None


def questions(same: bool, rng: random.Random, split: Split) -> tuple[tuple[Event, Asked], tuple[Event, Asked]]:
    """Two questions that ask the same or not; one in four asks for the truth, one in three is negative."""
    asked = rng.choice((*_OPEN, Asked.TRUTH))
    negated = rng.random() < 1 / 3
    for choices in same_choices(rng):
        event = replace(askable_event(rng, asked, split), negated=negated)
        second = (event, asked) if same else other_question(event, asked, choices)
        if second is not None and question_split(*second) is split:
            return (event, asked), second
    raise AssertionError("same_choices is endless")


def qqp_row(rng: random.Random, split: Split) -> dict:
    """One QQP row: 1 if the questions are duplicates."""
    label = rng.randrange(2)
    while True:
        first, second = questions(label == 1, rng, split)
        one, two = question(*first, rng), question(*second, rng)
        if one != two:
            return {"question1": one, "question2": two, "label": label}


def _with_modifier(event: Event, asked: Asked, rng: random.Random) -> Event:
    """``event`` with the place or the time that ``asked`` needs."""
    if asked is Asked.PLACE and not event.place:
        return replace(event, place=rng.choice(lexicon.PLACES))
    if asked is Asked.TIME and not event.time:
        return replace(event, time=rng.choice(lexicon.TIMES))
    return event


def _answer(event: Event, asked: Asked, answered: bool, rng: random.Random) -> Event | None:
    full = _with_modifier(event, asked, rng)
    if answered:
        return full
    if rng.random() < 0.75:
        if asked is Asked.PLACE:
            return replace(full, place=None, time=full.time or rng.choice(lexicon.TIMES))
        if asked is Asked.TIME:
            return replace(full, time=None, place=full.place or rng.choice(lexicon.PLACES))
        if asked is Asked.AGENT:
            return replace(full, agent=SOMEONE)
        return replace(full, object=SOMEONE if takes_person(full) else SOMETHING, count=1, adjective=None)
    return attempt(rng, _SHOWN_CHANGES[asked], full)


def exchange(answered: bool, rng: random.Random, split: Split) -> tuple[Event, Asked, Event]:
    """An event, the part of it that a question asks for, and an event whose statement answers the question or not."""
    asked = rng.choice(_OPEN)
    for choices in same_choices(rng):
        event = askable_event(rng, asked, split)
        reply = _answer(event, asked, answered, choices)
        if reply is not None and event_split(reply) is split:
            return replace(event, place=None, time=None), asked, reply
    raise AssertionError("same_choices is endless")


def qnli_row(rng: random.Random, split: Split) -> dict:
    """One QNLI row: 0 if the sentence contains the answer to the question, 1 if not."""
    label = rng.randrange(2)
    event, asked, reply = exchange(label == 0, rng, split)
    return {"question": question(event, asked, rng), "sentence": statement(reply, rng), "label": label}

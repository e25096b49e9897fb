"""Meanings and how they are said: an `Event` is who did what, `statement` writes it as an English sentence.

The labels of the tasks are computed from events, never from words. The same event can be said in many ways (synonyms,
active or passive, a time in front or at the end), and two events that differ can be said with nearly the same words.

Hold-out: every sentence belongs to one `Split`, decided by the lemmas of its (agent, verb, object). All sentences that
say anything about one triple are therefore on the same side, however many rows are asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from typing import TypeVar
from zlib import crc32

from increlora.glue.corpus import lexicon
from increlora.glue.corpus.lexicon import NOUNS, VERBS, article

T = TypeVar("T")

SOMEONE = "someone"
SOMETHING = "something"
HELD_OUT_FRACTION = 5  # one triple in five is kept for evaluation


class Split(Enum):
    """The two sides of the hold-out."""

    TRAIN = "train"
    EVALUATION = "evaluation"


class Genre(Enum):
    """Which part of the lexicon may be used; MNLI's two evaluation splits are the first two."""

    MATCHED = "matched"
    MISMATCHED = "mismatched"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Event:
    """Who did what to what. ``count`` is the number of things, 0 meaning "some"; persons are always one."""

    agent: str
    verb: str
    object: str
    count: int = 1
    adjective: str | None = None
    place: str | None = None
    time: str | None = None
    negated: bool = False


@cache
def _hash(lemma: str) -> int:
    return crc32(lemma.encode())


def split_of(lemmas: Iterable[str]) -> Split:
    """The side of the hold-out for a set of lemmas (the order does not matter, so role swaps stay on one side)."""
    held_out = sum(map(_hash, lemmas)) % HELD_OUT_FRACTION == 0
    return Split.EVALUATION if held_out else Split.TRAIN


def event_split(event: Event) -> Split:
    """The side of the hold-out that `event` is on."""
    return split_of((event.agent, event.verb, event.object))


def _of_genre(lemmas: Iterable[str], genre: Genre) -> tuple[str, ...]:
    if genre is Genre.ALL:
        return tuple(lemmas)
    return tuple(x for x in lemmas if (NOUNS[x].genre in lexicon.MATCHED_GENRES) is (genre is Genre.MATCHED))


_THINGS = {genre: _of_genre((n.lemma for n in lexicon.THINGS.values() if n.kind), genre) for genre in Genre}
_ROLES = {genre: _of_genre((n.lemma for n in lexicon.ROLES.values() if n.kind), genre) for genre in Genre}
_THING_VERBS = tuple(lexicon.THING_VERBS)
_PERSON_VERBS = tuple(lexicon.PERSON_VERBS)
_COUNTS = (1, 1, 1, 1, 1, 2, 3, 4, 5)


def random_person(rng: random.Random, genre: Genre = Genre.ALL) -> str:
    """A name or a role."""
    return rng.choice(lexicon.NAMES) if rng.random() < 0.5 else rng.choice(_ROLES[genre])


def random_thing(rng: random.Random, genre: Genre = Genre.ALL) -> str:
    """The lemma of a thing that is not a kind."""
    return rng.choice(_THINGS[genre])


def takes_person(event: Event) -> bool:
    """Whether the object is a person."""
    return VERBS[event.verb].takes_person


def random_event(
    rng: random.Random, split: Split, genre: Genre = Genre.ALL, *, persons: float = 0.35, modifiers: float = 0.35
) -> Event:
    """A positive event of ``split``.

    Args:
        persons: probability that the object is a person.
        modifiers: probability of each of adjective (things only), place and time.
    """
    while True:
        agent = random_person(rng, genre)
        if rng.random() < persons:
            verb, target = rng.choice(_PERSON_VERBS), random_person(rng, genre)
        else:
            verb, target = rng.choice(_THING_VERBS), random_thing(rng, genre)
        if agent != target and split_of((agent, verb, target)) is split:
            break
    thing = not VERBS[verb].takes_person
    return Event(
        agent,
        verb,
        target,
        count=rng.choice(_COUNTS) if thing else 1,
        adjective=rng.choice(lexicon.ADJECTIVES) if thing and rng.random() < modifiers else None,
        place=rng.choice(lexicon.PLACES) if rng.random() < modifiers else None,
        time=rng.choice(lexicon.TIMES) if rng.random() < modifiers else None,
    )


def same_choices(rng: random.Random, *, patience: int = 200) -> Iterator[random.Random]:
    """Endless random generators that all make the same choices; after ``patience`` of them, other choices.

    A row draws its changes of meaning from one, and starts again with another event and the next one until the
    result is in its split. So each kind of change is as frequent in evaluation, where few events fit, as in training.
    """
    while True:
        plan = rng.random()
        for _ in range(patience):
            yield random.Random(plan)


def attempt(
    rng: random.Random, changes: Sequence[Callable[[Event, random.Random], Event | None]], event: Event
) -> Event | None:
    """Apply one of ``changes`` to ``event``: the first that applies, starting at a random one; None if none does.

    The result may lie on the other side of the hold-out (see `same_choices`).
    """
    start = rng.randrange(len(changes)) if changes else 0
    for change in (*changes[start:], *changes[:start]):
        changed = change(event, rng)
        if changed is not None and changed != event:
            return changed
    return None


def other(rng: random.Random, options: Iterable[T], current: T | None) -> T:
    """A random member of ``options`` that is not ``current``."""
    return rng.choice([option for option in options if option != current])


# -- changes of meaning: each returns the changed event, or None where it does not apply ------------------------------


def swap_roles(event: Event, rng: random.Random) -> Event | None:
    """The nurse helped the pilot -> the pilot helped the nurse."""
    return replace(event, agent=event.object, object=event.agent) if takes_person(event) else None


def sibling_object(event: Event, rng: random.Random) -> Event | None:
    """A rose -> a tulip; for persons, another person."""
    kind = NOUNS[event.object].kind if event.object in NOUNS else None
    if kind:
        return replace(event, object=other(rng, lexicon.MEMBERS[kind], event.object))
    if event.object in lexicon.NAMES:
        return replace(event, object=other(rng, (n for n in lexicon.NAMES if n != event.agent), event.object))
    return None


def other_agent(event: Event, rng: random.Random) -> Event | None:
    """Anna -> Ben; a role -> a role of the same kind."""
    if event.agent in lexicon.NAMES:
        return replace(event, agent=other(rng, (n for n in lexicon.NAMES if n != event.object), event.agent))
    kind = NOUNS[event.agent].kind if event.agent in NOUNS else None
    agents = [x for x in lexicon.MEMBERS[kind] if x not in (event.agent, event.object)] if kind else []
    return replace(event, agent=rng.choice(agents)) if agents else None


def opposite_verb(event: Event, rng: random.Random) -> Event | None:
    """Bought -> sold."""
    opposite = VERBS[event.verb].opposite
    return replace(event, verb=opposite) if opposite else None


def other_verb(event: Event, rng: random.Random) -> Event | None:
    """Any other verb with the same kind of object."""
    return replace(event, verb=other(rng, _PERSON_VERBS if takes_person(event) else _THING_VERBS, event.verb))


def negate(event: Event, rng: random.Random) -> Event | None:
    """Bought -> did not buy."""
    return replace(event, negated=not event.negated)


def opposite_adjective(event: Event, rng: random.Random) -> Event | None:
    """Old -> new."""
    return replace(event, adjective=lexicon.ADJECTIVE_OPPOSITES[event.adjective]) if event.adjective else None


def other_count(event: Event, rng: random.Random) -> Event | None:
    """Two roses -> four roses."""
    if takes_person(event) or event.negated:
        return None
    return replace(event, count=other(rng, lexicon.NUMBERS, event.count))


def other_place(event: Event, rng: random.Random) -> Event | None:
    """In Paris -> in Rome."""
    return replace(event, place=other(rng, lexicon.PLACES, event.place)) if event.place else None


def other_time(event: Event, rng: random.Random) -> Event | None:
    """Yesterday -> today."""
    return replace(event, time=other(rng, lexicon.TIMES, event.time)) if event.time else None


# -- saying it ------------------------------------------------------------------------------------------------------


def _pick(rng: random.Random, word: str, synonym: str | None, synonyms: float) -> str:
    return synonym if synonym and rng.random() < synonyms else word


def verb_form(verb: str, form: int, rng: random.Random, synonyms: float) -> str:
    """One of the four forms (see `lexicon.Verb`) of ``verb`` or of its synonym."""
    entry = VERBS[verb]
    return (entry.synonym_forms if entry.synonym_forms and rng.random() < synonyms else entry.forms)[form]


def person(lemma: str, rng: random.Random, synonyms: float = 0.0) -> str:
    """The noun phrase of a person: a name as it is, a role with "the"."""
    if lemma not in NOUNS:
        return lemma
    return "the " + _pick(rng, lemma, NOUNS[lemma].synonym, synonyms)


def things(event: Event, rng: random.Random, synonyms: float) -> str:
    """The noun phrase of the event's object: ``a red rose``, ``three roses`` or a person."""
    if event.object == SOMETHING:
        return SOMETHING
    if takes_person(event):
        return person(event.object, rng, synonyms)
    noun = NOUNS[event.object]
    forms = (noun.lemma, noun.synonym) if event.count == 1 else (noun.plural, noun.synonym_plural)
    word = _pick(rng, *forms, synonyms)
    if event.adjective:
        word = _pick(rng, event.adjective, lexicon.ADJECTIVE_SYNONYMS[event.adjective], synonyms) + " " + word
    if event.count == 0:
        return "some " + word
    return (article(word) if event.count == 1 else lexicon.NUMBERS[event.count]) + " " + word


def statement(
    event: Event, rng: random.Random, *, synonyms: float = 0.1, passive: float = 0.2, front: float = 0.2
) -> str:
    """Say ``event`` as one sentence.

    Args:
        synonyms: probability of a synonym for each word that has one.
        passive: probability of the passive voice.
        front: probability that the time, where there is one, comes first.
    """
    words: list[str] = []
    time = event.time
    if time and rng.random() < front:
        words.append(time)
        time = None
    agent, target = person(event.agent, rng, synonyms), things(event, rng, synonyms)
    if rng.random() < passive:
        words += [target, "was" if event.count == 1 else "were"]
        if event.negated:
            words.append("not")
        words += [verb_form(event.verb, 3, rng, synonyms), "by", agent]
    elif event.negated:
        words += [agent, "did not", verb_form(event.verb, 0, rng, synonyms), target]
    else:
        words += [agent, verb_form(event.verb, 2, rng, synonyms), target]
    words += [part for part in (event.place, time) if part]
    return " ".join(words)

"""CoLA: is the sentence grammatical? The errors are of agreement (across a distractor), verb form, number and order."""

from __future__ import annotations

import random

from increlora.glue.corpus import lexicon
from increlora.glue.corpus.grammar import Split, split_of
from increlora.glue.corpus.lexicon import NOUNS, VERBS, article

UNACCEPTABLE, ACCEPTABLE = 0, 1
ACCEPTABLE_FRACTION = 0.62

_ROLES = tuple(lemma for lemma, noun in lexicon.ROLES.items() if noun.kind)
_THINGS = tuple(lemma for lemma, noun in lexicon.THINGS.items() if noun.kind)
_VERBS = tuple(lexicon.THING_VERBS)
_PREPOSITIONS = ("near", "behind", "beside")


def _noun(lemma: str, plural: bool) -> str:
    return NOUNS[lemma].plural if plural else NOUNS[lemma].lemma


def _object(lemma: str, rng: random.Random, wrong: bool) -> str:
    """An object with its determiner; ``wrong`` breaks the agreement of the two."""
    plural = rng.random() < 0.5
    noun = _noun(lemma, plural is not wrong)
    if plural:
        return f"{rng.choice(('two', 'three', 'four', 'some', 'these'))} {noun}"
    return f"{rng.choice((article(noun), 'this', 'every'))} {noun}"


def sentence(acceptable: bool, rng: random.Random, split: Split) -> str:
    """A sentence that is grammatical, or that has exactly one error."""
    while True:
        subject, verb, target = rng.choice(_ROLES), rng.choice(_VERBS), rng.choice(_THINGS)
        if split_of((subject, verb, target)) is split:
            break
    base, third, past, participle = VERBS[verb].forms
    plural = rng.random() < 0.5
    number_error = not acceptable and rng.random() < 0.55
    phrase = "the " + _noun(subject, plural)
    if rng.random() < 0.6:
        phrase += f" {rng.choice(_PREPOSITIONS)} the {_noun(rng.choice(_THINGS), rng.random() < 0.5)}"
    singular_verb = plural is number_error  # an error takes the form of the other number
    wrong = not acceptable and not number_error
    form_error = wrong and rng.random() < 0.45
    object_error = wrong and not form_error and rng.random() < 0.4
    order_error = wrong and not form_error and not object_error
    noun_phrase = _object(target, rng, object_error)
    pattern = rng.randrange(4)
    if number_error and pattern == 1:
        pattern = 0
    if form_error and pattern == 0:
        pattern = 1 + rng.randrange(3)
    if pattern == 0:
        words = f"{phrase} {third if singular_verb else base} {noun_phrase}"
    elif pattern == 1:
        words = f"{phrase} did not {rng.choice((past, third)) if form_error else base} {noun_phrase}"
    elif pattern == 2:
        form = rng.choice((base, third)) if form_error else participle
        words = f"{phrase} {'has' if singular_verb else 'have'} {form} {noun_phrase}"
    else:
        form = rng.choice((past, third)) if form_error else base
        words = f"{phrase} {'is' if singular_verb else 'are'} going to {form} {noun_phrase}"
    return _disorder(words, rng) if order_error else words


def _disorder(text: str, rng: random.Random) -> str:
    """Exchange two neighbouring words."""
    words = text.split()
    at = rng.randrange(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def cola_row(rng: random.Random, split: Split) -> dict:
    """One CoLA row: 1 acceptable, 0 not."""
    label = ACCEPTABLE if rng.random() < ACCEPTABLE_FRACTION else UNACCEPTABLE
    return {"sentence": sentence(label == ACCEPTABLE, rng, split), "label": label}

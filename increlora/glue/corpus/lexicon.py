"""The words of the built-in corpus and the relations between them.

Everything is data: people, things, verbs and adjectives, each with the relations that the tasks are made of
(plural, verb forms, synonym, opposite, kind). A *lemma* is the canonical spelling of a word; synonyms share the lemma,
so that two sentences mean the same exactly when their lemmas do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A countable noun. ``kind`` is the lemma of its hypernym (a rose is a flower), None for a kind itself."""

    lemma: str
    plural: str
    kind: str | None
    genre: str
    synonym: str | None = None
    synonym_plural: str | None = None


@dataclass(frozen=True)
class Verb:
    """A transitive verb; ``forms`` are base, third person singular, past, past participle."""

    lemma: str
    forms: tuple[str, str, str, str]
    synonym_forms: tuple[str, str, str, str] | None
    opposite: str | None
    takes_person: bool


def pluralise(word: str) -> str:
    """Regular English plural of ``word`` (the lexicon holds regular nouns only)."""
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _verb_forms(entry: str) -> tuple[str, str, str, str]:
    """Expand ``base`` or ``base/past/participle`` into the four forms."""
    base, *irregular = entry.split("/")
    if irregular:
        past, participle = irregular
    elif base.endswith("e"):
        past = participle = base + "d"
    elif base.endswith("y") and base[-2] not in "aeiou":
        past = participle = base[:-1] + "ied"
    else:
        past = participle = base + "ed"
    return base, pluralise(base), past, participle


# kind: genre: members, a synonym after "=". The genres of MATCHED_GENRES make MNLI's matched rows, the others its
# mismatched rows.
_THINGS = """
flower: garden: rose tulip lily
fruit: garden: apple pear plum
instrument: music: guitar violin flute
garment: clothes: shirt coat=jacket dress=gown
seat: home: chair sofa=couch bench
text: books: novel diary=journal story=tale
vehicle: road: car=automobile truck=lorry bicycle=bike
animal: farm: dog=hound horse rabbit=bunny
toy: sport: ball kite puzzle
boat: sea: ferry canoe yacht
"""

_ROLES = """
artist: music: painter singer=vocalist actor=performer
medic: home: doctor=physician nurse dentist
child: books: boy=lad girl pupil=student
official: road: judge mayor minister
worker: farm: baker farmer=grower driver
"""

MATCHED_GENRES = frozenset({"garden", "music", "clothes", "home", "books"})

NAMES = ("anna", "ben", "clara", "david", "emma", "frank", "grace", "henry", "irene", "jack")

# verb[=synonym] <> opposite[=synonym]; irregular past and participle after "/".
_THING_VERBS = """
buy/bought/bought=purchase <> sell/sold/sold
find/found/found=discover <> lose/lost/lost=misplace
repair=fix <> break/broke/broken=damage
clean=wash <> stain/stained/stained=soil
hide/hid/hidden=conceal <> show/showed/shown=display
take/took/taken=grab/grabbed/grabbed <> return
draw/drew/drawn=sketch
carry=transport
paint
"""

_PERSON_VERBS = """
help=assist <> hinder=obstruct
praise=commend <> blame=criticize
hire=employ <> fire=dismiss
push=shove/shoved/shoved <> pull
call=phone
teach/taught/taught=instruct
visit
thank
"""

# adjective[=synonym] <> opposite[=synonym]; what a thing can be.
_ADJECTIVES = """
big=large <> small=little
old=ancient <> new=modern
cheap=inexpensive <> costly=expensive
clean=spotless <> dirty=filthy
red <> blue
green <> white
"""

PLACES = ("in paris", "in rome", "in london", "at home", "at school", "at work")
TIMES = ("yesterday", "today", "on monday", "on friday", "in may", "in june")
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five"}

# Sentiment: words for SST-2, positive against negative.
PRAISE = ("good", "great", "superb", "funny", "charming", "clever", "moving", "fresh", "brilliant", "lovely")
BLAME = ("bad", "awful", "dull", "boring", "clumsy", "stupid", "tedious", "stale", "ugly", "silly")
ASPECTS = ("film", "movie", "plot", "cast", "script", "acting", "music", "ending", "comedy", "drama")
INTENSIFIERS = ("very", "really", "quite", "so", "truly")
ENJOY = ("enjoyed", "liked", "admired", "recommend")
REGRET = ("regretted", "disliked", "endured", "detest")


def _nouns(table: str) -> dict[str, Noun]:
    nouns: dict[str, Noun] = {}
    for line in table.strip().splitlines():
        kind, genre, members = (part.strip() for part in line.split(":"))
        nouns[kind] = Noun(kind, pluralise(kind), None, genre)
        for member in members.split():
            lemma, _, synonym = member.partition("=")
            nouns[lemma] = Noun(
                lemma, pluralise(lemma), kind, genre, synonym or None, pluralise(synonym) if synonym else None
            )
    return nouns


def _verbs(table: str, takes_person: bool) -> dict[str, Verb]:
    verbs: dict[str, Verb] = {}
    for line in table.strip().splitlines():
        sides = [side.strip() for side in line.split("<>")]
        lemmas = [side.partition("=")[0].split("/")[0] for side in sides]
        for position, side in enumerate(sides):
            main, _, synonym = side.partition("=")
            opposite = lemmas[1 - position] if len(lemmas) == 2 else None
            forms = _verb_forms(synonym) if synonym else None
            verbs[lemmas[position]] = Verb(lemmas[position], _verb_forms(main), forms, opposite, takes_person)
    return verbs


def _adjectives(table: str) -> tuple[dict[str, str | None], dict[str, str]]:
    synonyms: dict[str, str | None] = {}
    opposites: dict[str, str] = {}
    for line in table.strip().splitlines():
        pairs = [side.strip().partition("=") for side in line.split("<>")]
        for (lemma, _, synonym), (other, _, _) in zip(pairs, reversed(pairs), strict=True):
            synonyms[lemma] = synonym or None
            opposites[lemma] = other
    return synonyms, opposites


THINGS = _nouns(_THINGS)
ROLES = _nouns(_ROLES)
NOUNS = THINGS | ROLES
KINDS = tuple(dict.fromkeys(noun.kind for noun in THINGS.values() if noun.kind))
THING_VERBS = _verbs(_THING_VERBS, takes_person=False)
PERSON_VERBS = _verbs(_PERSON_VERBS, takes_person=True)
VERBS = THING_VERBS | PERSON_VERBS
ADJECTIVE_SYNONYMS, ADJECTIVE_OPPOSITES = _adjectives(_ADJECTIVES)
ADJECTIVES = tuple(ADJECTIVE_SYNONYMS)
MEMBERS: dict[str, tuple[str, ...]] = {
    kind: tuple(noun.lemma for noun in NOUNS.values() if noun.kind == kind)
    for kind in dict.fromkeys(noun.kind for noun in NOUNS.values() if noun.kind)
}


def article(word: str) -> str:
    """The indefinite article before ``word``."""
    return "an" if word[0] in "aeiou" else "a"

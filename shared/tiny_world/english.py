"""Scene to English sentence, and back."""

import re

from .grammar import COLOURS, PLACES, SHAPES, SIZES, Group, Scene, only_reading, statements

NUMBERS = {1: "a", 2: "two", 3: "three"}
NOUNS = {shape: (shape, shape + "s") for shape in SHAPES} | {"cross": ("cross", "crosses")}  # singular, plural
BE, DO = ("is", "are"), ("does", "do")
VERBS = {"touches": ("touches", "touch"), "covers": ("covers", "cover")}

# A place is told by "is" and the complement "above a ring", a contact by "touches" and the complement "a ring".
SENTENCES = {
    "existence": "there {be} {subject}",
    "statement": "{subject} {verbs[0]} {complements[0]}",
    "fronted": "{complements[0]} {be} {subject}",
    "reported": "i see that {subject} {verbs[0]} {complements[0]}",
    "question": "{do} {subject} {infinitives[0]} {complements[0]}?",
    "question of places": "{be} {subject} {complements[0]}?",
    "chain": "{subject} {verbs[0]} {complements[0]} and {verbs[1]} {complements[1]}",
    "chain of places": "{subject} {be} {complements[0]} and {complements[1]}",
    "relative": "{subject} that {verbs[0]} {complements[0]} {verbs[1]} {complements[1]}",
    "nested": "{subject} {verbs[0]} {complements[0]} that {verbs[1]} {complements[1]}",
}

_NUMBERS = {word: number for number, word in NUMBERS.items()}
_SHAPES = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns}
_RELATIONS = {place: place for place in PLACES} | {verb: contact for contact, verbs in VERBS.items() for verb in verbs}
_GROUP = re.compile(rf"\b({'|'.join(_NUMBERS)}) ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(_SHAPES)})\b")
_RELATION = re.compile(rf"\b(?:{'|'.join(_RELATIONS)})\b")


def tell(scene: Scene) -> str:
    """The sentence that tells a scene: lower case, no full stop."""
    stated = statements(scene)
    subject = stated[0][0] if stated else scene.groups[0]
    plural = subject.number > 1
    form = f"{scene.telling} of places"
    if form not in SENTENCES or not set(scene.relations) <= set(PLACES):
        form = scene.telling
    return SENTENCES[form].format(
        subject=_noun_phrase(subject),
        be=BE[plural],
        do=DO[plural],
        verbs=[VERBS.get(relation, BE)[one.number > 1] for one, relation, _ in stated],
        infinitives=[VERBS.get(relation, BE)[True] for relation in scene.relations],
        complements=[_complement(relation, other) for _, relation, other in stated],
    )


def parse(sentence: str) -> Scene:
    """The scene that a sentence tells, so that `tell(parse(sentence)) == sentence`.

    Raises:
        ValueError: the sentence is not, letter by letter, one that `tell` can give.
    """
    groups = (
        Group(_NUMBERS[number], size, colour, _SHAPES[noun]) for number, size, colour, noun in _GROUP.findall(sentence)
    )
    return only_reading(sentence, groups, (_RELATIONS[word] for word in _RELATION.findall(sentence)), tell)


def _noun_phrase(group: Group) -> str:
    return f"{NUMBERS[group.number]} {group.size} {group.colour} {NOUNS[group.shape][group.number > 1]}"


def _complement(relation: str, group: Group) -> str:
    return _noun_phrase(group) if relation in VERBS else f"{relation} {_noun_phrase(group)}"

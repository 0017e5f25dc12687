"""Scene to German sentence, and back: gender, number, case, adjective endings and word order agree throughout."""

import re

from .grammar import PLACES, Group, Scene, only_reading, statements

NUMBERS = {2: "zwei", 3: "drei"}
SIZES = {"tiny": "winzig", "small": "klein", "big": "groß"}
COLOURS = {
    **{"red": "rot", "blue": "blau", "green": "grün", "yellow": "gelb"},
    **{"black": "schwarz", "white": "weiß", "grey": "grau", "brown": "braun"},
}
# Gender, singular (nominative and accusative are alike), dative singular, plural, dative plural.
NOUNS = {
    "circle": ("masculine", "Kreis", "Kreis", "Kreise", "Kreisen"),
    "star": ("masculine", "Stern", "Stern", "Sterne", "Sternen"),
    "ring": ("masculine", "Ring", "Ring", "Ringe", "Ringen"),
    "arrow": ("masculine", "Pfeil", "Pfeil", "Pfeile", "Pfeilen"),
    "moon": ("masculine", "Mond", "Mond", "Monde", "Monden"),
    "drop": ("masculine", "Tropfen", "Tropfen", "Tropfen", "Tropfen"),
    "square": ("neuter", "Quadrat", "Quadrat", "Quadrate", "Quadraten"),
    "triangle": ("neuter", "Dreieck", "Dreieck", "Dreiecke", "Dreiecken"),
    "heart": ("neuter", "Herz", "Herzen", "Herzen", "Herzen"),
    "cross": ("neuter", "Kreuz", "Kreuz", "Kreuze", "Kreuzen"),
    "flower": ("feminine", "Blume", "Blume", "Blumen", "Blumen"),
    "cloud": ("feminine", "Wolke", "Wolke", "Wolken", "Wolken"),
    "diamond": ("feminine", "Raute", "Raute", "Rauten", "Rauten"),
}
ARTICLES = {
    "nominative": {"masculine": "ein", "neuter": "ein", "feminine": "eine"},
    "accusative": {"masculine": "einen", "neuter": "ein", "feminine": "eine"},
    "dative": {"masculine": "einem", "neuter": "einem", "feminine": "einer"},
}
# Mixed inflection after the article, strong inflection after a numeral.
ENDINGS = {
    "nominative": {"masculine": "er", "neuter": "es", "feminine": "e", "plural": "e"},
    "accusative": {"masculine": "en", "neuter": "es", "feminine": "e", "plural": "e"},
    "dative": {"masculine": "en", "neuter": "en", "feminine": "en", "plural": "en"},
}
PRONOUNS = {"masculine": "der", "neuter": "das", "feminine": "die", "plural": "die"}
PREPOSITIONS = {"above": "über", "below": "unter", "left of": "links von", "right of": "rechts von"}
BE = ("ist", "sind")  # singular, plural
VERBS = {"touches": ("berührt", "berühren"), "covers": ("verdeckt", "verdecken")}

# A place is told by "ist" and the complement "über einem Ring", a contact by "berührt" and the complement "einen Ring".
SENTENCES = {
    "existence": "es gibt {accusative}",
    "statement": "{subject} {verbs[0]} {complements[0]}",
    "fronted": "{complements[0]} {verbs[0]} {subject}",
    "reported": "ich sehe, dass {subject} {complements[0]} {verbs[0]}",
    "question": "{verbs[0]} {subject} {complements[0]}?",
    "chain": "{subject} {verbs[0]} {complements[0]} und {verbs[1]} {complements[1]}",
    "chain of places": "{subject} {verbs[0]} {complements[0]} und {complements[1]}",
    "relative": "{subject}, {pronoun} {complements[0]} {verbs[0]}, {verbs[1]} {complements[1]}",
    "nested": "{subject} {verbs[0]} {complements[0]}, {pronoun} {complements[1]} {verbs[1]}",
}

_STEMS = {stem: attribute for table in (SIZES, COLOURS) for attribute, stem in table.items()}
_NUMBERS = {"ein": 1} | {word: number for number, word in NUMBERS.items()}
_SHAPES = {noun: shape for shape, (_, *nouns) in NOUNS.items() for noun in nouns}
_RELATIONS = {preposition: place for place, preposition in PREPOSITIONS.items()} | {
    verb: contact for contact, verbs in VERBS.items() for verb in verbs
}
_GROUP = re.compile(
    rf"\b({'|'.join(_NUMBERS)})\w* ({'|'.join(SIZES.values())})\w+ "
    rf"({'|'.join(COLOURS.values())})\w+ ({'|'.join(_SHAPES)})\b"
)
_RELATION = re.compile(rf"\b(?:{'|'.join(_RELATIONS)})\b")


def tell(scene: Scene) -> str:
    """The sentence that tells a scene: nouns with a capital, no full stop."""
    stated = statements(scene)
    subject = stated[0][0] if stated else scene.groups[0]
    form = f"{scene.telling} of places"
    if form not in SENTENCES or not set(scene.relations) <= set(PLACES):
        form = scene.telling
    return SENTENCES[form].format(
        subject=_noun_phrase(subject, "nominative"),
        accusative=_noun_phrase(subject, "accusative"),
        pronoun=PRONOUNS[_agreement(stated[-1][0] if stated else subject)],
        verbs=[VERBS.get(relation, BE)[one.number > 1] for one, relation, _ in stated],
        complements=[_complement(relation, other) for _, relation, other in stated],
    )


def parse(sentence: str) -> Scene:
    """The scene that a sentence tells, so that `tell(parse(sentence)) == sentence`.

    Raises:
        ValueError: the sentence is not, letter by letter, one that `tell` can give.
    """
    groups = (
        Group(_NUMBERS[number], _STEMS[size], _STEMS[colour], _SHAPES[noun])
        for number, size, colour, noun in _GROUP.findall(sentence)
    )
    return only_reading(sentence, groups, (_RELATIONS[word] for word in _RELATION.findall(sentence)), tell)


def _agreement(group: Group) -> str:
    """What articles, adjectives and pronouns agree with: the gender in the singular, else "plural"."""
    return NOUNS[group.shape][0] if group.number == 1 else "plural"


def _noun_phrase(group: Group, case: str) -> str:
    agreement = _agreement(group)
    determiner = NUMBERS.get(group.number) or ARTICLES[case][agreement]
    ending = ENDINGS[case][agreement]
    noun = NOUNS[group.shape][1 + (case == "dative") + 2 * (group.number > 1)]
    return f"{determiner} {SIZES[group.size]}{ending} {COLOURS[group.colour]}{ending} {noun}"


def _complement(relation: str, group: Group) -> str:
    if relation in VERBS:
        return _noun_phrase(group, "accusative")
    return f"{PREPOSITIONS[relation]} {_noun_phrase(group, 'dative')}"

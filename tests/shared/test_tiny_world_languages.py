"""The tiny world's sentences, against English and German that was written by hand."""

import random

import numpy as np
import pytest

from shared.tiny_world import english, german
from shared.tiny_world.grammar import COLOURS, GROUPS, RELATIONS, SHAPES, SIZES, TELLINGS, Grammar, Group, Scene

LANGUAGES = pytest.mark.parametrize("language", [english, german], ids=["english", "german"])

PAIRS = [
    # One group.
    ("there is a small red circle", "es gibt einen kleinen roten Kreis"),
    ("there is a tiny white square", "es gibt ein winziges weißes Quadrat"),
    ("there is a big grey flower", "es gibt eine große graue Blume"),
    ("there are two tiny green drops", "es gibt zwei winzige grüne Tropfen"),
    ("there are three big black crosses", "es gibt drei große schwarze Kreuze"),
    # Two groups: places, with every gender and number in nominative and dative.
    (
        "two big blue stars are above a small red circle",
        "zwei große blaue Sterne sind über einem kleinen roten Kreis",
    ),
    (
        "a tiny yellow heart is below three big brown hearts",
        "ein winziges gelbes Herz ist unter drei großen braunen Herzen",
    ),
    ("a big red cloud is left of a big red cloud", "eine große rote Wolke ist links von einer großen roten Wolke"),
    (
        "a small black moon is right of two small white moons",
        "ein kleiner schwarzer Mond ist rechts von zwei kleinen weißen Monden",
    ),
    (
        "three small grey diamonds are below a tiny blue triangle",
        "drei kleine graue Rauten sind unter einem winzigen blauen Dreieck",
    ),
    ("a small red arrow is above a big blue heart", "ein kleiner roter Pfeil ist über einem großen blauen Herzen"),
    # Two groups: contacts, with every gender and number in nominative and accusative.
    ("a small red ring touches a big blue arrow", "ein kleiner roter Ring berührt einen großen blauen Pfeil"),
    ("two small red rings touch a big blue cross", "zwei kleine rote Ringe berühren ein großes blaues Kreuz"),
    ("a tiny green flower covers a small white cloud", "eine winzige grüne Blume verdeckt eine kleine weiße Wolke"),
    (
        "three big brown squares cover two tiny black drops",
        "drei große braune Quadrate verdecken zwei winzige schwarze Tropfen",
    ),
    # Two groups: word order.
    (
        "above a small red circle are two big blue stars",
        "über einem kleinen roten Kreis sind zwei große blaue Sterne",
    ),
    (
        "left of three tiny grey triangles is a big green moon",
        "links von drei winzigen grauen Dreiecken ist ein großer grüner Mond",
    ),
    (
        "i see that two big blue stars are above a small red circle",
        "ich sehe, dass zwei große blaue Sterne über einem kleinen roten Kreis sind",
    ),
    (
        "i see that a small brown flower touches a tiny red drop",
        "ich sehe, dass eine kleine braune Blume einen winzigen roten Tropfen berührt",
    ),
    (
        "is a small red circle above a big blue star?",
        "ist ein kleiner roter Kreis über einem großen blauen Stern?",
    ),
    (
        "are two tiny black arrows right of a small yellow diamond?",
        "sind zwei winzige schwarze Pfeile rechts von einer kleinen gelben Raute?",
    ),
    (
        "does a big white heart cover a small grey square?",
        "verdeckt ein großes weißes Herz ein kleines graues Quadrat?",
    ),
    (
        "do three tiny red clouds touch three tiny red clouds?",
        "berühren drei winzige rote Wolken drei winzige rote Wolken?",
    ),
    # Three groups.
    (
        "a small red circle is above two big blue stars and left of a tiny green flower",
        "ein kleiner roter Kreis ist über zwei großen blauen Sternen und links von einer winzigen grünen Blume",
    ),
    (
        "two small red circles touch a big blue star and are below a tiny green square",
        "zwei kleine rote Kreise berühren einen großen blauen Stern und sind unter einem winzigen grünen Quadrat",
    ),
    (
        "a big black cross is right of three small white arrows and covers two tiny yellow hearts",
        "ein großes schwarzes Kreuz ist rechts von drei kleinen weißen Pfeilen und verdeckt zwei winzige gelbe Herzen",
    ),
    (
        "a small red circle touches a big blue star and touches a big blue star",
        "ein kleiner roter Kreis berührt einen großen blauen Stern und berührt einen großen blauen Stern",
    ),
    (
        "a small red circle that is above two big blue stars touches a tiny green ring",
        "ein kleiner roter Kreis, der über zwei großen blauen Sternen ist, berührt einen winzigen grünen Ring",
    ),
    (
        "a small red heart that touches a big grey diamond is below a tiny green cross",
        "ein kleines rotes Herz, das eine große graue Raute berührt, ist unter einem winzigen grünen Kreuz",
    ),
    (
        "a tiny brown cloud that is left of a big white moon is above two big red crosses",
        "eine winzige braune Wolke, die links von einem großen weißen Mond ist, ist über zwei großen roten Kreuzen",
    ),
    (
        "two big yellow drops that cover three small red squares are above three tiny blue rings",
        "zwei große gelbe Tropfen, die drei kleine rote Quadrate verdecken, sind über drei winzigen blauen Ringen",
    ),
    (
        "two small red circles are below a big blue flower that covers a tiny green ring",
        "zwei kleine rote Kreise sind unter einer großen blauen Blume, die einen winzigen grünen Ring verdeckt",
    ),
    (
        "a small red heart touches two big grey stars that are left of a tiny green cross",
        "ein kleines rotes Herz berührt zwei große graue Sterne, die links von einem winzigen grünen Kreuz sind",
    ),
]

# English noun, then a small red one in nominative, accusative, dative, and two in nominative (as accusative), dative.
NOUN_PHRASES = """
circle   | ein kleiner roter Kreis    | einen kleinen roten Kreis   | einem kleinen roten Kreis   | Kreise   | Kreisen
star     | ein kleiner roter Stern    | einen kleinen roten Stern   | einem kleinen roten Stern   | Sterne   | Sternen
ring     | ein kleiner roter Ring     | einen kleinen roten Ring    | einem kleinen roten Ring    | Ringe    | Ringen
arrow    | ein kleiner roter Pfeil    | einen kleinen roten Pfeil   | einem kleinen roten Pfeil   | Pfeile   | Pfeilen
moon     | ein kleiner roter Mond     | einen kleinen roten Mond    | einem kleinen roten Mond    | Monde    | Monden
drop     | ein kleiner roter Tropfen  | einen kleinen roten Tropfen | einem kleinen roten Tropfen | Tropfen  | Tropfen
square   | ein kleines rotes Quadrat  | ein kleines rotes Quadrat   | einem kleinen roten Quadrat | Quadrate | Quadraten
triangle | ein kleines rotes Dreieck  | ein kleines rotes Dreieck   | einem kleinen roten Dreieck | Dreiecke | Dreiecken
heart    | ein kleines rotes Herz     | ein kleines rotes Herz      | einem kleinen roten Herzen  | Herzen   | Herzen
cross    | ein kleines rotes Kreuz    | ein kleines rotes Kreuz     | einem kleinen roten Kreuz   | Kreuze   | Kreuzen
flower   | eine kleine rote Blume     | eine kleine rote Blume      | einer kleinen roten Blume   | Blumen   | Blumen
cloud    | eine kleine rote Wolke     | eine kleine rote Wolke      | einer kleinen roten Wolke   | Wolken   | Wolken
diamond  | eine kleine rote Raute     | eine kleine rote Raute      | einer kleinen roten Raute   | Rauten   | Rauten
"""
NOUN_PHRASES = [[cell.strip() for cell in line.split("|")] for line in NOUN_PHRASES.strip().splitlines()]

NOT_ENGLISH = [
    "",
    "there is a small red circle.",
    "There is a small red circle",
    "there is a small red circle ",
    "there is a small  red circle",
    "there is a red small circle",
    "there is a small red circles",
    "there are a small red circle",
    "there is two small red circles",
    "there are two small red crosss",
    "there is a small purple circle",
    "a small red circle are above a big blue star",
    "a small red circle above a big blue star",
    "two small red circles touches a big blue star",
    "touches a big blue star a small red circle",
    "is a small red circle above a big blue star",
    "is a small red circle touch a big blue star?",
    "does a small red circle touches a big blue star?",
    "does a small red circle above a big blue star?",
    "a small red circle is above a big blue star and is left of a tiny green ring",
    "a small red circle is above a big blue star and a tiny green ring",
    "a small red circle that is above a big blue star",
    "a small red circle, that is above a big blue star, touches a tiny green ring",
    "two small red circles are below a big blue star that cover a tiny green ring",
    "a small red circle covers a big blue star that is above a tiny green ring",  # "covers" has no converse
]
NOT_GERMAN = [
    "",
    "es gibt einen kleinen roten Kreis.",
    "Es gibt einen kleinen roten Kreis",
    "es gibt einen kleinen roten kreis",
    "es gibt ein kleiner roter Kreis",  # nominative for accusative
    "es gibt einen kleinen roter Kreis",
    "es gibt einen kleinen rote Kreis",
    "es gibt einen kleines rotes Herz",  # wrong gender
    "es gibt zwei kleinen roten Kreise",  # weak for strong
    "es gibt zwei kleine rote Kreis",
    "es gibt zwei kleine rote Kreisen",
    "ein kleiner roter Kreis ist über einen großen blauen Stern",  # accusative for dative
    "ein kleiner roter Kreis ist über einem großen blauem Stern",  # strong for mixed
    "ein kleiner roter Kreis ist über zwei großen blauen Sterne",  # no dative -n
    "ein kleiner roter Kreis ist über einem großen blauen Herz",
    "ein kleiner roter Kreis ist links von eine große blaue Blume",
    "ein kleiner roter Kreis ist links einer großen blauen Blume",
    "ein kleiner roter Kreis sind über einem großen blauen Stern",
    "zwei kleine rote Kreise berührt einen großen blauen Stern",
    "ein kleiner roter Kreis berührt ein großer blauer Stern",
    "über einem großen blauen Stern ein kleiner roter Kreis ist",  # no inversion
    "ich sehe dass ein kleiner roter Kreis über einem großen blauen Stern ist",
    "ich sehe, dass ein kleiner roter Kreis ist über einem großen blauen Stern",  # verb not last
    "ist ein kleiner roter Kreis über einem großen blauen Stern",
    "ein kleiner roter Kreis, das über einem großen blauen Stern ist, berührt einen winzigen grünen Ring",
    "ein kleiner roter Kreis, der ist über einem großen blauen Stern, berührt einen winzigen grünen Ring",
    "ein kleiner roter Kreis, der über einem großen blauen Stern ist berührt einen winzigen grünen Ring",
    "zwei kleine rote Kreise, die über einem großen blauen Stern sind, berührt einen winzigen grünen Ring",
    "zwei kleine rote Kreise sind unter einem großen blauen Stern, die einen winzigen grünen Ring verdeckt",
    "zwei kleine rote Kreise sind unter einem großen blauen Stern, der einen winzigen grünen Ring verdecken",
]


def sample_scenes(count):
    rng = np.random.default_rng(0)
    return [Grammar().sample(rng) for _ in range(count)]


def rejects(language, sentence):
    try:
        language.parse(sentence)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("english_sentence, german_sentence", PAIRS)
def test_gold_pairs_tell_the_same_scene(english_sentence, german_sentence):
    scene = english.parse(english_sentence)
    assert german.parse(german_sentence) == scene
    assert english.tell(scene) == english_sentence
    assert german.tell(scene) == german_sentence


def test_gold_pairs_cover_every_telling_relation_and_attribute():
    scenes = [english.parse(sentence) for sentence, _ in PAIRS]
    groups = [group for scene in scenes for group in scene.groups]
    assert {scene.telling for scene in scenes} == set(TELLINGS)
    assert {relation for scene in scenes for relation in scene.relations} == set(RELATIONS)
    assert {group.size for group in groups} == set(SIZES)
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.number for group in groups} == {1, 2, 3}


def test_parse_reads_what_a_human_reads():
    circle, stars = Group(1, "small", "red", "circle"), Group(2, "big", "blue", "star")
    ring = Group(1, "tiny", "red", "ring")
    sentence = "above a small red circle are two big blue stars"
    assert english.parse(sentence) == Scene((stars, circle), ("above",), "fronted")
    sentence = "ein kleiner roter Kreis, der zwei große blaue Sterne verdeckt, ist links von einem winzigen roten Ring"
    assert german.parse(sentence) == Scene((circle, stars, ring), ("covers", "left of"), "relative")


@pytest.mark.parametrize("shape, nominative, accusative, dative, plural, dative_plural", NOUN_PHRASES)
def test_every_form_of_every_noun(shape, nominative, accusative, dative, plural, dative_plural):
    one, two = Group(1, "small", "red", shape), Group(2, "small", "red", shape)
    expected = {
        Scene((one,), (), "existence"): f"es gibt {accusative}",
        Scene((one, one), ("above",), "statement"): f"{nominative} ist über {dative}",
        Scene((one, one), ("touches",), "statement"): f"{nominative} berührt {accusative}",
        Scene((two,), (), "existence"): f"es gibt zwei kleine rote {plural}",
        Scene((two, two), ("below",), "statement"): (
            f"zwei kleine rote {plural} sind unter zwei kleinen roten {dative_plural}"
        ),
        Scene((two, two), ("covers",), "statement"): f"zwei kleine rote {plural} verdecken zwei kleine rote {plural}",
    }
    assert {scene: german.tell(scene) for scene in expected} == expected


def test_noun_phrases_cover_every_shape():
    assert [row[0] for row in NOUN_PHRASES] == list(SHAPES)


@LANGUAGES
def test_scenes_and_sentences_are_one_to_one(language):
    scenes = sample_scenes(4000)
    assert [language.parse(language.tell(scene)) for scene in scenes] == scenes
    assert len({language.tell(scene) for scene in scenes}) == len(set(scenes))


@LANGUAGES
def test_one_to_one_for_every_group(language):
    scenes = [Scene((group,), (), "existence") for group in GROUPS]
    assert [language.parse(language.tell(scene)) for scene in scenes] == scenes


@pytest.mark.parametrize("sentence", NOT_ENGLISH)
def test_ungrammatical_english_is_rejected(sentence):
    with pytest.raises(ValueError, match="not a sentence"):
        english.parse(sentence)


@pytest.mark.parametrize("sentence", NOT_GERMAN)
def test_ungrammatical_german_is_rejected(sentence):
    with pytest.raises(ValueError, match="not a sentence"):
        german.parse(sentence)


@LANGUAGES
def test_a_lost_or_moved_word_is_rejected(language):
    rng = random.Random(0)
    for scene in sample_scenes(300):
        tokens = language.tell(scene).split(" ")
        place = rng.randrange(len(tokens) - 1)
        lost = tokens[:place] + tokens[place + 1 :]
        swapped = [*tokens[:place], tokens[place + 1], tokens[place], *tokens[place + 2 :]]
        assert rejects(language, " ".join(lost))
        assert rejects(language, " ".join(swapped))


def test_any_other_adjective_ending_is_rejected():
    stems = tuple((*german.SIZES.values(), *german.COLOURS.values()))
    for scene in sample_scenes(100):
        tokens = german.tell(scene).split(" ")
        for place, token in enumerate(tokens):
            for stem in stems:
                if token.startswith(stem):
                    for ending in {"", "e", "er", "es", "en", "em"} - {token.removeprefix(stem)}:
                        assert rejects(german, " ".join([*tokens[:place], stem + ending, *tokens[place + 1 :]]))

"""The tiny world's scenes: how many, how probable, how many nats per word, and which split they belong to."""

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from shared.tiny_world import english, german
from shared.tiny_world.grammar import (
    COLOURS,
    GROUPS,
    SHAPES,
    SIZES,
    SPLITS,
    Grammar,
    Scene,
    split_of,
    words,
)

ROOT = Path(__file__).parents[2]
LANGUAGES = pytest.mark.parametrize("language", [english, german], ids=["english", "german"])


def sample_scenes(count, grammar=None):
    rng, grammar = np.random.default_rng(0), grammar or Grammar()
    return [grammar.sample(rng) for _ in range(count)]


# Scenes


@pytest.mark.parametrize(
    "num_groups, relations, telling",
    [
        (0, (), "existence"),
        (1, (), "sung"),
        (1, (), "statement"),
        (2, ("touches",), "fronted"),
        (2, ("beside",), "statement"),
        (3, ("above",), "statement"),
        (2, ("above", "above"), "chain"),
    ],
)
def test_impossible_scenes_are_refused(num_groups, relations, telling):
    with pytest.raises(ValueError, match="cannot tell"):
        Scene(GROUPS[:num_groups], relations, telling)


def test_count_of_scenes():
    groups = 3 * 3 * 8 * 13
    assert len(set(GROUPS)) == groups
    assert Grammar().count() == groups + (6 + 4 + 6 + 6) * groups**2 + (36 + 36) * groups**3
    assert Grammar({"nested": 1.0}).count() == 5 * 6 * groups**3


# Probabilities


def test_probabilities_of_all_scenes_sum_to_one():
    only_one_group = Grammar({"existence": 3})
    scenes = [Scene((group,), (), "existence") for group in GROUPS]
    assert math.fsum(math.exp(only_one_group.log_prob(scene)) for scene in scenes) == pytest.approx(1)


def test_probabilities_of_all_structures_sum_to_one_and_agree_with_log_prob():
    grammar = Grammar()
    total = 0
    for structure in grammar.structures:
        scene = Scene(GROUPS[-structure.num_groups :], structure.relations, structure.telling)
        probability = math.exp(grammar.log_prob(scene)) * len(GROUPS) ** structure.num_groups
        assert probability == pytest.approx(structure.probability)
        total += probability
    assert total == pytest.approx(1)


def test_log_prob_of_a_telling_not_used():
    scene = Scene(GROUPS[:1], (), "existence")
    assert Grammar({"statement": 1}).log_prob(scene) == -math.inf


def test_sample_follows_the_probabilities():
    grammar, count = Grammar(), 20000
    scenes = sample_scenes(count)
    groups = [group for scene in scenes for group in scene.groups]
    structures = Counter((scene.telling, scene.relations) for scene in scenes)
    expected = {(structure.telling, structure.relations): structure.probability for structure in grammar.structures}
    assert structures.keys() <= expected.keys()
    for structure, probability in expected.items():
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(structures[structure] - count * probability) < 5 * deviation
    for attribute, values in {"number": (1, 2, 3), "size": SIZES, "colour": COLOURS, "shape": SHAPES}.items():
        counts, probability = Counter(getattr(group, attribute) for group in groups), 1 / len(values)
        deviation = math.sqrt(len(groups) * probability * (1 - probability))
        assert all(abs(counts[value] - len(groups) * probability) < 5 * deviation for value in values)


def test_tellings_can_be_restricted():
    grammar = Grammar({"existence": 1, "statement": 2, "chain": 1})
    scenes = sample_scenes(500, grammar=grammar)
    assert {scene.telling for scene in scenes} == {"existence", "statement", "chain"}
    assert grammar.log_prob(scenes[0]) > Grammar().log_prob(scenes[0])


@pytest.mark.parametrize(
    "tellings", [{}, {"sung": 1}, {"chain": 0}, {"chain": 1, "statement": -1}, {"chain": math.nan}]
)
def test_impossible_grammars_are_refused(tellings):
    with pytest.raises(ValueError, match="tellings"):
        Grammar(tellings)


@pytest.mark.parametrize("grammar", [Grammar(), Grammar({"existence": 1, "chain": 5})], ids=["default", "restricted"])
def test_entropy_is_the_mean_of_negative_log_probabilities(grammar):
    surprises = [-grammar.log_prob(scene) for scene in sample_scenes(20000, grammar=grammar)]
    assert grammar.entropy() == pytest.approx(np.mean(surprises), abs=5 * np.std(surprises) / math.sqrt(20000))


@LANGUAGES
def test_expected_words_are_the_mean_of_words(language):
    lengths = [len(words(language.tell(scene))) for scene in sample_scenes(20000)]
    expected = Grammar().expected_words(language)
    assert expected == pytest.approx(np.mean(lengths), abs=5 * np.std(lengths) / math.sqrt(20000))


@LANGUAGES
def test_words_depend_on_the_structure_alone(language):
    rng = np.random.default_rng(0)
    for structure in Grammar().structures:
        draws = rng.integers(len(GROUPS), size=(20, structure.num_groups))
        scenes = [Scene(tuple(GROUPS[i] for i in row), structure.relations, structure.telling) for row in draws]
        assert len({len(words(language.tell(scene))) for scene in scenes}) == 1


@LANGUAGES
def test_optimum_perplexity_by_hand(language):
    """Six words and the end of the sentence share the choice of one among all groups."""
    grammar = Grammar({"existence": 1})
    assert grammar.entropy() == pytest.approx(math.log(len(GROUPS)))
    assert grammar.optimum_perplexity(language) == pytest.approx(len(GROUPS) ** (1 / 7))


def test_words_count_punctuation():
    assert words("ich sehe, dass er größer ist?") == ["ich", "sehe", ",", "dass", "er", "größer", "ist", "?"]


# Splits


def take(split, seed, count=1000):
    return list(itertools.islice(Grammar().scenes(split, seed), count))


def test_splits_share_no_scene_whatever_the_seed():
    contents = {
        split: {(scene.groups, scene.relations) for seed in (1, 2) for scene in take(split, seed)} for split in SPLITS
    }
    assert all(split_of(scene) == split for split in SPLITS for scene in take(split, seed=3, count=100))
    for first, second in itertools.combinations(SPLITS, 2):
        assert not contents[first] & contents[second]


def test_split_does_not_depend_on_the_telling():
    for scene in take("test", seed=1, count=200):
        if scene.telling == "chain":
            assert split_of(Scene(scene.groups, scene.relations, "relative")) == "test"


def test_a_tenth_of_the_scenes_is_for_validation_and_a_tenth_for_testing():
    counts = Counter(map(split_of, sample_scenes(20000)))
    assert counts["valid"] == pytest.approx(2000, abs=5 * math.sqrt(1800))
    assert counts["test"] == pytest.approx(2000, abs=5 * math.sqrt(1800))


def test_seeds_differ_and_an_unknown_split_is_refused():
    assert take("train", seed=1, count=10) != take("train", seed=2, count=10)
    with pytest.raises(ValueError):
        next(Grammar().scenes("dev", seed=1))


def test_every_process_draws_the_same_scenes_without_loading_tensorflow():
    script = (
        "import sys, itertools\n"
        "from shared.tiny_world import english, german, grammar\n"
        "scenes = itertools.islice(grammar.Grammar().scenes('valid', 7), 50)\n"
        "print([(english.tell(s), ascii(german.tell(s))) for s in scenes], 'tensorflow' in sys.modules)"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    here = [(english.tell(scene), ascii(german.tell(scene))) for scene in take("valid", seed=7, count=50)]
    assert outputs == {f"{here} False"}

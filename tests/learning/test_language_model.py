"""The language model learns the embedded grammar: its probabilities, its sentences, and its gaps."""

import json

import pytest

from shared.tiny_world import english
from shared.tiny_world.__main__ import is_sentence
from shared.tiny_world.grammar import COLOURS
from tests.commands import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train(directory, cache, *words):
    """The test scores of the quickstart with some keys changed."""
    config = "configs/language_model/quickstart.yaml"
    done = run("language_model", "train", "--config", config, "--run", directory, f"data.cache={cache}", *words)
    assert done.code == 0, done
    return json.loads((directory / "scores.json").read_text())["test"]


@pytest.mark.parametrize(("cell", "distance"), [("lstm", 1.03), ("gru", 1.03), ("simple", 1.1)])
def test_the_quickstart_comes_near_the_optimum(tmp_path, cache, cell, distance):
    scores = train(tmp_path / "run", cache, f"model.cell={cell}")
    assert 0.99 < scores["perplexity_sentence"] / scores["optimum_perplexity"] < distance
    done = run("language_model", "generate", "--run", tmp_path / "run", "--count", "500")
    texts = done.out.splitlines()
    assert len(texts) == 500 and len(set(texts)) > 450
    if cell != "simple":
        assert sum(is_sentence(english.parse, text) for text in texts) >= 0.97 * 500


def test_gaps_are_filled_from_both_sides(tmp_path, cache):
    scores = train(tmp_path / "run", cache, "model.bidirectional=true", "training.rounds=2")
    assert scores["perplexity_fill"] < 0.8 * 4.2  # of the grammar from one side
    text = "two small ___ circles are above a tiny green star"
    done = run("language_model", "fill", "--run", tmp_path / "run", "--count", "8", text)
    found = {word: float(probability) for _, probability, word in (line.split("\t") for line in done.out.splitlines())}
    assert set(found) == set(COLOURS)
    assert all(0.08 < probability < 0.18 for probability in found.values())  # the grammar says 1/8

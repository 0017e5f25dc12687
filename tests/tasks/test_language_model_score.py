"""Scores: each is what its definition gives by hand, over all texts together, and a model without hope is infinite."""

import dataclasses
import math

import pytest

from tasks.language_model.config import LanguageModelConfig, ModelConfig
from tasks.language_model.decode import output_line, perplexity
from tasks.language_model.score import score

TEXTS = [
    {"log_prob": -3.0, "stream_log_prob": -2.0, "tokens": 3, "unknown": 1, "characters": 11},
    {"log_prob": -7.0, "stream_log_prob": -6.5, "tokens": 5, "unknown": 0, "characters": 14},
]
FORWARD = LanguageModelConfig()
BIDIRECTIONAL = LanguageModelConfig(model=ModelConfig(bidirectional=True))


def with_scores(**log_probs):
    """The texts with other log probabilities."""
    return [{**text, **{name: values[i] for name, values in log_probs.items()}} for i, text in enumerate(TEXTS)]


def test_perplexities_are_per_token_of_all_texts_together():
    assert score(TEXTS, FORWARD) == {
        "perplexity_sentence": pytest.approx(math.exp(10 / 8)),
        "perplexity_stream": pytest.approx(math.exp(8.5 / 8)),
        "bits_per_character": pytest.approx(8.5 / math.log(2) / 25),
        "unknown_rate": pytest.approx(100 / 8),
        "tokens": 8,
        "characters": 25,
    }


def test_cache_and_dynamic_evaluation_are_reported_apart_where_asked_for():
    found = score(with_scores(cache_log_prob=[-1.0, -4.0], dynamic_log_prob=[-1.5, -2.5]), FORWARD)
    plain = score(TEXTS, FORWARD)
    assert found.pop("perplexity_cache") == pytest.approx(math.exp(5 / 8))
    assert found.pop("perplexity_dynamic") == pytest.approx(math.exp(4 / 8))
    assert found == plain


def test_a_bidirectional_model_has_one_perplexity_of_another_name():
    texts = [{name: value for name, value in text.items() if name != "stream_log_prob"} for text in TEXTS]
    found = score(texts, BIDIRECTIONAL)
    assert set(found) == {"perplexity_fill", "unknown_rate", "tokens", "characters"}
    assert found["perplexity_fill"] == pytest.approx(math.exp(10 / 8))


@pytest.mark.parametrize("worst", [-1e9, -math.inf, math.nan])
def test_what_is_not_finite_is_infinite_and_does_not_raise(worst):
    found = score(with_scores(log_prob=[worst, -1.0], stream_log_prob=[-1.0, worst]), FORWARD)
    assert found["perplexity_sentence"] == found["perplexity_stream"] == math.inf
    assert score(with_scores(log_prob=[worst, -1.0]), BIDIRECTIONAL)["perplexity_fill"] == math.inf
    assert output_line({"log_prob": worst, "tokens": 3, "unknown": 0}).endswith("\t3\t0\tinf")


def test_perplexity_is_exp_as_far_as_it_goes():
    assert perplexity(0.0, 5) == 1 and perplexity(699.9 * 2, 2) == pytest.approx(math.exp(699.9))


def test_what_is_printed_of_a_text():
    result = {"log_prob": -2 * math.log(10), "tokens": 4, "unknown": 1}
    assert output_line(result) == f"-2.0000\t4\t1\t{10**0.5:.4f}"


def test_the_training_does_not_change_the_scores():
    other = dataclasses.replace(FORWARD, model=ModelConfig(samples=5, dropout_words=0.3))
    assert score(TEXTS, other) == score(TEXTS, FORWARD)

"""Translations keep their order and do not depend on their batch, and are worth what the model says they are."""

import functools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from shared.config import DecodingConfig
from shared.task import Corpus
from shared.text import BOS, EOS, UNK, Vocabulary
from tasks.translation.config import DataConfig, ModelConfig, TranslationConfig
from tasks.translation.decode import decode, draw_attention, score_pairs, translate
from tasks.translation.model import Translator
from tasks.translation.score import score

WORDS = [f"w{number}" for number in range(8)]
SENTENCES = ["w1 w2 w3", "w4", "w5 w6 w7 w0 w1 w1", "", "w2 w2", "w7 w6 w5 w4", " ", "w0 w3 w0 w3 w0"]
REFERENCES = ["w3 w2", "w1 w1 w1", "w4", "w5 w6", "", "w0 w7 w0", "", "w2"]


@functools.cache
def features():
    vocabulary = Vocabulary.train(iter(WORDS), unit="word")
    return SimpleNamespace(source=vocabulary, target=vocabulary)


@functools.cache
def translator(attention="additive"):
    """Random, without biases that would say the same of all sentences, and with a dislike of unknown words."""
    size = len(features().source)
    options = {"cell": "gru", "embedding_units": 6, "encoder_units": 5, "decoder_units": 7, "attention_units": 4}
    model = Translator(ModelConfig(**options, attention=attention), size, size, True)
    model.build()
    random = np.random.default_rng(2)
    model.set_weights([0.8 * random.normal(size=weight.shape) * (len(weight.shape) > 1) for weight in model.weights])
    bias = np.zeros(size)
    bias[[EOS, UNK]] = -2 if attention == "none" else 1, -20
    model.writer.output_bias.assign(bias)
    return model


class Mirror:
    """In place of a model: writes as many unknown words as it read, and looks at the last word first while it does."""

    def start(self, source, copies=1):
        lengths = tf.repeat(tf.reduce_sum(tf.cast(source != 0, tf.int32), axis=1) - 1, copies)  # without eos
        positions = tf.shape(source)[1]

        def step(tokens, state):
            written = state["written"]
            likely = tf.one_hot(tf.where(written < lengths, UNK, EOS), len(features().source), 0.0, -9.0)
            looked = tf.one_hot(lengths - 1 - written, positions)
            return likely, {"written": written + 1, "attention": looked}

        rows = tf.shape(source)[0]
        return {"written": tf.zeros(rows, tf.int32), "attention": tf.zeros((rows, positions))}, step


MIRROR = Mirror()


def configured(max_length=50, **decoding):
    options = {"beam_size": 3, "max_length_extra": 20} | decoding
    return TranslationConfig(data=DataConfig(max_length=max_length), decoding=DecodingConfig(**options))


BEAM = configured()
methods = pytest.mark.parametrize("config", [BEAM, configured(method="greedy")], ids=["beam", "greedy"])


@functools.cache
def translated():
    return translate(BEAM, translator(), features(), SENTENCES)


def assert_equal_translations(actual, expected):
    assert [found["output"] for found in actual] == [found["output"] for found in expected]
    for found, other in zip(actual, expected, strict=True):
        hypotheses = [[(one["score"], one["log_prob"]) for one in side["n_best"]] for side in (found, other)]
        np.testing.assert_allclose(*hypotheses, rtol=1e-4)
        assert [one["output"] for one in found["n_best"]] == [one["output"] for one in other["n_best"]]


def reference_log_prob(source, target):
    """log p(target | source) and the number of tokens, from the model's logits for this pair alone."""
    source, target = (features().source.encode([line])[0] for line in (source, target))
    inputs = {"source": np.array([[*source, EOS]], "int32"), "target": np.array([[BOS, *target]], "int32")}
    log_probs = tf.nn.log_softmax(translator()(inputs, training=False)[0]).numpy()
    words = [*target, EOS]
    return sum(float(log_probs[time, word]) for time, word in enumerate(words)), len(words)


def corpus():
    """The pairs in another order than their ids'."""
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    columns = {"id": order, "source": [SENTENCES[i] for i in order], "target": [REFERENCES[i] for i in order]}
    return Corpus({"test": lambda: tf.data.Dataset.from_tensor_slices(columns)}, {"test": len(order)})


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_translations_keep_the_order_of_the_sentences(batch_size):
    found = translate(configured(batch_size=batch_size), MIRROR, features(), SENTENCES)
    assert [one["output"].split() for one in found] == [sentence.split()[::-1] for sentence in SENTENCES]


def test_translations_differ():
    """Without which the tests below would say little."""
    outputs = [found["output"] for found in translated() if found["output"]]
    assert len(set(outputs)) >= 4 and len({len(output.split()) for output in outputs}) >= 2


@pytest.mark.parametrize(
    "config",
    [BEAM, configured(method="greedy"), configured(coverage_penalty=0.3)],
    ids=["beam", "greedy", "coverage"],
)
def test_a_translation_does_not_depend_on_its_batch(config):
    together = translate(config, translator(), features(), SENTENCES)
    alone = [translate(config, translator(), features(), [sentence])[0] for sentence in SENTENCES]
    assert_equal_translations(together, alone)
    assert_equal_translations(translate(config, translator(), features(), SENTENCES[::-1])[::-1], together)


@methods
def test_an_empty_sentence_has_an_empty_translation(config):
    nothing = {"output": "", "score": 0.0, "log_prob": 0.0, "n_best": [], "source_tokens": 0}
    assert translate(config, translator(), features(), ["", "  "]) == [nothing] * 2
    assert translate(config, translator(), features(), []) == []
    assert [found == nothing for found in translated()] == [not sentence.strip() for sentence in SENTENCES]


def test_hypotheses_come_best_first():
    for found in translated():
        scores = [hypothesis["score"] for hypothesis in found["n_best"]]
        assert scores == sorted(scores, reverse=True)
        if scores:
            assert {key: found[key] for key in ("output", "score", "log_prob")} == found["n_best"][0]
            assert len(scores) == 3 and len({hypothesis["output"] for hypothesis in found["n_best"]}) == 3


@methods
def test_a_translator_without_attention_translates(config):
    model = translator(attention="none")
    found = translate(config, model, features(), SENTENCES)
    assert [bool(one["n_best"]) for one in found] == [bool(sentence.strip()) for sentence in SENTENCES]
    assert len({one["output"] for one in found}) >= 3
    scored = score_pairs(config, model, features(), SENTENCES[:3], [one["output"] for one in found[:3]])
    for one, sentence, (log_prob, tokens) in zip(found, SENTENCES, scored, strict=False):
        if tokens <= 2 * (len(sentence.split()) + 1) + 20:  # was not cut off before its end
            assert one["log_prob"] == pytest.approx(log_prob, rel=1e-4)


@methods
def test_what_the_search_says_of_a_translation_is_what_the_model_says(config):
    found = translate(config, translator(), features(), SENTENCES)
    pairs = [(sentence, one) for sentence, best in zip(SENTENCES, found, strict=True) for one in best["n_best"]]
    sources, outputs = [sentence for sentence, _ in pairs], [one["output"] for _, one in pairs]
    compared = 0
    scored = score_pairs(config, translator(), features(), sources, outputs)
    for (sentence, one), (log_prob, tokens) in zip(pairs, scored, strict=True):
        if tokens > 2 * (len(sentence.split()) + 1) + 20:
            continue  # was cut off before its end, which is scored here
        assert one["log_prob"] == pytest.approx(log_prob, rel=1e-4)
        assert one["score"] == pytest.approx(log_prob / ((5 + tokens) / 6) if config is BEAM else log_prob, rel=1e-4)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_pairs_are_worth_what_the_logits_say(batch_size):
    config = configured(batch_size=batch_size)
    found = score_pairs(config, translator(), features(), SENTENCES, REFERENCES)
    for pair, (log_prob, tokens) in zip(zip(SENTENCES, REFERENCES, strict=True), found, strict=True):
        expected, expected_tokens = reference_log_prob(*pair)
        assert tokens == expected_tokens and log_prob == pytest.approx(expected, rel=1e-4)


def test_decoding_a_split_pairs_everything_by_id():
    found = decode(BEAM, translator(), features(), corpus(), "test", 0)
    assert [one["id"] for one in found] == list(range(8))
    assert [one["source"] for one in found] == SENTENCES and [one["target"] for one in found] == REFERENCES
    assert_equal_translations(found, translated())
    expected = [reference_log_prob(*pair) for pair in zip(SENTENCES, REFERENCES, strict=True)]
    np.testing.assert_allclose([(one["target_log_prob"], one["target_tokens"]) for one in found], expected, rtol=1e-4)
    log_probs, tokens = np.sum(expected, axis=0)
    assert score(found, BEAM)["perplexity"] == pytest.approx(math.exp(-log_probs / tokens), rel=1e-4)
    assert_equal_translations(decode(BEAM, translator(), features(), corpus(), "test", 3), found[:3])


def test_unknown_words_are_replaced_by_what_was_looked_at():
    for method in ("beam", "greedy"):
        found = translate(configured(method=method), MIRROR, features(), ["Anna w1, Bär!", "Zoë"])
        assert [one["output"] for one in found] == ["! Bär , w1 Anna", "Zoë"]
    kept = translate(configured(replace_unknown=False), MIRROR, features(), ["Anna w1", "Zoë"])
    assert [one["output"] for one in kept] == ["<unk> <unk>", "<unk>"]


def test_attention_is_that_of_the_best_hypothesis():
    found = translate(BEAM, MIRROR, features(), ["w1 w2 w3", "", "w4"], attention=True)
    np.testing.assert_array_equal(found[0]["attention"][:3], np.eye(4)[[2, 1, 0]])
    assert found[0]["attention"].shape == (4, 4) and found[2]["attention"].shape == (2, 2)
    source, target = found[0]["pieces"]
    assert source == ["▁w1", "▁w2", "▁w3", "<eos>"] and target == ["<unk>"] * 3 + ["<eos>"]
    assert "attention" not in found[1] and "attention" not in translated()[0]
    for one in translate(BEAM, translator(), features(), SENTENCES[:3], attention=True):
        np.testing.assert_allclose(one["attention"].sum(axis=1), 1, atol=1e-5)


def test_only_the_beginning_of_a_long_sentence_is_translated():
    config = configured(max_length=4)
    found = translate(config, MIRROR, features(), ["w1 w2 w3 w4 w5 w6", "w1 w2 w3 w4"], attention=True)
    assert [one["output"] for one in found] == ["w4 w3 w2 w1"] * 2
    assert [one["attention"].shape for one in found] == [(5, 5)] * 2
    assert [one["source_tokens"] for one in found] == [6, 4]


def test_no_output_is_longer_than_allowed():
    config = configured(method="greedy", max_length_ratio=0.5, max_length_extra=1, replace_unknown=False)
    found = translate(config, MIRROR, features(), ["w1 w2 w3 w4 w5", "w1"])  # six and two tokens with eos
    assert [len(one["output"].split()) for one in found] == [4, 1]


def test_samples_follow_the_seed_and_differ_between_batches():
    config = configured(method="sample", batch_size=4)
    first, again = (translate(config, translator(), features(), ["w1 w2"] * 16) for _ in range(2))
    assert first == again
    batches = [tuple(one["output"] for one in first[start : start + 4]) for start in range(0, 16, 4)]
    assert len(set(batches)) > 1
    other = translate(configured(method="sample", batch_size=4, seed=99), translator(), features(), ["w1 w2"] * 16)
    assert [one["output"] for one in other] != [one["output"] for one in first]


def test_new_weights_are_searched_with():
    """The search is compiled once for a model; it must not remember the weights of that time."""
    model, before = translator(), translated()
    bias = model.writer.output_bias.numpy()
    try:
        model.writer.output_bias.assign(np.where(np.arange(len(bias)) == EOS, 50.0, bias))
        assert [one["output"] for one in translate(BEAM, model, features(), SENTENCES)] == [""] * len(SENTENCES)
    finally:
        model.writer.output_bias.assign(bias)
    assert_equal_translations(translate(BEAM, model, features(), SENTENCES), before)


def test_attention_maps_are_pictures():
    picture = draw_attention(np.eye(3)[:2], ["a", "b", "<eos>"], ["x", "<eos>"])
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and np.ptp(picture) > 100
    wider = draw_attention(np.eye(9)[:2], list("abcdefghi"), ["x", "<eos>"])
    assert wider.shape[1] > picture.shape[1] and wider.shape[0] == picture.shape[0]

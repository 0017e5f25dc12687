"""What the language model says of texts is what its logits say, however they are read; what it writes follows them."""

import functools
import itertools
import math
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.config import TrainingConfig
from shared.task import Corpus
from shared.text import BOS, EOS, PAD, UNK, Vocabulary
from tasks.language_model import decode as module
from tasks.language_model.config import DecodingConfig, LanguageModelConfig, ModelConfig
from tasks.language_model.decode import (
    decode,
    dynamic_log_probs,
    fill,
    generate,
    output_line,
    score_texts,
    stream,
    stream_log_probs,
    token_log_probs,
)
from tasks.language_model.features import Features
from tasks.language_model.model import LanguageModel

SENTENCES = [
    "the red star, a blue (star)",
    "a red star is red",
    "the blue star is a star.",
    "two small red circles",
    "the circle is small, and red.",
]
UNITS = {"word": 0, "whitespace": 0, "bpe": 60, "unigram": 60, "character": 0}
units = pytest.mark.parametrize("unit", UNITS)
TEXTS = [
    "the red star\n",
    "a\n",
    "\n",
    "two small blue stars, a zebra\n",
    "red red red red red red\nthe (star)\n",
    "is a",
]


@functools.cache
def features(unit="word"):
    return Features(Vocabulary.train(SENTENCES * 20, unit, UNITS[unit]))


@functools.cache
def language_model(unit="word", seed=1, **options):
    """Random, with a dislike of unknown words, so that what it writes can be read."""
    keras.utils.set_random_seed(seed)
    options = {"cell": "gru", "layers": 1, "embedding_units": 6, "units": 6} | options
    model = LanguageModel(ModelConfig(**options), len(features(unit).vocabulary), 2)
    model.build()
    random = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(0.9 * random.normal(size=weight.shape) * (len(weight.shape) > 1))
    bias = np.zeros(model.size)
    bias[[EOS, UNK]] = 0.5, -5
    if options.get("bidirectional"):
        bias[[PAD, BOS, EOS, UNK]] = -30
    model.output_bias.assign(bias)
    return model


def both_sides(unit="word"):
    return language_model(unit, bidirectional=True)


def configured(bidirectional=False, **decoding):
    training = TrainingConfig(sample_examples=2, clip_norm=decoding.pop("clip_norm", 1.0))
    options = {"method": "greedy", "max_tokens": 12} | decoding
    return LanguageModelConfig(
        model=ModelConfig(bidirectional=bidirectional), training=training, decoding=DecodingConfig(**options)
    )


def logs(model, row, first=EOS):
    """Log probabilities (tokens, ids) of all words at each place of a row that is read alone and whole."""
    tokens = np.array([[first, *row[:-1]]], "int32")
    logits = model.logits(model.read(tokens, np.array([row], "int32"))[0]).numpy()[0].astype("float64")
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def own(model, row, first=EOS):
    """Log probability of each token of a row."""
    return logs(model, row, first)[np.arange(len(row)), row] if len(row) else np.zeros(0)


def rows_of(lengths, seed=1):
    random = np.random.default_rng(seed)
    return [random.integers(2, len(features().vocabulary), length).tolist() for length in lengths]


def assert_rows(found, expected, tolerance=2e-5):
    assert [len(row) for row in found] == [len(row) for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize(("window", "logits"), [(4, 1 << 25), (128, 1), (7, 200)])
@pytest.mark.parametrize("made", [language_model, both_sides], ids=["forward", "both sides"])
def test_tokens_are_worth_what_the_logits_say(monkeypatch, made, window, logits, batch_size):
    monkeypatch.setattr(module, "WINDOW", window)
    monkeypatch.setattr(module, "LOGITS", logits)
    rows, model = rows_of([3, 0, 13, 1, 8, 4, 5]), made()
    firsts = [EOS, 5, 6, EOS, 7, 8, EOS]
    expected = [own(model, row, first) for row, first in zip(rows, firsts, strict=True)]
    assert_rows(token_log_probs(model, rows, batch_size, firsts), expected)
    assert_rows(token_log_probs(model, rows[:3], batch_size), [own(model, row) for row in rows[:3]])
    assert token_log_probs(model, [], batch_size) == []


def test_new_weights_are_scored_and_written_with():
    """What is compiled once for a model must not remember the weights of that time."""
    model, config, rows = language_model(), configured(), rows_of([5])
    before, text = token_log_probs(model, rows, 2), generate(config, model, features(), ["the"])
    bias = model.output_bias.numpy()
    try:
        model.output_bias.assign(np.where(np.arange(len(bias)) == EOS, 50.0, bias))
        assert_rows(token_log_probs(model, rows, 2), [own(model, row) for row in rows])
        assert [found["output"] for found in generate(config, model, features(), ["the"])] == ["the"]
    finally:
        model.output_bias.assign(bias)
    assert_rows(token_log_probs(model, rows, 2), before)
    assert generate(config, model, features(), ["the"]) == text


def test_a_text_is_scored_on_its_own_with_its_end():
    found = score_texts(configured(batch_size=2), language_model(), features(), TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        ids = features().encode([text if text.endswith("\n") else f"{text}\n"])[0]
        assert (one["tokens"], one["unknown"]) == (len(ids), ids.count(UNK))
        assert one["pieces"] == [features().vocabulary.tokens()[index] for index in ids]
        np.testing.assert_allclose(one["log_probs"], own(language_model(), ids), rtol=2e-5)
        assert one["log_prob"] == pytest.approx(sum(one["log_probs"]), rel=1e-5)
    assert [one["tokens"] for one in found] == [4, 2, 1, 8, 12, 3] and found[3]["unknown"] == 2
    assert score_texts(configured(), language_model(), features(), []) == []


# ----------------------------------------------------------------------------------------------------------- the stream


def joined(rows):
    return np.array([token for row in rows for token in row])


@pytest.mark.parametrize("window", [3, 128])
def test_one_stream_is_one_unroll_of_everything(monkeypatch, window):
    monkeypatch.setattr(module, "WINDOW", window)
    rows, model = rows_of([4, 1, 0, 9, 6]), language_model()
    found = stream_log_probs(configured(), model, rows, [False] * 5)
    assert set(found) == {"stream_log_prob"}
    assert [len(row) for row in found["stream_log_prob"]] == [4, 1, 0, 9, 6]
    np.testing.assert_allclose(joined(found["stream_log_prob"]), own(model, joined(rows)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_documents_are_read_as_if_alone(batch_size):
    model, rows = language_model(), [[*row, EOS] for row in rows_of([4, 1, 9, 6])]
    config = configured(batch_size=batch_size)
    found = stream_log_probs(config, model, rows, [True] * 4)["stream_log_prob"]
    assert_rows(found, token_log_probs(model, rows, batch_size))
    # Of two documents, each is one unroll.
    found = stream_log_probs(config, model, rows, [False, False, True, False])["stream_log_prob"]
    for part in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(joined(found[part]), own(model, joined(rows[part])), rtol=2e-5, atol=2e-5)
    assert np.abs(joined(found) - joined(token_log_probs(model, rows, batch_size))).max() > 1e-3


@pytest.mark.parametrize("streams", [2, 3, 7, 1000])
def test_more_streams_forget_at_their_cuts_alone(streams):
    rows, model = rows_of([4, 1, 9, 6]), language_model()
    ids = joined(rows)
    cuts = sorted({len(ids) * number // streams for number in range(streams + 1)})
    expected = [own(model, ids[a:b], ids[a - 1] if a else EOS) for a, b in itertools.pairwise(cuts)]
    found = stream_log_probs(configured(streams=streams), model, rows, [False] * 4)["stream_log_prob"]
    assert [len(row) for row in found] == [4, 1, 9, 6]
    np.testing.assert_allclose(joined(found), joined(expected), rtol=2e-5, atol=2e-5)


# ------------------------------------------------------------------------------------------------------------ the cache


def by_cache(model, row, size, theta, weight, first=EOS):
    """Log probabilities of a row under equations 2 and 3 of Grave, Joulin & Usunier (2017), word by word."""
    states = model.read(np.array([[first, *row[:-1]]], "int32"), np.array([row], "int32"))[0].numpy()[0]
    plain, values = own(model, row, first), []
    for t, word in enumerate(row):
        history = range(max(0, t - size), t)  # state i was followed by word i
        if history:
            shares = np.array([math.exp(theta * states[t] @ states[i]) for i in history])
            hits = np.array([row[i] == word for i in history])
            cached = np.sum(shares * hits) / np.sum(shares)
            values.append(math.log((1 - weight) * math.exp(plain[t]) + weight * cached))
        else:
            values.append(plain[t])
    return np.array(values)


REPETITIVE = [[4, 5, 4, 5, 6, 4, 5, 2, 4, 5, 6, 6, 4, 5], [7, 7, 2, 7], [5, 4, 5, 4, 5, 9]]


@pytest.mark.parametrize("window", [1, 4, 128])
@pytest.mark.parametrize(("size", "theta", "weight"), [(3, 0.7, 0.3), (1, 0.0, 0.5), (100, 2.0, 0.1), (5, 1.0, 1.0)])
def test_the_cache_is_its_equation(monkeypatch, window, size, theta, weight):
    monkeypatch.setattr(module, "WINDOW", window)
    model = language_model()
    rows = [[4] * 6, [4] * 3] if weight == 1 else REPETITIVE  # log 0 where the cache alone decides and has not the word
    expected = [by_cache(model, row, size, theta, weight) for row in rows]
    assert_rows(token_log_probs(model, rows, 2, cache=(size, theta, weight)), expected, 1e-4)
    assert np.abs(joined(expected) - joined(token_log_probs(model, rows, 2))).max() > 0.05


def test_a_cache_without_weight_is_none():
    model = language_model()
    assert_rows(token_log_probs(model, REPETITIVE, 64, cache=(5, 1.0, 0.0)), token_log_probs(model, REPETITIVE, 64))


def test_the_cache_does_not_see_the_future(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 5)
    model, row = language_model(), REPETITIVE[0]
    whole = token_log_probs(model, [row], 1, cache=(50, 1.0, 0.4))[0]
    for length in (1, 4, 5, 6, 13):
        changed = [*row[:length], *[9] * (len(row) - length)]
        found = token_log_probs(model, [changed], 1, cache=(50, 1.0, 0.4))[0]
        np.testing.assert_allclose(found[:length], whole[:length], rtol=1e-5, atol=1e-6)


def test_the_cache_of_a_stream_lasts_from_text_to_text_but_not_into_the_next_document():
    model, rows = language_model(), REPETITIVE
    config = configured(cache_size=4, cache_flatness=0.8, cache_weight=0.3)
    found = stream_log_probs(config, model, rows, [False, False, True])
    assert set(found) == {"stream_log_prob", "cache_log_prob"}
    first = [*rows[0], *rows[1]]
    expected = [by_cache(model, first, 4, 0.8, 0.3), by_cache(model, rows[2], 4, 0.8, 0.3, first[-1])]
    np.testing.assert_allclose(joined(found["cache_log_prob"]), joined(expected), rtol=1e-4)
    assert [len(row) for row in found["cache_log_prob"]] == [14, 4, 6]


# --------------------------------------------------------------------------------------------------- dynamic evaluation


def weights_of(model):
    return [weight.numpy() for weight in model.trainable_weights]


def dynamic(model, streams, firsts=None, clip_norm=1.0, **options):
    config = configured(clip_norm=clip_norm, **{f"dynamic_{name}": value for name, value in options.items()})
    return dynamic_log_probs(config, model, [np.array(row) for row in streams], firsts or [EOS] * len(streams))


@pytest.mark.parametrize("window", [1, 4, 100])
def test_dynamic_evaluation_without_a_rate_is_plain(window):
    model = language_model()
    found = dynamic(model, REPETITIVE, [EOS, 4, 5], rate=0.0, window=window)
    assert_rows(found, token_log_probs(model, REPETITIVE, 1, [EOS, 4, 5]))


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_weights_learn_from_each_window_as_the_equation_says(clip_norm):
    model, row, rate, decay = language_model(), REPETITIVE[0][:9], 0.4, 0.3
    trained, state, tokens, expected = weights_of(model), None, [EOS, *row[:-1]], []
    try:
        for start in range(0, 9, 3):
            part = slice(start, start + 3)
            with tf.GradientTape() as tape:
                outputs, new_state = model.read(np.array([tokens[part]]), np.array([row[part]]), state)
                scores = tf.nn.log_softmax(model.logits(outputs))[0]
                values = tf.gather(scores, row[part], batch_dims=1)
                value = -tf.reduce_mean(values)
            variables = [weight.value for weight in model.trainable_weights]
            gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(value, variables)]
            norm = math.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
            assert norm > 0.5
            scale = clip_norm / norm if clip_norm else 1
            for weight, start_value, gradient in zip(model.trainable_weights, trained, gradients, strict=True):
                now = weight.numpy()
                weight.assign(now + decay * (start_value - now) - rate * scale * gradient)
            expected += values.numpy().tolist()
            state = new_state
    finally:
        for weight, value in zip(model.trainable_weights, trained, strict=True):
            weight.assign(value)
    (found,) = dynamic(model, [row], clip_norm=clip_norm, rate=rate, decay=decay, window=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found[3:] - token_log_probs(model, [row], 1)[0][3:]).max() > 1e-2


def test_a_repetitive_text_becomes_more_probable():
    model = language_model()
    text = [4, 5, 6, 7, 2] * 12
    (found,), (plain,) = dynamic(model, [text], rate=0.5, window=5), token_log_probs(model, [text], 1)
    np.testing.assert_allclose(found[:5], plain[:5], rtol=1e-5)
    assert found[-20:].mean() > plain[-20:].mean() + 0.5 and found.mean() > plain.mean()


def test_dynamic_evaluation_leaves_the_weights_as_they_were():
    model = language_model("word", 2, cell="lstm", layers=2, tie_embeddings=False)
    before = weights_of(model)
    dynamic(model, REPETITIVE, rate=1.0, window=3)
    for mine, theirs in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_dynamic_evaluation_that_is_interrupted_leaves_the_weights_as_they_were(monkeypatch):
    model, seen = language_model(), []
    before = weights_of(model)

    class Interrupting(np.ndarray):
        def __getitem__(self, key):
            changed = any(np.any(mine != theirs) for mine, theirs in zip(weights_of(model), before, strict=True))
            seen.append(changed)
            if changed:
                raise KeyboardInterrupt
            return super().__getitem__(key)

    config = configured(dynamic_rate=1.0, dynamic_window=3)
    with pytest.raises(KeyboardInterrupt):
        dynamic_log_probs(config, model, [np.array(REPETITIVE[0]).view(Interrupting)], [EOS])
    assert seen[-1]
    for mine, theirs in zip(weights_of(model), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_stream_has_dynamic_log_probs_where_asked_for():
    model = language_model()
    found = stream_log_probs(configured(dynamic_rate=0.3, dynamic_window=4), model, REPETITIVE, [False, False, True])
    assert set(found) == {"stream_log_prob", "dynamic_log_prob"}
    first = [*REPETITIVE[0], *REPETITIVE[1]]
    expected = dynamic(model, [first, REPETITIVE[2]], [EOS, first[-1]], rate=0.3, window=4)
    np.testing.assert_allclose(joined(found["dynamic_log_prob"]), joined(expected), rtol=1e-5)
    assert [len(row) for row in found["dynamic_log_prob"]] == [14, 4, 6]


# -------------------------------------------------------------------------------------------------------------- a split


def corpus(begins=True):
    columns = {"id": [3, 4, 5, 6, 7], "text": TEXTS[:5], "begins": [begins] * 5}
    return Corpus({"test": lambda: tf.data.Dataset.from_tensor_slices(columns)}, {"test": 5})


def test_decoding_a_split_says_everything_of_each_text():
    config, model = configured(batch_size=2, cache_size=3, dynamic_rate=0.1), language_model()
    found = decode(config, model, features(), corpus(begins=False), "test", 0)
    rows = features().encode(TEXTS[:5])
    assert [one["id"] for one in found] == [3, 4, 5, 6, 7]
    assert [one["text"] for one in found] == [text.rstrip("\n") for text in TEXTS[:5]]
    assert [(one["tokens"], one["unknown"]) for one in found] == [(len(row), row.count(UNK)) for row in rows]
    assert [one["characters"] for one in found] == [13, 2, 1, 30, 35]
    assert [one["log_prob"] for one in found] == pytest.approx([own(model, row).sum() for row in rows], rel=1e-5)
    assert [one["output"] for one in found] == [output_line(one) for one in found]
    streamed = own(model, joined(rows))
    assert sum(one["stream_log_prob"] for one in found) == pytest.approx(streamed.sum(), rel=1e-5)
    assert found[0]["stream_log_prob"] == pytest.approx(found[0]["log_prob"], rel=1e-5)
    assert found[4]["stream_log_prob"] == pytest.approx(streamed[-len(rows[4]) :].sum(), rel=1e-5)
    apart = {name: [one[name] for one in found] for name in ("stream_log_prob", "cache_log_prob", "dynamic_log_prob")}
    assert len({tuple(values) for values in apart.values()}) == 3


def test_texts_that_are_documents_are_read_once(monkeypatch):
    counted = mock.Mock(wraps=token_log_probs)
    monkeypatch.setattr(module, "token_log_probs", counted)
    for begins, streams, times in ((True, 1, 1), (False, 1, 2), (True, 2, 2)):
        counted.reset_mock()
        decode(configured(streams=streams), language_model(), features(), corpus(begins), "test", 0)
        assert counted.call_count == times


def test_only_the_first_texts_are_decoded_where_asked():
    whole = decode(configured(), language_model(), features(), corpus(), "test", 0)
    found = decode(configured(), language_model(), features(), corpus(), "test", 3)
    assert [one["text"] for one in found] == [one["text"] for one in whole[:3]]
    assert [one["log_prob"] for one in found] == pytest.approx([one["log_prob"] for one in whole[:3]], rel=1e-5)
    assert [one["stream_log_prob"] for one in whole] == pytest.approx([one["log_prob"] for one in whole], rel=1e-5)


def test_the_first_texts_are_continued_from_their_first_words():
    config = configured()
    found = decode(config, language_model(), features(), corpus(), "test", 0)
    written = generate(config, language_model(), features(), ["the red star", "a"])
    assert [one.get("continuation") for one in found] == [one["output"] for one in written] + [None] * 3
    assert found[0]["continuation"].startswith("the red star")


def test_a_model_of_both_sides_has_no_stream_and_writes_nothing():
    found = decode(configured(bidirectional=True), both_sides(), features(), corpus(), "test", 0)
    assert set(found[0]) == {"id", "text", "output", "tokens", "unknown", "characters", "log_prob"}
    for one, row in zip(found, features().encode(TEXTS[:5]), strict=True):
        assert one["log_prob"] == pytest.approx(own(both_sides(), row).sum(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- new text

PROMPTS = ["the red", "", "a zebra sees, a", "two small", "the circle is"]


def written(unit="word", prompts=PROMPTS, **decoding):
    return generate(configured(**decoding), language_model(unit), features(unit), prompts)


SAMPLE = {"method": "sample", "temperature": 1.5, "seed": 5}


def continued(unit, prompt, found):
    """The ids of a prompt and of what was written after it."""
    ids = features(unit).vocabulary.encode([prompt])[0]
    return ids, features(unit).vocabulary.encode([found["output"]])[0][len(ids) :]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_greedy_takes_the_most_probable_word_every_time(batch_size):
    found = written(batch_size=batch_size)
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids, total, tokens = list(features().vocabulary.encode([prompt])[0]), 0.0, 0
        while tokens < 12 and (not tokens or ids[-1] != EOS):
            scores = logs(language_model(), [*ids, EOS])[-1]
            scores[[PAD, BOS]] = -np.inf
            ids.append(int(np.argmax(scores)))
            total, tokens = total + scores[ids[-1]], tokens + 1
        assert one["output"] == features().vocabulary.decode(ids, ["zebra", "sees"])
        assert (one["tokens"], one["log_prob"]) == (tokens, pytest.approx(total, rel=1e-4))
        assert one["n_best"] == [{"output": one["output"], "score": one["log_prob"], "log_prob": one["log_prob"]}]
    assert len({one["output"] for one in found}) == 5
    assert written(prompts=[]) == []


def test_no_line_is_longer_than_allowed():
    for length in (1, 3):
        found = written(max_tokens=length, method="sample", temperature=3.0, prompts=[""] * 20)
        assert max(one["tokens"] for one in found) == length
        assert all(len(features().vocabulary.encode([one["output"]])[0]) <= length for one in found)


def test_samples_follow_the_seed_and_differ_between_batches():
    options = {"method": "sample", "batch_size": 4, "prompts": ["the"] * 16}
    first, again, other = (written(**options, seed=seed) for seed in (3, 3, 4))
    assert first == again
    batches = [tuple(one["output"] for one in first[start : start + 4]) for start in range(0, 16, 4)]
    assert len(set(batches)) > 1
    assert [one["output"] for one in other] != [one["output"] for one in first]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 3}], ids=["plain", "cold", "top 3"])
def test_words_are_drawn_as_often_as_the_model_says(options):
    draws, prompt = 4000, "the red"
    ids = features().vocabulary.encode([prompt])[0]
    shares = np.exp(logs(language_model(), [*ids, EOS])[-1] / options.get("temperature", 1.0))
    shares[[PAD, BOS]] = 0
    shares[np.argsort(-shares)[options.get("top_k", len(shares)) :]] = 0
    shares /= shares.sum()
    found = written(prompts=[prompt] * draws, method="sample", max_tokens=1, batch_size=draws, **options)
    texts = [one["output"] for one in found]
    for index, share in enumerate(shares):
        text = features().vocabulary.decode([*ids, index])
        if index > BOS:
            assert abs(texts.count(text) / draws - share) < 5 * math.sqrt(share / draws) + 1e-9, text
    assert len(set(texts)) >= 3


def test_a_beam_has_its_hypotheses_best_first():
    found = written(method="beam", beam_size=4, length_penalty=0.7)
    for prompt, one in zip(PROMPTS, found, strict=True):
        scores = [other["score"] for other in one["n_best"]]
        assert scores == sorted(scores, reverse=True) and len({other["output"] for other in one["n_best"]}) == 4
        assert {name: one[name] for name in ("output", "log_prob")}.items() <= one["n_best"][0].items()
        ids, new = continued("word", prompt, one)
        if "zebra" not in prompt and one["tokens"] == len(new) + 1:  # what ended in time
            log_prob = own(language_model(), [*ids, *new, EOS])[len(ids) :].sum()
            assert one["log_prob"] == pytest.approx(log_prob, rel=1e-4)
            assert scores[0] == pytest.approx(log_prob / ((5 + one["tokens"]) / 6) ** 0.7, rel=1e-4)
    greedy = written()
    assert [one["output"] for one in written(method="beam", beam_size=1)] == [one["output"] for one in greedy]
    wide = written(method="beam", beam_size=5, length_penalty=0.0)
    assert all(wide[i]["log_prob"] >= greedy[i]["log_prob"] - 1e-4 for i in range(5) if wide[i]["tokens"] < 12)


@pytest.mark.parametrize(
    ("unit", "options"),
    [*itertools.product(UNITS, ({"method": "greedy"}, SAMPLE)), ("bpe", {"method": "beam"})],
    ids=lambda value: value if isinstance(value, str) else value["method"],
)
def test_what_streams_is_what_is_generated(unit, options):
    config = configured(**options)
    pieces = {}
    for prompt in PROMPTS:
        pieces[prompt] = list(stream(config, language_model(unit), features(unit), prompt))
        expected = generate(config, language_model(unit), features(unit), [prompt])[0]["output"]
        assert "".join(pieces[prompt]) == expected and expected.startswith(prompt)
    if options["method"] != "beam":
        assert [some[0] for some in pieces.values()] == PROMPTS and max(map(len, pieces.values())) > 2


def test_the_temperature_zero_of_a_sample_is_greedy():
    assert written(method="sample", temperature=0.0) == written()


# ----------------------------------------------------------------------------------------------------------------- gaps

# Unit -> what stands for the gap, and lines with the number of tokens before it.
GAPS = {
    "word": ("red", {"the ___ star": 1, "___ star": 0, "the star is ___, and blue.": 3, "(___) a": 1, "___": 0}),
    "whitespace": ("red", {"the ___ star": 1, "___ star": 0, "a blue ___": 2}),
    "bpe": ("red", {"the ___ star": 1, "___ star": 0, "a blue ___": 2, "the star is ___, and blue.": 3}),
    "character": ("a", {"st___r": 3, "___ star": 1, "is ___ star": 4, "the st___": 7, "___": 1}),
}


def filled(unit, lines, count=5, **decoding):
    return fill(configured(bidirectional=True, **decoding), both_sides(unit), features(unit), lines, count)


def expected_at(unit, ids, place, count=5):
    """The most probable words at a place of a line, given all the others."""
    shares, names = np.exp(logs(both_sides(unit), ids)[place]), features(unit).vocabulary.tokens()
    best = [index for index in np.argsort(-shares) if index > UNK][:count]
    return [(names[index].strip("▁") or "▁", pytest.approx(shares[index], rel=1e-4)) for index in best]


@pytest.mark.parametrize(("unit", "line", "place"), [(unit, *gap) for unit in GAPS for gap in GAPS[unit][1].items()])
def test_a_gap_gets_what_the_model_says_where_a_word_would_be(unit, line, place):
    vocabulary, token = features(unit).vocabulary, GAPS[unit][0]
    ids = [*vocabulary.encode([line.replace("___", token)])[0], EOS]
    assert vocabulary.tokens()[ids[place]].strip("▁") == token or ids[place] == UNK
    assert filled(unit, [line]) == [expected_at(unit, ids, place)]


@pytest.mark.parametrize("unit", ["bpe", "unigram"])
@pytest.mark.parametrize("line", ["a zebra ___ star", "___ star", "the red ___"])
def test_a_gap_between_blanks_is_one_piece_of_a_word_with_its_blank(unit, line):
    before, after = features(unit).vocabulary.encode(line.split("___"))
    assert filled(unit, [line]) == [expected_at(unit, [*before, UNK, *after, EOS], len(before))]


def test_many_gaps_are_filled_together_in_order():
    lines = [*GAPS["word"][1], "a zebra sees a ___ star and a star, a star"]
    together = filled("word", lines, batch_size=3)
    for line, found in zip(lines, together, strict=True):
        alone = filled("word", [line])[0]
        assert [word for word, _ in alone] == [word for word, _ in found]
        assert [share for _, share in alone] == pytest.approx([share for _, share in found], rel=1e-4)
    assert len({str(found) for found in together}) == len(lines)


def test_without_lines_there_is_nothing_to_fill():
    assert filled("word", []) == []


@units
def test_shares_are_of_all_words_there_are(unit):
    (found,) = filled(unit, ["the red___ star"], count=10**6)
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert len(found) == len(features(unit).vocabulary) - 4
    assert not any(word.startswith("<") or word == "" for word, _ in found)
    assert len(filled(unit, ["the ___ star"], count=2)[0]) == 2

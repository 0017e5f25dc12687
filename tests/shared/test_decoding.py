"""Decoding is tested on small random models whose every sequence can be listed: what the graph finds is compared with
what plain Python finds by listing sequences, or by a beam search that never stops early."""

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from shared.config import DecodingConfig
from shared.decoding import VOID, Hypotheses, beam_search, chooser, greedy, sample, tile_beams
from shared.decoding import search as search_as_told
from shared.decoding.protocol import top_k, top_tokens
from shared.decoding.sampling import truncate

PAD, BOS, EOS = 0, 1, 2


class Model:
    """A random model: each sentence's log probabilities and attention depend on the last token and a hidden number."""

    def __init__(self, seed, sentences=3, vocabulary=6, hidden=7, source=4, spread=1.0):
        random = np.random.default_rng(seed)
        self.sentences, self.hidden, self.source = sentences, hidden, source
        shape = (sentences, hidden, vocabulary)
        logits = spread * random.normal(size=(*shape, vocabulary))
        self.log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype("float32")
        self.source_mask = np.arange(source) < random.integers(1, source + 1, (sentences, 1))
        attention = np.exp(2 * random.normal(size=(*shape, source))) * self.source_mask[:, None, None]
        self.attention = (attention / attention.sum(-1, keepdims=True)).astype("float32")

    def start(self, sentences=None, attention=True):
        sentence = np.arange(self.sentences) if sentences is None else np.asarray(sentences)
        state = {"sentence": tf.constant(sentence, tf.int32), "hidden": tf.zeros(len(sentence), tf.int32)}
        return {**state, "attention": tf.zeros((len(sentence), self.source))} if attention else state

    def step(self, tokens, state):
        hidden = (5 * state["hidden"] + 3 * tokens + 1) % self.hidden
        where = tf.stack([state["sentence"], hidden, tokens], axis=1)
        new_state = {**state, "hidden": hidden}
        if "attention" in state:
            new_state["attention"] = tf.gather_nd(self.attention, where)
        return tf.gather_nd(self.log_probs, where), new_state

    def walk(self, sentence, tokens):
        """Log probabilities (V,) of what may follow these tokens, and the log probability and attention of each."""
        hidden, log_probs, attention = 0, [], []
        for token, following in itertools.pairwise([BOS, *tokens, None]):
            hidden = (5 * hidden + 3 * token + 1) % self.hidden
            if following is None:
                return self.log_probs[sentence, hidden, token], log_probs, attention
            log_probs.append(self.log_probs[sentence, hidden, token, following])
            attention.append(self.attention[sentence, hidden, token])

    def score(self, sentence, tokens, length_penalty=0.0, coverage_penalty=0.0):
        _, log_probs, attention = self.walk(sentence, tokens)
        covered = np.minimum(np.sum(attention, axis=0), 1.0)[self.source_mask[sentence]]
        return sum(log_probs) / ((5 + len(tokens)) / 6) ** length_penalty + coverage_penalty * np.log(covered).sum()


def repeats(tokens, order):
    ngrams = [tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1)]
    return order > 0 and len(ngrams) > len(set(ngrams))


def rank(finished, cut_off, score):
    return sorted(finished, key=score, reverse=True) + sorted(cut_off, key=score, reverse=True)


def brute_force(model, sentence, max_length, **penalties):
    """Every sequence that the model can write, best first, those cut off at the maximum length last."""
    words = [token for token in range(model.log_probs.shape[-1]) if token not in (PAD, BOS, EOS)]
    finished = [[*prefix, EOS] for length in range(max_length) for prefix in itertools.product(words, repeat=length)]
    cut_off = [list(tokens) for tokens in itertools.product(words, repeat=max_length)]
    return rank(finished, cut_off, lambda tokens: model.score(sentence, tokens, **penalties))


def patient_beam(model, sentence, max_length, beam_size, no_repeat_ngram=0, **penalties):
    """Beam search for one sentence which goes on to the maximum length whatever it has found."""
    live, finished = [(0.0, [])], []
    for _ in range(max_length):
        extended = []
        for log_prob, tokens in live:
            for token, more in enumerate(model.walk(sentence, tokens)[0]):
                if token not in (PAD, BOS) and not repeats([*tokens, token], no_repeat_ngram):
                    extended.append((log_prob + more, [*tokens, token]))
        extended = sorted(extended, key=lambda pair: -pair[0])[:beam_size]
        finished += [tokens for _, tokens in extended if tokens[-1] == EOS]
        live = [pair for pair in extended if pair[1][-1] != EOS]
    cut_off = [tokens for _, tokens in live]
    return rank(finished, cut_off, lambda tokens: model.score(sentence, tokens, **penalties))[:beam_size]


def listed(hypotheses, sentence):
    """The token lists of one sentence's hypotheses; asserts that nothing but padding follows them."""
    tokens, lengths = np.array(hypotheses.tokens[sentence]), np.array(hypotheses.lengths[sentence])
    for row, length in zip(tokens, lengths, strict=True):
        assert (row[length:] == PAD).all() and (row[:length] != PAD).all()
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True) if length]


def search(model, max_lengths, max_steps=100, **settings):
    return beam_search(model.step, model.start(), model.sentences, max_lengths, max_steps, **settings)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0])
def test_beam_of_one_equals_greedy(length_penalty):
    model, max_lengths = Model(1, sentences=20, vocabulary=12), np.arange(20) + 1
    expected = greedy(model.step, model.start(), 20, max_lengths, 30)
    found = search(model, max_lengths, beam_size=1, length_penalty=length_penalty)
    steps = expected.tokens.shape[2]
    assert found.tokens.shape[2] == steps and len(set(expected.lengths[:, 0].numpy())) > 3
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=1e-5)
    np.testing.assert_array_equal(found.attention, expected.attention)


def test_greedy_takes_the_most_probable_token_at_every_step():
    model = Model(2, sentences=12, spread=2.0)
    found = greedy(model.step, model.start(attention=False), 12, np.full(12, 9), 9)
    assert found.attention is None
    for sentence in range(12):
        (tokens,) = listed(found, sentence)
        assert (tokens[-1] == EOS or len(tokens) == 9) and EOS not in tokens[:-1]
        for place, token in enumerate(tokens):
            assert token == 2 + np.argmax(model.walk(sentence, tokens[:place])[0][2:])
        np.testing.assert_allclose(found.log_probs[sentence, 0], model.score(sentence, tokens), rtol=1e-5)


@pytest.mark.parametrize(
    ("length_penalty", "coverage_penalty"), [(0.0, 0.0), (0.6, 0.0), (2.0, 0.0), (0.0, 0.4), (1.0, 0.2)]
)
def test_full_width_beam_equals_brute_force(length_penalty, coverage_penalty):
    model, max_lengths = Model(3), np.array([4, 3, 1])
    penalties = {"length_penalty": length_penalty, "coverage_penalty": coverage_penalty}
    found = search(model, max_lengths, beam_size=121, source_mask=model.source_mask, **penalties)
    for sentence, max_length in enumerate(max_lengths):
        expected = brute_force(model, sentence, max_length, **penalties)
        assert listed(found, sentence) == expected
        scores = [model.score(sentence, tokens, **penalties) for tokens in expected]
        np.testing.assert_allclose(found.scores[sentence, : len(scores)], scores, rtol=1e-4)
        assert (found.scores[sentence, len(scores) :] == VOID).numpy().all()
        assert (found.log_probs[sentence, len(scores) :] == VOID).numpy().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"beam_size": 2},
        {"beam_size": 3, "length_penalty": 1.0},
        {"beam_size": 4, "length_penalty": 2.5},
        {"beam_size": 3, "length_penalty": 1.0, "coverage_penalty": 0.3},
        {"beam_size": 3, "length_penalty": 1.5, "no_repeat_ngram": 2},
    ],
)
def test_stopping_early_changes_nothing(settings):
    model, max_lengths = Model(4, sentences=24, vocabulary=7, spread=1.5), np.tile([1, 5, 9, 12], 6)
    found = search(model, max_lengths, source_mask=model.source_mask, **settings)
    for sentence, max_length in enumerate(max_lengths):
        expected = patient_beam(model, sentence, max_length, **settings)
        assert listed(found, sentence) == expected
        penalties = {name: value for name, value in settings.items() if name.endswith("penalty")}
        scores = [model.score(sentence, tokens, **penalties) for tokens in expected]
        np.testing.assert_allclose(found.scores[sentence, : len(scores)], scores, rtol=1e-4)


def test_search_stops_as_soon_as_nothing_can_improve():
    log_probs = tf.math.log([[1e-9, 1e-9, 0.9, 0.09, 0.01]])

    def steps(length_penalty, max_length):
        def step(tokens, state):
            return tf.repeat(log_probs, tf.size(tokens), axis=0), state

        found = beam_search(step, (), 1, [max_length], max_length, 2, length_penalty=length_penalty)
        return found.tokens.shape[2]

    # the pool of two fills at the second step with log 0.9 and log 0.081; what lives on then has log 0.0081 at most
    assert steps(0.0, 1000) == 2
    # under the penalty, log 0.0081 might come to more than log 0.081 by growing to 1000 tokens, but not to 4
    assert steps(1.0, 4) == 2 and 2 < steps(1.0, 1000) < 1000


def test_hypotheses_are_sorted_distinct_and_scored_by_their_own_tokens_and_attention():
    model, penalties = Model(5, sentences=10, vocabulary=9), {"length_penalty": 0.8, "coverage_penalty": 0.1}
    found = search(model, np.full(10, 8), beam_size=6, source_mask=model.source_mask, **penalties)
    for sentence in range(10):
        hypotheses = listed(found, sentence)
        assert len({tuple(tokens) for tokens in hypotheses}) == 6
        ended = [tokens[-1] == EOS for tokens in hypotheses]
        assert ended == sorted(ended, reverse=True)
        for group in (np.array(ended), ~np.array(ended)):
            assert (np.diff(found.scores[sentence].numpy()[group]) <= 0).all()
        for slot, tokens in enumerate(hypotheses):
            _, log_probs, attention = model.walk(sentence, tokens)
            np.testing.assert_allclose(found.log_probs[sentence, slot], sum(log_probs), rtol=1e-5)
            np.testing.assert_allclose(
                found.scores[sentence, slot], model.score(sentence, tokens, **penalties), rtol=1e-4
            )
            np.testing.assert_array_equal(found.attention[sentence, slot, : len(tokens)], attention)
            assert (found.attention[sentence, slot, len(tokens) :].numpy() == 0).all()


def test_a_sentence_alone_equals_the_sentence_in_a_batch():
    model, max_lengths = Model(6, sentences=8, vocabulary=9, spread=2.0), np.array([1, 12, 3, 9, 2, 12, 5, 7])
    settings = {"beam_size": 4, "length_penalty": 1.2, "coverage_penalty": 0.1, "no_repeat_ngram": 3}
    together = search(model, max_lengths, source_mask=model.source_mask, **settings)
    for sentence in range(8):
        mask, limit = model.source_mask[[sentence]], max_lengths[[sentence]]
        alone = beam_search(model.step, model.start([sentence]), 1, limit, 100, source_mask=mask, **settings)
        steps = alone.tokens.shape[2]
        assert listed(alone, 0) == listed(together, sentence)
        np.testing.assert_array_equal(alone.scores[0], together.scores[sentence])
        np.testing.assert_array_equal(alone.attention[0], together.attention[sentence, :, :steps])


def test_without_source_mask_padding_does_not_change_the_order():
    model, max_lengths = Model(7, sentences=8), np.full(8, 6)
    settings = {"beam_size": 4, "length_penalty": 1.0, "coverage_penalty": 0.2}
    masked = search(model, max_lengths, source_mask=model.source_mask, **settings)
    unmasked = search(model, max_lengths, **settings)
    assert not model.source_mask.all()
    for sentence in range(8):
        assert listed(masked, sentence) == listed(unmasked, sentence)


@pytest.mark.parametrize("decode", [greedy, lambda *args: sample(*args, seed=3), lambda *args: beam_search(*args, 3)])
def test_maximum_lengths_are_reached_and_never_passed(decode):
    model, max_lengths = Model(8, sentences=6, vocabulary=9), np.array([0, 1, 2, 5, 7, 30])
    model.log_probs[..., EOS] = -40.0
    found = decode(model.step, model.start(), 6, max_lengths, 8)
    np.testing.assert_array_equal(found.lengths, np.tile([[1], [1], [2], [5], [7], [8]], found.lengths.shape[1]))
    assert found.tokens.shape[2] == 8 and not (found.tokens.numpy() == EOS).any()
    for sentence in range(6):
        assert len(listed(found, sentence)) == found.lengths.shape[1]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_nothing_touches_a_finished_hypothesis(poison):
    """What the model says once eos or padding was fed to it does not matter, were it not even a number."""
    clean, poisoned = Model(9, sentences=6, spread=2.0), Model(9, sentences=6, spread=2.0)
    poisoned.log_probs[:, :, [PAD, EOS]] = poison
    poisoned.attention[:, :, [PAD, EOS]] = np.nan
    limits = np.full(6, 9)
    for decode in (greedy, lambda *args: sample(*args, seed=3), lambda *args: beam_search(*args, 3, 1.0, 0.1)):
        expected = decode(clean.step, clean.start(), 6, limits, 9)
        found = decode(poisoned.step, poisoned.start(), 6, limits, 9)
        assert (np.array(expected.lengths) < 9).any()
        for before, after in zip(expected, found, strict=True):
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_no_ngram_comes_twice(order):
    model = Model(10, sentences=8, vocabulary=7, spread=3.0)
    model.log_probs[..., EOS] -= 8.0
    free, blocked = (search(model, np.full(8, 12), beam_size=3, no_repeat_ngram=n) for n in (0, order))
    sequences = [[tokens for sentence in range(8) for tokens in listed(found, sentence)] for found in (free, blocked)]
    assert any(repeats(tokens, order) for tokens in sequences[0])
    assert not any(repeats(tokens, order) for tokens in sequences[1])
    assert max(len(tokens) for tokens in sequences[1]) > order


def test_of_equal_scores_the_first_found_the_better_beam_and_the_lower_token_wins():
    def uniform(tokens, state):
        return tf.zeros((tf.size(tokens), 3000)), state

    assert listed(greedy(uniform, (), 1, [3], 3), 0) == [[2]]
    assert listed(beam_search(uniform, (), 1, [3], 3, 4), 0) == [[2], [3, 2], [3, 3, 2], [3, 3, 3]]


def test_impossible_tokens_are_never_taken():
    model = Model(11, sentences=4, vocabulary=8)
    model.log_probs[..., 4:7] = -np.inf
    found = search(model, np.full(4, 3), beam_size=30, length_penalty=1.0)
    for sentence in range(4):  # words 3 and 7: 1 + 2 + 4 finished, 8 cut off
        assert len(listed(found, sentence)) == 15
    assert np.isfinite(found.scores).all() and not np.isin(found.tokens, [4, 5, 6]).any()


def test_numbering_of_the_vocabulary_does_not_matter():
    model, limits = Model(16, sentences=6), np.full(6, 7)
    numbers = np.array([4, 0, 5, 1, 2, 3])  # of pad, bos, eos and three words

    def step(tokens, state):
        log_probs, state = model.step(tf.gather(np.argsort(numbers).astype("int32"), tokens), state)
        return tf.gather(log_probs, np.argsort(numbers), axis=1), state

    for decode in (greedy, lambda *args, **ids: beam_search(*args, 3, 1.0, **ids)):
        expected = decode(model.step, model.start(), 6, limits, 7)
        found = decode(step, model.start(), 6, limits, 7, pad=4, bos=0, eos=5)
        np.testing.assert_array_equal(found.tokens, numbers[expected.tokens])
        np.testing.assert_array_equal(found.scores, expected.scores)


def test_captured_tiled_tensor_equals_tensor_in_the_state():
    memory = tf.constant(np.random.default_rng(0).normal(size=(5, 8)), tf.float32)
    projection = tf.constant(np.random.default_rng(1).normal(size=(8, 8, 8)), tf.float32)
    tiled = tile_beams({"memory": memory}, 3)["memory"]
    np.testing.assert_array_equal(tiled, np.repeat(memory, 3, axis=0))

    def log_probs(tokens, memory):
        return tf.nn.log_softmax(tf.einsum("nm,nmv->nv", memory, tf.gather(projection, tokens)))

    carried = beam_search(lambda tokens, state: (log_probs(tokens, state), state), memory, 5, [6] * 5, 6, 3)
    captured = beam_search(lambda tokens, state: (log_probs(tokens, tiled), state), (), 5, [6] * 5, 6, 3)
    np.testing.assert_array_equal(carried.tokens, captured.tokens)
    np.testing.assert_array_equal(carried.scores, captured.scores)


def test_one_trace_serves_all_shapes():
    model, traces = Model(12, sentences=9), []

    def step(tokens, state):
        log_probs, inner = model.step(tokens, state["model"])
        sharpness = tf.cast(inner["hidden"], tf.float32)[:, None]
        pair = tf.reshape(state["pair"], [tf.size(tokens), -1])  # its width is no longer known to the graph
        attention = tf.nn.softmax(sharpness * state["memory"])
        return log_probs, {**state, "model": inner, "attention": attention, "pair": pair}

    def decode(sentence, memory, max_lengths, max_steps, seed):
        traces.append(1)
        inner = {"sentence": sentence, "hidden": tf.zeros_like(sentence)}
        pair = tf.zeros((tf.size(sentence), 2))
        state = {"model": inner, "memory": memory, "attention": tf.zeros_like(memory), "pair": pair}
        arguments = (step, state, tf.shape(sentence)[0], max_lengths, max_steps)
        beams = beam_search(*arguments, 3, 1.0, 0.1, no_repeat_ngram=2, source_mask=memory > -1)
        return beams, greedy(*arguments), sample(*arguments, top_k=5, top_p=0.9, min_p=0.1, seed=seed)

    rows, scalar = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    compiled = tf.function(decode, [rows, tf.TensorSpec([None, None]), rows, scalar, scalar])
    for sentences, source, max_steps in (([0], 1, 1), ([3, 4, 5, 6, 8], 2, 9), ([7, 2], 7, 3)):
        memory = tf.constant(np.random.default_rng(source).normal(size=(len(sentences), source)), tf.float32)
        arguments = [tf.constant(value) for value in (sentences, memory, [4] * len(sentences), max_steps, 5)]
        expected, found = tf.nest.flatten(decode(*arguments)), tf.nest.flatten(compiled(*arguments))
        for before, after in zip(expected, found, strict=True):
            np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert len(traces) == 3 + 1  # three times without a graph


def test_settings_that_cannot_be_are_refused():
    model = Model(13)
    arguments = (model.step, model.start(attention=False), 3, [4, 4, 4], 4)
    with pytest.raises(ValueError, match="coverage penalty needs a model with attention"):
        tf.function(lambda: beam_search(*arguments, 2, coverage_penalty=0.1))()
    for settings in ({"beam_size": 0}, {"beam_size": 2, "length_penalty": -1.0}):
        with pytest.raises(ValueError, match="beam_size of at least 1"):
            beam_search(*arguments, **settings)
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 2.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="sampling needs"):
            sample(*arguments, **settings)


@pytest.mark.parametrize("size", [5, 300, 2048, 8000, 8011])
def test_top_k_equals_a_stable_sort(size):
    random = np.random.default_rng(size)
    values = (random.integers(1, 5, (20, size)) * (random.random((20, size)) < 10 / size)).astype("float32")  # ties
    values[1:3, size // 3 :] = -np.inf
    values[3, 2:] = -np.inf
    found, where = top_k(tf.constant(values), 7)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(where, expected)
    np.testing.assert_array_equal(found, np.take_along_axis(values, expected, axis=1))
    values[:, [PAD, BOS]] = VOID
    expected = np.argsort(-values, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(top_tokens(tf.constant(values), 3, PAD, BOS)[1][4:], expected[4:])


def truncated(probabilities, temperature, top_k, top_p, min_p):
    """The distribution (V,) that is left, by the definitions."""
    probabilities = probabilities ** (1 / temperature)
    order = np.argsort(-probabilities, kind="stable")[: top_k or None]
    shares = probabilities[order] / probabilities[order].sum()
    for size in range(1, len(order) + 1):
        if shares[:size].sum() >= top_p:
            break
    order = order[:size]
    order = order[probabilities[order] >= min_p * probabilities.max()]
    left = np.zeros_like(probabilities)
    left[order] = probabilities[order]
    return left / left.sum()


TRUNCATIONS = [
    (1.0, 0, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (2.0, 0, 1.0, 0.0),
    (1.0, 4, 1.0, 0.0),
    (1.0, 0, 0.6, 0.0),
    (1.0, 0, 1.0, 0.3),
    (1.5, 6, 0.8, 0.2),
]


@pytest.mark.parametrize("settings", TRUNCATIONS)
def test_truncation_keeps_what_the_definitions_keep(settings):
    probabilities = np.random.default_rng(1).dirichlet(np.full(50, 0.5), size=40)
    logits, tokens = truncate(tf.constant(np.log(probabilities), tf.float32), *settings)
    for row in range(40):
        found = np.zeros(50)
        found[tokens[row]] = tf.nn.softmax(logits[row])
        np.testing.assert_allclose(found, truncated(probabilities[row], *settings), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("settings", TRUNCATIONS)
def test_samples_are_as_frequent_as_they_are_probable(settings):
    draws, probabilities = 20000, np.random.default_rng(2).dirichlet(np.full(12, 2.0))
    log_probs = tf.constant(np.log(probabilities), tf.float32)

    def step(tokens, state):
        return tf.repeat(log_probs[None], tf.size(tokens), axis=0), state

    found = sample(step, (), draws, [2] * draws, 2, *settings, seed=4)
    expected = truncated(np.where(np.arange(12) < 2, 0, probabilities), *settings)
    first, second = np.array(found.tokens[:, 0]).T
    for drawn in (first, second[first != EOS]):
        counts = np.bincount(drawn, minlength=12)
        deviation = np.abs(counts / len(drawn) - expected) / np.sqrt(expected / len(drawn) + 1e-12)
        assert deviation.max() < 5 and (counts[expected == 0] == 0).all()
    together = np.bincount(12 * first + second, minlength=144)[12 * EOS + 12 :] / draws  # of draws that went on
    pairs = np.outer(expected, expected).ravel()[12 * EOS + 12 :]
    assert (np.abs(together - pairs) < 5 * np.sqrt(pairs / draws) + 1e-9).all()
    own = np.log(probabilities)[first] + np.where(first == EOS, 0, np.log(probabilities)[second])
    np.testing.assert_allclose(found.log_probs[:, 0], own, rtol=1e-4)


def test_seed_decides_the_text():
    model = Model(14, sentences=20, vocabulary=50)

    def text(seed):
        return sample(model.step, model.start(), 20, [10] * 20, 10, seed=seed)

    for before, after in zip(text(7), text(tf.constant(7, tf.int64)), strict=True):
        np.testing.assert_array_equal(before, after)
    same = [listed(text(7), row) == listed(text(8), row) for row in range(20)]
    assert not any(same)


@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_cold_sampling_is_greedy(temperature):
    model = Model(15, sentences=20, vocabulary=50)
    arguments = (model.step, model.start(), 20, [10] * 20, 10)
    for expected, found in zip(greedy(*arguments), sample(*arguments, temperature=temperature), strict=True):
        np.testing.assert_allclose(expected, found, rtol=1e-6)


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0, 0.0), (1.5, 6, 0.8, 0.2), (0.0, 0, 1.0, 0.0)])
def test_choosing_step_by_step_is_sampling(settings):
    model, rows = Model(17, sentences=9, vocabulary=30), 9
    expected = sample(model.step, model.start(), rows, [8] * rows, 8, *settings, seed=5)
    choose, state, tokens, texts = chooser(*settings, seed=5), model.start(), tf.fill([rows], BOS), []
    for index in range(expected.tokens.shape[2]):
        log_probs, state = model.step(tokens, state)
        tokens = choose(log_probs, index)
        texts.append(tokens.numpy())
    assert tokens.dtype == tf.int32
    for row, text in enumerate(np.array(texts).T.tolist()):
        length = int(expected.lengths[row, 0])
        assert text[:length] == expected.tokens[row, 0, :length].numpy().tolist()
    assert len({tuple(text) for text in np.array(texts).T.tolist()}) > 5


def test_choosing_depends_on_seed_and_step_and_never_takes_pad_or_bos():
    log_probs = tf.math.log([[0.4, 0.4, 0.1, 0.05, 0.05]] * 200)
    drawn = {
        (seed, index): chooser(seed=seed)(log_probs, index).numpy().tolist() for seed in (1, 2) for index in (0, 1)
    }
    assert len({tuple(tokens) for tokens in drawn.values()}) == 4
    assert {token for tokens in drawn.values() for token in tokens} == {2, 3, 4}
    assert drawn[1, 0] == chooser(seed=1)(log_probs, tf.constant(0)).numpy().tolist()
    assert set(chooser(pad=2, bos=3, seed=1)(log_probs, 0).numpy()) == {0, 1, 4}
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 2.0}, {"top_k": -1}):
        with pytest.raises(ValueError, match="sampling needs"):
            chooser(**settings)


@pytest.mark.parametrize("attention", [True, False])
def test_hypotheses_in_numpy_are_the_same(attention):
    model = Model(18)
    found = greedy(model.step, model.start(attention=attention), 3, [4, 4, 4], 4)
    plain = found.numpy()
    assert isinstance(plain, Hypotheses) and (plain.attention is not None) == attention
    for tensor, array in zip(found, plain, strict=True):
        assert tensor is None or (isinstance(array, np.ndarray) and np.array_equal(tensor, array))


# ------------------------------------------------------------------------------------------------------- configuration


DECODING = DecodingConfig(
    beam_size=3, length_penalty=0.6, coverage_penalty=0.4, no_repeat_ngram=2, temperature=1.5, top_k=3, top_p=0.9,
    min_p=0.02,
)  # fmt: skip


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_the_configuration_says_which_search_it_is(method):
    model, max_lengths, decoding = (
        Model(4, vocabulary=9),
        np.array([7, 5, 6]),
        dataclasses.replace(DECODING, method=method),
    )
    found = search_as_told(decoding, model.step, model.start(), 3, max_lengths, 9, 5, model.source_mask)
    direct = {
        "greedy": lambda: greedy(model.step, model.start(), 3, max_lengths, 9),
        "sample": lambda: sample(model.step, model.start(), 3, max_lengths, 9, 1.5, 3, 0.9, 0.02, seed=5),
        "beam": lambda: search(
            model, max_lengths, 9, beam_size=3, length_penalty=0.6, coverage_penalty=0.4, no_repeat_ngram=2,
            source_mask=model.source_mask,
        ),
    }  # fmt: skip
    for name, expected in direct.items():
        same = found.tokens.shape == expected().tokens.shape and np.array_equal(found.tokens, expected().tokens)
        assert same == (name == method)
    np.testing.assert_allclose(found.scores, direct[method]().scores, rtol=1e-6)
    assert decoding.beams == found.tokens.shape[1] == (3 if method == "beam" else 1)


@pytest.mark.parametrize("key", ["length_penalty", "coverage_penalty", "no_repeat_ngram"])
def test_every_key_of_the_beam_reaches_it(key):
    model, max_lengths = Model(4, vocabulary=9), np.full(3, 7)
    scores = []
    for decoding in (DECODING, dataclasses.replace(DECODING, **{key: 0})):
        scores.append(
            search_as_told(decoding, model.step, model.start(), 3, max_lengths, 9, 5, model.source_mask).scores
        )
    assert np.abs(scores[0] - scores[1]).max() > 1e-4

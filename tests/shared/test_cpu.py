"""What is computed on a CPU by code of our own equals TensorFlow's, gradients included, whatever the shapes."""

import functools
import math
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import cpu
from shared.recurrent.attention import additive_scores

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
shapes = st.lists(st.integers(1, 40), min_size=0, max_size=2)


def compare(own, plain, arguments, dtype="float32"):
    """Whether two functions of the same arrays have the same results and gradients, in a graph and without."""
    arrays = [tf.constant(array, dtype) for array in arguments]
    exact = [tf.constant(array, "float64") for array in arguments]
    expected = results(plain, exact)
    for function in (own, tf.function(own, autograph=False)):
        for found, true in zip(results(function, arrays), expected, strict=True):
            assert found.dtype == dtype and found.shape == true.shape
            scale = np.abs(true).max(initial=1.0)
            np.testing.assert_allclose(found, true, atol=TOLERANCE[dtype] * scale, rtol=TOLERANCE[dtype])


def results(function, arrays):
    """What the function returns, and the gradients of a sum of it with weights that all differ."""
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        found = function(*arrays)
        weights = tf.reshape(tf.cos(tf.range(tf.size(found), dtype="float64")), tf.shape(found))
        total = tf.reduce_sum(found * tf.cast(weights, found.dtype))
    return [found, *tape.gradient(total, arrays)]


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 30), st.integers(1, 30), st.booleans(), st.sampled_from(sorted(TOLERANCE)))
def test_an_affine_map_is_product_and_sum(leading, inputs, outputs, transposed, dtype):
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(outputs, inputs) if transposed else (inputs, outputs))
    arguments = rng.normal(size=(*leading, 1, inputs)), kernel, rng.normal(size=outputs)

    def plain(x, kernel, bias):
        return tf.matmul(x, tf.broadcast_to(kernel, (*leading, *kernel.shape)), transpose_b=transposed) + bias

    compare(lambda *each: cpu.affine(*each, transposed=transposed), plain, arguments, dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), *[st.integers(1, 30)] * 3, st.sampled_from(sorted(TOLERANCE)))
def test_a_batch_product_is_the_product_of_each_row(batch, m, k, n, dtype):
    rng = np.random.default_rng(1)
    arguments = rng.normal(size=(batch, m, k)), rng.normal(size=(batch, k, n))
    compare(cpu.batch_product, tf.matmul, arguments, dtype)


def test_a_batch_product_of_half_precision_is_tensorflow_s():
    a, b = (tf.ones(shape, "bfloat16") for shape in ((2, 3, 4), (2, 4, 5)))
    assert cpu.batch_product(a, b).dtype == "bfloat16"


def test_an_affine_map_of_half_precision_has_the_precision_of_its_bias():
    x, kernel = (tf.ones(shape, "bfloat16") for shape in ((2, 3, 4), (4, 5)))
    assert cpu.affine(x, kernel, tf.ones(5)).dtype == "float32"
    np.testing.assert_array_equal(cpu.affine(x, kernel, tf.ones(5)), np.full((2, 3, 5), 5))


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 70), st.sampled_from([0.0, 0.1, 0.7]), st.sampled_from(sorted(TOLERANCE)))
def test_cross_entropy_equals_its_definition(leading, words, smoothing, dtype):
    rng = np.random.default_rng(1)
    ids = rng.integers(0, words, leading).astype(np.int32)
    target = (1 - smoothing) * np.eye(words)[ids] + smoothing / words

    def plain(scores):
        return -tf.reduce_sum(target * tf.nn.log_softmax(scores), axis=-1)

    scores = rng.normal(0, 8, (*leading, words))
    compare(lambda scores: cpu.cross_entropy(tf.constant(ids), scores, smoothing), plain, [scores], dtype)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(1, 40), st.integers(1, 70), st.sampled_from([0.0, 0.1]), st.sampled_from(sorted(TOLERANCE)))
def test_word_cross_entropy_is_that_of_the_scores(leading, inputs, words, smoothing, dtype):
    rng = np.random.default_rng(1)
    ids = tf.constant(rng.integers(0, words, leading), tf.int32)
    target = (1 - smoothing) * np.eye(words)[ids] + smoothing / words

    def plain(x, kernel, bias):
        scores = tf.einsum("...i,wi->...w", x, kernel) + bias
        return -tf.reduce_sum(target * tf.nn.log_softmax(scores), axis=-1)

    arguments = rng.normal(size=(*leading, inputs)), rng.normal(size=(words, inputs)), rng.normal(size=words)
    compare(lambda *each: cpu.word_cross_entropy(ids, *each, smoothing), plain, arguments, dtype)


def cross_entropy(ids, scores, smoothing=0.0):
    scores = tf.constant(scores, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = cpu.cross_entropy(tf.constant(ids), scores, smoothing)
    return losses.numpy(), tape.gradient(losses, scores).numpy()


@pytest.mark.parametrize("far", [1e2, 1e4, 3e38, np.inf])
def test_scores_that_are_far_below_have_no_share(far):
    losses, gradient = cross_entropy([0, 0], [[5.0, -far, 5.0], [-far, -far, 5.0]])
    np.testing.assert_allclose(losses, [math.log(2), far], rtol=0.06)
    np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5], [-1, 0, 1]], atol=1e-6)


def test_the_exponential_function_is_as_exact_as_its_type():
    x = np.linspace(-87, 0, 100_001, dtype=np.float32)
    _, gradient = cross_entropy([1], [[*x, 50.0]])
    expected = np.exp((x - np.float32(50)).astype(np.float64))
    seen = expected > 1e-37
    seen[1] = False
    np.testing.assert_allclose(gradient[0, :-1][seen], expected[seen], rtol=3e-7)


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_what_is_no_number_is_no_loss(strange):
    losses, gradient = cross_entropy([0, 0], [[strange, 1.0], [0.0, 1.0]])
    assert not np.isfinite(losses[0]) and np.isfinite(losses[1])
    assert np.isnan(gradient[0]).any() and np.isfinite(gradient[1]).all()


@pytest.mark.parametrize("ids", [[0, 3], [-1, 0]])
def test_ids_without_a_score_are_refused(ids):
    with pytest.raises(Exception, match="for 3 scores"):
        cross_entropy(ids, np.zeros((2, 3)))


def test_nothing_has_no_cross_entropy():
    losses, gradient = cross_entropy(np.zeros((0, 4), np.int32), np.zeros((0, 4, 5)))
    assert losses.shape == (0, 4) and gradient.shape == (0, 4, 5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(1, 20), st.sampled_from(sorted(TOLERANCE)))
def test_additive_scores_equal_their_definition(batch, time, positions, units, dtype):
    rng = np.random.default_rng(1)
    arguments = [rng.normal(size=shape) for shape in ((batch, time, units), (batch, positions, units), units)]

    def plain(queries, keys, v):
        return tf.linalg.matvec(tf.tanh(queries[:, :, None] + keys[:, None]), v)

    compare(additive_scores, plain, arguments, dtype)


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("rows", [3, 300], ids=["shares of columns", "shares of rows"])
def test_a_product_takes_no_memory_but_its_result_s(rows, transposed, monkeypatch):
    monkeypatch.setattr(cpu, "LEAST_PRODUCTS", 1)
    a, b = np.ones((rows, 400), np.float32), np.ones((400, 500), np.float32)
    if transposed:
        a, b = a.T.copy().T, b.T.copy().T
    cpu.product(a, b)  # once, for what is made at the first use
    tracemalloc.start()
    try:
        found = cpu.product(a, b)
        assert tracemalloc.get_traced_memory()[1] < found.nbytes + 50_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_work_is_shared_out_without_a_gap(rows):
    done = np.zeros(rows, int)

    def work(part):
        done[part] += 1
        return len(done[part])

    assert sum(cpu.on_cores(work, rows)) == rows and np.all(done == 1)


@cpu.compiled
def stairs(arrived, part, parts, heights):
    """Each part adds one to its own height, over and over, once all have the same."""
    lowest = highest = heights[part]
    for step in range(200):
        heights[part] += 1
        cpu.meet(arrived, parts * (2 * step + 1))
        lowest, highest = min(lowest, heights.min() - step), max(highest, heights.max() - step)
        cpu.meet(arrived, parts * (2 * step + 2))
    return lowest, highest


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_nobody_passes_a_meeting_before_all_are_there(cores, monkeypatch):
    """On more cores than the machine may have; twice at the same time, as both directions of a layer are computed."""
    monkeypatch.setattr(cpu, "_cores", functools.cache(lambda: (cores, ThreadPoolExecutor(cores))))

    def climb():
        heights, found = np.zeros(cores, np.int64), []
        cpu.together(lambda part, parts, arrived: found.append(stairs(arrived, part, parts, heights)), 10 * cores, 10)
        return found

    with ThreadPoolExecutor(2) as callers:
        for found in callers.map(lambda _: climb(), range(2)):
            assert found == [(0, 1)] * cores


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is but one core"
)
def test_those_who_meet_have_a_core_each(monkeypatch):
    monkeypatch.setattr(cpu, "_cores", lambda: (2, None))
    for _ in range(20):
        cores = {}

        def work(part, parts, arrived, cores=cores):
            cores[part] = os.sched_getaffinity(0)
            cpu.meet(arrived, parts)

        cpu.together(work, 2, 1)
        assert cores[0].isdisjoint(cores[1])


@pytest.mark.parametrize("wrong", [0, 1])
def test_nobody_waits_for_a_part_that_failed(wrong, monkeypatch):
    monkeypatch.setattr(cpu, "_cores", functools.cache(lambda: (2, ThreadPoolExecutor(2))))

    def work(part, parts, arrived):
        if part == wrong:
            raise ValueError("no more")
        stairs(arrived, part, parts, np.zeros(2, np.int64))

    with pytest.raises(ValueError, match="no more"):
        cpu.together(work, 2, 1)

"""Batches are a pure function of seed and step: every example once a pass, wherever one starts; little padding."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

from shared.batching import length_sorted_batches, pad, padded_array, padded_length, passes

SIZE, BATCH, POOL = 53, 4, 3
STEPS = -(-SIZE // BATCH)
LENGTHS = np.random.default_rng(5).integers(1, 31, SIZE)


@pytest.fixture(autouse=True)
def _global_seed():
    """TensorFlow's own seed, the same for all tests but the one that says that it does not matter."""
    tf.random.set_seed(1)


def examples(read=lambda number: number):
    """Examples that say who they are: number i, from 1, is a row of LENGTHS[i - 1] times i, and one half as long."""

    def rows(number):
        number = read(number)
        length = tf.gather(LENGTHS, number - 1)
        return {"long": tf.fill([length], number), "short": tf.fill([length // 2], number)}

    return tf.data.Dataset.range(1, SIZE + 1).map(rows)


def sorted_batches(rows, seed, pool=POOL):
    return length_sorted_batches(rows, lambda some: some["long"].row_lengths(), BATCH, pool, seed)


def stream(steps, first_step=0, seed=1, **options):
    batches = passes(examples(**options), sorted_batches, SIZE, seed, STEPS, first_step)
    return list(batches.take(steps).as_numpy_iterator())


@functools.cache
def three_passes():
    return stream(3 * STEPS)


def numbers(batches):
    """Which examples each batch holds, in order."""
    return [batch["long"][:, 0].tolist() for batch in batches]


def one_pass(batches, number):
    return batches[number * STEPS : (number + 1) * STEPS]


def test_padded_lengths_are_few_and_not_much_longer():
    found = [padded_length(length) for length in range(2001)]
    assert all(length <= padded < max(length * 1.25, length + 1) for length, padded in enumerate(found[:1000]))
    assert all(length <= padded < length + 64 for length, padded in enumerate(found))
    assert found == sorted(found) and found == [padded_length(length) for length in found]
    assert len(set(found)) < 85


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_padded_length_of_a_tensor_is_that_of_the_integer(dtype):
    found = padded_length(tf.range(2001, dtype=dtype))
    assert found.dtype == dtype and found.numpy().tolist() == [padded_length(length) for length in range(2001)]


def test_pad_fills_with_zeros_on_the_right():
    lengths = [3, 0, 35]
    rows = tf.ragged.constant([list(range(1, length + 1)) for length in lengths], tf.int32)
    padded = pad(rows).numpy()
    assert padded.shape == (3, 36) and padded.dtype == np.int32
    for row, length in zip(padded, lengths, strict=True):
        assert row.tolist() == [*range(1, length + 1), *[0] * (36 - length)]


def test_every_example_occurs_once_a_pass():
    for number in range(3):
        batches = one_pass(three_passes(), number)
        assert sorted(itertools.chain(*numbers(batches))) == list(range(1, SIZE + 1))
        assert sorted(len(batch["long"]) for batch in batches) == [SIZE % BATCH, *[BATCH] * (STEPS - 1)]


def test_batches_hold_their_examples_whole():
    for batch in three_passes():
        for key, divisor in (("long", 1), ("short", 2)):
            lengths = LENGTHS[batch["long"][:, 0] - 1] // divisor
            assert batch[key].shape[1] == padded_length(int(lengths.max()))
            inside = np.arange(batch[key].shape[1]) < lengths[:, None]
            np.testing.assert_array_equal(batch[key], np.where(inside, batch["long"][:, :1], 0))


def test_every_pass_has_its_own_order():
    orders = [numbers(one_pass(three_passes(), number)) for number in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    companions = [{frozenset(batch) for batch in order} for order in orders]  # not the same batches in another order
    assert len(companions[0] & companions[1]) < STEPS / 2


def test_the_seed_decides_the_order():
    assert numbers(stream(STEPS)) == numbers(three_passes()[:STEPS])
    assert numbers(stream(STEPS, seed=2)) != numbers(three_passes()[:STEPS])


@pytest.mark.parametrize("global_seed", [0, 2])
def test_nothing_but_the_seed_decides_the_order(global_seed):
    expected = numbers(three_passes()[:STEPS])
    tf.random.set_seed(global_seed)
    assert numbers(stream(STEPS)) == expected


@pytest.mark.parametrize("first_step", [0, 1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 5])
def test_starting_later_is_the_same_stream(first_step):
    started, expected = stream(STEPS - 5, first_step), three_passes()[first_step : first_step + STEPS - 5]
    for batch, other in zip(started, expected, strict=True):
        for key in ("long", "short"):
            np.testing.assert_array_equal(batch[key], other[key])


def test_passes_before_the_start_are_not_read():
    read = []

    def note(number):
        return tf.ensure_shape(tf.numpy_function(lambda value: read.append(value) or value, [number], tf.int64), [])

    batches = stream(1, first_step=1_000_000 * STEPS, read=note)
    assert len(batches) == 1 and 0 < len(read) <= 6 * SIZE  # no more than this pass and what is fetched ahead


def padding(batches):
    """The share of all positions that is padding."""
    return 1 - sum(np.sum(batch["long"] != 0) for batch in batches) / sum(batch["long"].size for batch in batches)


def test_sorting_saves_padding():
    shuffled = list(sorted_batches(examples(), 1, pool=1).as_numpy_iterator())
    whole = list(sorted_batches(examples(), 1, pool=STEPS).as_numpy_iterator())
    assert padding(whole) < 0.1 < 0.2 < padding(one_pass(three_passes(), 0)) + 0.1 < padding(shuffled) + 0.1
    lengths = [batch["long"].shape[1] for batch in whole]
    assert lengths != sorted(lengths) and lengths != sorted(lengths, reverse=True)


@pytest.mark.parametrize("rows", [[[5, 6], [7]], [[5] * 40, []], [[]]])
@pytest.mark.parametrize("first", [[], [1]])
def test_padded_arrays(rows, first):
    array = padded_array(rows, first, [2])
    assert array.dtype == np.int32 and array.shape == (len(rows), padded_length(max(map(len, rows)) + 1 + len(first)))
    for padded, row in zip(array.tolist(), rows, strict=True):
        expected = [*first, *row, 2]
        assert padded == [*expected, *[0] * (array.shape[1] - len(expected))]

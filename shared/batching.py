"""Batches of sequences that differ in length: examples go in, padded batches of similar length come out.

Everything is a pure function of the examples' order and a seed, so a training that stops can go on where it was.
"""

import numpy as np
import tensorflow as tf


def passes(
    examples: tf.data.Dataset, batches_of, buffer: int, seed: int, steps_per_pass: int, first_step: int
) -> tf.data.Dataset:
    """An endless stream of batches over `examples`, shuffled anew in every pass, from batch number `first_step` on.

    Args:
        examples: single examples, in the same order whenever they are read.
        batches_of: (shuffled examples, seed) -> dataset of batches; the same number for every order of the examples.
        buffer: examples that are shuffled together; the whole corpus if it is not larger.
        seed: with the number of the pass it determines the order.
        steps_per_pass: how many batches `batches_of` makes of one pass.
        first_step: where to begin; whole passes before it are not even read.
    """

    def one_pass(number):
        # Of the graph that this becomes: else TensorFlow's global seed would decide, too, and 0 there is an error.
        tf.compat.v1.set_random_seed(1)
        pass_seed = seed * 1_000_003 + number
        return batches_of(examples.shuffle(buffer, pass_seed, reshuffle_each_iteration=False), pass_seed)

    first_pass, skipped = divmod(first_step, steps_per_pass)
    numbers = tf.data.Dataset.range(first_pass, tf.int64.max)
    return numbers.flat_map(one_pass).skip(skipped).prefetch(4)


def length_sorted_batches(examples: tf.data.Dataset, lengths, batch_size: int, pool: int, seed) -> tf.data.Dataset:
    """Batches of examples of similar length, in random order.

    A pool of batches is read at a time, sorted by length, cut, and its batches shuffled: little padding, and the length
    of a batch says nothing about when it comes.

    Args:
        examples: dicts of 1-D integer tensors, each of any length.
        lengths: batch of examples (dict of ragged tensors) -> (examples,) integers to sort by.
        batch_size: examples in every batch but the last one of all.
        pool: batches sorted together.
        seed: determines the order.

    Returns:
        A dataset of dicts of (batch, time) tensors padded on the right with 0 to a length from `padded_length`.
    """

    def cut(number, rows):
        order = tf.argsort(lengths(rows), stable=True)
        count = (tf.size(order, tf.int64) + batch_size - 1) // batch_size
        batches = tf.data.Dataset.range(count).shuffle(pool, seed + number, reshuffle_each_iteration=False)
        return batches.map(
            lambda i: {
                key: pad(tf.gather(row, order[i * batch_size : (i + 1) * batch_size])) for key, row in rows.items()
            }
        )

    return examples.ragged_batch(batch_size * pool).enumerate().flat_map(cut)


def pad(rows: tf.RaggedTensor) -> tf.Tensor:
    """Rows of different length -> (rows, padded length), padded on the right with 0."""
    return rows.to_tensor(shape=tf.stack([-1, padded_length(tf.cast(rows.bounding_shape(axis=1), tf.int64))]))


def padded_array(rows, first=(), last=()) -> np.ndarray:
    """Lists of ids -> (rows, padded length) int32, each row begun by `first`, ended by `last`, padded with 0."""
    rows = [[*first, *row, *last] for row in rows]
    array = np.zeros((len(rows), padded_length(max(map(len, rows)))), np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def padded_length(length):
    """The next of a finite set of lengths: all up to 32, then multiples of 4 up to 64, of 16 up to 256, of 64 beyond.

    Accepts and returns a Python integer or an integer tensor.
    """
    if isinstance(length, int):
        gap = 1 if length <= 32 else 4 if length <= 64 else 16 if length <= 256 else 64
    else:
        gap = tf.where(length <= 32, 1, tf.where(length <= 64, 4, tf.where(length <= 256, 16, 64)))
        gap = tf.cast(gap, length.dtype)
    return (length + gap - 1) // gap * gap

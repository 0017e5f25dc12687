"""Our recurrent layers are Keras' own in every result and gradient, on whichever path they take."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.recurrent import CELLS, kernel_of

KERAS = {"simple": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
LENGTHS = [6, 2, 1, 4]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def pair(cell, **arguments):
    """Our layer and Keras' with the same weights."""
    arguments = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True, **arguments}
    layers = CELLS[cell](5, **arguments), KERAS[cell](5, **arguments)
    for layer in layers:
        layer.build((None, None, 3))
        layer.set_weights([0.5 * normal(*weight.shape, seed=i) for i, weight in enumerate(layer.weights)])
    return layers


def results(layer, mask, graph=False):
    """Outputs, final states, and gradients with respect to inputs, first states and all weights."""
    inputs = tf.constant(normal(4, 6, 3))
    state = [tf.constant(normal(4, 5, seed=i)) for i, _ in enumerate(layer.state_size)]

    def run():
        with tf.GradientTape() as tape:
            tape.watch([inputs, *state])
            found = keras.tree.flatten(layer(inputs, initial_state=state, mask=mask, training=True))
            loss = sum(tf.reduce_sum(tf.sin(tensor + i)) for i, tensor in enumerate(found))
        return found + tape.gradient(loss, [inputs, *state, *(weight.value for weight in layer.trainable_weights)])

    return (tf.function(run) if graph else run)()


def assert_equal_layers(cell, mask=None, graph=False, **arguments):
    ours, theirs = pair(cell, **arguments)
    for actual, expected in zip(results(ours, mask, graph), results(theirs, mask), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
    return ours


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="the kernel is for CPUs")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mask", [None, tf.sequence_mask(LENGTHS, 6)], ids=["whole", "masked"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_our_kernel_equals_keras(cell, mask, go_backwards, graph):
    layer = assert_equal_layers(cell, mask, graph, go_backwards=go_backwards)
    assert kernel_of(layer, mask) == "bptt"


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_last_output_is_returned_where_asked(cell):
    assert_equal_layers(cell, return_sequences=False)


def test_relu_equals_keras():
    assert kernel_of(assert_equal_layers("simple", activation="relu")) == "bptt"


@pytest.mark.parametrize(
    "cell, arguments, mask",
    [
        ("gru", {"reset_after": False}, None),
        ("lstm", {"use_bias": False}, None),
        ("lstm", {"activation": "softsign"}, None),
        ("gru", {"zero_output_for_mask": False}, tf.sequence_mask(LENGTHS, 6)),
        ("simple", {"activation": "sigmoid"}, None),
    ],
)
def test_what_the_kernel_does_not_cover_is_left_to_keras(cell, arguments, mask):
    assert kernel_of(assert_equal_layers(cell, mask, **arguments), mask) == "keras"


@pytest.mark.parametrize("cell", CELLS)
def test_both_directions_equal_keras(cell):
    mask, inputs = tf.sequence_mask(LENGTHS, 6), normal(4, 6, 3)
    ours, theirs = (keras.layers.Bidirectional(layer) for layer in pair(cell))
    for layer in (ours, theirs):
        layer.build((None, None, 3))
        layer.set_weights([0.5 * normal(*weight.shape, seed=i) for i, weight in enumerate(layer.weights)])
    for actual, expected in zip(ours(inputs, mask=mask), theirs(inputs, mask=mask), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def test_input_dropout_keeps_one_mask_for_all_steps():
    layer = CELLS["simple"](5, return_sequences=True, dropout=0.5, seed=1)
    layer.build((None, None, 3))
    layer.cell.recurrent_kernel.assign(tf.zeros_like(layer.cell.recurrent_kernel))
    inputs = tf.ones((2, 4, 3))
    outputs = np.array(layer(inputs, training=True))  # without a memory, equal inputs give equal outputs
    np.testing.assert_allclose(outputs, np.repeat(outputs[:, :1], 4, axis=1), atol=1e-6)
    assert not np.allclose(outputs, layer(inputs, training=False))

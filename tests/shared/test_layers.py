"""Our recurrent layers are Keras' own in every result and gradient, on whichever path they take."""

import functools
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import cpu
from shared.recurrent import CELLS, bptt, kernel_of
from shared.recurrent.layer_norm import LayerNormLSTMCell

KERAS = {
    "simple": keras.layers.SimpleRNN,
    "relu": functools.partial(keras.layers.SimpleRNN, activation="relu"),
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "layer_norm_lstm": functools.partial(CELLS["layer_norm_lstm"], use_bptt=False),  # Keras has none: a call a step
}
LENGTHS = [6, 2, 1, 4]
MASKS = {
    "whole": None,
    "padded": tf.sequence_mask(LENGTHS, 6),
    "padded on the left": ~tf.sequence_mask(LENGTHS, 6),  # the first row is empty
    "empty row": tf.sequence_mask([6, 0, 1, 4], 6),
    "holes": tf.constant([[0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]) > 0,
}
HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
tf.config.experimental.enable_tensor_float_32_execution(False)  # which has three digits; a GPU's default


@pytest.fixture(autouse=True)
def seeded():
    """What is dropped and zoned out is the same each time."""
    keras.utils.set_random_seed(1)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def pair(cell, units=5, features=3, use_bptt=True, weight_drop=0.0, truncate=0, zoneout=0.0, **arguments):
    """Our layer and Keras' with the same weights, which is left to its loop over the steps."""
    arguments = {"return_sequences": True, "return_state": True, "zero_output_for_mask": True, **arguments}
    own = {"use_bptt": use_bptt, "weight_drop": weight_drop, "truncate": truncate, "zoneout": zoneout}
    if cell in ("lstm", "gru"):
        own["use_cudnn"] = "auto" if use_bptt else False
        arguments["use_cudnn"] = False
    layers = CELLS[cell](units, **{**arguments, **own}), KERAS[cell](units, **arguments)
    for layer in layers:
        layer.build((None, None, features))
        for i, weight in enumerate(layer.trainable_weights):
            weight.assign(0.5 * normal(*weight.shape, seed=i))
    return layers


def eager(function):
    return function


def results(layer, mask, compiled=eager, batch=4, time=6):
    """Outputs, final states, and gradients with respect to inputs, first states and all weights."""
    inputs = tf.constant(normal(batch, time, layer.cell.kernel.shape[0]))
    state = [tf.constant(normal(batch, layer.units, seed=i)) for i, _ in enumerate(layer.state_size)]

    def run():
        with tf.GradientTape() as tape:
            tape.watch([inputs, *state])
            found = keras.tree.flatten(layer(inputs, initial_state=state, mask=mask, training=True))
            loss = sum(tf.reduce_sum(tf.sin(tensor + i)) for i, tensor in enumerate(found))
        return found + tape.gradient(loss, [inputs, *state, *(weight.value for weight in layer.trainable_weights)])

    return compiled(run)()


def assert_equal_layers(cell, mask=None, compiled=eager, batch=4, time=6, atol=2e-6, **arguments):
    ours, theirs = pair(cell, **arguments)
    found, wanted = results(ours, mask, compiled, batch, time), results(theirs, mask, batch=batch, time=time)
    for actual, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=atol)
    return ours


@pytest.mark.skipif(HAS_GPU, reason="the kernel is for CPUs")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mask", [None, tf.sequence_mask(LENGTHS, 6)], ids=["whole", "masked"])
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("compiled", [eager, tf.function], ids=["eager", "graph"])
def test_our_kernel_equals_keras(cell, mask, go_backwards, compiled):
    layer = assert_equal_layers(cell, mask, compiled, go_backwards=go_backwards)
    assert kernel_of(layer, mask) == "bptt"


@pytest.mark.skipif(HAS_GPU, reason="the kernel is for CPUs")
@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_our_kernel_equals_keras_whatever_the_shape(cell, data):
    """Rows without a single step among them, and batches that more cores than one share."""
    batch, time, units, features = (data.draw(st.integers(1, most)) for most in (17, 7, 9, 5))
    lengths = data.draw(st.none() | st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    mask = None if lengths is None else tf.sequence_mask(lengths, time)
    # A sum over all rows and steps that comes to little has but the digits of its terms.
    shape = {"batch": batch, "time": time, "units": units, "features": features}
    # And two units that are nearly equal, normalised, have not even those.
    dtype = "float64" if cell == "layer_norm_lstm" else "float32"
    assert_equal_layers(cell, mask, atol=2e-5, dtype=dtype, **shape)


def cudnn(input, input_h, input_c, params, sequence_lengths, rnn_mode):
    """What cuDNN computes, after its documentation: of the gates i, f, g, o or r, z, n all U, all W, all b, all c."""
    assert list(sequence_lengths) == [len(input)] * input.shape[1]
    size, units = input.shape[-1], input_h.shape[-1]
    gates = {"lstm": 4, "gru": 3}.get(rnn_mode, 1)
    sizes = [units * size] * gates + [units * units] * gates + [units] * 2 * gates
    parts = tf.split(params, sizes)
    U, W, b, c = (parts[first : first + gates] for first in range(0, 4 * gates, gates))
    U, W = ([tf.reshape(part, (units, -1)) for part in matrices] for matrices in (U, W))
    h, cells, outputs = input_h[0], input_c[0] if rnn_mode == "lstm" else None, []
    for x in tf.unstack(input):
        xs = [tf.matmul(x, part, transpose_b=True) + bias for part, bias in zip(U, b, strict=True)]
        hs = [tf.matmul(h, part, transpose_b=True) + bias for part, bias in zip(W, c, strict=True)]
        if rnn_mode == "lstm":
            i, f, g, o = (a + b for a, b in zip(xs, hs, strict=True))
            cells = tf.sigmoid(f) * cells + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(cells)
        elif rnn_mode == "gru":
            r, z = (tf.sigmoid(a + b) for a, b in zip(xs[:2], hs[:2], strict=True))
            h = (1 - z) * tf.tanh(xs[2] + r * hs[2]) + z * h
        else:
            h = {"rnn_tanh": tf.tanh, "rnn_relu": tf.nn.relu}[rnn_mode](xs[0] + hs[0])
        outputs.append(h)
    return tf.stack(outputs), h[None], tf.zeros(0) if cells is None else cells[None], None, None


@pytest.mark.skipif(HAS_GPU, reason="there is the real one")
@pytest.mark.parametrize("cell", ["simple", "relu", "lstm", "gru"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
def test_cudnn_is_given_what_it_wants(cell, mask, go_backwards, monkeypatch):
    ours, theirs = pair(cell, go_backwards=go_backwards)
    wanted = results(theirs, mask)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU"])
    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", cudnn)
    assert kernel_of(ours, mask) == "cudnn"
    for actual, expected in zip(results(ours, mask), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.skipif(not HAS_GPU, reason="cuDNN is for GPUs")
@pytest.mark.parametrize("cell", ["simple", "relu", "lstm", "gru"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("go_backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("compiled", [eager, tf.function], ids=["eager", "graph"])
def test_cudnn_equals_the_loop_of_keras(cell, mask, go_backwards, compiled):
    layer = assert_equal_layers(cell, mask, compiled, atol=5e-6, go_backwards=go_backwards)
    assert kernel_of(layer, mask) == "cudnn"


@pytest.mark.skipif(not HAS_GPU, reason="cuDNN is for GPUs")
@pytest.mark.parametrize("cell", ["simple", "relu", "lstm", "gru"])
def test_cudnn_reads_a_padded_batch_after_a_whole_one_of_its_shape(cell):
    # Told the lengths, TensorFlow would not: it keeps what it found out about a shape.
    inputs, layers = tf.constant(normal(4, 6, 3)), pair(cell)
    ours, theirs = (tf.function(lambda mask, layer=layer: layer(inputs, mask=mask)) for layer in layers)
    for mask in (tf.ones((4, 6), tf.bool), MASKS["padded"]):
        for actual, expected in zip(ours(mask), theirs(mask), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=5e-6)


def assert_equal_on_any_cores(function, monkeypatch):
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(cpu, "_cores", functools.cache(lambda cores=cores: (cores, ThreadPoolExecutor(cores))))
        found.append(keras.tree.flatten(function()))
    for one, *others in zip(*found, strict=True):
        for other in others:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(HAS_GPU, reason="the kernel is for CPUs")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("arguments", [{}, {"zoneout": 0.4}, {"go_backwards": True}], ids=["", "zoneout", "backwards"])
def test_cores_that_share_the_weights_of_a_few_rows_change_nothing(cell, arguments, monkeypatch):
    layer, _ = pair(cell, units=61, features=7, **arguments)
    mask = tf.sequence_mask([6, 0, 3], 6)
    monkeypatch.setattr(bptt, "LEAST_WEIGHTS", 1)
    assert_equal_on_any_cores(lambda: layer(normal(3, 6, 7), mask=mask, training=False), monkeypatch)


@pytest.mark.skipif(HAS_GPU, reason="the kernel is for CPUs")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("zoneout", [0.0, 0.4], ids=["", "zoneout"])
def test_cores_that_share_the_rows_of_a_single_step_change_nothing(cell, zoneout, monkeypatch):
    layer, _ = pair(cell, units=5, zoneout=zoneout)
    state = [tf.constant(normal(7, 5, seed=i)) for i, _ in enumerate(layer.state_size)]
    monkeypatch.setattr(bptt, "LEAST_UNITS", 1)
    assert_equal_on_any_cores(lambda: layer.step(normal(7, 3), state), monkeypatch)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mask", [None, tf.sequence_mask(LENGTHS, 6)], ids=["whole", "masked"])
def test_without_our_kernel_xla_compiles_a_layer(cell, mask):
    layer = assert_equal_layers(cell, mask, functools.partial(tf.function, jit_compile=True), use_bptt=False)
    assert kernel_of(layer, mask) != "bptt"


def test_keras_compiles_no_model_with_xla_that_has_our_kernel():
    model = keras.Sequential([CELLS["gru"](2)])
    model.compile("sgd", "mse", jit_compile="auto")
    assert not model.jit_compile


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_no_number_stays_none(cell):
    """Else nobody would notice that a training diverged."""
    layer, _ = pair(cell)
    inputs = normal(4, 6, 3)
    inputs[1, 2] = np.nan
    outputs, *final = map(np.array, layer(inputs))
    assert np.isnan(outputs[1, 2:]).all() and all(np.isnan(part[1]).all() for part in final)
    assert np.isfinite(outputs[[0, 2, 3]]).all() and np.isfinite(outputs[1, :2]).all()


@pytest.mark.skipif(HAS_GPU, reason="the kernel is for CPUs")
def test_the_kernel_refuses_a_state_of_another_size():
    with pytest.raises(ValueError, match="99"):
        pair("lstm")[0](normal(4, 6, 3), initial_state=[normal(4, 5), normal(4, 99)])


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru", "layer_norm_lstm"])  # the gradient of ReLU jumps
@pytest.mark.parametrize("mask", [None, tf.sequence_mask(LENGTHS, 6)], ids=["whole", "masked"])
def test_mixed_precision_stays_near_float32(cell, mask):
    exact, _ = pair(cell)
    rounded, _ = pair(cell, dtype="mixed_bfloat16")
    for actual, expected in zip(results(rounded, mask), results(exact, mask), strict=True):
        error = np.linalg.norm(np.array(tf.cast(actual, "float32")) - expected)
        assert error < 0.1 * np.linalg.norm(expected)


def test_mixed_precision_adds_up_in_float32():
    layer = CELLS["lstm"](1, return_state=True, dtype="mixed_bfloat16")
    layer.build((None, None, 1))
    # i = f = o = 1 and g = 0.003 at every step. In bfloat16 a cell of 1 would not feel it.
    layer.set_weights([np.zeros((1, 4)), np.zeros((1, 4)), np.array([20, 20, np.arctanh(0.003), 20])])
    *_, cell = layer(tf.zeros((1, 1000, 1)))
    np.testing.assert_allclose(float(cell[0, 0]), 3.0, rtol=0.01)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_last_output_is_returned_where_asked(cell):
    assert_equal_layers(cell, return_sequences=False)


def test_relu_equals_keras():
    assert kernel_of(assert_equal_layers("simple", activation="relu")) == ("cudnn" if HAS_GPU else "bptt")


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


def test_a_rectified_layer_hands_its_state_on_at_first():
    layer = CELLS["relu"](4)
    layer.build((None, None, 3))
    np.testing.assert_array_equal(layer.cell.recurrent_kernel, np.eye(4))


# ---------------------------------------------------------------------------------------------------------- weight-drop


def with_dropped_weights(layer, rate):
    """A function that gives Keras' own layer, of the same class, the W that the next call of `layer` will drop to."""
    generator = keras.random.SeedGenerator()

    def plain(other):
        generator.state.assign(layer.weight_drop_seed.state)
        other.set_weights([weight.numpy() for weight in layer.trainable_weights])
        W = keras.random.dropout(other.cell.recurrent_kernel.value, rate, seed=generator)
        other.cell.recurrent_kernel.assign(W)
        return W.numpy()

    return plain


@pytest.mark.parametrize("compiled", [eager, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("mask", [None, tf.sequence_mask(LENGTHS, 6)], ids=["whole", "masked"])
@pytest.mark.parametrize("cell", CELLS)
def test_dropped_weights_are_dropped_for_a_whole_sequence(cell, mask, compiled):
    """Outputs and gradients are those of a layer that has the dropped W; its gradient is 0 where W is."""
    ours, theirs = pair(cell, weight_drop=0.4)
    W = with_dropped_weights(ours, 0.4)(theirs)
    before = ours.cell.recurrent_kernel.numpy()
    share = np.mean(W == 0)
    assert 0 < share < 1 and np.allclose(W[W != 0], before[W != 0] / 0.6)
    found, expected = results(ours, mask, compiled), results(theirs, mask, compiled)
    kernel = next(i for i, weight in enumerate(ours.trainable_weights) if weight is ours.cell.recurrent_kernel)
    kernel -= len(ours.trainable_weights)
    expected[kernel] = np.where(W == 0, 0, expected[kernel] / 0.6)
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(ours.cell.recurrent_kernel, before)
    assert any(weight is ours.cell.recurrent_kernel for weight in ours.trainable_weights)


@pytest.mark.parametrize("cell", CELLS)
def test_weights_are_dropped_in_training_alone_and_anew_each_time(cell):
    ours, theirs = pair(cell, weight_drop=0.5)
    inputs = normal(4, 6, 3)
    for training in (False, None):
        for actual, expected in zip(ours(inputs, training=training), theirs(inputs), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
    first, second = (np.array(ours(inputs, training=True)[0]) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - theirs(inputs)[0]).max() > 1e-3


def test_one_mask_serves_all_steps_and_rows():
    """With U = 0, W = 1 and ReLU a unit doubles at every step or is gone from the first one on."""
    layer = CELLS["relu"](40, return_sequences=True, weight_drop=0.5)
    layer.build((None, None, 3))
    outputs = np.array(layer(tf.zeros((2, 5, 3)), initial_state=tf.ones((2, 40)), training=True))
    kept = outputs[0, 0] > 0
    assert 5 < kept.sum() < 35
    np.testing.assert_array_equal(outputs, np.broadcast_to(np.outer(2.0 ** np.arange(1, 6), kept), (2, 5, 40)))


@pytest.mark.parametrize("arguments", [{"recurrent_dropout": 0.0, "use_bias": False}, {"activation": "softsign"}])
def test_what_is_left_to_keras_has_its_weights_dropped_too(arguments):
    ours, theirs = pair("lstm", weight_drop=0.4, **arguments)
    with_dropped_weights(ours, 0.4)(theirs)
    assert kernel_of(ours) == "keras"
    np.testing.assert_allclose(
        ours(normal(4, 6, 3), training=True)[0], theirs(normal(4, 6, 3))[0], rtol=2e-5, atol=2e-6
    )


def test_the_weights_come_back_from_a_step_that_fails():
    layer, _ = pair("gru", weight_drop=0.4)
    before = layer.cell.recurrent_kernel
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):  # our kernel's, and TensorFlow's
        layer(normal(4, 6, 3), initial_state=normal(4, 99), training=True)
    assert layer.cell.recurrent_kernel is before


def test_both_directions_drop_their_own_weights():
    layer = keras.layers.Bidirectional(CELLS["relu"](20, return_sequences=True, weight_drop=0.5))
    layer.build((None, None, 3))
    outputs = np.array(layer(tf.zeros((1, 1, 3)), initial_state=[tf.ones((1, 20))] * 2, training=True))[0, 0]
    assert set(outputs) == {0.0, 2.0} and np.any(outputs[:20] != outputs[20:])


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru", "layer_norm_lstm"])
def test_a_copy_from_the_configuration_drops_as_many_weights(cell):
    layer = CELLS[cell](5, weight_drop=0.3)
    assert type(layer).from_config(layer.get_config()).weight_drop == 0.3
    assert type(layer).from_config(layer.get_config()).use_bptt
    assert type(layer).from_config(CELLS[cell](5).get_config()).weight_drop == 0.0


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm"])
@pytest.mark.parametrize("unit_forget_bias", [False, True])
def test_a_copy_from_the_configuration_begins_to_forget_alike(cell, unit_forget_bias):
    copy = CELLS[cell].from_config(CELLS[cell](2, unit_forget_bias=unit_forget_bias).get_config())
    copy.build((None, None, 3))
    np.testing.assert_array_equal(copy.cell.bias, [0, 0, *[unit_forget_bias] * 2, 0, 0, 0, 0])


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru", "layer_norm_lstm"])
def test_a_copy_from_the_configuration_is_truncated_and_zoned_out_alike(cell):
    layer = CELLS[cell](5, truncate=3, zoneout=0.2)
    copy = type(layer).from_config(layer.get_config())
    assert (copy.truncate, copy.zoneout) == (3, 0.2)


# ----------------------------------------------------------------------------------------------------------- truncation


class InBlocks:
    """A layer over blocks of steps, each of which takes the state that the one before left for a constant."""

    def __init__(self, layer, steps):
        self.layer, self.steps = layer, steps

    def __getattr__(self, name):
        return getattr(self.layer, name)

    def __call__(self, inputs, initial_state, mask, training):
        state, outputs, order = initial_state, [], -1 if self.layer.go_backwards else 1
        inputs, mask = inputs[:, ::order], None if mask is None else mask[:, ::order]
        for first in range(0, inputs.shape[1], self.steps):
            block, shown = (
                None if part is None else part[:, first : first + self.steps][:, ::order] for part in (inputs, mask)
            )
            here, *state = self.layer(block, initial_state=state, mask=shown, training=training)
            outputs.append(here)
            if first + self.steps < inputs.shape[1]:
                state = [tf.stop_gradient(part) for part in state]
        return tf.concat(outputs, axis=1), *state


SHORT = [6, 2, 0, 4]
every_path = pytest.mark.parametrize(
    "cell, mask, go_backwards, compiled, arguments",
    [
        (cell, tf.sequence_mask(SHORT, 6) if masked else None, go_backwards, compiled, {"use_bptt": use_bptt})
        for cell in KERAS
        for masked, go_backwards in ((False, False), (True, True))
        for use_bptt, compiled in ((True, eager), (False, tf.function))
    ]
    + [
        (
            "lstm",
            tf.sequence_mask(SHORT, 6),
            True,
            functools.partial(tf.function, jit_compile=True),
            {"use_bptt": False},
        )
    ],
)


@every_path
def test_truncated_gradients_are_those_of_blocks(cell, mask, go_backwards, compiled, arguments):
    ours, theirs = pair(cell, go_backwards=go_backwards, truncate=4 if go_backwards else 2, **arguments)
    assert (kernel_of(ours, mask) == "bptt") == (ours.use_bptt and not HAS_GPU)
    found, wanted = results(ours, mask, compiled), results(InBlocks(theirs, ours.truncate), mask)
    for actual, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("cell", KERAS)
def test_blocks_as_long_as_the_sequence_cut_nothing(cell):
    for use_bptt in (True, False):
        assert_equal_layers(cell, tf.sequence_mask(SHORT, 6), truncate=6, use_bptt=use_bptt)


@pytest.mark.parametrize("arguments", [{"use_bias": False}, {"activation": "softsign", "dropout": 0.5, "seed": 1}])
def test_what_is_left_to_keras_is_truncated_too(arguments):
    ours, theirs = pair("lstm", truncate=2, **arguments)
    assert kernel_of(ours) == "keras"
    if "dropout" in arguments:  # one mask for all blocks
        theirs.cell.reset_dropout_mask = lambda: None
    for actual, expected in zip(results(ours, None), results(InBlocks(theirs, 2), None), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


def test_outputs_of_the_cell_loop_repeat_at_masked_steps_where_asked():
    arguments = {"zero_output_for_mask": False, "truncate": 6}
    assert kernel_of(assert_equal_layers("gru", tf.sequence_mask(LENGTHS, 6), **arguments), 0) == "keras"


def test_a_cell_loop_takes_any_number_of_steps_and_rows():
    ours, theirs = pair("lstm", use_bptt=False, truncate=2)
    run = tf.function(lambda inputs: ours(inputs), input_signature=[tf.TensorSpec((None, None, 3))])
    for shape in ((4, 6, 3), (1, 3, 3)):
        np.testing.assert_allclose(run(normal(*shape))[0], theirs(normal(*shape))[0], rtol=1e-5, atol=2e-6)


def test_both_directions_are_truncated_each_from_its_own_end():
    """With W = 1, ReLU and inputs of nothing, a gradient reaches as far back as the blocks do."""
    inputs = tf.ones((1, 5, 1))
    layer = keras.layers.Bidirectional(CELLS["relu"](1, return_sequences=True, truncate=2))
    layer.build(inputs.shape)
    layer.set_weights([np.ones(weight.shape) for weight in layer.weights])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        forward, backward = tf.unstack(layer(inputs)[0], axis=-1)
        ends = forward[3], backward[2]
    assert [np.flatnonzero(tape.gradient(end, inputs)).tolist() for end in ends] == [[2, 3], [2]]


# -------------------------------------------------------------------------------------------------------------- zoneout


def zoned_pair(cell, use_bptt, **arguments):
    """A layer on our kernel, and one on the path to compare it with, that draw the same."""
    layers = [pair(cell, zoneout=0.4, use_bptt=kernel, **arguments)[0] for kernel in (True, use_bptt)]
    layers[1].zoneout_seed.state.assign(layers[0].zoneout_seed.state)
    return layers


@every_path
def test_zoned_out_states_are_the_same_on_every_path(cell, mask, go_backwards, compiled, arguments):
    """That they are the right ones, test_recurrent.py has to say."""
    kernel, other = zoned_pair(cell, go_backwards=go_backwards, truncate=4 * go_backwards, **arguments)
    if compiled not in (eager, tf.function):  # XLA draws other numbers from the same seed
        drawn = kernel.draw_kept(6, 4, True)
        kernel.draw_kept = other.draw_kept = lambda *_: drawn
    assert (kernel_of(other, mask) == "bptt") == (other.use_bptt and not HAS_GPU)
    for actual, expected in zip(results(other, mask, compiled), results(kernel, mask), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("cell", KERAS)
def test_the_expectation_is_the_same_in_steps_and_in_whole_sequences(cell):
    kernel, loop = zoned_pair(cell, use_bptt=False)
    inputs = normal(4, 6, 3)
    state = kernel.get_initial_state(4)
    for training in (False, None):
        for actual, expected in zip(loop(inputs, training=training), kernel(inputs, training=training), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)
    outputs, *final = kernel(inputs)
    for t in range(6):
        state = kernel.step(inputs[:, t], state)
        np.testing.assert_allclose(state[0], outputs[:, t], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(state, final, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("use_bptt", [True, False])
def test_units_keep_their_value_each_step_row_and_unit_for_itself(use_bptt):
    """With U = 0, W = 1, b = 1 and ReLU a unit grows by one at every step at which it does not keep its value."""
    layer = CELLS["relu"](30, return_sequences=True, zoneout=0.3, bias_initializer="ones", use_bptt=use_bptt)
    layer.build((None, None, 3))
    draws = []
    for _ in range(2):
        outputs = np.array(layer(tf.zeros((20, 12, 3)), training=True))
        grown = np.diff(outputs, axis=1, prepend=0)
        assert set(np.unique(grown)) == {0.0, 1.0}
        assert abs(grown.mean() - 0.7) < 0.02
        for axis in range(3):  # nothing is the same along any of them
            spread = np.std(grown, axis=axis)
            assert np.mean(spread) > 0.35
        draws.append(grown)
    assert 0.5 < np.mean(draws[0] == draws[1]) < 0.66  # 0.58 by chance
    expected = np.full((20, 12, 30), 0.7).cumsum(axis=1)
    np.testing.assert_allclose(layer(tf.zeros((20, 12, 3))), expected, rtol=1e-5)


def test_both_parts_of_an_lstm_are_drawn_apart():
    layer = CELLS["lstm"](50, return_state=True, zoneout=0.5)
    layer.build((None, None, 1))
    state = [tf.fill((8, 50), 7.0), tf.fill((8, 50), 3.0)]  # far from what the first step makes of them
    _, *final = layer(tf.zeros((8, 1, 1)), initial_state=state, training=True)
    kept = [np.isclose(part, old) for part, old in zip(final, state, strict=True)]
    shares = [np.mean(np.logical_and(*kept)), *(np.mean(part) for part in kept)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.5], atol=0.1)


def test_what_is_left_to_keras_is_zoned_out_too():
    layer, plain = pair("lstm", zoneout=0.999999, activation="softsign")
    state = [normal(4, 5), normal(4, 5, seed=1)]
    assert kernel_of(layer) == "keras"
    outputs, *final = layer(normal(4, 6, 3), initial_state=state, training=True)
    np.testing.assert_array_equal(final, state)
    assert np.abs(plain(normal(4, 6, 3), initial_state=state)[0] - outputs).max() > 0.01


@pytest.mark.parametrize("cell", ["simple", "lstm", "gru"])
def test_zoneout_in_mixed_precision_stays_near_float32(cell):
    for training in (False, True):
        exact, rounded, loop = (
            pair(cell, zoneout=0.3, **arguments)[0]
            for arguments in ({}, {"dtype": "mixed_bfloat16"}, {"dtype": "mixed_bfloat16", "use_bptt": False})
        )
        for layer in (rounded, loop):
            layer.zoneout_seed.state.assign(exact.zoneout_seed.state)
        expected = exact(normal(4, 6, 3), training=training)
        for layer in (rounded, loop):
            for actual, wanted in zip(layer(normal(4, 6, 3), training=training), expected, strict=True):
                assert np.linalg.norm(np.array(tf.cast(actual, "float32")) - wanted) < 0.1 * np.linalg.norm(wanted)


def test_both_directions_draw_their_own_zoneout():
    layer = keras.layers.Bidirectional(CELLS["relu"](20, return_sequences=True, zoneout=0.5, bias_initializer="ones"))
    outputs = np.array(layer(tf.zeros((1, 1, 3)), training=True))[0, 0]
    assert set(outputs) == {0.0, 1.0} and np.any(outputs[:20] != outputs[20:])


# ------------------------------------------------------------------------------------------------- layer normalisation


def test_a_layer_normalised_lstm_has_what_its_kernel_has():
    for arguments in ({"recurrent_dropout": 0.1}, {"use_bias": False}):
        with pytest.raises(ValueError, match="weight_drop"):
            LayerNormLSTMCell(4, **arguments)


def test_a_layer_normalised_lstm_does_not_feel_the_size_of_its_matrices():
    layer, other = pair("layer_norm_lstm", units=16)
    other.set_weights([100 * weight if i < 2 else weight for i, weight in enumerate(layer.get_weights())])
    for actual, expected in zip(other(normal(4, 6, 3)), layer(normal(4, 6, 3)), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_a_layer_normalised_lstm_keeps_one_dropout_mask_for_all_steps():
    layer, other = (CELLS["layer_norm_lstm"](5, dropout=0.5, seed=1, use_bptt=use_bptt) for use_bptt in (True, False))
    for each in (layer, other):
        each.build((None, None, 8))
    other.set_weights(layer.get_weights())
    inputs = normal(4, 6, 8)
    found, expected = (each(inputs, training=True) for each in (layer, other))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)
    assert np.abs(found - layer(inputs)).max() > 1e-2


def test_a_layer_normalised_lstm_is_saved_with_its_weights(tmp_path):
    inputs = keras.Input((None, 3))
    layer = CELLS["layer_norm_lstm"](5, dropout=0.1, seed=3, truncate=2, zoneout=0.1, return_sequences=True)
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(copy(normal(4, 6, 3)), model(normal(4, 6, 3)))
    assert copy.layers[1].get_config() == layer.get_config()

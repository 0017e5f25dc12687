"""The recurrent core: cells are their equations written out in NumPy; padding, windows and steps change nothing."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.recurrent import Attention, AttentionDecoder, RecurrentStack, kernel_of, recurrent_layer

CELLS = ["simple", "relu", "lstm", "gru", "layer_norm_lstm"]
ATTENTIONS = ["additive", "dot", "none"]
UNITS, FEATURES, MEMORY = 4, 3, 5
LENGTHS = [5, 3, 1]
MASK = np.arange(5) < np.array(LENGTHS)[:, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simple_step(x, state, U, W, b):
    return (np.tanh(x @ U + state[0] @ W + b),)


def relu_step(x, state, U, W, b):
    return (np.maximum(x @ U + state[0] @ W + b, 0),)


def lstm_step(x, state, U, W, b):
    hidden, cell = state
    i, f, candidate, o = np.split(x @ U + hidden @ W + b, 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(candidate)
    return sigmoid(o) * np.tanh(cell), cell


def layer_norm(x):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)


def layer_norm_lstm_step(x, state, U, W, b, p, q, r, s):
    hidden, cell = state
    i, f, candidate, o = np.split(layer_norm(x @ U) * p + layer_norm(hidden @ W) * q + b, 4, axis=-1)
    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(candidate)
    return sigmoid(o) * np.tanh(layer_norm(cell) * r + s), cell


def gru_step(x, state, U, W, b):
    x_z, x_r, x_h = np.split(x @ U + b[0], 3, axis=-1)
    s_z, s_r, s_h = np.split(state[0] @ W + b[1], 3, axis=-1)
    z, r = sigmoid(x_z + s_z), sigmoid(x_r + s_r)
    return (z * state[0] + (1 - z) * np.tanh(x_h + r * s_h),)


def unroll(cell, inputs, state, weights, mask=None, held=None, kept=None):
    """The recurrence step by step: outputs, zero where masked, and the final state, which masked steps leave alone.

    held: {step: state that it starts from, whatever the step before left}. kept: (time, batch, units of all parts of
    the state), the share of the old state in the new one.
    """
    step = globals()[f"{cell}_step"]
    mask = np.ones(inputs.shape[:2], bool) if mask is None else mask
    outputs = []
    for t in range(inputs.shape[1]):
        here = mask[:, t, None]
        state = (held or {}).get(t, state)
        new = step(inputs[:, t], state, *weights)
        if kept is not None:
            shares = np.split(kept[t], len(state), axis=-1)
            new = [share * old + (1 - share) * part for share, old, part in zip(shares, state, new, strict=True)]
        state = [np.where(here, part, old) for part, old in zip(new, state, strict=True)]
        outputs.append(np.where(here, state[0], 0))
    return np.stack(outputs, axis=1), state


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def randomize(layer, spread=0.5, seed=0):
    """Fills all weights, biases too: what starts at zero must not hide what it does."""
    random = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(spread * random.normal(size=weight.shape))
    return layer


def zero_states(cell, batch):
    return [np.zeros((batch, UNITS)) for _ in range(2 if "lstm" in cell else 1)]


@functools.cache
def make_stack(cell, features=FEATURES, **options):
    stack = RecurrentStack(cell, UNITS, **options)
    stack.build((None, None, features))
    return randomize(stack)


@functools.cache
def make_decoder(cell, attention, **options):
    decoder = AttentionDecoder(cell, UNITS, 3, 6, attention, attention_units=3, **options)
    decoder.build((None, None, FEATURES), (None, None, MEMORY))
    return randomize(decoder)


def decoder_arguments(cell):
    """Inputs, a state that is not zero, a memory with padding, for a batch of three."""
    state = [[normal(3, UNITS, seed=10 * i + j) for j in range(len(zero_states(cell, 1)))] for i in range(3)]
    return normal(3, 3, FEATURES), state, normal(3, 5, MEMORY), MASK


def assert_close(actual, expected, tolerance=1e-5):
    keras.tree.assert_same_structure(actual, expected)
    for a, b in zip(keras.tree.flatten(actual), keras.tree.flatten(expected), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def layer_in_float64(cell, **options):
    keras.utils.set_random_seed(1)
    layer = recurrent_layer(cell, UNITS, dtype="float64", **options)
    layer.build((None, None, FEATURES))
    return randomize(layer)


def next_kept(layer, time, batch):
    """(time, batch, units of all parts of the state): 1 where the next call in training will keep the old state."""
    generator = keras.random.SeedGenerator()
    generator.state.assign(layer.zoneout_seed.state)
    shape = (time, batch, sum(layer.state_size))
    return np.array(keras.random.uniform(shape, seed=generator) < layer.zoneout, "float64")


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("use_bptt", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_zoned_out_cells_are_their_equations(cell, use_bptt, training):
    layer = layer_in_float64(cell, zoneout=0.4, use_bptt=use_bptt)
    inputs = normal(3, 5, FEATURES).astype("float64")
    state = [normal(3, UNITS, seed=i).astype("float64") for i in range(len(zero_states(cell, 3)))]
    kept = next_kept(layer, 5, 3) if training else np.full((5, 3, sum(layer.state_size)), 0.4)
    outputs, *final = layer(inputs, initial_state=state, mask=MASK, training=training)
    expected, expected_final = unroll(cell, inputs, state, layer.get_weights(), MASK, kept=kept)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    np.testing.assert_allclose(final, expected_final, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_cells_are_their_equations(cell, mask):
    layer = layer_in_float64(cell)
    inputs = normal(3, 5, FEATURES).astype("float64")
    state = [normal(3, UNITS, seed=i).astype("float64") for i in range(len(zero_states(cell, 3)))]
    outputs, *final = layer(inputs, initial_state=state, mask=mask)
    expected, expected_final = unroll(cell, inputs, state, layer.get_weights(), mask)
    np.testing.assert_allclose(outputs, expected, atol=1e-12)
    np.testing.assert_allclose(final, expected_final, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_state_is_zero(cell):
    layer, inputs = layer_in_float64(cell), normal(2, 3, FEATURES).astype("float64")
    np.testing.assert_allclose(
        layer(inputs)[0], unroll(cell, inputs, zero_states(cell, 2), layer.get_weights())[0], atol=1e-12
    )


@pytest.mark.parametrize("options", [{}, {"truncate": 2}, {"zoneout": 0.4}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_finite_differences(cell, options):
    """Of a truncated layer: where the state that goes from block to block is held."""
    layer, mask = layer_in_float64(cell, **options), MASK[1:, :4]
    inputs = normal(2, 4, FEATURES).astype("float64")
    states = [normal(2, UNITS, seed=i).astype("float64") for i in range(len(zero_states(cell, 2)))]
    pull = normal(2, 4, UNITS), normal(2, UNITS)  # how much the loss wants of outputs and final states
    held, kept = {}, next_kept(layer, 4, 2) if "zoneout" in options else None
    if "truncate" in options:
        held[2] = unroll(cell, inputs[:, :2], states, layer.get_weights(), mask[:, :2])[1]

    def loss(inputs, *rest):
        outputs, final = unroll(cell, inputs, rest[: len(states)], rest[len(states) :], mask, held, kept)
        return np.sum(outputs * pull[0]) + sum(np.sum(state * pull[1]) for state in final)

    with tf.GradientTape() as tape:
        tensors = [tf.constant(value) for value in (inputs, *states)]
        tape.watch(tensors)
        outputs, *final = layer(tensors[0], initial_state=tensors[1:], mask=mask, training=True)
        value = tf.reduce_sum(outputs * pull[0]) + sum(tf.reduce_sum(state * pull[1]) for state in final)
    gradients = tape.gradient(value, [*tensors, *(weight.value for weight in layer.trainable_weights)])

    arguments = [inputs, *states, *layer.get_weights()]
    np.testing.assert_allclose(value, loss(*arguments), rtol=1e-12)
    for argument, gradient in zip(arguments, gradients, strict=True):
        np.testing.assert_allclose(gradient, central_differences(loss, arguments, argument), atol=1e-7)


def central_differences(loss, arguments, argument, step=1e-5):
    """The gradient of loss(*arguments) in one of them, which is changed in place and put back."""
    gradient = np.zeros_like(argument)
    for place in np.ndindex(argument.shape):
        kept = argument[place]
        ends = []
        for argument[place] in (kept + step, kept - step):
            ends.append(loss(*arguments))
        argument[place] = kept
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient


@pytest.mark.parametrize("cell", CELLS)
def test_a_bidirectional_layer_reads_both_ways(cell):
    stack, inputs = make_stack(cell, bidirectional=True), normal(2, 5, FEATURES)
    weights = stack.get_weights()
    half = len(weights) // 2
    forward, forward_state = unroll(cell, inputs, zero_states(cell, 2), weights[:half])
    backward, backward_state = unroll(cell, inputs[:, ::-1], zero_states(cell, 2), weights[half:])
    outputs, final = stack(inputs)
    np.testing.assert_allclose(outputs, np.concatenate([forward, backward[:, ::-1]], axis=-1), atol=1e-5)
    assert_close(final, [[*forward_state, *backward_state]])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell, bidirectional):
    stack = make_stack(cell, num_layers=2, bidirectional=bidirectional, residual=True)
    inputs = np.where(MASK[..., None], normal(3, 5, FEATURES), 100.0)
    outputs, final = stack(inputs, mask=MASK)
    assert np.all(outputs.numpy()[~MASK] == 0)
    for row, length in enumerate(LENGTHS):
        alone, alone_final = stack(inputs[row : row + 1, :length])
        np.testing.assert_allclose(outputs[row : row + 1, :length], alone, atol=1e-6)
        assert_close(keras.tree.map_structure(lambda state, row=row: state[row : row + 1], final), alone_final, 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_windows_with_carried_state_are_one_unroll(cell):
    stack, inputs = make_stack(cell, num_layers=2, residual=True), normal(2, 7, FEATURES)
    whole, final = stack(inputs)
    state, windows = None, []
    for window in np.split(inputs, [2, 3], axis=1):
        outputs, state = stack(window, initial_state=state)
        windows.append(outputs)
    np.testing.assert_allclose(np.concatenate(windows, axis=1), whole, atol=1e-6)
    assert_close(state, final, 1e-6)


def assert_steps_are_the_unroll(stack, inputs):
    """Returns the outputs, which are the same either way."""
    whole, final = stack(inputs)
    state = stack.zero_state(len(inputs))
    for t in range(inputs.shape[1]):
        outputs, state = stack.step(inputs[:, t], state)
        np.testing.assert_allclose(outputs, whole[:, t], atol=1e-6)
    assert_close(state, final, 1e-6)
    return whole


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_are_the_unroll(cell, residual):
    stack, inputs = make_stack(cell, num_layers=3, residual=residual), normal(2, 4, FEATURES)
    assert_steps_are_the_unroll(stack, inputs)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_zeros_are_the_state_before_the_first_step(cell, bidirectional):
    stack, inputs = make_stack(cell, num_layers=2, bidirectional=bidirectional), normal(2, 4, FEATURES)
    assert_close(stack(inputs, initial_state=stack.zero_state(2)), stack(inputs), 1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_every_layer_can_have_its_own_size(cell, bidirectional):
    stack, inputs = RecurrentStack(cell, [3, 6, 2], bidirectional=bidirectional), normal(2, 4, FEATURES)
    stack.build((None, None, FEATURES))
    outputs, final = randomize(stack)(inputs)
    directions = 2 if bidirectional else 1
    assert outputs.shape == (2, 4, 2 * directions) and stack.output_units == 2 * directions
    states = directions * len(zero_states(cell, 1))
    assert [[part.shape for part in layer] for layer in final] == [[(2, size)] * states for size in (3, 6, 2)]
    expected = inputs
    for layer in stack.recurrences:
        expected = layer(expected)[0]
    np.testing.assert_allclose(outputs, expected, atol=1e-6)
    assert_close(stack(inputs, initial_state=stack.zero_state(2)), (outputs, final), 1e-6)


def test_a_list_of_equal_sizes_is_their_number():
    stacks = [RecurrentStack("lstm", [4, 4]), RecurrentStack("lstm", 4, 2)]
    for stack in stacks:
        stack.build((None, None, FEATURES))
    first, second = ([weight.shape for weight in stack.weights] for stack in stacks)
    assert first == second


def test_every_layer_drops_its_recurrent_weights_and_steps_do_not():
    stack, inputs = make_stack("gru", num_layers=2, weight_drop=0.5), normal(2, 4, FEATURES)
    plain = make_stack("gru", num_layers=2)
    for mine, theirs in zip(stack.trainable_weights, plain.trainable_weights, strict=True):
        mine.assign(theirs)
    assert [layer.weight_drop for layer in stack.recurrences] == [0.5, 0.5]
    assert np.abs(stack(inputs, training=True)[0] - plain(inputs)[0]).max() > 1e-3
    np.testing.assert_array_equal(stack(inputs, training=False)[0], plain(inputs)[0])
    state = stack.zero_state(2)
    np.testing.assert_array_equal(stack.step(inputs[:, 0], state)[0], plain.step(inputs[:, 0], state)[0])


def test_truncation_is_of_every_layer_and_changes_no_result():
    stack, inputs = make_stack("lstm", num_layers=2, bidirectional=True, truncate=2), normal(2, 4, FEATURES)
    assert [layer.backward_layer.truncate for layer in stack.recurrences] == [2, 2]
    assert_close(stack(inputs), make_stack("lstm", num_layers=2, bidirectional=True)(inputs), 1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_steps_of_zoned_out_layers_are_the_unroll(cell):
    stack, inputs = make_stack(cell, num_layers=2, residual=True, zoneout=0.4), normal(2, 4, FEATURES)
    whole = assert_steps_are_the_unroll(stack, inputs)
    assert np.abs(whole - make_stack(cell, num_layers=2, residual=True)(inputs)[0]).max() > 1e-2
    assert np.abs(whole - stack(inputs, training=True)[0]).max() > 1e-2


def test_both_directions_cannot_go_step_by_step():
    stack = make_stack("gru", bidirectional=True)
    with pytest.raises(ValueError, match="bidirectional"):
        stack.step(normal(2, FEATURES), stack.zero_state(2))


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("unit_forget_bias", [False, True])
def test_forget_gates_begin_open_or_undecided(cell, bidirectional, unit_forget_bias):
    stack = RecurrentStack(cell, UNITS, 2, bidirectional=bidirectional, unit_forget_bias=unit_forget_bias)
    stack.build((None, None, FEATURES))
    biases = [weight for weight in stack.weights if weight.path.endswith("/bias")]
    assert len(biases) == 2 * stack.directions
    for bias in biases:
        i, f, g, o = np.split(bias.numpy(), 4)
        assert np.all(f == unit_forget_bias) and not np.any([i, g, o])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_residual_layers_add_their_input(bidirectional):
    options = {"num_layers": 3, "bidirectional": bidirectional}
    stack, inputs = make_stack("gru", residual=True, **options), normal(2, 4, FEATURES)
    expected = stack.recurrences[0](inputs)[0]  # sizes differ below the first layer, so nothing is added there
    for layer in stack.recurrences[1:]:
        expected = layer(expected)[0] + expected
    np.testing.assert_allclose(stack(inputs)[0], expected, atol=1e-6)


def test_dropout_is_locked_and_only_in_training():
    stack = make_stack("simple", num_layers=2, residual=True, dropout=0.5)
    stack.recurrences[1].set_weights([0 * weight for weight in stack.recurrences[1].get_weights()])
    inputs = normal(16, 6, FEATURES)
    below = stack.recurrences[0](inputs)[0]  # the second layer gives 0: what remains is its input, after dropout
    for training in (False, None):
        np.testing.assert_allclose(stack(inputs, training=training)[0], below, atol=1e-6)
    kept = stack(inputs, training=True)[0].numpy() / below
    assert np.all(np.isclose(kept, 0, atol=1e-4) | np.isclose(kept, 2, atol=1e-4))
    np.testing.assert_allclose(kept, np.repeat(kept[:, :1], 6, axis=1), atol=1e-4)
    assert 0.2 < np.mean(kept > 1) < 0.8 and len(np.unique(kept[:, 0] > 1, axis=0)) > 1
    assert np.any(np.abs(stack(inputs, training=True)[0] / below - kept) > 1)


@pytest.mark.parametrize("cell", CELLS)
def test_saved_weights_reload_equal(cell, tmp_path):
    def model(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Model()
        model.stack = RecurrentStack(cell, UNITS, 2, bidirectional=True, dropout=0.5)
        model.stack.build((None, None, FEATURES))
        model.built = True
        return model

    one, other, inputs = model(1), model(2), normal(2, 3, FEATURES)
    randomize(one).save_weights(tmp_path / "stack.weights.h5")
    assert np.any(np.abs(one.stack(inputs)[0] - other.stack(inputs)[0]) > 0.1)
    other.load_weights(tmp_path / "stack.weights.h5")
    assert_close(one.stack(inputs), other.stack(inputs), 0)


def scores(kind, queries, memory, weights):
    """The formulas at the head of attention.py; weights: W, U and, where it has them, v and the bias of U."""
    W, U = (weight for weight in weights if weight.ndim == 2)
    vectors = [weight for weight in weights if weight.ndim == 1]
    if kind == "dot":  # with a bias or without, which adds the same to all scores of a query
        return np.einsum("btu,bpu->btp", queries @ W, memory @ U + sum(vectors)) / np.sqrt(3)
    v, b = vectors
    return np.tanh((queries @ W)[:, :, None] + (memory @ U + b)[:, None]) @ v


def look_up(kind, queries, memory, mask, weights):
    exponentials = np.exp(scores(kind, queries, memory, weights)) * mask[:, None]
    attention = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return attention @ memory, attention


@functools.cache
def make_attention(kind):
    attention = Attention(kind, 3)
    attention.build((None, None, UNITS), (None, None, MEMORY))
    randomize(attention, spread=1.0)
    return attention, normal(3, 4, UNITS), normal(3, 5, MEMORY)


def attend(attention, queries, memory, mask):
    return attention(queries, attention.keys(memory), memory, mask)


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_is_its_formula(kind):
    attention, queries, memory = make_attention(kind)
    contexts, weights = attend(attention, queries, memory, MASK)
    assert_close((contexts, weights), look_up(kind, queries, memory, MASK, attention.get_weights()))
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, atol=1e-6)
    assert np.all(weights.numpy()[np.repeat(~MASK[:, None], 4, axis=1)] == 0)


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_does_not_see_the_padding_of_its_memory(kind):
    attention, queries, memory = make_attention(kind)
    other = np.where(MASK[..., None], memory, 1000.0)
    assert_close(attend(attention, queries, other, MASK), attend(attention, queries, memory, MASK), 1e-6)


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_attention_does_not_know_the_order_of_its_memory(kind):
    attention, queries, memory = make_attention(kind)
    contexts, weights = attend(attention, queries, memory, MASK)
    order = np.array([3, 0, 4, 2, 1])
    permuted = attend(attention, queries, memory[:, order], MASK[:, order])
    assert_close(permuted, (contexts, weights.numpy()[..., order]), 1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_decoder_is_its_formula(cell, attention):
    decoder = make_decoder(cell, attention)
    inputs, state, memory, mask = decoder_arguments(cell)
    layers = [layer.get_weights() for layer in decoder.first.recurrences]
    below, final = inputs, []
    for weights, layer_state in zip(layers, state, strict=False):
        below, new = unroll(cell, below, layer_state, weights)
        final.append(new)
    read, looked = [below], None
    if attention != "none":
        contexts, looked = look_up(attention, below, memory, mask, decoder.attention.get_weights())
        above = np.concatenate([below, contexts], axis=-1)
        for layer, layer_state in zip(decoder.upper.recurrences, state[1:], strict=True):
            above, new = unroll(cell, above, layer_state, layer.get_weights())
            final.append(new)
        read = [above, contexts]
    kernel, bias = decoder.readout.get_weights()
    expected = np.tanh(np.concatenate([*read, inputs], axis=-1) @ kernel + bias)
    assert_close(decoder(inputs, state, memory, mask), (expected, final, looked))
    assert decoder.num_layers == len(state)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_decoder_steps_are_teacher_forcing(cell, attention):
    decoder = make_decoder(cell, attention, residual=True, dropout=0.5)
    inputs, state, memory, mask = decoder_arguments(cell)
    outputs, final, weights = decoder(inputs, state, memory, mask)
    keys = decoder.attention.keys(memory) if decoder.attention else None
    for t in range(inputs.shape[1]):
        output, state, weight = decoder.step(inputs[:, t], state, keys, memory, mask)
        now = None if weights is None else weights[:, t]
        assert_close((output, weight), (outputs[:, t], now), 1e-6)
    assert_close(state, final, 1e-6)


@pytest.mark.parametrize("attention", ["additive", "dot"])
@pytest.mark.parametrize("cell", CELLS)
def test_with_input_feeding_the_first_layer_reads_the_last_context(cell, attention):
    decoder = make_decoder(cell, attention, input_feeding=True)
    inputs, state, memory, mask = decoder_arguments(cell)
    state = decoder.begin(state, memory)
    (layer,) = decoder.first.recurrences
    context, first, expected = np.zeros((3, MEMORY)), state[0], []
    for t in range(inputs.shape[1]):
        read = np.concatenate([inputs[:, t], context], axis=-1)[:, None]
        below, first = unroll(cell, read, first, layer.get_weights())
        contexts, looked = look_up(attention, below, memory, mask, decoder.attention.get_weights())
        context = contexts[:, 0]
        expected.append(looked[:, 0])
    _, final, weights = decoder(inputs, state, memory, mask)
    assert_close((final[0], final[-1], weights), (first, [context], np.stack(expected, axis=1)))
    assert kernel_of(layer) == "keras"


@pytest.mark.parametrize("attention", ["additive", "dot"])
@pytest.mark.parametrize("cell", CELLS)
def test_steps_with_input_feeding_are_teacher_forcing(cell, attention):
    decoder = make_decoder(cell, attention, input_feeding=True)
    inputs, state, memory, mask = decoder_arguments(cell)
    state = decoder.begin(state, memory)
    outputs, final, weights = decoder(inputs, state, memory, mask)
    for t in range(inputs.shape[1]):
        output, state, weight = decoder.step(inputs[:, t], state, decoder.attention.keys(memory), memory, mask)
        assert_close((output, weight), (outputs[:, t], weights[:, t]), 1e-6)
    assert_close(state, final, 1e-6)


GATES = ["gate", "sentinel"]


def look_up_with_sentinel(kind, queries, memory, sentinel, mask, weights):
    """The formulas again, with one more position at each step that holds the sentinel."""
    own = np.stack([scores(kind, queries[:, [t]], sentinel[:, [t]], weights)[:, 0] for t in range(queries.shape[1])], 1)
    everything = np.concatenate([scores(kind, queries, memory, weights), own], axis=-1)
    exponentials = np.exp(everything) * np.pad(mask, [(0, 0), (0, 1)], constant_values=True)[:, None]
    attention = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return attention[..., :-1] @ memory + attention[..., -1:] * sentinel, attention[..., :-1]


@pytest.mark.parametrize("kind", ["additive", "dot"])
def test_a_sentinel_is_one_more_place_to_look_at(kind):
    attention, queries, memory = make_attention(kind)
    sentinel = normal(3, 4, MEMORY, seed=5)
    found = attention(queries, attention.keys(memory), memory, MASK, sentinel)
    expected = look_up_with_sentinel(kind, queries, memory, sentinel, MASK, attention.get_weights())
    assert_close(found, expected)
    assert found[1].dtype == tf.float32 and np.all(np.sum(found[1], axis=-1) < 1)


@pytest.mark.parametrize("attention", ["additive", "dot"])
@pytest.mark.parametrize("gate", GATES)
def test_a_gate_changes_what_the_upper_layers_and_the_output_read(gate, attention):
    decoder = make_decoder("gru", attention, gate=gate)
    inputs, state, memory, mask = decoder_arguments("gru")
    (layer,), weights = decoder.first.recurrences, decoder.attention.get_weights()
    below, _ = unroll("gru", inputs, state[0], layer.get_weights())
    if gate == "gate":
        kernel, bias = decoder.gate.get_weights()
        contexts, looked = look_up(attention, below, memory, mask, weights)
        contexts = sigmoid(below @ kernel + bias) * contexts
    else:
        (kernel, bias), (inner, shift) = decoder.sentinel_gate.get_weights(), decoder.sentinel.get_weights()
        share = sigmoid(np.concatenate([inputs, below], axis=-1) @ kernel + bias)
        sentinel = share * np.tanh(below @ inner + shift)
        contexts, looked = look_up_with_sentinel(attention, below, memory, sentinel, mask, weights)
    above = np.concatenate([below, contexts], axis=-1)
    for layer, layer_state in zip(decoder.upper.recurrences, state[1:], strict=True):
        above, _ = unroll("gru", above, layer_state, layer.get_weights())
    kernel, bias = decoder.readout.get_weights()
    expected = np.tanh(np.concatenate([above, contexts, inputs], axis=-1) @ kernel + bias)
    outputs, _, found = decoder(inputs, state, memory, mask)
    assert_close((outputs, found), (expected, looked))


@pytest.mark.parametrize("input_feeding", [False, True])
@pytest.mark.parametrize("gate", GATES)
def test_steps_with_a_gate_are_teacher_forcing(gate, input_feeding):
    decoder = make_decoder("lstm", "additive", gate=gate, input_feeding=input_feeding)
    inputs, state, memory, mask = decoder_arguments("lstm")
    state = decoder.begin(state, memory)
    outputs, final, weights = decoder(inputs, state, memory, mask)
    for t in range(inputs.shape[1]):
        output, state, weight = decoder.step(inputs[:, t], state, decoder.attention.keys(memory), memory, mask)
        assert_close((output, weight), (outputs[:, t], weights[:, t]), 1e-6)
    assert_close(state, final, 1e-6)

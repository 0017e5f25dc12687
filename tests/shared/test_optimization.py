"""The optimiser does what Keras' own does, follows its schedule to the end, and knows the last gradient's norm."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.config import TrainingConfig
from shared.optimization import OPTIMIZERS, build_optimizer
from shared.recurrent.layers import recurrent_layer

KERAS_OWN = [name for name in OPTIMIZERS if name != "muon"]
START = [np.full((2, 3), 1.0, "float32"), np.full(4, -2.0, "float32")]
RANDOM = np.random.default_rng(3)
GRADIENTS = [
    [(scale * RANDOM.normal(size=value.shape)).astype("float32") for value in START] for scale in (5.0, 0.01, 1.0, 30.0)
]


def constant(**options):
    """An optimiser at a constant rate."""
    defaults = {"schedule": "constant", "learning_rate": 0.1}
    return build_optimizer(TrainingConfig(**{**defaults, **options}), total_steps=100)


def make_variables():
    return [keras.Variable(value) for value in START]


def norm(gradients):
    return math.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in gradients))


def apply_all(optimizer, steps):
    """The variables after some steps, compiled as training compiles them, and the norm seen at each."""
    variables = make_variables()
    optimizer.build(variables)
    update = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    norms = []
    for gradients in steps:
        update([tf.constant(gradient) for gradient in gradients])
        norms.append(float(getattr(optimizer, "gradient_norm", math.nan)))
    return [variable.numpy() for variable in variables], norms


def assert_equal(actual, expected, tolerance=1e-6):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def rates(steps, **options):
    """The learning rate before the first update and after each of `steps` batches."""
    optimizer = build_optimizer(TrainingConfig(optimizer="sgd", **options), total_steps=steps)
    variable = keras.Variable(np.zeros(1, "float32"))
    optimizer.build([variable])
    found = [float(optimizer.learning_rate)]
    for _ in range(steps):
        optimizer.apply([tf.zeros(1)], [variable])
        found.append(float(optimizer.learning_rate))
    return found


@pytest.mark.parametrize("name", KERAS_OWN)
def test_updates_are_those_of_keras_own_clipping(name):
    decay = 0.01 if name == "adamw" else None
    expected, _ = apply_all(OPTIMIZERS[name](0.1, weight_decay=decay, global_clipnorm=1.0), GRADIENTS)
    actual, norms = apply_all(constant(optimizer=name, clip_norm=1.0, weight_decay=decay or 0.0), GRADIENTS)
    # Adam's kernel rounds 1 - beta to float32, Keras does not.
    assert_equal(actual, expected, tolerance=1e-5 if name in ("adam", "adamw") else 1e-6)
    assert norms == pytest.approx([norm(gradients) for gradients in GRADIENTS], rel=1e-5)  # before clipping
    assert min(norms) < 1 < max(norms)


def test_without_clipping_only_the_norm_is_taken():
    expected, _ = apply_all(keras.optimizers.SGD(0.1), GRADIENTS)
    actual, norms = apply_all(constant(optimizer="sgd", clip_norm=0.0), GRADIENTS)
    assert_equal(actual, expected)
    assert norms == pytest.approx([norm(gradients) for gradients in GRADIENTS], rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_weight_decay_is_the_default_of_every_optimizer(name):
    variables, _ = apply_all(constant(optimizer=name), [[np.zeros_like(value) for value in START]])
    assert_equal(variables, START)


def test_weight_decay_shrinks_the_weights():
    variables, _ = apply_all(constant(optimizer="sgd", weight_decay=0.5), [[np.zeros_like(value) for value in START]])
    assert_equal(variables, [value * (1 - 0.1 * 0.5) for value in START])


def test_constant_rate_is_constant():
    assert rates(4, schedule="constant", learning_rate=0.1) == pytest.approx([0.1] * 5)


def test_constant_rate_after_its_warm_up():
    found = rates(8, schedule="constant", learning_rate=0.1, warmup_steps=4)
    assert found == pytest.approx([0.1 * min(step / 4, 1) for step in range(9)])


def test_cosine_falls_from_the_rate_to_the_final_one():
    found = rates(10, schedule="cosine", learning_rate=0.1, final_learning_rate=0.02)
    assert found == pytest.approx([0.02 + 0.08 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)])


def test_cosine_falls_after_its_warm_up():
    found = rates(14, schedule="cosine", learning_rate=0.1, final_learning_rate=0.02, warmup_steps=4)
    assert found[:5] == pytest.approx([0.1 * step / 4 for step in range(5)])
    assert found[4:] == pytest.approx([0.02 + 0.08 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(11)])


def test_accumulation_does_not_hurry_the_schedule():
    found = rates(16, schedule="cosine", learning_rate=0.1, accumulate_steps=4)
    assert found[8] == pytest.approx(0.05, rel=0.3) and found[12] > 0.01 and found[16] < 0.01


def test_the_rate_of_a_plateau_can_be_lowered():
    optimizer = build_optimizer(TrainingConfig(schedule="plateau", learning_rate=0.1), 100)
    optimizer.learning_rate = float(optimizer.learning_rate) * 0.5
    assert float(optimizer.learning_rate) == pytest.approx(0.05)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_accumulated_batches_are_one_batch(name):
    halves = [[2 * (k + 1) / 3 * gradient for gradient in GRADIENTS[0]] for k in range(2)]  # their mean: GRADIENTS[0]
    expected, norms = apply_all(constant(optimizer=name), [GRADIENTS[0]])
    actual, accumulated_norms = apply_all(constant(optimizer=name, accumulate_steps=2), halves)
    assert_equal(actual, expected)
    assert accumulated_norms[-1] == pytest.approx(norms[0], rel=1e-5)
    unchanged, _ = apply_all(constant(optimizer=name, accumulate_steps=2), halves[:1])
    assert_equal(unchanged, START)


def test_the_average_follows_the_weights():
    optimizer = constant(optimizer="sgd", average=0.75)
    variables = make_variables()
    optimizer.build(variables)
    averages = None
    for gradients in GRADIENTS:
        optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)
        values = [variable.numpy() for variable in variables]
        averages = [0.75 * a + 0.25 * v for a, v in zip(averages, values, strict=True)] if averages else values
    assert np.abs(averages[0] - values[0]).max() > 0.01
    optimizer.finalize_variable_values(variables)
    assert_equal([variable.numpy() for variable in variables], averages)


def test_the_plain_average_is_the_mean_from_where_it_starts():
    optimizer = constant(optimizer="sgd", average_patience=2)
    variables = [keras.Variable(np.ones(3, "float32"))]
    optimizer.build(variables)
    rng, seen = np.random.default_rng(1), []
    for step in range(9):
        optimizer.apply([rng.normal(size=3).astype("float32")], variables)
        seen.append(variables[0].numpy())
        average = optimizer._model_variables_moving_average[0].numpy()
        assert_equal([average], [np.mean(seen[3:], axis=0) if step > 3 else seen[-1]])
        if step == 3:
            optimizer.averaged.assign(1.0)


def test_without_an_average_the_weights_stay_what_they_are():
    optimizer = constant(optimizer="sgd")
    variables = make_variables()
    optimizer.build(variables)
    optimizer.finalize_variable_values(variables)
    assert not optimizer.use_ema
    assert_equal([variable.numpy() for variable in variables], START)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_of_an_embedding_are_the_dense_ones(name, accumulate_steps):
    """An id that occurs twice comes as two slices, which must be added up before their norm is taken."""
    ids, pull = tf.constant([1, 3, 1]), tf.constant(3 * RANDOM.normal(size=(3, 2)).astype("float32"))

    def train(dense):
        table = keras.Variable(np.ones((5, 2), "float32"))
        optimizer = constant(optimizer=name, accumulate_steps=accumulate_steps, weight_decay=0.01)
        optimizer.build([table])

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                rows = tf.one_hot(ids, 5) @ table.value if dense else tf.gather(table.value, ids)
                loss = tf.reduce_sum(rows * pull)
            gradient = tape.gradient(loss, table.value)
            assert isinstance(gradient, tf.Tensor if dense else tf.IndexedSlices)
            optimizer.apply([gradient], [table])
            return tf.norm(tf.convert_to_tensor(gradient))

        norms = [float(step()) for _ in range(4)]
        assert float(optimizer.gradient_norm) == pytest.approx(norms[-1], rel=1e-5)
        return table.numpy()

    np.testing.assert_allclose(train(dense=False), train(dense=True), atol=1e-6)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_variable_moves_by_its_share_of_the_rate(name, accumulate_steps):
    """As with an optimiser of its own at that rate, while the others move as ever."""
    shares, moved = (1.0, 0.25), {}

    def train(given, rate):
        variables = make_variables()
        for variable, share in zip(variables, given, strict=True):
            variable.learning_rate_share = share
        optimizer = constant(optimizer=name, learning_rate=rate, clip_norm=0.0, accumulate_steps=accumulate_steps)
        optimizer.build(variables)
        for gradients in GRADIENTS:
            optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)
        assert float(optimizer.learning_rate) == pytest.approx(rate)
        return [variable.numpy() for variable in variables]

    for share in shares:
        moved[share] = train((1.0, 1.0), 0.1 * share)
    assert_equal(train(shares, 0.1), [moved[share][i] for i, share in enumerate(shares)])
    assert np.abs(moved[1.0][1] - moved[0.25][1]).max() > 1e-3
    assert_equal(train((0.0, 1.0), 0.1)[:1], START[:1])


def test_the_norm_and_clipping_do_not_know_of_shares():
    variables = make_variables()
    variables[0].learning_rate_share = 0.0
    optimizer = constant(optimizer="sgd", clip_norm=1.0)
    optimizer.build(variables)
    optimizer.apply([tf.constant(gradient) for gradient in GRADIENTS[0]], variables)
    whole = norm(GRADIENTS[0])
    assert float(optimizer.gradient_norm) == pytest.approx(whole, rel=1e-5)
    assert_equal([variables[1].numpy()], [START[1] - 0.1 * GRADIENTS[0][1] / whole])


# ---------------------------------------------------------------------------------------------------------------- muon


def kernels(*shapes, matrices=1):
    variables = [keras.Variable(RANDOM.normal(size=shape).astype("float32"), name="kernel") for shape in shapes]
    for variable in variables:
        variable.matrices = matrices
    return variables


def moved(variables, steps, **options):
    """How far variables go at each step, against gradients (steps, variables, ...)."""
    optimizer = constant(optimizer="muon", clip_norm=0.0, **options)
    optimizer.build(variables)
    found = []
    for gradients in steps:
        before = [variable.numpy() for variable in variables]
        optimizer.apply([tf.constant(gradient) for gradient in gradients], variables)
        found.append([variable.numpy() - old for variable, old in zip(variables, before, strict=True)])
    return found


def gradients_like(variables, steps=1):
    return [[RANDOM.normal(size=each.shape).astype("float32") for each in variables] for _ in range(steps)]


@pytest.mark.parametrize("shape", [(12, 12), (40, 12), (12, 40), (3, 3, 8, 16)])
def test_muon_moves_a_matrix_equally_far_in_all_directions(shape):
    variables = kernels(shape)
    gradients = gradients_like(variables)
    ((found,),) = moved(variables, gradients, learning_rate=0.1)
    flat = found.reshape(-1, shape[-1])
    lengths = np.linalg.svd(flat, compute_uv=False) / (0.1 * 0.2 * max(flat.shape) ** 0.5)
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    assert 0.1 < np.sqrt(np.mean(flat**2)) / 0.1 < 0.3  # about as much as Adam
    left, _, right = np.linalg.svd(gradients[0][0].reshape(flat.shape), full_matrices=False)
    nearest = -(left @ right)
    assert np.sum(nearest * flat) > 0.95 * np.linalg.norm(nearest) * np.linalg.norm(flat)


def test_muon_goes_where_its_momentum_does():
    variables = kernels((6, 9))
    steps = gradients_like(variables, 4)
    momentum, towards = 0, []
    for (gradient,) in steps:
        momentum = 0.95 * momentum + gradient
        left, _, right = np.linalg.svd(gradient + 0.95 * momentum, full_matrices=False)
        towards.append(-(left @ right))
    for (found,), nearest in zip(moved(variables, steps), towards, strict=True):
        assert np.sum(nearest * found) > 0.95 * np.linalg.norm(nearest) * np.linalg.norm(found)


def test_muon_takes_each_of_several_matrices_for_itself():
    """As if they were variables of their own; one is a thousand times as steep as the others."""
    together, apart = kernels((10, 12), matrices=3), kernels((10, 4), (10, 4), (10, 4))
    steps = [
        [np.array((1.0, 1000.0, 0.1), "float32")[:, None, None] * gradients]
        for (gradients,) in gradients_like([keras.Variable(np.zeros((3, 10, 4)))], 3)
    ]
    whole = moved(together, [[np.concatenate(list(each), axis=1)] for (each,) in steps])
    parts = moved(apart, [list(each) for (each,) in steps])
    for (found,), expected in zip(whole, parts, strict=True):
        np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_muon_leaves_all_else_to_adam():
    def variables():
        named = (((4, 6), "embeddings"), ((6,), "kernel_scale"), ((2, 6), "bias"), ((5, 1), "kernel"))
        return [keras.Variable(np.ones(shape, "float32"), name=name) for shape, name in named]

    steps = gradients_like(variables(), 3)
    ours, adam = variables(), variables()
    moved(ours, steps, learning_rate=0.1)
    optimizer = constant(optimizer="adam", clip_norm=0.0, learning_rate=0.1)
    optimizer.build(adam)
    for gradients in steps:
        optimizer.apply([tf.constant(gradient) for gradient in gradients], adam)
    assert_equal([each.numpy() for each in ours], [each.numpy() for each in adam])


@pytest.mark.parametrize("cell, gates", [("simple", 1), ("lstm", 4), ("gru", 3), ("layer_norm_lstm", 4)])
def test_recurrent_layers_say_how_many_matrices_are_in_one(cell, gates):
    layer = recurrent_layer(cell, 5)
    layer.build((None, None, 3))
    assert layer.cell.kernel.matrices == layer.cell.recurrent_kernel.matrices == gates

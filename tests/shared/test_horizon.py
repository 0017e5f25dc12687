"""The horizon is the norm of the exact Jacobian, and to look at it leaves a model and its training as they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shared.recurrent import RecurrentStack
from shared.recurrent.horizon import draw, horizon, horizons, main, reach

UNITS, FEATURES, TIME = 4, 3, 6
LENGTHS = [6, 4, 1]
MASK = np.arange(TIME) < np.array(LENGTHS)[:, None]


@pytest.fixture
def in_float64():
    """Layers that are made meanwhile compute so exactly that differences tell their derivatives."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def make_stack(cell, units=UNITS, spread=0.5, **options):
    stack = RecurrentStack(cell, units, **options)
    stack.build((None, None, FEATURES))
    for i, weight in enumerate(stack.trainable_weights):
        weight.assign(spread * normal(*weight.shape, seed=i))
    return stack


def by_differences(stack, inputs, length, state, step=1e-5):
    """The horizon of one sequence (time, features), every entry of its Jacobian from two runs, all in one batch."""
    moved = step * np.eye(length * FEATURES).reshape(-1, length, FEATURES)
    rows = np.concatenate([inputs[:length] + moved, inputs[:length] - moved])
    state = [[np.repeat(part, len(rows), axis=0) for part in layer] for layer in state]
    up, down = np.split(stack(rows, initial_state=state)[0][:, -1], 2)
    entries = ((up - down) / (2 * step)).reshape(length, FEATURES, -1)
    return np.linalg.norm(entries, axis=(1, 2))[::-1]


@pytest.mark.parametrize("cell", ["simple", "relu", "lstm", "gru"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "residual": True}, {"num_layers": 2, "bidirectional": True}], ids=str
)
def test_it_is_the_norm_of_the_jacobian(in_float64, cell, options):
    stack, inputs = make_stack(cell, **options), normal(3, TIME, FEATURES)
    state = [[normal(3, UNITS, seed=i) for i, _ in enumerate(layer)] for layer in stack.zero_state(3)]
    exact = np.full((3, TIME), np.nan)
    for i, length in enumerate(LENGTHS):
        first = [[part[i : i + 1] for part in layer] for layer in state]
        exact[i, :length] = by_differences(stack, inputs[i], length, first)
    found = horizon(stack, inputs, state, MASK)
    np.testing.assert_allclose(found, np.sqrt(np.nanmean(exact**2, axis=0)), rtol=1e-5)


def test_no_recurrence_no_memory():
    stack = make_stack("simple")
    stack.recurrences[0].cell.recurrent_kernel.assign(np.zeros((UNITS, UNITS)))
    found = horizon(stack, normal(5, TIME, FEATURES).astype("float32"))
    assert found[0] > 0.1 and not found[1:].any()
    assert reach(found) == 1


def test_identity_under_relu_forgets_nothing():
    stack = RecurrentStack("relu", UNITS)
    stack.build((None, None, FEATURES))
    U = np.abs(normal(FEATURES, UNITS))
    stack.recurrences[0].cell.kernel.assign(U)
    found = horizon(stack, np.abs(normal(5, TIME, FEATURES)).astype("float32"))
    np.testing.assert_allclose(found, np.linalg.norm(U), rtol=1e-5)
    assert reach(found) == TIME


def test_what_stands_in_the_padding_changes_nothing():
    stack, inputs = make_stack("lstm", bidirectional=True), normal(3, TIME, FEATURES).astype("float32")
    found = horizon(stack, inputs, mask=MASK)
    inputs[~MASK] = 1e3
    np.testing.assert_allclose(horizon(stack, inputs, mask=tf.constant(MASK)), found, rtol=1e-6)
    shorter = horizon(stack, inputs[1:], mask=MASK[1:], steps=4)
    assert np.isnan(shorter).tolist() == [False] * 4 + [True]


def test_few_projections_estimate_what_all_of_them_give():
    stack, inputs = make_stack("gru", 32, 0.2), normal(40, TIME, FEATURES).astype("float32")
    exact = horizon(stack, inputs, projections=32)
    estimates = np.array([horizon(stack, inputs, projections=2, seed=seed) for seed in range(4)])
    assert np.abs(np.sqrt(np.mean(estimates**2, axis=0)) / exact - 1).max() < 0.1
    assert (estimates.std(axis=0) > 0).all()


def test_gates_remember_longer():
    inputs = normal(8, 40, FEATURES).astype("float32")
    simple, gated = make_stack("simple", 16, 0.1), make_stack("lstm", 16, 0.1)
    kernel, bias = simple.recurrences[0].cell.recurrent_kernel, gated.recurrences[0].cell.bias
    kernel.assign(0.8 * kernel / np.abs(np.linalg.eigvals(kernel.numpy())).max())
    bias.assign(np.repeat([0.0, 5.0, 0.0, 0.0], 16))  # the second is the forget gate's
    curves = horizon(simple, inputs), horizon(gated, inputs)
    # The first falls at least as the powers of its spectral radius, the second as those of sigmoid(5) = 0.993.
    assert curves[0][30] < 0.8**30 * curves[0][0]
    assert curves[1][30] > 0.5 * curves[1][0]
    assert reach(curves[0]) < 40 == reach(curves[1])


def test_reach_is_the_first_lag_past_the_peak_that_is_forgotten():
    assert reach(np.array([0.001, 2.0, 0.5, 0.02, 0.5, 0.0])) == 3
    assert reach(np.array([1.0, 0.5, np.nan, np.nan])) == 2
    assert reach(np.array([1.0, 0.5, 0.3])) == 3
    assert reach(np.zeros(4)) == 0


@pytest.mark.parametrize(
    "curves",
    [{"one": np.array([1, 0.1, 0.01]), "two": np.array([3, 0, np.nan])}, {"none": np.zeros(3)}, {}],
    ids=["two", "nothing", "none"],
)
def test_the_picture_is_one(curves, recwarn):
    picture = draw(curves)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert len(np.unique(picture)) > 10


class Counting(keras.Model):
    """Two stacks, what the first one said last, and how many calls there were."""

    def __init__(self):
        super().__init__()
        self.below = RecurrentStack("lstm", UNITS, name="below")
        self.above = RecurrentStack("gru", UNITS, name="above")

    def build(self, inputs_shape=None):
        self.below.build((None, None, FEATURES))
        self.above.build((None, None, UNITS))
        self.carried = self.add_weight(shape=(20, UNITS), initializer="ones", trainable=False)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs, training=None):
        outputs, _ = self.below(inputs["x"], mask=inputs["mask"], training=training)
        state = [[tf.identity(self.carried.value)]]
        self.carried.assign(outputs[:, -1])
        self.calls.assign_add(1.0)
        return self.above(outputs, initial_state=state, training=training)[0]


def test_every_stack_is_looked_at_on_what_it_reads_and_the_model_stays_as_it_was():
    model = Counting()
    model.build()
    x, mask = normal(20, TIME, FEATURES).astype("float32"), np.tile(MASK[:2], (10, 1))
    before = [variable.numpy() for variable in model.variables]
    found = horizons(model, {"x": tf.constant(x), "mask": tf.constant(mask)})
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert not any("call" in vars(stack) for stack in (model.below, model.above))
    between, _ = model.below(x, mask=mask)
    ones = [[np.ones((16, UNITS), "float32")]]
    expected = {
        "below": horizon(model.below, x[:16], mask=mask[:16]),
        "above": horizon(model.above, between[:16], initial_state=ones),
    }
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def read_tables(text):
    """Title -> column -> numbers."""
    tables = {}
    for block in text.strip().split("\n\n"):
        title, names, *rows = block.splitlines()
        numbers = np.array([row.split() for row in rows], float).T
        tables[title] = dict(zip(names.split(), numbers, strict=True))
    return tables


def test_the_command_prints_and_draws(tmp_path, capsys):
    output = tmp_path / "picture.png"
    words = ["--cells", "lstm", "relu", "--units", "8", "--steps", "11", "--output", str(output)]
    assert main(words) == 0
    first = capsys.readouterr().out
    (norms,) = read_tables(first).values()
    assert list(norms) == ["k", "lstm", "relu"] and norms["k"].tolist() == [0, 1, 2, 5, 10]
    assert (np.diff(norms["lstm"]) < 0).all() and norms["relu"][-1] > 10 * norms["lstm"][-1] > 0
    with Image.open(output) as image:
        assert image.format == "PNG"
    assert main(words) == 0 and capsys.readouterr().out == first


def test_training_lets_a_cell_recall_what_it_has_time_for(tmp_path, capsys):
    words = ["--cells", "gru", "--units", "24", "--steps", "2", "--train", "copy", "--updates", "300"]
    assert main([*words, "--output", str(tmp_path / "picture.png")]) == 0
    _, accuracies = read_tables(capsys.readouterr().out).values()
    assert accuracies["delay"].tolist() == [0, 1, 2]
    assert accuracies["gru"].min() > 60  # by chance it would be 12.5


@pytest.mark.parametrize("words", [["--units", "0"], ["--steps", "0"], ["--output", "nowhere/at/all.png"]])
def test_what_cannot_work_is_one_line(words, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"error: {words[0]}: ") and captured.err.count("\n") == 1

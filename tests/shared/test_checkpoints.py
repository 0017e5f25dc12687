"""What was saved comes back bit for bit, and training goes on the same way; damage costs a round, not a run."""

import dataclasses
import json
import logging

import keras
import numpy as np
import pytest

from shared import checkpoints
from shared.checkpoints import Progress, restore_best, restore_round, save_best, save_round
from shared.config import RunError, TrainingConfig
from shared.optimization import build_optimizer

INPUTS = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
TARGETS = INPUTS[:, :1] ** 2


class Net(keras.Model):
    """Layers in nested lists, as the translator's bridge has them, and dropout with its own random generator."""

    def __init__(self):
        super().__init__()
        self.pairs = [[keras.layers.Dense(4), keras.layers.Dense(4)] for _ in range(2)]
        self.dropout = keras.layers.Dropout(0.5)
        self.last = keras.layers.Dense(1)

    def build(self, inputs_shape=None):
        for (left, right), size in zip(self.pairs, (3, 4), strict=True):
            left.build((None, size))
            right.build((None, size))
        self.last.build((None, 4))
        self.built = True

    def call(self, inputs, training=None):
        for left, right in self.pairs:
            inputs = left(inputs) + keras.ops.tanh(right(inputs))
        return self.last(self.dropout(inputs, training=training))


def make_model(seed=1, precision="float32"):
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision)
    try:
        model = Net()
    finally:
        keras.config.set_dtype_policy("float32")
    model.build()
    config = TrainingConfig(average=0.9, warmup_steps=2)
    model.compile(build_optimizer(config, 100), loss="mse", run_eagerly=True, auto_scale_loss=True)
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, steps):
    for _ in range(steps):
        model.train_on_batch(INPUTS, TARGETS)
    return model


def state_of(model):
    """Everything that decides the future: weights, random states, optimiser."""
    variables = [*model.variables, *model.optimizer.variables]
    assert any("seed_generator_state" in variable.path for variable in variables)
    return [variable.numpy() for variable in variables]


def assert_equal(state, expected):
    for a, b in zip(state, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip_a_byte,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


def damage_json(path):
    """As a disk that was full leaves it."""
    path = path.with_name(path.name.replace(".weights.h5", ".json"))
    path.write_text(path.read_text()[:40])


@pytest.fixture(scope="module")
def trained():
    """A model in training, which every test takes a step or two further."""
    return train(make_model(), 2)


@pytest.fixture(scope="module")
def fresh():
    """A compiled model with other weights, into which any state may be loaded."""
    return make_model(seed=2)


@pytest.fixture
def saved(trained, tmp_path):
    """A folder with two rounds, which differ, and the states of both."""
    states = []
    for number in (1, 2):
        save_round(tmp_path, train(trained, 1), Progress(round=number, best=[10.5 * number], best_round=number))
        states.append(state_of(trained))
    assert np.any(states[0][0] != states[1][0])
    return tmp_path, states


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_restored_training_goes_the_same_way(tmp_path, precision):
    model, progress = (
        train(make_model(precision=precision), 3),
        Progress(round=7, best=[31.4, -2.5], best_round=5, plateau_round=6),
    )
    save_round(tmp_path, model, progress)
    kept = state_of(model)
    other = train(make_model(seed=2, precision=precision), 1)
    assert restore_round(tmp_path, other) == progress
    assert_equal(state_of(other), kept)
    assert_equal(state_of(train(other, 3)), state_of(train(model, 3)))


def test_without_a_checkpoint_training_starts_afresh(tmp_path):
    model = make_model()
    before = state_of(model)
    assert restore_round(tmp_path / "checkpoints", model) == Progress()
    assert_equal(state_of(model), before)


def test_progress_comes_back_whole(saved, fresh):
    directory, _ = saved
    for value in (None, [0.1 + 0.2], [1e300, -1e-300]):
        progress = Progress(**{field.name: 3 for field in dataclasses.fields(Progress)} | {"best": value})
        save_round(directory, fresh, progress)
        assert restore_round(directory, fresh) == progress


@pytest.mark.parametrize("damage", [*DAMAGES.values(), damage_json], ids=[*DAMAGES, "json"])
def test_behind_a_damaged_checkpoint_is_a_good_one(saved, fresh, damage, caplog):
    directory, states = saved
    damage(directory / "round-00002.weights.h5")
    with caplog.at_level(logging.WARNING):
        assert restore_round(directory, fresh) == Progress(round=1, best=[10.5], best_round=1)
    assert_equal(state_of(fresh), states[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "round-00002.weights.h5 is damaged" in caplog.text


def test_a_round_killed_between_its_two_files_does_not_count(saved, trained, fresh, monkeypatch):
    directory, states = saved
    write = checkpoints.write_atomically

    def killed(path, content):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", killed)
    for number in (3, 2):  # a new round, and one that is written over
        with pytest.raises(KeyboardInterrupt):
            save_round(directory, train(trained, 1), Progress(round=number))
        good = 2 if number == 3 else 1
        assert restore_round(directory, fresh).round == good
        assert_equal(state_of(fresh), states[good - 1])


def test_when_all_are_damaged_nothing_is_guessed(saved, fresh):
    directory, _ = saved
    for path in directory.glob("round-*.weights.h5"):
        flip_a_byte(path)
    with pytest.raises(RunError, match="every checkpoint is damaged") as raised:
        restore_round(directory, fresh)
    assert "\n" not in str(raised.value)


def test_the_last_two_rounds_are_kept(saved, trained):
    directory, _ = saved
    save_best(directory, trained, Progress(round=2))
    for number in (3, 4, 100):
        save_round(directory, trained, Progress(round=number))
    stems = ("best", "round-00004", "round-00100")
    expected = sorted(f"{stem}.{ending}" for stem in stems for ending in ("json", "weights.h5"))
    assert sorted(path.name for path in directory.iterdir()) == expected
    assert restore_round(directory, trained).round == 100


def test_best_are_the_weights_that_were_best(saved, trained, fresh):
    directory, _ = saved
    best = [weight.numpy() for weight in trained.weights]
    save_best(directory, trained, Progress(round=2, best=[21.0], best_round=2))
    save_round(directory, train(trained, 1), Progress(round=3, best=[21.0], best_round=2))
    assert restore_best(directory, fresh) == Progress(round=2, best=[21.0], best_round=2)
    assert_equal([weight.numpy() for weight in fresh.weights], best)


@pytest.mark.parametrize("damage", [*DAMAGES.values(), damage_json], ids=[*DAMAGES, "json"])
def test_behind_damaged_best_weights_are_the_last_ones(saved, trained, fresh, damage, caplog):
    directory, states = saved
    save_best(directory, trained, Progress(round=2))
    damage(directory / "best.weights.h5")
    with caplog.at_level(logging.WARNING):
        assert restore_best(directory, fresh).round == 2
    assert_equal(state_of(fresh), states[1])
    assert "best.weights.h5 is damaged; taking the last round's weights" in caplog.text


def test_there_is_no_best_before_the_first_round(tmp_path, fresh):
    with pytest.raises(RunError, match="no checkpoint yet"):
        restore_best(tmp_path, fresh)


def test_a_disk_that_takes_nothing_is_a_run_error_and_leaves_what_was_there(saved, trained, fresh, monkeypatch):
    directory, states = saved
    (directory / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_round(directory / "file", trained, Progress(round=3))

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(RunError, match="No space left on device"):
        save_round(directory, train(trained, 1), Progress(round=3))
    assert restore_round(directory, fresh).round == 2
    assert_equal(state_of(fresh), states[1])


def test_weights_are_in_keras_own_format(saved, trained, fresh):
    directory, _ = saved
    fresh.load_weights(directory / "round-00002.weights.h5")
    assert_equal([weight.numpy() for weight in fresh.weights], [weight.numpy() for weight in trained.weights])
    assert json.loads((directory / "round-00002.json").read_text(encoding="utf-8"))["progress"]["round"] == 2

"""The recogniser: padding and other rows change nothing, the look-ahead is what it says, losses are their sums."""

import itertools

import keras
import numpy as np
import pytest

from shared.losses import OwnLoss
from tasks.speech.config import ModelConfig
from tasks.speech.model import Recogniser

COLUMNS, PHONES, LABELS = 3, 7, 6
CELLS = ["simple", "lstm", "gru"]


def make(seed=1, **options):
    keras.utils.set_random_seed(seed)
    model = Recogniser(ModelConfig(**{"units": 4, "layers": 2, "head": "both", **options}), COLUMNS, PHONES, LABELS)
    model.build()
    return model


def sound(steps, seed=1):
    return np.random.default_rng(seed).normal(size=(1, steps, COLUMNS)).astype("float32")


def together(*rows):
    batch = np.zeros((len(rows), max(row.shape[1] for row in rows), COLUMNS), "float32")
    for place, row in zip(batch, rows, strict=True):
        place[: row.shape[1]] = row[0]
    return batch, np.array([row.shape[1] for row in rows], "int32")


def inputs_of(rows, frame_phones, labels):
    features, lengths = together(*rows)
    return {
        **{"features": features, "lengths": lengths, "frame_phones": np.array(frame_phones, "int32")},
        "labels": np.array(labels, "int32"),
    }


@pytest.mark.parametrize("options", [{}, {"bidirectional": False}, {"bidirectional": False, "look_ahead": 2}])
@pytest.mark.parametrize("cell", CELLS)
def test_an_utterance_beside_one_ten_times_longer_is_heard_as_alone(cell, options):
    model, short, long = make(cell=cell, **options), sound(6), sound(60, seed=2)
    alone, batch = model.logits(*together(short)), model.logits(*together(short, long))
    for head, logits in alone.items():
        np.testing.assert_allclose(batch[head][0, :6], logits[0], atol=1e-5)


@pytest.mark.parametrize("look_ahead", [0, 3])
def test_one_direction_hears_as_far_ahead_as_it_says(look_ahead):
    model, frames = make(bidirectional=False, look_ahead=look_ahead), sound(9)
    other = frames.copy()
    other[:, 6] += 1
    lengths = np.array([9], "int32")
    differences = np.abs(model.logits(frames, lengths)["frames"] - model.logits(other, lengths)["frames"]).max(
        axis=(0, 2)
    )
    assert np.all(differences[: 6 - look_ahead] == 0) and np.all(differences[6 - look_ahead :] > 0)


def test_both_directions_hear_everything():
    model, frames = make(), sound(9)
    other = frames.copy()
    other[:, 6] += 1
    lengths = np.array([9], "int32")
    assert np.all(
        np.abs(model.logits(frames, lengths)["ctc"] - model.logits(other, lengths)["ctc"]).max(axis=(0, 2)) > 0
    )


def test_frames_without_a_phone_cost_nothing():
    model = make(head="frames")
    inputs = inputs_of([sound(4)], [[4, 0, 5, 6]], [[0]])
    losses, logits = (
        np.array(model(inputs))[0],
        np.array(model.logits(inputs["features"], inputs["lengths"])["frames"])[0],
    )
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(losses, [-log_probs[0, 4], 0, -log_probs[2, 5], -log_probs[3, 6]], atol=1e-5)


def spelled(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def test_the_ctc_loss_sums_over_all_paths_and_is_spread_over_the_steps():
    model = make(head="ctc")
    rows, labels = [sound(4), sound(3, seed=3)], [[4, 4], [5, 0]]
    inputs = inputs_of(rows, np.zeros((2, 4)), labels)
    losses = np.array(model(inputs))
    logits = np.array(model.logits(inputs["features"], inputs["lengths"])["ctc"], "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for row, (steps, wanted) in enumerate([(4, (4, 4)), (3, (5,))]):
        total = sum(
            np.prod([probabilities[row, t, symbol] for t, symbol in enumerate(path)])
            for path in itertools.product(range(LABELS), repeat=steps)
            if spelled(path) == wanted
        )
        np.testing.assert_allclose(losses[row, :steps], -np.log(total) / steps, rtol=1e-4)
    weights = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], "float32")
    expected = sum(losses[row, 0] * steps for row, steps in enumerate((4, 3))) / 7
    assert float(OwnLoss()(np.zeros((2, 4)), losses, sample_weight=weights)) == pytest.approx(expected, rel=1e-5)


def test_with_both_heads_the_losses_are_weighted():
    inputs = inputs_of([sound(4)], [[4, 4, 5, 6]], [[4, 5]])
    both = make(ctc_weight=0.25)
    parts = []
    for head in ("frames", "ctc"):
        one = make(head=head)
        one.stack.set_weights(both.stack.get_weights())
        one.heads[head].set_weights(both.heads[head].get_weights())
        parts.append(np.array(one(inputs)))
    np.testing.assert_allclose(both(inputs), 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-5)


@pytest.mark.parametrize("head", ["frames", "ctc", "both"])
def test_every_weight_learns_and_is_saved(head, tmp_path):
    model = make(head=head)
    before = model.get_weights()
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss=OwnLoss(), jit_compile=False)
    inputs = inputs_of([sound(5), sound(4, seed=2)], [[4, 5, 6, 6, 5], [4, 4, 4, 4, 0]], [[4, 5], [5, 0]])
    model.train_on_batch(inputs, np.zeros((2, 5)), sample_weight=np.ones((2, 5)))
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True))
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(seed=2, head=head)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model(inputs), other(inputs))

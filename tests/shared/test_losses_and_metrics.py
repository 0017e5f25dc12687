"""The loss is the mean over real tokens, smoothed as Keras smooths dense targets; weights count the tokens."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.losses import OwnLoss, TokenCrossEntropy, token_cross_entropy
from shared.metrics import TokenCount

IDS = 7
RANDOM = np.random.default_rng(1)
TARGETS = RANDOM.integers(1, IDS, (3, 5)).astype("int32")
WEIGHTS = (np.arange(5) < np.array([[5], [2], [1]])).astype("float32")
TARGETS[WEIGHTS == 0] = 0
LOGITS = 2 * RANDOM.normal(size=(3, 5, IDS)).astype("float32")


def nats(logits):
    """-log p of every target, (batch, time)."""
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_probs, TARGETS[..., None], axis=-1)[..., 0]


def test_loss_is_the_mean_over_real_tokens():
    expected = np.sum(nats(LOGITS) * WEIGHTS) / np.sum(WEIGHTS)
    np.testing.assert_allclose(TokenCrossEntropy()(TARGETS, LOGITS, sample_weight=WEIGHTS), expected, rtol=1e-6)
    assert abs(np.mean(nats(LOGITS) * WEIGHTS) - expected) > 0.1  # what it would be if padding counted


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_smoothing_is_that_of_dense_targets(smoothing):
    dense = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    expected = np.sum(dense(np.eye(IDS, dtype="float32")[TARGETS], LOGITS) * WEIGHTS) / np.sum(WEIGHTS)
    loss = TokenCrossEntropy(smoothing)(TARGETS, LOGITS, sample_weight=WEIGHTS)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_every_token_has_its_own_cross_entropy(smoothing):
    found = token_cross_entropy(TARGETS, LOGITS, smoothing)
    assert found.shape == TARGETS.shape and found.dtype == tf.float32
    log_probs = LOGITS - np.log(np.exp(LOGITS).sum(axis=-1, keepdims=True))
    expected = (1 - smoothing) * nats(LOGITS) - smoothing * log_probs.mean(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mean = np.sum(expected * WEIGHTS) / np.sum(WEIGHTS)
    np.testing.assert_allclose(TokenCrossEntropy(smoothing)(TARGETS, LOGITS, sample_weight=WEIGHTS), mean, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_has_no_gradient(smoothing):
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = TokenCrossEntropy(smoothing)(TARGETS, logits, sample_weight=WEIGHTS)
    gradient = tape.gradient(loss, logits).numpy()
    assert np.all(gradient[WEIGHTS == 0] == 0) and np.all(np.abs(gradient[WEIGHTS == 1]).max(axis=-1) > 0)


def test_smoothing_is_lowest_at_the_smoothed_distribution():
    smoothed = 0.9 * np.eye(IDS)[TARGETS] + 0.1 / IDS
    loss = TokenCrossEntropy(0.1)
    best = float(loss(TARGETS, np.log(smoothed).astype("float32"), sample_weight=WEIGHTS))
    assert best == pytest.approx(-np.sum(smoothed[0, 0] * np.log(smoothed[0, 0])), rel=1e-5)
    assert best < float(loss(TARGETS, np.log(smoothed**1.1).astype("float32"), sample_weight=WEIGHTS))
    assert best < float(loss(TARGETS, np.log(smoothed**0.9).astype("float32"), sample_weight=WEIGHTS))


def test_losses_that_a_model_computes_itself_are_averaged_over_real_tokens():
    losses = nats(LOGITS).astype("float32")
    expected = np.sum(losses * WEIGHTS) / np.sum(WEIGHTS)
    np.testing.assert_allclose(OwnLoss()(TARGETS, losses, sample_weight=WEIGHTS), expected, rtol=1e-6)
    np.testing.assert_allclose(OwnLoss()(0 * TARGETS, losses, sample_weight=WEIGHTS), expected, rtol=1e-6)
    assert abs(np.mean(losses * WEIGHTS) - expected) > 0.1


def test_tokens_are_the_sum_of_the_weights_since_the_reset():
    metric = TokenCount()
    metric.update_state(TARGETS, LOGITS, sample_weight=WEIGHTS)
    metric.update_state(TARGETS[:1], LOGITS[:1], sample_weight=0.5 * WEIGHTS[:1])
    assert float(metric.result()) == 8 + 2.5
    metric.reset_state()
    assert float(metric.result()) == 0


def test_keras_loop_hands_the_weights_to_both():
    model = keras.Sequential([keras.layers.Embedding(IDS, IDS)])
    model.compile(loss=TokenCrossEntropy(), weighted_metrics=[TokenCount()], run_eagerly=True)
    values = model.evaluate(TARGETS, TARGETS, sample_weight=WEIGHTS, batch_size=3, return_dict=True, verbose=0)
    expected = np.sum(nats(model(TARGETS).numpy()) * WEIGHTS) / np.sum(WEIGHTS)
    assert values["tokens"] == 8 and values["loss"] == pytest.approx(expected, rel=1e-5)

"""Losses over padded batches of token ids, with their mean taken over real tokens only."""

import keras
from keras import ops

from shared.cpu import affine, cross_entropy, own_kernels, word_cross_entropy


def token_cross_entropy(targets, logits, label_smoothing=0.0):
    """Cross-entropy of every token in nats, optionally with label smoothing.

    With smoothing e the target distribution is (1 - e) on the right id plus e spread evenly over all ids (Szegedy et
    al. 2016, section 7), and the loss

        (1 - e) nll + e mean_v(-log p_v) = log sum_v exp(logit_v) - logit_right + e (logit_right - mean_v(logit_v)).

    Written like this it needs no one-hot tensor. On a CPU it is one of `shared.cpu`, which XLA cannot
    compile.

    Args:
        targets: (batch, time) ids.
        logits: (batch, time, ids).
        label_smoothing: e, in [0, 1).

    Returns:
        (batch, time).
    """
    targets = ops.cast(targets, "int32")  # Keras hands them to a loss as floats
    logits = ops.convert_to_tensor(logits)
    if own_kernels(logits.dtype):
        return cross_entropy(targets, logits, label_smoothing)
    # Out of one long row: the gradient of a take along the last axis needs twice the time of all the rest.
    ids = ops.reshape(targets, (-1,))
    places = ops.arange(ops.size(ids)) * ops.shape(logits)[-1] + ids
    right = ops.reshape(ops.take(ops.reshape(logits, (-1,)), places), ops.shape(targets))
    losses = ops.logsumexp(logits, axis=-1) - right
    if label_smoothing:
        losses = losses + label_smoothing * (right - ops.mean(logits, axis=-1))
    return losses


def word_losses(targets, outputs, embeddings, bias, label_smoothing=0.0):
    """`token_cross_entropy` of the scores E outputs + b of all words, which on a CPU are not kept.

    Args:
        targets: (batch, time) ids.
        outputs: (batch, time, units). embeddings: E, (words, units). bias: b, (words,).
        label_smoothing: see there.

    Returns:
        (batch, time).
    """
    if own_kernels(outputs.dtype):
        return word_cross_entropy(ops.cast(targets, "int32"), outputs, embeddings, bias, label_smoothing)
    logits = affine(outputs, ops.cast(embeddings, outputs.dtype), bias, transposed=True)
    return token_cross_entropy(targets, logits, label_smoothing)


class TokenCrossEntropy(keras.losses.Loss):
    """`token_cross_entropy`, averaged over the tokens with weight.

    Called with y_true (batch, time) ids, y_pred (batch, time, ids) logits and sample_weight (batch, time), it returns a
    scalar in nats per token.
    """

    def __init__(self, label_smoothing=0.0, name="token_cross_entropy"):
        # The default reduction would count padding in the mean's divisor.
        super().__init__(name=name, reduction="mean_with_sample_weight")
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        """Cross-entropy of every token, (batch, time)."""
        return token_cross_entropy(y_true, y_pred, self.label_smoothing)


class OwnLoss(keras.losses.Loss):
    """The mean of the losses y_pred (batch, time) that a model computes itself, over the steps with weight."""

    def __init__(self, name="own_loss"):
        super().__init__(name=name, reduction="mean_with_sample_weight")

    def call(self, y_true, y_pred):
        """Losses (batch, time) to be averaged."""
        return y_pred

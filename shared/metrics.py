"""Metrics that Keras does not have."""

import keras
from keras import ops


class TokenCount(keras.metrics.Sum):
    """Tokens seen since the last reset: the sum of the weights, given among `weighted_metrics`."""

    def __init__(self, name="tokens"):
        super().__init__(name=name)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds the weights (batch, time)."""
        super().update_state(ops.sum(sample_weight))

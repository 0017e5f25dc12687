"""The layer-normalised LSTM, one step of it: Ba, Kiros & Hinton 2016, equations 20-22.

    (i, f, g, o) = LN(U x_t) * p + LN(W h_{t-1}) * q + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(LN(c_t) * r + s)

LN(a) = (a - mean a) / sqrt(variance a + EPSILON) over all entries of a vector, for U x and W h over those of all four
gates together. The paper's biases of the first two are b already. `cells` has the same for whole sequences.
"""

import keras
from keras import ops

from shared.recurrent.cells import EPSILON


def normalise(values):
    """LN of values (..., size), in float32 at least."""
    given = values.dtype
    values = ops.cast(values, keras.backend.result_type(given, "float32"))
    values = values - ops.mean(values, axis=-1, keepdims=True)
    return ops.cast(values * ops.rsqrt(ops.mean(values * values, axis=-1, keepdims=True) + EPSILON), given)


@keras.saving.register_keras_serializable("unroll")
class LayerNormLSTMCell(keras.layers.LSTMCell):
    """One step: inputs (batch, features) and [h, c], both (batch, units) -> h, [h, c].

    Args:
        units: size of the state.
        **arguments: Keras' of an LSTM cell. Raises ValueError without a bias, or with recurrent dropout.
    """

    def __init__(self, units, **arguments):
        super().__init__(units, **arguments)
        if self.recurrent_dropout or not self.use_bias:
            raise ValueError("a layer-normalised LSTM has a bias, and no recurrent dropout: use weight_drop or zoneout")

    def build(self, inputs_shape):
        """Keras' weights: U (features, 4 units), W (units, 4 units), b; then p, q (4 units,), r, s (units,)."""
        super().build(inputs_shape)
        units = self.units
        self.input_gain = self.add_weight(shape=(4 * units,), initializer="ones", name="input_gain")
        self.recurrent_gain = self.add_weight(shape=(4 * units,), initializer="ones", name="recurrent_gain")
        self.cell_gain = self.add_weight(shape=(units,), initializer="ones", name="cell_gain")
        self.cell_bias = self.add_weight(shape=(units,), initializer="zeros", name="cell_bias")

    def call(self, inputs, states, training=False):
        """See the class."""
        h, c = states
        if training and self.dropout:
            inputs = inputs * self.get_dropout_mask(inputs)
        gates = normalise(ops.matmul(inputs, self.kernel)) * self.input_gain + self.bias
        gates = gates + normalise(ops.matmul(h, self.recurrent_kernel)) * self.recurrent_gain
        i, f, g, o = ops.split(gates, 4, axis=-1)
        c = self.recurrent_activation(f) * c + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(normalise(c) * self.cell_gain + self.cell_bias)
        return h, [h, c]

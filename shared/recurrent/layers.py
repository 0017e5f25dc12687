"""The three recurrent layers every task builds from: simple, LSTM and GRU, made in one place with one set of defaults.

simple  s_t = tanh(U x_t + W s_{t-1} + b)                                  Elman 1990
LSTM    c_t = f_t * c_{t-1} + i_t * tanh(U_c x_t + W_c h_{t-1} + b_c)      Hochreiter & Schmidhuber 1997, Gers 2000
        h_t = o_t * tanh(c_t), with i, f, o = sigmoid(U x_t + W h_{t-1} + b), each with its own U, W, b
GRU     h_t = z_t * h_{t-1} + (1 - z_t) * tanh(U_h x_t + r_t * (W_h h_{t-1} + b_h))      Cho et al. 2014
        with z, r = sigmoid(U x_t + W h_{t-1} + b); the reset gate r acts after the product, as in cuDNN
"""

import keras
import tensorflow as tf
from keras import layers

CELLS = {"simple": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}


def recurrent_layer(cell: str, units: int, **arguments) -> layers.RNN:
    """One recurrent layer that returns (outputs, *final_state).

    Outputs at masked steps are zero on every device: cuDNN writes zeros there and the generic loop would repeat the
    last output, so the generic loop is told to do the same.

    Args:
        cell: "simple", "lstm" or "gru".
        units: size of the state.
        **arguments: passed on to the Keras layer.

    Returns:
        A layer that maps (batch, time, features) to outputs (batch, time, units) and each final state (batch, units):
        one for simple and GRU, two (h, c) for LSTM.
    """
    return CELLS[cell](
        units,
        return_sequences=True,
        return_state=True,
        zero_output_for_mask=True,
        bias_initializer="zeros",
        **arguments,
    )


def kernel_of(layer: layers.RNN) -> str:
    """Which code runs the layer on this machine: "cudnn" or "keras" (the generic loop, one cell call a step)."""
    fused = isinstance(layer, (layers.LSTM, layers.GRU)) and layer.use_cudnn in ("auto", True)
    return (
        "cudnn"
        if fused and keras.backend.backend() == "tensorflow" and tf.config.list_physical_devices("GPU")
        else "keras"
    )

"""The recurrent layers every task builds from: Keras' own, on a CPU with our own backpropagation through time.

    simple  s_t = tanh(U x_t + W s_{t-1} + b)                                  Elman 1990
    LSTM    c_t = f_t * c_{t-1} + i_t * tanh(U_c x_t + W_c h_{t-1} + b_c)    Hochreiter & Schmidhuber 1997
            h_t = o_t * tanh(c_t), with i, f, o = sigmoid(U x_t + W h_{t-1} + b), each with its own U, W, b
    GRU     h_t = z_t * h_{t-1} + (1 - z_t) * tanh(U_n x_t + b_n + r_t * (W_n h_{t-1} + c_n))      Cho et al. 2014
            with z, r = sigmoid(U x_t + W h_{t-1} + b); the reset gate r acts after the product, as in cuDNN

and the layer-normalised LSTM of `layer_norm`, which Keras does not have. The others take the same arguments, have the
same weights and give the same results as Keras'; they differ in `inner_loop` alone. On a GPU cuDNN runs what it covers,
on a CPU `shared.recurrent.bptt`, and Keras' generic loop the rest: other activations, recurrent dropout, no bias, a
mask without zero_output_for_mask. XLA compiles the generic loop only: it needs `use_bptt=False`, and on a GPU
`use_cudnn=False` for LSTM and GRU. What Keras' loop and cuDNN cannot do, `_cell_loop` does.
"""

import functools

import keras
import tensorflow as tf
from keras import ops

from shared.cpu import affine, own_kernels
from shared.recurrent import bptt
from shared.recurrent.layer_norm import LayerNormLSTMCell, normalise


class OwnLoop:
    """What our layers add to Keras': their `inner_loop`, weight-drop, truncation inside a sequence, and zoneout.

    Args:
        use_bptt: whether this project's kernel may run the layer. XLA cannot compile it, so Keras does not try to where
            a model has such a layer.
        weight_drop: share of the entries of W that is dropped, one mask for all steps of a sequence and the whole batch
            (DropConnect on the recurrent matrix; Merity, Keskar & Socher 2018, section 3). Since the matrix is dropped
            and not the cell changed, every kernel takes it, cuDNN's too.
        truncate: number of steps, k, after which backpropagation is cut: no gradient goes from step jk, counted from 0
            in the order of reading, to the state that step jk - 1 left. Results are the same, and gradients those of
            blocks of k steps that hand the state on as a constant; the first block has the initial state's gradient.
            0 for never. This is BPTT(h; h') of Williams & Peng 1990 with h = h' = k, and truncated BPTT with
            k1 = k2 = k in Sutskever's thesis of 2013.
        zoneout: probability, z, with which a unit of the state keeps its old value in training, drawn anew for each
            step, row and unit (Krueger et al. 2017). At inference the state is the expectation,
            s_t = z s_{t-1} + (1 - z) s~_t, where s~_t is what the cell gives. c and h of an LSTM are drawn apart, both
            at this rate, and h~_t = o_t * tanh(c~_t).
        **arguments: Keras'.
    """

    stepwise = False  # set by an owner that calls the cell itself at every step

    def __init__(self, *positional, use_bptt=True, weight_drop=0.0, truncate=0, zoneout=0.0, **arguments):
        super().__init__(*positional, **arguments)
        self.use_bptt = use_bptt
        self.supports_jit = self.supports_jit and not use_bptt
        self.weight_drop = weight_drop
        self.truncate = truncate
        if weight_drop:
            self.weight_drop_seed = keras.random.SeedGenerator()
        self.zoneout = zoneout
        if zoneout:
            self.zoneout_seed = keras.random.SeedGenerator()

    def build(self, sequences_shape, initial_state_shape=None):
        """As Keras'."""
        super().build(sequences_shape, initial_state_shape)
        for weight in (self.cell.kernel, self.cell.recurrent_kernel):
            weight.matrices = weight.shape[1] // self.units  # next to each other, as `shared.optimization` has to know

    def get_config(self):
        """As Keras'."""
        own = ("use_bptt", "weight_drop", "truncate", "zoneout")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def step(self, inputs, state):
        """One step at inference: inputs (batch, features) and state, h first -> the new state, as a list."""
        if kernel_of(self) != "bptt":
            return self.cell_step(inputs, state)
        kept = self.draw_kept(1, tf.shape(inputs)[0], training=False)
        inputs, *state = map(tf.convert_to_tensor, (inputs, *state))
        _, state = _kernel_loop(self, inputs[None], state, None, kept, training=False)
        return list(state)

    def cell_step(self, inputs, state, kept=None, training=False):
        """As `step`, by a call of the cell.

        Args:
            kept: (batch, units of all parts of the state), the share of the old state in the new one; None for the
                expectation of zoneout.
            training: whether the cell drops inputs.
        """
        new = keras.tree.flatten(self.cell(inputs, state, training=training)[1])
        if not self.zoneout:
            return new
        shares = [self.zoneout] * len(new) if kept is None else tf.split(kept, len(new), axis=-1)
        return [share * old + (1 - share) * part for share, old, part in zip(shares, state, new, strict=True)]

    def draw_kept(self, time, batch, training):
        """See `cell_step`, for all steps: (time, batch, units of all parts of the state), None without zoneout."""
        if not self.zoneout:
            return None
        shape = (time, batch, sum(keras.tree.flatten(self.state_size)))
        if not training:
            return tf.fill(shape, tf.constant(self.zoneout, self.compute_dtype))
        drawn = keras.random.uniform(shape, seed=self.zoneout_seed, dtype="float32") < self.zoneout
        return tf.cast(drawn, self.compute_dtype)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """As Keras', see the module."""
        if not (training and self.weight_drop):
            return self._inner_loop(sequences, initial_state, mask, training)
        attributes, W = vars(self.cell), self.cell.recurrent_kernel
        dropped = keras.random.dropout(ops.convert_to_tensor(W), self.weight_drop, seed=self.weight_drop_seed)
        try:
            attributes["recurrent_kernel"] = dropped
            return self._inner_loop(sequences, initial_state, mask, training)
        finally:
            attributes["recurrent_kernel"] = W

    def _inner_loop(self, sequences, initial_state, mask, training):
        kernel = kernel_of(self, mask)
        if kernel == "bptt":
            loop = _kernel_loop
        elif kernel == "cudnn":
            loop = _cudnn_loop
        elif self.truncate or self.zoneout:
            loop = _cell_loop
        else:  # not what the subclass of it does, which may be cuDNN
            return keras.layers.RNN.inner_loop(self, sequences, initial_state, mask, training=training)
        return _whole_sequences(loop, self, sequences, initial_state, mask, training)


@keras.saving.register_keras_serializable("unroll")
class SimpleRNN(OwnLoop, keras.layers.SimpleRNN):
    """`keras.layers.SimpleRNN`, tanh or ReLU; on a GPU cuDNN's, which Keras does not take."""

    @property
    def use_cudnn(self):
        """Keras' simple network has no such argument; XLA, which wants `use_bptt` to be False, cannot compile it."""
        return self.use_bptt

    @property
    def equations(self):
        """The cell's name for `bptt.unroll`."""
        return self.cell.activation.__name__


@keras.saving.register_keras_serializable("unroll")
class LSTM(OwnLoop, keras.layers.LSTM):
    """`keras.layers.LSTM`."""

    equations = "lstm"


@keras.saving.register_keras_serializable("unroll")
class GRU(OwnLoop, keras.layers.GRU):
    """`keras.layers.GRU`."""

    equations = "gru"


@keras.saving.register_keras_serializable("unroll")
class LayerNormLSTM(OwnLoop, keras.layers.RNN):
    """The LSTM of `layer_norm`; its arguments, weights and results are those of `keras.layers.LSTM` otherwise.

    Args:
        units: size of the state.
        dropout: share of the inputs that is dropped, one mask for all steps; seed: of it.
        unit_forget_bias: whether the bias of the forget gate is 1 at first, not 0.
        **arguments: those of `keras.layers.RNN`, and OwnLoop's.
    """

    equations = "layer_norm_lstm"
    use_cudnn = False

    def __init__(self, units, dropout=0.0, seed=None, unit_forget_bias=True, dtype=None, **arguments):
        of_cell = {"dropout": dropout, "seed": seed, "unit_forget_bias": unit_forget_bias, "dtype": dtype}
        super().__init__(LayerNormLSTMCell(units, **of_cell), dtype=dtype, **arguments)
        self.units = units

    def get_config(self):
        """As Keras'."""
        config = super().get_config()
        del config["cell"]
        of_cell = {name: getattr(self.cell, name) for name in ("units", "dropout", "seed", "unit_forget_bias")}
        return {**config, **of_cell}

    @classmethod
    def from_config(cls, config):
        """As Keras'."""
        return cls(**config)


CELLS = {
    "simple": SimpleRNN,
    # With W = 1 at first, a rectified network hands its state on unchanged: Le, Jaitly & Hinton 2015.
    "relu": functools.partial(SimpleRNN, activation="relu", recurrent_initializer="identity"),
    "lstm": LSTM,
    "gru": GRU,
    "layer_norm_lstm": LayerNormLSTM,
}
STATE_PARTS = {"simple": 1, "relu": 1, "lstm": 2, "gru": 1, "layer_norm_lstm": 2}  # h, and c of an LSTM


def recurrent_layer(cell: str, units: int, **arguments) -> keras.layers.RNN:
    """One recurrent layer that returns (outputs, *final_state).

    Outputs at masked steps are zero on every device: cuDNN writes zeros there and the generic loop would repeat the
    last output, so the generic loop is told to do the same.

    Args:
        cell: a key of CELLS; "relu" is a simple cell with ReLU for tanh.
        units: size of the state.
        **arguments: passed on to the layer.

    Returns:
        A layer that maps (batch, time, features) to outputs (batch, time, units) and each final state (batch, units):
        one for simple and GRU, two (h, c) for both LSTMs.
    """
    return CELLS[cell](units, return_sequences=True, return_state=True, zero_output_for_mask=True, **arguments)


def kernel_of(layer: keras.layers.RNN, mask=None) -> str:
    """Which code runs the layer on this machine: "cudnn", "bptt" (this project's) or "keras" (one cell call a step)."""
    if layer.stepwise:
        return "keras"
    cell, gated = layer.cell, not isinstance(layer, SimpleRNN)
    plain = cell.use_bias and not cell.recurrent_dropout and not layer.unroll and getattr(cell, "reset_after", True)
    known = cell.activation.__name__ in (("tanh",) if gated else ("tanh", "relu"))
    known = known and (not gated or cell.recurrent_activation.__name__ == "sigmoid")
    own_mask = mask is None or layer.zero_output_for_mask
    if tf.config.list_physical_devices("GPU"):
        whole = not (layer.truncate or layer.zoneout)
        return "cudnn" if plain and known and whole and layer.use_cudnn and own_mask else "keras"
    return "bptt" if plain and known and layer.use_bptt and own_mask else "keras"


def _whole_sequences(loop, layer, sequences, initial_state, mask, training):
    """Keras' contract of `inner_loop` over one of the loops below: (last output, outputs, final states).

    The loops take sequences (time, batch, features) in the order of reading, the state, a boolean mask (time, batch) or
    None, and what `draw_kept` gives; they return outputs (time, batch, units) and the final state.
    """
    state = keras.tree.flatten(initial_state)
    mask = keras.tree.flatten(mask)[0] if mask is not None else None
    sequences = tf.transpose(sequences, [1, 0, 2])
    mask = None if mask is None else tf.transpose(tf.cast(mask, tf.bool))
    if layer.go_backwards:
        sequences, mask = tf.reverse(sequences, [0]), None if mask is None else tf.reverse(mask, [0])
    kept = layer.draw_kept(*tf.unstack(tf.shape(sequences)[:2]), training)
    outputs, final = loop(layer, sequences, state, mask, kept, training)
    outputs = tf.transpose(outputs, [1, 0, 2])
    return final[0], outputs if layer.return_sequences else final[0][:, None], list(final)


def _weights(cell, dtype):
    """U, W, b and c. GRU has two biases, for c is multiplied by the reset gate; the others need but one."""
    U, W, bias = (ops.cast(weight, dtype) for weight in (cell.kernel, cell.recurrent_kernel, cell.bias))
    return U, W, *((bias[0], bias[1]) if len(bias.shape) == 2 else (bias, ops.zeros_like(bias)))


def _kernel_loop(layer, sequences, state, mask, kept, training):
    """Our kernel."""
    cell = layer.cell
    if training and cell.dropout:
        sequences = sequences * cell.get_dropout_mask(sequences[0])
    U, W, b, c = _weights(cell, sequences.dtype)
    projection = (U, b)
    if isinstance(layer, LayerNormLSTM):
        sequences = normalise(affine(sequences, U, ops.zeros_like(b))) * ops.cast(cell.input_gain, b.dtype) + b
        gains = (ops.cast(gain, b.dtype) for gain in (cell.recurrent_gain, cell.cell_gain, cell.cell_bias))
        c, projection = tf.concat(list(gains), axis=0), ()
    elif not own_kernels(sequences.dtype):  # some processors have instructions for bfloat16
        sequences, projection = affine(sequences, U, b), ()
    return bptt.unroll(layer.equations, sequences, tuple(state), W, c, projection, mask, kept, layer.truncate)


def _cudnn_loop(layer, sequences, state, mask, kept, training):
    """cuDNN, over all steps of all rows: what a mask shows comes first in its row, and what follows it is left out.

    TensorFlow is told that all rows are whole. It could be told their lengths, but fails then at a batch with padding
    whose shape an earlier one without had (2.21), and leaves gradients of what was not read unwritten.

    In mixed precision it works in float32, as our kernel does. In bfloat16 its LSTM had gradients some thousand times
    too large and its GRU had NaN (2026-11-26).
    """
    cell, compute_dtype = layer.cell, sequences.dtype
    if training and cell.dropout:
        sequences = sequences * cell.get_dropout_mask(sequences[0])
    dtype = tf.float64 if compute_dtype == tf.float64 else tf.float32
    U, W, b, c = _weights(cell, dtype)
    if sequences.shape[-1] != U.shape[0] or any(part.shape[-1] != W.shape[0] for part in state):
        # cuDNN would not notice.
        raise ValueError(f"inputs {sequences.shape} and state {state[0].shape} for weights {U.shape} and {W.shape}")
    inputs, *first = (tf.cast(each, dtype) for each in (sequences, *state))
    is_lstm = layer.equations == "lstm"

    if mask is not None:
        lengths = tf.reduce_sum(tf.cast(mask, tf.int32), axis=0)
        order = tf.argsort(tf.cast(~mask, tf.int32), axis=0, stable=True)
        rows = tf.broadcast_to(tf.range(tf.shape(order)[1]), tf.shape(order))
        shown_first, back = (tf.stack([steps, rows], axis=-1) for steps in (order, tf.argsort(order, axis=0)))
        inputs = _permuted(tf.where(mask[..., None], inputs, 0.0), shown_first, back)
        steps = tf.range(tf.shape(mask)[0])[:, None]
        if is_lstm:
            # The last c is only to be had from the last step. One more feature keeps it until then: i = 0 and f = 1.
            inputs = tf.concat([inputs, tf.cast(steps >= lengths, dtype)[..., None]], axis=-1)
            U = tf.concat([U, tf.repeat(tf.constant([[-100.0, 100.0, 0.0, 0.0]], dtype), layer.units, axis=1)], axis=0)

    def flat(weight):
        columns = tf.transpose(weight)
        if layer.equations == "gru":  # Keras has z before r
            z, r, n = tf.split(columns, 3)
            columns = tf.concat([r, z, n], axis=0)
        return tf.reshape(columns, [-1])

    outputs, h, cells, *_ = tf.raw_ops.CudnnRNNV3(
        input=inputs,
        input_h=first[0][None],
        input_c=first[1][None] if is_lstm else tf.zeros([], dtype),
        params=tf.concat([flat(weight) for weight in (U, W, b, c)], axis=0),
        sequence_lengths=tf.fill(tf.shape(inputs)[1:2], tf.shape(inputs)[0]),
        rnn_mode=layer.equations if isinstance(layer, LSTM | GRU) else f"rnn_{layer.equations}",
    )
    final = [h[0], cells[0]] if is_lstm else [h[0]]
    if mask is not None:
        final[0] = tf.reduce_sum(tf.where((steps == lengths - 1)[..., None], outputs, 0.0), axis=0)
        final = [tf.where(lengths[:, None] > 0, part, old) for part, old in zip(final, first, strict=True)]
        outputs = tf.where(mask[..., None], _permuted(outputs, back, shown_first), 0.0)
    return tf.cast(outputs, compute_dtype), [tf.cast(part, compute_dtype) for part in final]


@tf.custom_gradient
def _permuted(sequences, places, inverse):
    """(time, batch, features) with what stands at places[t, row]; the gradient is gathered too, and not scattered."""
    return tf.gather_nd(sequences, places), lambda gradient: (tf.gather_nd(gradient, inverse), None, None)


def _cell_loop(layer, sequences, state, mask, kept, training):
    """One call of the cell a step, with what Keras' own loop does not know of."""
    time = tf.range(tf.shape(sequences)[0])
    mask = tf.ones(tf.shape(sequences)[:2], tf.bool) if mask is None else mask
    cut = (time > 0) & (time % layer.truncate == 0) if layer.truncate else tf.zeros_like(time, tf.bool)

    def step(before, now):
        output, *state = before
        inputs, shown, cut, kept = now
        state = [tf.where(cut, tf.stop_gradient(part), part) for part in state]
        new = layer.cell_step(inputs, state, kept, training)
        new = [tf.where(shown, new, old) for new, old in zip(new, state, strict=True)]
        hidden = tf.zeros_like(output) if layer.zero_output_for_mask else output
        return tf.where(shown, new[0], hidden), *new

    kept = sequences[..., :0] if kept is None else kept  # a loop wants a tensor
    outputs, *states = tf.scan(step, (sequences, mask[..., None], cut, kept), (tf.zeros_like(state[0]), *state))
    return outputs, [part[-1] for part in states]

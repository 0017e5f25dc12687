"""The attention decoder: a recurrent network that looks into a memory before it answers.

The attention sits BETWEEN the recurrent layers:

    h_t = first layer(x_t, h_{t-1})
    c_t, a_t = attention(h_t, memory)
    s_t = upper layers([h_t, c_t], s_{t-1})
    output_t = tanh(W [s_t, c_t, x_t])          the deep output of Bahdanau et al. 2015, appendix A.2.2

The attention depends on the first layer alone, so a training step runs each layer over the whole sequence in one call,
and the attention of all steps is one product. With attention "none" it is a plain recurrent decoder that knows the
memory only through its initial state (Sutskever, Vinyals & Le 2014).

With input feeding the first layer also reads what the attention found at the step before, so that it knows where it has
looked already (Bahdanau et al. 2015, appendix A.2.2; Luong et al. 2015, section 3.3, feed the output):

    h_t = first layer([x_t, c_{t-1}], h_{t-1}), c_0 = 0

Then the first layer and the attention have to go step by step in training, too; the upper layers do not.

Not every word stands for something in the memory. Two ways to write the others are

    gate        c_t <- sigmoid(w . h_t + b) c_t                  Xu et al. 2015, section 4.2.1
    sentinel    z_t = sigmoid(U x_t + W h_t) * tanh(V h_t)       one more position to look at, which holds what the
                                                                 decoder knows already: Lu et al. 2017, section 2.3
"""

import keras
import tensorflow as tf
from keras import layers, ops

from shared.recurrent.attention import Attention
from shared.recurrent.stack import RecurrentStack


class AttentionDecoder(layers.Layer):
    """Decodes with attention between the first recurrent layer and the others.

    Args:
        cell: a key of `layers.CELLS`.
        units: state size of every recurrent layer.
        num_layers: all recurrent layers; with attention one below it and at least one above.
        output_units: size of the outputs.
        attention: "additive", "dot" or "none".
        attention_units: see Attention.
        residual, dropout: of the recurrent layers, see RecurrentStack. `dropout` also applies to what the upper
            layers read.
        input_feeding: whether the first layer reads what the attention found last.
        gate: "none", "gate" or "sentinel", see the module.
    """

    def __init__(
        self, cell, units, num_layers, output_units, attention="additive", attention_units=256, residual=False,
        dropout=0.0, input_feeding=False, gate="none", **arguments,
    ):  # fmt: skip
        super().__init__(**arguments)
        attends = attention != "none"
        self.first = RecurrentStack(
            cell, units, 1 if attends else num_layers, residual=residual, dropout=dropout, name="first"
        )
        self.attention = Attention(attention, attention_units) if attends else None
        if attends:
            self.upper = RecurrentStack(cell, units, num_layers - 1, residual=residual, dropout=dropout, name="upper")
            self.upper_dropout = layers.Dropout(dropout, noise_shape=(None, 1, None))
        self.gate = layers.Dense(1, activation="sigmoid", name="gate") if gate == "gate" else None
        self.has_sentinel = gate == "sentinel"
        self.input_feeding = input_feeding
        for layer in self.first.recurrences:
            layer.stepwise = input_feeding
        self.readout = layers.Dense(output_units, activation="tanh", name="readout")

    def build(self, inputs_shape, memory_shape):
        """Creates all weights for inputs (batch, time, features) and a memory (batch, positions, memory size)."""
        leading, features = tuple(inputs_shape[:-1]), inputs_shape[-1]
        self.first.build((*leading, features + memory_shape[-1] if self.input_feeding else features))
        units = self.first.output_units
        if self.attention:
            self.attention.build((*leading, units), memory_shape)
            self.upper.build((*leading, units + memory_shape[-1]))
            if self.gate:
                self.gate.build((*leading, units))
            if self.has_sentinel:
                self.sentinel_gate = layers.Dense(memory_shape[-1], activation="sigmoid", name="sentinel_gate")
                self.sentinel_gate.build((*leading, features + units))
                self.sentinel = layers.Dense(memory_shape[-1], activation="tanh", name="sentinel")
                self.sentinel.build((*leading, units))
            units += memory_shape[-1]
        self.readout.build((*leading, units + features))

    @property
    def num_layers(self) -> int:
        """Recurrent layers in all, below and above the attention."""
        return len(self.first.recurrences) + (len(self.upper.recurrences) if self.attention else 0)

    def begin(self, layers_state, memory):
        """The state before the first step: an entry a layer as RecurrentStack's, lowest first.

        With input feeding the context, in an entry of its own, is the last.
        """
        return [*layers_state, [ops.zeros_like(memory[:, 0])]] if self.input_feeding else layers_state

    def call(self, inputs, initial_state, memory, memory_mask, training=None):
        """Runs whole target sequences, each step fed with its true predecessor (teacher forcing).

        Args:
            inputs: (batch, time, features), right-padded; padding needs no mask, for it cannot reach earlier steps.
            initial_state: see `begin`.
            memory: (batch, positions, memory size), not read with attention "none".
            memory_mask: boolean (batch, positions).

        Returns:
            outputs (batch, time, output_units), the final state, and attention weights (batch, time, positions), None
            with attention "none".
        """
        if self.input_feeding:
            below, contexts, weights, first_state = self._feed(inputs, initial_state, memory, memory_mask)
        else:
            below, first_state = self.first(
                inputs, initial_state=initial_state[: len(self.first.recurrences)], training=training
            )
            if not self.attention:
                return self.readout(ops.concatenate([below, inputs], axis=-1)), first_state, None
            contexts, weights = self._attend(inputs, below, self.attention.keys(memory), memory, memory_mask)
        above, upper_state = self.upper(
            self.upper_dropout(ops.concatenate([below, contexts], axis=-1), training=training),
            initial_state=initial_state[1 : self.num_layers],
            training=training,
        )
        outputs = self.readout(ops.concatenate([above, contexts, inputs], axis=-1))
        return outputs, self._state(first_state, upper_state, contexts[:, -1]), weights

    def step(self, inputs, state, keys, memory, memory_mask):
        """One step of the same network, without dropout.

        Args:
            inputs: (batch, features).
            state: as in call.
            keys: `self.attention.keys(memory)`, computed once per search; None with attention "none".

        Returns:
            outputs (batch, output_units), the new state, attention weights (batch, positions) or None.
        """
        if not self.attention:
            below, state = self.first.step(inputs, state)
            return self.readout(ops.concatenate([below, inputs], axis=-1)), state, None
        below, context, weights, first_state = self._look(inputs, state, keys, memory, memory_mask)
        above, upper_state = self.upper.step(ops.concatenate([below, context], axis=-1), state[1 : self.num_layers])
        outputs = self.readout(ops.concatenate([above, context, inputs], axis=-1))
        return outputs, self._state(first_state, upper_state, context), weights

    def _attend(self, inputs, below, keys, memory, memory_mask):
        """Contexts and weights for the first layer's outputs, all (batch, time, ...)."""
        sentinel = None
        if self.has_sentinel:
            sentinel = self.sentinel_gate(ops.concatenate([inputs, below], axis=-1)) * self.sentinel(below)
        contexts, weights = self.attention(below, keys, memory, memory_mask, sentinel)
        return self.gate(below) * contexts if self.gate else contexts, weights

    def _state(self, first, upper, context):
        return [*first, *upper, [context]] if self.input_feeding else [*first, *upper]

    def _look(self, inputs, state, keys, memory, memory_mask):
        """One step of the first layer and the attention: the layer's output, context, weights, the layer's state."""
        read = ops.concatenate([inputs, *state[-1]], axis=-1) if self.input_feeding else inputs
        below, first_state = self.first.step(read, state[:1])
        contexts, weights = self._attend(inputs[:, None], below[:, None], keys, memory, memory_mask)
        return below, contexts[:, 0], weights[:, 0], first_state

    def _feed(self, inputs, initial_state, memory, memory_mask):
        """`_look` at every step in turn: its first three results (batch, time, ...), and the layer's final state."""
        keys = self.attention.keys(memory)

        def look(before, inputs):
            _, context, _, first_state = before
            return self._look(inputs, [*first_state, [context]], keys, memory, memory_mask)

        first_state, context = initial_state[:1], initial_state[-1][0]
        weights = ops.zeros(ops.shape(memory_mask), "float32")
        *sequences, states = tf.scan(
            look, ops.swapaxes(inputs, 0, 1), (first_state[0][0], context, weights, first_state)
        )
        below, contexts, weights = (ops.swapaxes(sequence, 0, 1) for sequence in sequences)
        return below, contexts, weights, keras.tree.map_structure(lambda state: state[-1], states)

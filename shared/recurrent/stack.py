"""A deep recurrent network as a function: (inputs, initial state, mask) -> (outputs, final state)."""

from keras import layers, ops

from shared.recurrent.layers import recurrent_layer


class RecurrentStack(layers.Layer):
    """Recurrent layers on top of each other, in one direction or in both.

    The state is a list with one entry a layer, each a list of tensors (batch, units): [h] for simple and GRU, [h, c]
    for both LSTMs, and the forward states followed by the backward states when bidirectional. None stands for zeros.

    Args:
        cell: a key of `layers.CELLS`.
        units: state size of every layer, for each direction; or a list of them, lowest first.
        num_layers: how many layers.
        bidirectional: whether every layer reads both ways and concatenates the two (Schuster & Paliwal 1997).
        residual: whether each layer but the first adds its input to its output.
        dropout: share of the inputs of every layer but the first that is dropped, with one mask for all steps of a
            sequence (locked dropout; Gal & Ghahramani 2016).
        weight_drop, truncate, zoneout: of every layer, see `layers.OwnLoop`.
        unit_forget_bias: whether the forget gates of an LSTM begin with a bias of 1, that is open, and not of 0
            (Gers, Schmidhuber & Cummins 2000; Jozefowicz, Zaremba & Sutskever 2015).
    """

    def __init__(
        self, cell, units, num_layers=1, bidirectional=False, residual=False, dropout=0.0, weight_drop=0.0, truncate=0,
        zoneout=0.0, unit_forget_bias=True, **arguments,
    ):  # fmt: skip
        super().__init__(**arguments)
        self.supports_masking = (
            True  # the mask is an argument; Keras would warn that it is not passed on behind our back
        )
        self.bidirectional = bidirectional
        self.residual = residual
        self.directions = 2 if bidirectional else 1
        self.units = [units] * num_layers if isinstance(units, int) else list(units)
        options = {"weight_drop": weight_drop, "truncate": truncate, "zoneout": zoneout}
        if cell.endswith("lstm"):
            options["unit_forget_bias"] = unit_forget_bias
        self.recurrences = [
            recurrent_layer(cell, size, name=f"recurrence_{i}", **options) for i, size in enumerate(self.units)
        ]
        if bidirectional:
            self.recurrences = [
                layers.Bidirectional(layer, name=f"both_ways_{i}") for i, layer in enumerate(self.recurrences)
            ]
        self.dropouts = [
            layers.Dropout(dropout, noise_shape=(None, 1, None), name=f"dropout_{i}") for i in range(1, len(self.units))
        ]

    @property
    def output_units(self) -> int:
        """Size of the outputs."""
        return self.units[-1] * self.directions

    def build(self, inputs_shape):
        """Creates all weights for inputs of shape (batch, time, features)."""
        shape = (*inputs_shape[:-1], inputs_shape[-1])
        for i, layer in enumerate(self.recurrences):
            if i > 0:
                self.dropouts[i - 1].build(shape)
            layer.build(shape)
            shape = (*inputs_shape[:-1], self.units[i] * self.directions)

    def call(self, inputs, initial_state=None, mask=None, training=None):
        """Runs whole sequences.

        Args:
            inputs: (batch, time, features).
            initial_state: the state before the first step, in the structure above; None for zeros.
            mask: boolean (batch, time), False on right padding; None when every step counts or padding does no harm
                (in one direction, padding on the right cannot reach the steps before it).

        Returns:
            outputs (batch, time, output_units), zero where masked, and the final state.
        """
        outputs, final_state = inputs, []
        for i, layer in enumerate(self.recurrences):
            below = self.dropouts[i - 1](outputs, training=training) if i > 0 else outputs
            above, *state = layer(
                below, mask=mask, initial_state=initial_state[i] if initial_state else None, training=training
            )
            outputs = above + below if self.residual and i > 0 else above
            final_state.append(state)
        return outputs, final_state

    def compute_mask(self, inputs, previous_mask=None):
        """None: whoever reads the outputs is given the mask explicitly."""

    def step(self, inputs, state):
        """One step at inference: inputs (batch, features), state -> outputs (batch, units), new state."""
        if self.bidirectional:
            raise ValueError("a bidirectional stack needs the whole sequence: it cannot go step by step")
        outputs, new_state = inputs, []
        for i, layer in enumerate(self.recurrences):
            new_state.append(layer.step(outputs, state[i]))
            outputs = new_state[i][0] + outputs if self.residual and i > 0 else new_state[i][0]
        return outputs, new_state

    def zero_state(self, batch_size):
        """The state before anything was read."""
        return [
            [ops.zeros((batch_size, size), self.compute_dtype) for size in state_sizes(layer)]
            for layer in self.recurrences
        ]


def state_sizes(layer) -> list[int]:
    """Sizes of a layer's state tensors, forward then backward."""
    if isinstance(layer, layers.Bidirectional):
        return state_sizes(layer.forward_layer) + state_sizes(layer.backward_layer)
    return [layer.state_size] if isinstance(layer.state_size, int) else list(layer.state_size)

"""Backpropagation through time, written out: the recurrence of a layer over a whole sequence, and its gradient.

A recurrent layer splits in two. What it makes of its inputs, x_t = U input_t + b for all t, is one matrix product over
the whole sequence and needs no loop. What is left for the loop is

    a_t = W h_{t-1} + c          the only product that has to wait for the step before
    s_t = f(x_t, a_t, s_{t-1})   a few elementwise operations, different for each cell

The gradient goes through the steps backwards with the same W at every one,

    dh_{t-1} = W^T da_t + (what f passes on directly)

and since W and c are the same at all steps, their gradients are sums over all steps, formed after the loop in one
product: dW = sum_t da_t h_{t-1}^T, dc = sum_t da_t (Werbos 1990; Rumelhart, Hinton & Williams 1986). Each cell below is
two functions: `forward` is f, `backward` is the derivative of f.

In mixed precision the products are formed in the precision of W, and everything that adds up from step to step, states
and gradients, in float32: in eight bits of mantissa a cell state would soon swallow what is added to it.

Keras runs the same recurrence as one call of the cell at each step and lets TensorFlow record and differentiate it.
"""

from typing import NamedTuple

import tensorflow as tf


class Simple(NamedTuple):
    """h_t = g(x_t + a_t) with g = tanh or ReLU."""

    activation: str

    def forward(self, x, a, state):
        """x, a: (batch, units); state: (h_{t-1},). Returns the new state and what `backward` needs."""
        h = tf.tanh(x + a) if self.activation == "tanh" else tf.nn.relu(x + a)
        return (h,), h

    def backward(self, d_state, saved, state):
        """Gradients with respect to x, a and, past a, the state before; d_state is that of the new state."""
        (dh,) = d_state
        da = dh * (1 - saved * saved) if self.activation == "tanh" else tf.where(saved > 0, dh, tf.zeros_like(dh))
        return da, da, (tf.zeros_like(dh),)


class LSTM:
    """c_t = f_t c_{t-1} + i_t g_t and h_t = o_t tanh(c_t); i, f, o = sigmoid and g = tanh of x_t + a_t."""

    @staticmethod
    def forward(x, a, state):
        """x, a: (batch, 4 units) in the order i, f, g, o; state: (h_{t-1}, c_{t-1})."""
        i, f, g, o = tf.split(x + a, 4, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c = f * state[1] + i * g
        tanh_c = tf.tanh(c)
        return (o * tanh_c, c), tf.concat([i, f, g, o, tanh_c], axis=-1)

    @staticmethod
    def backward(d_state, saved, state):
        """As Simple.backward."""
        dh, dc = d_state
        i, f, g, o, tanh_c = tf.split(saved, 5, axis=-1)
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        parts = [dc * g * i * (1 - i), dc * state[1] * f * (1 - f), dc * i * (1 - g * g), dh * tanh_c * o * (1 - o)]
        da = tf.concat(parts, axis=-1)
        return da, da, (tf.zeros_like(dh), dc * f)


class GRU:
    """h_t = z_t h_{t-1} + (1 - z_t) n_t and n_t = tanh(x_n + r_t a_n); z, r = sigmoid of the rest of x_t + a_t."""

    @staticmethod
    def forward(x, a, state):
        """x, a: (batch, 3 units) in the order z, r, n; state: (h_{t-1},)."""
        units = state[0].shape[-1]
        z, r = tf.split(tf.sigmoid(x[:, : 2 * units] + a[:, : 2 * units]), 2, axis=-1)
        a_n = a[:, 2 * units :]
        n = tf.tanh(x[:, 2 * units :] + r * a_n)
        return (n + z * (state[0] - n),), tf.concat([z, r, n, a_n], axis=-1)

    @staticmethod
    def backward(d_state, saved, state):
        """As Simple.backward."""
        (dh,) = d_state
        z, r, n, a_n = tf.split(saved, 4, axis=-1)
        dn = dh * (1 - z) * (1 - n * n)
        dz, dr = dh * (state[0] - n) * z * (1 - z), dn * a_n * r * (1 - r)
        return tf.concat([dz, dr, dn], axis=-1), tf.concat([dz, dr, dn * r], axis=-1), (dh * z,)


def unroll(cell, x, state, W, c, mask=None):
    """Runs a cell over whole sequences, with the gradient written out above.

    Args:
        cell: one of the cells above.
        x: (time, batch, gates * units), the projected inputs.
        state: tuple of tensors (batch, units), the state before the first step, h first.
        W: (units, gates * units). c: (gates * units,), added to W h_{t-1}.
        mask: boolean (time, batch) or None; where False the state stays as it was and the output is zero.

    Returns:
        outputs (time, batch, units) and the final state, differentiable once with respect to all but the mask.
    """
    if mask is not None:
        mask = mask[..., None]
    parts, narrow, wide = len(state), x.dtype, tf.float32 if x.dtype.size < 4 else x.dtype

    @tf.custom_gradient
    def run(x, W, c, *state):
        states, saved, final = _forward(cell, x, state, W, c, mask)
        outputs = states[0] if mask is None else tf.where(mask, states[0], tf.zeros_like(states[0]))

        def gradient(d_outputs, *d_final):
            d_outputs = d_outputs if mask is None else tf.where(mask, d_outputs, tf.zeros_like(d_outputs))
            before = [tf.concat([first[None], part[:-1]], axis=0) for first, part in zip(state, states, strict=True)]
            dx, da, d_state = _backward(cell, d_outputs, d_final, saved, before, W, mask)
            flat, h = tf.reshape(da, [-1, W.shape[1]]), tf.reshape(before[0], [-1, W.shape[0]])
            dW = tf.matmul(tf.cast(h, narrow), tf.cast(flat, narrow), transpose_a=True)
            return tf.cast(dx, narrow), dW, tf.reduce_sum(flat, axis=0), *d_state

        return (outputs, *final), gradient

    outputs, *final = run(x, W, tf.cast(c, wide), *(tf.cast(part, wide) for part in state))
    return tf.cast(outputs, narrow), tuple(tf.cast(part, narrow) for part in final[:parts])


def _forward(cell, x, state, W, c, mask):
    """All steps in order: the state after each (time, batch, units), what each saved, and the final state."""
    steps, wide = tf.shape(x)[0], c.dtype

    def step(t, state, states, saved):
        new, kept = cell.forward(tf.cast(x[t], wide), _product(state[0], W) + c, state)
        if mask is not None:
            new = tuple(tf.where(mask[t], after, before) for after, before in zip(new, state, strict=True))
        states = tuple(array.write(t, part) for array, part in zip(states, new, strict=True))
        return t + 1, new, states, saved.write(t, kept)

    arrays = tuple(tf.TensorArray(wide, steps, element_shape=part.shape) for part in state)
    loop = (0, tuple(state), arrays, tf.TensorArray(wide, steps))
    _, final, states, saved = tf.while_loop(lambda t, *_: t < steps, step, loop, maximum_iterations=steps)
    return [array.stack() for array in states], saved.stack(), final


def _backward(cell, d_outputs, d_final, saved, before, W, mask):
    """All steps in reverse: gradients of x and a, (time, batch, gates * units), and of the first step's old state."""
    steps = tf.shape(d_outputs)[0]

    def step(t, d_state, dx, da):
        d_state = (d_state[0] + d_outputs[t], *d_state[1:])
        if mask is not None:
            # A masked step handed its state on untouched, so its gradient goes by the cell.
            past = tuple(tf.where(mask[t], tf.zeros_like(part), part) for part in d_state)
            d_state = tuple(tf.where(mask[t], part, tf.zeros_like(part)) for part in d_state)
        dx_t, da_t, d_before = cell.backward(d_state, saved[t], tuple(part[t] for part in before))
        d_before = (d_before[0] + _product(da_t, W, transpose_b=True), *d_before[1:])
        if mask is not None:
            d_before = tuple(part + other for part, other in zip(d_before, past, strict=True))
        return t - 1, d_before, dx.write(t, dx_t), da.write(t, da_t)

    arrays = [tf.TensorArray(d_outputs.dtype, steps) for _ in range(2)]
    loop = (steps - 1, tuple(d_final), *arrays)
    _, d_state, dx, da = tf.while_loop(lambda t, *_: t >= 0, step, loop, maximum_iterations=steps)
    return dx.stack(), da.stack(), d_state


def _product(rows, W, transpose_b=False):
    """rows (batch, n) times W, in the precision of W, as `rows` is."""
    return tf.cast(tf.matmul(tf.cast(rows, W.dtype), W, transpose_b=transpose_b), rows.dtype)

"""Backpropagation through time, written out: the recurrence of a layer over a whole sequence, and its gradient.

A recurrent layer splits in two. What it makes of its inputs, x_t = U input_t + b for all t, is one matrix product over
the whole sequence and needs no loop. What is left for the loop is

    a_t = W h_{t-1} + c          the only product that has to wait for the step before
    s_t = f(x_t, a_t, s_{t-1})   a few elementwise operations, different for each cell

The gradient goes through the steps backwards with the same W at every one,

    dh_{t-1} = W^T da_t + (what f passes on directly)

and since W and c are the same at all steps, their gradients are sums over all steps, formed after the loop in one
product: dW = sum_t da_t h_{t-1}^T, dc = sum_t da_t (Werbos 1990; Rumelhart, Hinton & Williams 1986). f and its
derivative stand in `cells`.

Keras runs the same recurrence as one call of the cell at each step, and lets TensorFlow record and differentiate it.
But to dispatch the dozen operations of a step takes about as long as they do. Here the loop over all steps is compiled
code, with products made for it, see `panels`. Nothing goes from one row of a batch to another, so the rows are shared
out among the processor's cores, and no core waits for another, or for Python, before the last step.

In mixed precision all of this is float32: in eight bits of mantissa a state would soon swallow what is added to it.
"""

import functools

import numpy as np
import tensorflow as tf

from shared.cpu import column_sums, compiled, empty, in_numpy, on_cores, product
from shared.recurrent.cells import CELLS, GRU, LAYER_NORM_LSTM, SAVED, SCALES, STATES, add, copy, step, step_back
from shared.recurrent.panels import WIDTH, multiply, pack


def unroll(cell, x, state, W, c, mask=None, kept=None, truncate=0):
    """Runs a cell over whole sequences, with the gradient written out above.

    Args:
        cell: one of `cells.CELLS`.
        x: (time, batch, gates * units), the projected inputs.
        state: tuple of tensors (batch, units), the state before the first step, h first.
        W: (units, gates * units). c: (gates * units,), added to W h_{t-1}; of a layer-normalised LSTM, b there.
        mask: boolean (time, batch) or None; where False the state stays as it was and the output is zero.
        kept: (time, batch, units of all parts of the state), the share of the old state in the new one; None for none.
        truncate: steps after which the gradient is cut, see `layers.OwnLoop`; 0 for never.

    Returns:
        outputs (time, batch, units) and the final state, differentiable once with respect to all but mask and
        kept. XLA cannot compile them. Raises ValueError for shapes that do not go together.
    """
    for part in state:
        part.shape.assert_is_compatible_with((x.shape[1], W.shape[0]))
    cell, given = CELLS.index(cell), x.dtype
    c.shape.assert_is_compatible_with((6 * W.shape[0],) if cell == LAYER_NORM_LSTM else x.shape[2:])
    dtype = given if given == tf.float64 else tf.float32
    shown = None if mask is None else tf.cast(mask, dtype)[..., None]
    mask = tf.zeros((tf.shape(x)[0], 0), tf.bool) if mask is None else mask
    kept = tf.zeros((*tf.unstack(tf.shape(x)[:2]), 0), dtype) if kept is None else tf.cast(kept, dtype)

    @tf.custom_gradient
    def run(x, W, c, *first):
        shapes = (STATES[cell], None, x.shape[1], W.shape[0]), (x.shape[0], x.shape[1], None)
        states, saved = in_numpy(functools.partial(_forward, cell), [x, W, c, mask, kept, *first], shapes, dtype)
        outputs = states[0, 1:] if shown is None else states[0, 1:] * shown

        def gradient(d_outputs, *d_final):
            arguments = [d_outputs, W, c, mask, kept, states, saved, *d_final]
            shapes = [each.shape for each in (x, W, c, *first)]
            return in_numpy(functools.partial(_backward, cell, truncate), arguments, shapes, dtype)

        return (outputs, *tf.unstack(states[:, -1])), gradient

    outputs, *final = run(*(tf.cast(part, dtype) for part in (x, W, c, *state)))
    return tf.cast(outputs, given), tuple(tf.cast(part, given) for part in final)


def _forward(cell, x, W, c, mask, kept, *first):
    """All steps in order.

    Returns:
        states (parts of the state, 1 + time, batch, units), so that what a step starts from and ends in lie together,
        and what each step saved.
    """
    time, batch, _ = x.shape
    units = len(W)
    states = empty((STATES[cell], 1 + time, batch, units), x.dtype)
    states[:, 0] = first
    saved = empty((time, batch, SAVED[cell] * units + SCALES[cell]), x.dtype)
    if time == 1:  # nothing to form over and over
        _one_step(cell, 0, 0, product(states[0, 0], W), x, c, mask, kept, states, saved)
        return states, saved
    packed = pack(W)
    on_cores(lambda rows: _all_steps(cell, rows.start, rows.stop, packed, x, c, mask, kept, states, saved), batch)
    return states, saved


@compiled
def _all_steps(cell, begin, end, W, x, c, mask, kept, states, saved):
    """The rows from `begin` to `end` through all steps."""
    a = np.empty((end - begin, len(W) * WIDTH), x.dtype)
    for t in range(len(x)):
        multiply(states[0, t, begin:end], W, x.shape[2], a)
        _one_step(cell, t, begin, a, x, c, mask, kept, states, saved)


@compiled
def _one_step(cell, t, begin, a, x, c, mask, kept, states, saved):
    """Step t of the rows from `begin` on, for each of which there is a row of a = W h."""
    last = len(states) - 1
    for i in range(len(a)):
        row = begin + i
        h, cells = states[0, t, row], states[last, t, row]
        new_h, new_cells = states[0, t + 1, row], states[last, t + 1, row]
        if mask.size and not mask[t, row]:
            copy(h, new_h)
            copy(cells, new_cells)
            continue
        step(cell, x[t, row], a[i, : x.shape[2]], c, kept[t, row], h, cells, new_h, new_cells, saved[t, row])


def _backward(cell, truncate, d_outputs, W, c, mask, kept, states, saved, *d_final):
    """All steps in reverse: the gradients of x, W, c and the first state."""
    time, batch, _ = d_outputs.shape
    d_state = np.stack(d_final)
    da = empty((time, batch, W.shape[1]), W.dtype)
    dx = empty(da.shape, W.dtype) if cell in (GRU, LAYER_NORM_LSTM) else da
    packed = pack(W.T)

    def work(rows):
        of_steps, found = (d_outputs, c, mask, kept, states, saved), (dx, da, d_state)
        return _all_steps_back(cell, truncate, rows.start, rows.stop, packed, *of_steps, *found)

    dc = sum(on_cores(work, batch))
    h, da = states[0, :-1].reshape(-1, len(W)), da.reshape(-1, W.shape[1])
    return dx, product(h.T, da), dc if cell == LAYER_NORM_LSTM else column_sums(da), *d_state


@compiled
def _all_steps_back(cell, truncate, begin, end, W, d_outputs, c, mask, kept, states, saved, dx, da, d_state):
    """The rows from `begin` to `end` through all steps in reverse; returns the gradient of c where `step_back` adds to
    it. W is transposed."""
    units, last, dc = states.shape[3], len(states) - 1, np.zeros_like(c)
    dh = np.empty((end - begin, len(W) * WIDTH), c.dtype)
    for t in range(len(da) - 1, -1, -1):
        for row in range(begin, end):
            if mask.size and not mask[t, row]:  # it handed its state on untouched
                dx[t, row] = 0
                da[t, row] = 0
                continue
            add(d_outputs[t, row], d_state[0, row])
            step_back(
                cell, c, kept[t, row], states[0, t, row], states[last, t, row], saved[t, row],
                d_state[0, row], d_state[last, row], dx[t, row], da[t, row], dc,
            )  # fmt: skip
        multiply(da[t, begin:end], W, units, dh)
        for row in range(begin, end):
            add(dh[row - begin, :units], d_state[0, row])
        if truncate and t and t % truncate == 0:
            d_state[:, begin:end] = 0
    return dc

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
out among the processor's cores, and no core waits for another, or for Python, before the last step. Only where rows are
few do the cores share the columns of W in their place, and meet at every step.

In mixed precision all of this is float32: in eight bits of mantissa a state would soon swallow what is added to it.
"""

import functools

import numpy as np
import tensorflow as tf

from shared.cpu import LEAST_ROWS, column_sums, compiled, in_numpy, meet, on_cores, product, together
from shared.memory import empty
from shared.recurrent.cells import CELLS, GRU, LAYER_NORM_LSTM, SAVED, SCALES, STATES, add, copy, step, step_back
from shared.recurrent.panels import WIDTH, empty_panels, fill, multiply, pack, part_of

FEW = 2 * LEAST_ROWS  # rows, too few to be shared out
LEAST_WEIGHTS = 90_000  # in W, that are worth a core
LEAST_UNITS = 100_000  # of all gates and rows in one step, that are worth a core


def unroll(cell, inputs, state, W, c, projection=(), mask=None, kept=None, truncate=0):
    """Runs a cell over whole sequences, with the gradient written out above.

    Args:
        cell: one of `cells.CELLS`.
        inputs: (time, batch, features), or without a projection x itself, (time, batch, gates * units).
        state: tuple of tensors (batch, units), the state before the first step, h first.
        W: (units, gates * units). c: (gates * units,), added to W h_{t-1}; of a layer-normalised LSTM, b there.
        projection: U (features, gates * units) and b (gates * units,), which make x of the inputs.
        mask: boolean (time, batch) or None; where False the state stays as it was and the output is zero.
        kept: (time, batch, units of all parts of the state), the share of the old state in the new one; None for none.
        truncate: steps after which the gradient is cut, see `layers.OwnLoop`; 0 for never.

    Returns:
        outputs (time, batch, units) and the final state, differentiable once with respect to all but mask and
        kept. XLA cannot compile them. Raises ValueError for shapes that do not go together.
    """
    for part in state:
        part.shape.assert_is_compatible_with((inputs.shape[1], W.shape[0]))
    cell, given = CELLS.index(cell), inputs.dtype
    c.shape.assert_is_compatible_with((6 * W.shape[0],) if cell == LAYER_NORM_LSTM else W.shape[1:])
    dtype = given if given == tf.float64 else tf.float32
    shown = None if mask is None else tf.cast(mask, dtype)[..., None]
    mask = tf.zeros((tf.shape(inputs)[0], 0), tf.bool) if mask is None else mask
    kept = tf.zeros((*tf.unstack(tf.shape(inputs)[:2]), 0), dtype) if kept is None else tf.cast(kept, dtype)

    @tf.custom_gradient
    def run(inputs, W, c, *others):
        first, projection = others[: STATES[cell]], others[STATES[cell] :]
        shapes = (STATES[cell], None, inputs.shape[1], W.shape[0]), (*inputs.shape[:2], None)
        arguments = [inputs, W, c, mask, kept, *first, *projection]
        states, saved = in_numpy(functools.partial(_forward, cell), arguments, shapes, dtype)
        outputs = states[0, 1:] if shown is None else states[0, 1:] * shown

        def gradient(d_outputs, *d_final):
            arguments = [d_outputs, W, c, mask, kept, states, saved, *d_final]
            arguments += [inputs, projection[0]] if projection else []
            shapes = [each.shape for each in (inputs, W, c, *others)]
            return in_numpy(functools.partial(_backward, cell, truncate), arguments, shapes, dtype)

        return (outputs, *tf.unstack(states[:, -1])), gradient

    outputs, *final = run(*(tf.cast(part, dtype) for part in (inputs, W, c, *state, *projection)))
    return tf.cast(outputs, given), tuple(tf.cast(part, given) for part in final)


def _forward(cell, inputs, W, c, mask, kept, *others):
    """All steps in order.

    Returns:
        states (parts of the state, 1 + time, batch, units), so that what a step starts from and ends in lie together,
        and what each step saved.
    """
    time, batch, _ = inputs.shape
    first, projection = others[: STATES[cell]], others[STATES[cell] :]
    states = empty((STATES[cell], 1 + time, batch, len(W)), W.dtype)
    states[:, 0] = first
    saved = empty((time, batch, SAVED[cell] * len(W) + SCALES[cell]), W.dtype)
    if time > 1 and batch < FEW:
        _forward_of_few(cell, inputs, W, c, mask, kept, projection, states, saved)
        return states, saved
    x = product(_flat(inputs), *projection).reshape(time, batch, -1) if projection else inputs
    if time == 1:  # nothing to form over and over
        h, cells, new_h, new_cells = states[0, 0], states[-1, 0], states[0, 1], states[-1, 1]
        a = product(h, W)

        def some_rows(rows):
            _one_step(cell, rows.start, a[rows], x[0], c, mask[0], kept[0], h, cells, new_h, new_cells, saved[0])

        on_cores(some_rows, batch, least=max(1, LEAST_UNITS // W.shape[1]))
    else:
        packed = pack(W)
        on_cores(lambda rows: _all_steps(cell, rows.start, rows.stop, packed, x, c, mask, kept, states, saved), batch)
    return states, saved


def _flat(a):
    return a.reshape(-1, a.shape[-1])


def _forward_of_few(cell, inputs, W, c, mask, kept, projection, states, saved):
    """Where rows are too few to share out, the cores share the weights, for it is to read those that takes the time."""
    flat, x = _flat(inputs), empty((*inputs.shape[:2], W.shape[1]), W.dtype) if projection else inputs
    panels = empty_panels(W)
    a = empty((2, x.shape[1], len(panels) * WIDTH), W.dtype)

    def work(part, parts, arrived):
        if projection:
            U, b = projection
            some = slice(len(b) * part // parts, len(b) * (part + 1) // parts)
            of_part = _flat(x)[:, some]
            np.matmul(flat, U[:, some], out=of_part)
            of_part += b[some]
        _all_steps_of_few(cell, part, parts, arrived, W, panels, a, x, c, mask, kept, states, saved)

    together(work, W.size, LEAST_WEIGHTS)


@compiled
def _all_steps(cell, begin, end, W, x, c, mask, kept, states, saved):
    """The rows from `begin` to `end` through all steps."""
    last, a = len(states) - 1, np.empty((end - begin, len(W) * WIDTH), x.dtype)
    for t in range(len(x)):
        h, cells, new_h, new_cells = states[0, t], states[last, t], states[0, t + 1], states[last, t + 1]
        multiply(h[begin:end], W, 0, -(-x.shape[2] // WIDTH), a)
        _one_step(cell, begin, a, x[t], c, mask[t], kept[t], h, cells, new_h, new_cells, saved[t])


@compiled
def _all_steps_of_few(cell, part, parts, arrived, W, panels, a, x, c, mask, kept, states, saved):
    """All rows through all steps, by several cores together, each with its part of the columns of W in its cache.

    With all of a_t = W h_{t-1} at hand each makes the rest of the step for itself, which takes less time than to wait
    once more; what part 0 makes is the result.
    """
    begin, end = part_of(panels, part, parts)
    fill(W, panels, begin, end)
    meet(arrived, parts)  # x is whole
    last, own = len(states) - 1, np.empty_like(a[0])
    if part:  # which has no use for what it made more than a step ago
        states, saved = states[:, :2].copy(), np.empty_like(saved[:1])
    kept_steps = len(saved)
    for t in range(len(x)):
        now, then = (t % 2, (t + 1) % 2) if part else (t, t + 1)
        h, cells, new_h, new_cells = states[0, now], states[last, now], states[0, then], states[last, then]
        multiply(h, panels, begin, end, a[t % 2])
        meet(arrived, parts * (t + 2))
        for row in range(len(own)):  # of what the others read, too; they are past it before it is written again
            copy(a[t % 2, row], own[row])
        _one_step(cell, 0, own, x[t], c, mask[t], kept[t], h, cells, new_h, new_cells, saved[t % kept_steps])


@compiled
def _one_step(cell, begin, a, x, c, mask, kept, h, cells, new_h, new_cells, saved):
    """A step of the rows from `begin` on, for each of which there is a row of a = W h."""
    for i in range(len(a)):
        row = begin + i
        if mask.size and not mask[row]:
            copy(h[row], new_h[row])
            copy(cells[row], new_cells[row])
            continue
        of_row = x[row], a[i, : x.shape[1]], c, kept[row]
        step(cell, *of_row, h[row], cells[row], new_h[row], new_cells[row], saved[row])


def _backward(cell, truncate, d_outputs, W, c, mask, kept, states, saved, *others):
    """All steps in reverse: the gradients of the inputs, W, c, the first state, and the projection if there is one."""
    time, batch, _ = d_outputs.shape
    d_final, projected = others[: STATES[cell]], others[STATES[cell] :]
    d_state = np.stack(d_final)
    da = empty((time, batch, W.shape[1]), W.dtype)
    dx = empty(da.shape, W.dtype) if cell in (GRU, LAYER_NORM_LSTM) else da
    packed = pack(W.T)

    def work(rows):
        of_steps, found = (d_outputs, c, mask, kept, states, saved), (dx, da, d_state)
        return _all_steps_back(cell, truncate, rows.start, rows.stop, packed, *of_steps, *found)

    dc = sum(on_cores(work, batch))
    if cell != LAYER_NORM_LSTM:
        dc = column_sums(_flat(da))
    found = product(_flat(states[0, :-1]).T, _flat(da)), dc, *d_state
    if not projected:
        return dx, *found
    (inputs, U), db = projected, dc if dx is da else column_sums(_flat(dx))
    return product(_flat(dx), U.T).reshape(inputs.shape), *found, product(_flat(inputs).T, _flat(dx)), db


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
        multiply(da[t, begin:end], W, 0, -(-units // WIDTH), dh)
        for row in range(begin, end):
            add(dh[row - begin, :units], d_state[0, row])
        if truncate and t and t % truncate == 0:
            d_state[:, begin:end] = 0
    return dc

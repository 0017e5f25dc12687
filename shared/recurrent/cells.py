"""The equations of the cells and their derivatives, for one step of some rows of a batch; compiled by Numba.

s_t = f(x_t, a_t, s_{t-1}) for what `bptt` makes of the inputs, x_t, and of the state, a_t. Each cell is two functions
of one row: `*_forward` is f and saves what its derivative needs, `*_backward` is the derivative. They go equation by
equation, each a loop of its own: the few arrays in it can be checked not to overlap, so vector instructions are used.
"""

import math

import numba
import numpy as np
from numba.extending import overload

from shared.cpu import HALF, OPTIONS, compiled, reduction

# Simple cells by their activation; the functions take positions in this tuple.
CELLS = ("tanh", "relu", "lstm", "gru", "layer_norm_lstm")
TANH, RELU, LSTM, GRU, LAYER_NORM_LSTM = range(5)
STATES = (1, 1, 2, 1, 2)  # h, and c of an LSTM
SAVED = (1, 1, 5, 4, 10)  # what is kept of a step for its derivative, in units,
SCALES = (0, 0, 0, 0, 2)  # and in single numbers
EPSILON = 1e-5  # of layer normalisation, as in the code of its authors

# tanh x = x p(x^2) / q(x^2) for |x| < 7.9, from where on it is 1 in float32; the coefficients are Eigen's. It takes
# vector instructions, which the processor has none of for the exponential function.
P = tuple(map(np.float32, (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08)))
P += tuple(map(np.float32, (1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)))
Q = tuple(map(np.float32, (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)))
END = np.float32(7.90531110763549805)


def tanh(x):
    """Inside compiled code only."""
    return math.tanh(x)


@overload(tanh, jit_options=OPTIONS)
def _tanh(x):
    def rational(x):
        x = END if x > END else x
        x = -END if x < -END else x
        y = x * x
        p = (((((P[0] * y + P[1]) * y + P[2]) * y + P[3]) * y + P[4]) * y + P[5]) * y + P[6]
        return x * p / (((Q[0] * y + Q[1]) * y + Q[2]) * y + Q[3])

    return rational if x == numba.float32 else lambda x: math.tanh(x)


def sigmoid(x):
    """Inside compiled code only."""
    return 0.5 + 0.5 * math.tanh(0.5 * x)


@overload(sigmoid, jit_options=OPTIONS)
def _sigmoid(x):
    if x == numba.float32:
        return lambda x: HALF + HALF * tanh(HALF * x)
    return lambda x: 0.5 + 0.5 * math.tanh(0.5 * x)


# ---------------------------------------------------------------------------------------------------------------- cells


@compiled
def copy(values, to):
    """An assignment to a slice would do, but takes a second to compile, most of it for messages of errors."""
    for k in range(len(values)):
        to[k] = values[k]


@compiled
def add(values, to):
    """As `copy`."""
    for k in range(len(values)):
        to[k] += values[k]


@compiled
def _parts(row, units):
    """The parts of a row that are `units` long, as arrays of their own; empty beyond its end."""
    u = units
    return row[:u], row[u : 2 * u], row[2 * u : 3 * u], row[3 * u : 4 * u], row[4 * u :]


@compiled
def simple_forward(cell, x, a, new, saved):
    """h_t = g(x_t + a_t) with g = tanh or ReLU. x, a: (units,); new is h_t, and so is what is saved."""
    zero = x.dtype.type(0)
    if cell == TANH:
        for k in range(len(x)):
            saved[k] = tanh(x[k] + a[k])
    else:
        for k in range(len(x)):
            s = x[k] + a[k]
            saved[k] = zero if s < zero else s
    copy(saved, new)


@compiled
def simple_backward(cell, dh, saved, da):
    """Writes da. Turns dh, that of h_t, into what f passes on to h_{t-1} past a_t: nothing."""
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    if cell == TANH:
        for k in range(len(dh)):
            da[k] = dh[k] * (one - saved[k] * saved[k])
    else:
        for k in range(len(dh)):
            da[k] = dh[k] if saved[k] > zero else zero
    dh[:] = zero


@compiled
def _lstm_update(x, a, c, new_c, saved):
    """All of an LSTM but h_t."""
    units = len(c)
    i, f, g, _, _ = _parts(saved, units)
    for k in range(2 * units):
        saved[k] = sigmoid(x[k] + a[k])
    for k in range(2 * units, 3 * units):
        saved[k] = tanh(x[k] + a[k])
    for k in range(3 * units, 4 * units):
        saved[k] = sigmoid(x[k] + a[k])
    for k in range(units):
        new_c[k] = f[k] * c[k] + i[k] * g[k]


@compiled
def lstm_forward(x, a, c, new_h, new_c, saved):
    """c_t = f_t c_{t-1} + i_t g_t and h_t = o_t tanh(c_t); i, f, o = sigmoid and g = tanh of x_t + a_t.

    x, a: (4 units,) in the order i, f, g, o; c is c_{t-1}; saved (5 units,) is i, f, g, o, tanh(c_t).
    """
    units = len(c)
    _, _, _, o, tanh_c = _parts(saved, units)
    _lstm_update(x, a, c, new_c, saved)
    for k in range(units):
        tanh_c[k] = tanh(new_c[k])
    for k in range(units):
        new_h[k] = o[k] * tanh_c[k]


@compiled
def _lstm_update_back(dh, dc, saved, c, da):
    """The derivative of all but tanh(c_t), which dc holds already."""
    units, one = len(c), dh.dtype.type(1)
    i, f, g, o, tanh_c = _parts(saved, units)
    di, df, dg, do, _ = _parts(da, units)
    for k in range(units):
        di[k] = dc[k] * g[k] * i[k] * (one - i[k])
    for k in range(units):
        df[k] = dc[k] * c[k] * f[k] * (one - f[k])
    for k in range(units):
        dg[k] = dc[k] * i[k] * (one - g[k] * g[k])
    for k in range(units):
        do[k] = dh[k] * tanh_c[k] * o[k] * (one - o[k])
    for k in range(units):
        dc[k] *= f[k]
    dh[:] = dh.dtype.type(0)


@compiled
def lstm_backward(dh, dc, saved, c, da):
    """As simple_backward; dc, that of c_t, becomes that of c_{t-1}."""
    units, one = len(c), dh.dtype.type(1)
    _, _, _, o, tanh_c = _parts(saved, units)
    for k in range(units):
        dc[k] += dh[k] * o[k] * (one - tanh_c[k] * tanh_c[k])
    _lstm_update_back(dh, dc, saved, c, da)


@compiled
def gru_forward(x, a, h, new, saved):
    """h_t = z_t h_{t-1} + (1 - z_t) n_t and n_t = tanh(x_n + r_t a_n); z, r = sigmoid of the rest of x_t + a_t.

    x, a: (3 units,) in the order z, r, n; h is h_{t-1}; saved (4 units,) is z, r, n, a_n.
    """
    units = len(h)
    z, r, n, a_n, _ = _parts(saved, units)
    x_n = x[2 * units :]
    copy(a[2 * units :], a_n)
    for k in range(2 * units):
        saved[k] = sigmoid(x[k] + a[k])
    for k in range(units):
        n[k] = tanh(x_n[k] + r[k] * a_n[k])
    for k in range(units):
        new[k] = n[k] + z[k] * (h[k] - n[k])


@compiled
def gru_backward(dh, saved, h, dx, da):
    """As simple_backward, and dx, which differs from da in what the reset gate is between."""
    units, one = len(h), dh.dtype.type(1)
    z, r, n, a_n, _ = _parts(saved, units)
    dx_z, dx_r, dx_n, _, _ = _parts(dx, units)
    da_n = da[2 * units :]
    for k in range(units):
        dx_z[k] = dh[k] * (h[k] - n[k]) * z[k] * (one - z[k])
    for k in range(units):
        dx_n[k] = dh[k] * (one - z[k]) * (one - n[k] * n[k])
    for k in range(units):
        dx_r[k] = dx_n[k] * a_n[k] * r[k] * (one - r[k])
    copy(dx[: 2 * units], da)
    for k in range(units):
        da_n[k] = dx_n[k] * r[k]
    for k in range(units):
        dh[k] *= z[k]


@reduction
def normalise(a, normal):
    """Writes (a - mean a) / sqrt(variance a + EPSILON); returns what the differences were multiplied by."""
    size, total, squares = a.dtype.type(len(a)), a.dtype.type(0), a.dtype.type(0)
    for k in range(len(a)):
        total += a[k]
    mean = total / size
    for k in range(len(a)):
        normal[k] = a[k] - mean
    for k in range(len(a)):
        squares += normal[k] * normal[k]
    scale = a.dtype.type(1) / math.sqrt(squares / size + a.dtype.type(EPSILON))
    for k in range(len(a)):
        normal[k] *= scale
    return scale


@reduction
def normalise_back(d, normal, scale):
    """Turns d, that of `normal`, into that of a: scale (d - mean d - normal mean(d normal))."""
    size, total, along = d.dtype.type(len(d)), d.dtype.type(0), d.dtype.type(0)
    for k in range(len(d)):
        total += d[k]
    for k in range(len(d)):
        along += d[k] * normal[k]
    mean, along = total / size, along / size
    for k in range(len(d)):
        d[k] = scale * (d[k] - mean - normal[k] * along)


@compiled
def layer_norm_lstm_forward(x, a, b, c, new_h, new_c, saved):
    """As lstm_forward, with LN(a_t) q for a_t and tanh(LN(c_t) r + s) for tanh(c_t), see `layer_norm`.

    b: (6 units,), q, r, s. a is overwritten. saved (10 units and 2,) is i, f, g, o, tanh, LN(a_t), LN(c_t), two scales.
    """
    u = len(c)
    _, _, _, o, rest = _parts(saved, u)
    tanh_c, normal_a, normal_c, scales = rest[:u], rest[u : 5 * u], rest[5 * u : 6 * u], rest[6 * u :]
    q, r, s = b[: 4 * u], b[4 * u : 5 * u], b[5 * u :]
    scales[0] = normalise(a, normal_a)
    for k in range(4 * u):
        a[k] = normal_a[k] * q[k]
    _lstm_update(x, a, c, new_c, saved)
    scales[1] = normalise(new_c, normal_c)
    for k in range(u):
        tanh_c[k] = tanh(normal_c[k] * r[k] + s[k])
    for k in range(u):
        new_h[k] = o[k] * tanh_c[k]


@compiled
def layer_norm_lstm_backward(dh, dc, saved, c, b, db, dx, da):
    """As lstm_backward, and dx; adds to db."""
    u, one = len(c), dh.dtype.type(1)
    _, _, _, o, rest = _parts(saved, u)
    tanh_c, normal_a, normal_c, scales = rest[:u], rest[u : 5 * u], rest[5 * u : 6 * u], rest[6 * u :]
    q, r = b[: 4 * u], b[4 * u : 5 * u]
    dq, dr, ds, d_normal = db[: 4 * u], db[4 * u : 5 * u], db[5 * u :], da[:u]
    for k in range(u):
        d_normal[k] = dh[k] * o[k] * (one - tanh_c[k] * tanh_c[k])
    for k in range(u):
        ds[k] += d_normal[k]
    for k in range(u):
        dr[k] += d_normal[k] * normal_c[k]
    for k in range(u):
        d_normal[k] *= r[k]
    normalise_back(d_normal, normal_c, scales[1])
    add(d_normal, dc)
    _lstm_update_back(dh, dc, saved, c, dx)
    for k in range(4 * u):
        dq[k] += dx[k] * normal_a[k]
    for k in range(4 * u):
        da[k] = dx[k] * q[k]
    normalise_back(da, normal_a, scales[0])


# ------------------------------------------------------------------------------------------------------------- the step


@compiled
def zone_out(kept, old, new):
    """new <- kept old + (1 - kept) new, of one part of the state; exactly old where kept is 1."""
    one = new.dtype.type(1)
    for k in range(len(new)):
        new[k] = kept[k] * old[k] + (one - kept[k]) * new[k]


@compiled
def zone_out_back(kept, d_new, d_old):
    """The derivative of `zone_out`: writes d_old and turns d_new into that of what stood in `new`."""
    for k in range(len(d_new)):
        d_old[k] = kept[k] * d_new[k]
    for k in range(len(d_new)):
        d_new[k] -= d_old[k]


@compiled
def step(cell, x, a, b, kept, h, c, new_h, new_c, saved):
    """One step of one row of a batch: its state h, and c of an LSTM, becomes the new one.

    kept: (units of all parts of the state,), the share of the old state in the new one, or empty. b: (gates * units,),
    added to a; of a layer-normalised LSTM, see there. a is overwritten.
    """
    units = len(h)
    if cell != LAYER_NORM_LSTM:
        add(b, a)
    if cell == LSTM:
        lstm_forward(x, a, c, new_h, new_c, saved)
    elif cell == LAYER_NORM_LSTM:
        layer_norm_lstm_forward(x, a, b, c, new_h, new_c, saved)
    elif cell == GRU:
        gru_forward(x, a, h, new_h, saved)
    else:
        simple_forward(cell, x, a, new_h, saved)
    if kept.size:
        zone_out(kept[:units], h, new_h)
    if len(kept) > units:
        zone_out(kept[units:], c, new_c)


@compiled
def step_back(cell, b, kept, h, c, saved, dh, dc, dx, da, db):
    """The derivative of `step`: dh and dc, those of the new state, become those of the old one, past the product.

    db is added to where b is not merely added: in a layer-normalised LSTM.
    """
    units, past = len(h), np.empty_like(kept)  # past the cell, that is
    if kept.size:
        zone_out_back(kept[:units], dh, past[:units])
    if len(kept) > units:
        zone_out_back(kept[units:], dc, past[units:])
    if cell == LSTM:
        lstm_backward(dh, dc, saved, c, da)
    elif cell == LAYER_NORM_LSTM:
        layer_norm_lstm_backward(dh, dc, saved, c, b, db, dx, da)
    elif cell == GRU:
        gru_backward(dh, saved, h, dx, da)
    else:
        simple_backward(cell, dh, saved, da)
    if kept.size:
        add(past[:units], dh)
    if len(kept) > units:
        add(past[units:], dc)

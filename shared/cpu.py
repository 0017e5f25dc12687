"""Matrix products and cross-entropy on the cores of a CPU, for all that is computed for whole sequences at once.

TensorFlow's own product packs and shares out its work in ways that cost as much again where a matrix is small, and its
cross-entropy goes over scores of many words a dozen times. Here OpenBLAS, which comes with NumPy, forms the products,
each core those of a share of the rows, and the cross-entropy of a row is computed while the row is in the cache.

`on_cores` shares out work, `together` work whose parts have to wait for each other; `affine`, `batch_product` and both
cross-entropies are operations of TensorFlow, with their gradients. XLA cannot compile them; where there is a GPU,
TensorFlow's own are taken.
"""

import contextlib
import functools
import itertools
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import tensorflow as tf
import threadpoolctl
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from shared.memory import empty

LEAST_ROWS = 4  # that are worth a core
LEAST_PRODUCTS = 20_000_000  # of two numbers, that are worth a core
WIDE = 4  # columns of a product for each of its rows, from where on the cores share the columns
FEW_ROWS = 64  # with which a transposed matrix is multiplied faster the other way around

# No more of fastmath than the fused multiplication: NaN has to stay NaN, for it tells of a training that diverged.
OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}
compiled = numba.njit(nogil=True, cache=True, **OPTIONS)
# Sums in whatever order suits vector instructions.
reduction = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc"})


def on_cores(work, rows: int, least: int = LEAST_ROWS) -> list:
    """What work(part) returns for slices of the rows, on as many cores as get at least so many rows each."""
    cores, threads = _cores()
    parts = max(1, min(cores, rows // least))
    if parts == 1:
        return [work(slice(0, rows))]
    edges = [rows * part // parts for part in range(parts + 1)]
    return list(threads.map(work, map(slice, edges, edges[1:])))


def together(work, weight: int, least: int) -> None:
    """Calls work(part, parts, arrived) for every part, all at the same time, on a core each, so that they may `meet`.

    There are as many parts as cores, or fewer, so that each has its `least` of the weight. Where one raises, nobody
    waits for it any more, and so does this.
    """
    parts = max(1, min(_cores()[0], MOST_TOGETHER, weight // least))
    arrived = np.zeros(1, np.int64)

    def attempt(part):
        try:
            work(part, parts, arrived)
        except BaseException:
            arrived[0] = 2**62
            raise

    if parts == 1:
        attempt(0)
        return
    with _TOGETHER:  # or two of these could wait for each other's cores for ever
        list(_bound_threads(parts).map(attempt, range(parts)))


MOST_TOGETHER = 8  # parts: the more there are, the sooner one of them makes all others wait
_TOGETHER = threading.Lock()
PATIENCE = 2000  # looks, which take some microseconds


@compiled
def meet(arrived, expected):
    """Waits until all parts of `together` have come here as often as this one, in a loop, for less than a thread takes
    to wake up. `arrived`: one int64, 0 at first; expected: how often it has been added to by then."""
    _arrive(arrived)
    looks = 0
    while _arrivals(arrived) < expected:
        looks += 1
        if looks > PATIENCE:  # a core is at something else; so may this one be
            _yield_core()


@intrinsic
def _arrive(typing, arrived):
    def generate(context, builder, signature, arguments):
        counter = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        builder.atomic_rmw("add", counter, ir.IntType(64)(1), "seq_cst")
        return context.get_dummy_value()

    return types.void(arrived), generate


@intrinsic
def _arrivals(typing, arrived):
    def generate(context, builder, signature, arguments):
        counter = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(counter, "acquire", 8)

    return types.int64(arrived), generate


@intrinsic
def _yield_core(typing):
    def generate(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@functools.cache
def _cores() -> tuple[int, ThreadPoolExecutor]:
    """How many cores there are, and a thread for each. From now on every product of NumPy's is formed by one core."""
    threadpoolctl.threadpool_limits(1, user_api="blas")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores, ThreadPoolExecutor(cores, "cores")


@functools.cache
def _bound_threads(count: int) -> ThreadPoolExecutor:
    """So many threads, each of which stays on a core of its own.

    Linux would wake a thread on the core of the one that woke it, though another is idle, and the parts of a short
    sequence share one core for longer than they take.
    """
    if not hasattr(os, "sched_setaffinity"):
        return ThreadPoolExecutor(count, "together")
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def stay():
        with contextlib.suppress(OSError):  # a core that has been taken from this process since
            os.sched_setaffinity(0, {next(cores)})

    return ThreadPoolExecutor(count, "together", stay)


def in_numpy(function, arguments, shapes, dtype) -> list:
    """Tensors of these shapes, and of one dtype, that a function of NumPy's arrays returns for tensors."""
    found = tf.nest.flatten(tf.numpy_function(function, arguments, [dtype] * len(shapes), stateful=False))
    return [tf.ensure_shape(each, shape) for each, shape in zip(found, shapes, strict=True)]


def product(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """a b + bias, for NumPy's arrays, each core forming a share of the rows, or of the columns if there are many more.

    A core copies all of the matrix that is not shared into the order it needs, so that should be the smaller one.
    np.dot would also copy what is a share of a transposed matrix, or of the columns of any; np.matmul does not.
    """
    found = empty((a.shape[0], b.shape[1]), a.dtype)

    def some_rows(part):
        np.matmul(a[part], b, out=found[part])
        if bias is not None:
            found[part] += bias

    def some_columns(part):
        if len(a) <= FEW_ROWS and b.flags.f_contiguous:
            found[:, part] = np.matmul(b.T[part], a.T).T
        else:
            np.matmul(a, b[:, part], out=found[:, part])
        if bias is not None:
            found[:, part] += bias[part]

    work, size = (some_columns, b.shape[1]) if b.shape[1] > WIDE * len(a) else (some_rows, len(a))
    # To read the other matrix takes as long as to multiply it by eight rows.
    on_cores(work, size, max(LEAST_ROWS, size * LEAST_PRODUCTS // max(max(len(a), 8) * b.size, 1)))
    return found


def column_sums(a: np.ndarray) -> np.ndarray:
    """The sum of all rows, as a product, which is faster than NumPy's sum."""
    return np.dot(np.ones(len(a), a.dtype), a)


def own_kernels(dtype) -> bool:
    """Whether this module computes what is of this dtype; else TensorFlow does."""
    return dtype in (tf.float32, tf.float64) and not tf.config.list_physical_devices("GPU")


def affine(x, kernel, bias, transposed=False):
    """x kernel + bias over the last axis, the flat product of all rows of a batch and all their steps.

    Args:
        x: (..., inputs). kernel: (inputs, outputs), or the other way around if `transposed`; of the same dtype.
        bias: (outputs,).

    Returns:
        (..., outputs) of the bias' dtype, differentiable once.
    """
    inputs, outputs = kernel.shape[::-1] if transposed else kernel.shape
    flat, shape = tf.reshape(x, (-1, inputs)), (*tf.unstack(tf.shape(x)[:-1]), outputs)
    if own_kernels(x.dtype):
        found = _affine(flat, *map(tf.convert_to_tensor, (kernel, bias)), transposed)
    else:
        found = tf.cast(tf.matmul(flat, kernel, transpose_b=transposed), bias.dtype) + bias
    return tf.ensure_shape(tf.reshape(found, shape), (*x.shape[:-1], outputs))


def _affine(x, kernel, bias, transposed):
    def forward(x, kernel, bias):
        return product(x, kernel.T if transposed else kernel, bias)

    def backward(d, x, kernel):
        dx = product(d, kernel if transposed else kernel.T)
        return dx, product(d.T, x) if transposed else product(x.T, d), column_sums(d)

    @tf.custom_gradient
    def run(x, kernel, bias):
        def gradient(d):
            return in_numpy(backward, [d, x, kernel], [x.shape, kernel.shape, bias.shape], x.dtype)

        return in_numpy(forward, [x, kernel, bias], [(x.shape[0], *bias.shape)], x.dtype)[0], gradient

    return run(x, kernel, bias)


def batch_product(a, b):
    """a b for each row of a batch.

    Args:
        a: (batch, m, k). b: (batch, k, n), of the same dtype.

    Returns:
        (batch, m, n), differentiable once.
    """
    if not own_kernels(a.dtype):
        return tf.matmul(a, b)

    @tf.custom_gradient
    def run(a, b):
        def gradient(d):  # apart, so that what nobody asks for is not computed
            return [
                *in_numpy(lambda d, b: _products(d, b.transpose(0, 2, 1)), [d, b], [a.shape], a.dtype),
                *in_numpy(lambda a, d: _products(a.transpose(0, 2, 1), d), [a, d], [b.shape], a.dtype),
            ]

        return in_numpy(_products, [a, b], [(*a.shape[:2], b.shape[2])], a.dtype)[0], gradient

    return run(a, b)


def _products(a, b):
    found = empty((*a.shape[:2], b.shape[2]), a.dtype)
    on_cores(lambda rows: np.matmul(a[rows], b[rows], out=found[rows]), len(a))
    return found


def cross_entropy(ids, scores, smoothing):
    """log sum_v exp(score_v) - (1 - e) score_id - e mean_v(score_v) for each id, with e = smoothing.

    Args:
        ids: (...) int32. scores: (..., words), float32 or float64. smoothing: e, a number.

    Returns:
        (...) in nats, differentiable once with respect to the scores.
    """

    def forward(ids, scores):
        gradients = empty(scores.shape, scores.dtype)
        return _losses(smoothing, ids, gradients, scores), gradients

    @tf.custom_gradient
    def run(scores):
        losses, gradients = in_numpy(forward, [ids, scores], [ids.shape, scores.shape], scores.dtype)
        return losses, lambda d: d[..., None] * gradients

    return run(scores)


def word_cross_entropy(ids, x, kernel, bias, smoothing):
    """`cross_entropy` of the scores kernel x + bias, with one array as large as they in all.

    For once there is a loss, its gradient takes the place of the scores.

    Args:
        ids: (...) int32. x: (..., inputs). kernel: (words, inputs), bias: (words,), of the dtype of x.

    Returns:
        (...) in nats, differentiable once with respect to x, kernel and bias.
    """

    def forward(ids, x, kernel, bias):
        scores = product(x.reshape(-1, kernel.shape[1]), kernel.T, bias).reshape(*ids.shape, -1)
        return _losses(smoothing, ids, scores), scores

    def backward(d, x, kernel, gradients):
        d, x, gradients = d.reshape(-1, 1), x.reshape(-1, x.shape[-1]), gradients.reshape(-1, len(kernel))
        return product(gradients, kernel) * d, product(gradients.T, x * d), np.dot(d[:, 0], gradients)

    @tf.custom_gradient
    def run(x, kernel, bias):
        shapes = ids.shape, (*ids.shape, kernel.shape[0])
        losses, gradients = in_numpy(forward, [ids, x, kernel, bias], shapes, x.dtype)

        def gradient(d):
            shapes = (None, x.shape[-1]), kernel.shape, bias.shape
            dx, *rest = in_numpy(backward, [d, x, kernel, gradients], shapes, x.dtype)
            return tf.reshape(dx, tf.shape(x)), *rest

        return losses, gradient

    return run(x, *map(tf.convert_to_tensor, (kernel, bias)))


ROWS_AT_ONCE = 16  # which stay in a core's cache from one pass over them to the next


def _losses(smoothing, ids, scores, source=None):
    """The losses. The scores, which are copied from the source if there is one, become their gradients."""
    words, losses = scores.shape[-1], empty(ids.shape, scores.dtype)
    if ids.size and not 0 <= ids.min() <= ids.max() < words:
        raise IndexError(f"ids from {ids.min()} to {ids.max()} for {words} scores")
    flat_ids, flat, of_rows = ids.ravel(), scores.reshape(-1, words), losses.ravel()
    source = None if source is None else source.reshape(-1, words)

    def work(rows):
        for begin in range(rows.start, rows.stop, ROWS_AT_ONCE):
            some = slice(begin, min(begin + ROWS_AT_ONCE, rows.stop))
            if source is not None:
                flat[some] = source[some]
            tops = flat[some].max(axis=-1)
            _losses_of_rows(flat.dtype.type(smoothing), flat_ids[some], tops, flat[some], of_rows[some])

    on_cores(work, len(flat_ids))
    return losses


@reduction
def _losses_of_rows(smoothing, ids, tops, scores, losses):
    """Writes the losses, and over the scores softmax(scores) - (1 - e) one-hot(id) - e / words."""
    zero, one, words = scores.dtype.type(0), scores.dtype.type(1), scores.dtype.type(scores.shape[1])
    for row in range(len(ids)):
        of_words, top, powers, total = scores[row], tops[row], zero, zero
        right = of_words[ids[row]]
        if smoothing:
            for k in range(len(of_words)):
                total += of_words[k]
        for k in range(len(of_words)):
            of_words[k] = exp(of_words[k] - top)
        for k in range(len(of_words)):
            powers += of_words[k]
        losses[row] = top + math.log(powers) - (one - smoothing) * right - smoothing * (total / words)
        share, scale = smoothing / words, one / powers
        for k in range(len(of_words)):
            of_words[k] = of_words[k] * scale - share
        of_words[ids[row]] -= one - smoothing


# exp x = 2^n exp r with r = x - n log 2 in [-log 2 / 2, log 2 / 2]; the polynomial is Cephes'. Below -88 it is 0.
LOG2_E, LEAST = np.float32(1.44269504088896341), np.float32(-88.0)
LOG_2 = np.float32(0.693359375), np.float32(-2.12194440e-4)  # in two parts, so that the difference is exact
E = tuple(map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)))
ONE, HALF = np.float32(1), np.float32(0.5)


@intrinsic
def _power_of_two(typing, bits):
    """The float32 that has these bits, an int32."""
    return numba.float32(numba.int32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


def exp(x):
    """Of what is not above 0, inside compiled code only: for the processor's vector instructions, as `cells.tanh`."""
    return math.exp(x)


@overload(exp, jit_options=OPTIONS)
def _exp(x):
    def powers(x):
        x = LEAST if x < LEAST else x
        n = np.floor(LOG2_E * x + HALF)
        r = (x - n * LOG_2[0]) - n * LOG_2[1]
        p = ((((E[0] * r + E[1]) * r + E[2]) * r + E[3]) * r + E[4]) * r + HALF
        return (p * r * r + r + ONE) * _power_of_two((np.int32(n) + np.int32(127)) << np.int32(23))

    return powers if x == numba.float32 else lambda x: math.exp(x)

"""Attention over a masked memory: which of its positions matters now, and the mean of the memory under those weights.

additive    score(q, k) = v . tanh(W q + U k)       Bahdanau, Cho & Bengio 2015
dot         score(q, k) = (W q) . (U k) / sqrt(d)   Luong et al. 2015 (general), scaled as in Vaswani et al. 2017
weights = softmax(score) over the memory; context = sum of weights * memory

A sentinel is one more position, made anew at every step, for what is not in the memory: Lu et al. 2017.
"""

import numpy as np
import tensorflow as tf
from keras import layers, ops

from shared.cpu import batch_product, compiled, in_numpy, on_cores, own_kernels, reduction
from shared.memory import empty
from shared.recurrent.cells import tanh


class Attention(layers.Layer):
    """Additive or scaled dot-product attention of queries over a memory.

    Args:
        kind: "additive" or "dot".
        units: size of the space in which queries and memory meet.
    """

    def __init__(self, kind, units, **arguments):
        super().__init__(**arguments)
        self.kind = kind
        self.units = units
        self.query_projection = layers.Dense(units, use_bias=False, name="query")
        self.key_projection = layers.Dense(units, use_bias=kind == "additive", name="key")

    def build(self, queries_shape, memory_shape):
        """Creates the weights for queries (..., query size) and a memory (..., memory size)."""
        self.query_projection.build(queries_shape)
        self.key_projection.build(memory_shape)
        if self.kind == "additive":
            self.score_vector = self.add_weight(shape=(self.units,), initializer="glorot_uniform", name="score")

    def keys(self, memory):
        """What the scores need of the memory, computed once per sequence: (batch, positions, units)."""
        return self.key_projection(memory)

    def call(self, queries, keys, memory, memory_mask, sentinel=None):
        """Looks the queries up in the memory.

        Args:
            queries: (batch, time, query size).
            keys: `keys(memory)`.
            memory: (batch, positions, memory size).
            memory_mask: boolean (batch, positions), True where there is something; at least one in every row.
            sentinel: (batch, time, memory size) or None.

        Returns:
            contexts (batch, time, memory size) and weights (batch, time, positions) in float32, exactly 0 where masked.
            They sum to 1, or with a sentinel to what it leaves of that.
        """
        queries = self.query_projection(queries)
        if self.kind == "additive":
            scores = additive_scores(queries, keys, ops.cast(self.score_vector, queries.dtype))
        else:
            scores = batch_product(queries, ops.transpose(keys, (0, 2, 1))) / self.units**0.5
        scores = ops.where(memory_mask[:, None], ops.cast(scores, "float32"), -1e9)
        if sentinel is None:
            weights = ops.softmax(scores)
            return batch_product(ops.cast(weights, memory.dtype), memory), weights
        keys = self.keys(sentinel)
        own = self._score(queries + keys) if self.kind == "additive" else ops.sum(queries * keys, -1) / self.units**0.5
        weights = ops.softmax(ops.concatenate([scores, ops.cast(own, "float32")[..., None]], axis=-1))
        weights, rest = weights[..., :-1], ops.cast(weights[..., -1:], memory.dtype)
        return batch_product(ops.cast(weights, memory.dtype), memory) + rest * sentinel, weights

    def _score(self, sums):
        return ops.dot(ops.tanh(sums), ops.cast(self.score_vector, self.compute_dtype))


# -------------------------------------------------------------------------------------------------- the additive score


def additive_scores(queries, keys, v):
    """v . tanh(query + key) of every query and every key of a row.

    TensorFlow goes a dozen times, gradient included, over numbers for each query, key and unit. On a CPU our own code
    keeps none of them: in the gradient the tanh is computed again, which takes less time than to read it.

    Args:
        queries: (batch, time, units). keys: (batch, positions, units). v: (units,).

    Returns:
        (batch, time, positions), differentiable once.
    """
    if not own_kernels(queries.dtype):
        return ops.dot(ops.tanh(queries[:, :, None] + keys[:, None]), v)

    @tf.custom_gradient
    def run(queries, keys, v):
        shapes, dtype = [queries.shape, keys.shape, v.shape], v.dtype

        def gradient(d):
            return in_numpy(_scores_back, [d, queries, keys, v], shapes, dtype)

        return in_numpy(_scores, [queries, keys, v], [(*queries.shape[:2], keys.shape[1])], dtype)[0], gradient

    return run(queries, keys, v)


def _scores(queries, keys, v):
    scores = empty((*queries.shape[:2], keys.shape[1]), v.dtype)
    on_cores(lambda rows: _row_scores(queries[rows], keys[rows], v, scores[rows]), len(scores))
    return scores


def _scores_back(d, queries, keys, v):
    d_queries, d_keys = (np.zeros_like(each) for each in (queries, keys))

    def work(rows):
        d_v = np.zeros_like(v)
        _row_scores_back(d[rows], queries[rows], keys[rows], v, d_queries[rows], d_keys[rows], d_v)
        return d_v

    return d_queries, d_keys, sum(on_cores(work, len(d)))


@reduction
def _row_scores(queries, keys, v, scores):
    for row in range(len(scores)):
        for t in range(queries.shape[1]):
            query = queries[row, t]
            for position in range(keys.shape[1]):
                key, total = keys[row, position], v.dtype.type(0)
                for k in range(len(v)):
                    total += v[k] * tanh(query[k] + key[k])
                scores[row, t, position] = total


@compiled
def _row_scores_back(d, queries, keys, v, d_queries, d_keys, d_v):
    """Adds to all three gradients."""
    one, past = v.dtype.type(1), np.empty_like(v)
    for row in range(len(d)):
        for t in range(queries.shape[1]):
            query, d_query = queries[row, t], d_queries[row, t]
            for position in range(keys.shape[1]):
                key, d_key, here = keys[row, position], d_keys[row, position], d[row, t, position]
                for k in range(len(v)):
                    past[k] = tanh(query[k] + key[k])
                for k in range(len(v)):
                    d_v[k] += here * past[k]
                for k in range(len(v)):
                    past[k] = here * v[k] * (one - past[k] * past[k])
                for k in range(len(v)):
                    d_query[k] += past[k]
                for k in range(len(v)):
                    d_key[k] += past[k]

"""Attention over a masked memory: which of its positions matters now, and the mean of the memory under those weights.

additive    score(q, k) = v . tanh(W q + U k)       Bahdanau, Cho & Bengio 2015
dot         score(q, k) = (W q) . (U k) / sqrt(d)   Luong et al. 2015 (general), scaled as in Vaswani et al. 2017
weights = softmax(score) over the memory; context = sum of weights * memory

A sentinel is one more position, made anew at every step, for what is not in the memory: Lu et al. 2017.
"""

from keras import layers, ops


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
            scores = self._score(queries[:, :, None] + keys[:, None])
        else:
            scores = ops.matmul(queries, ops.transpose(keys, (0, 2, 1))) / self.units**0.5
        scores = ops.where(memory_mask[:, None], ops.cast(scores, "float32"), -1e9)
        if sentinel is None:
            weights = ops.softmax(scores)
            return ops.matmul(ops.cast(weights, memory.dtype), memory), weights
        keys = self.keys(sentinel)
        own = self._score(queries + keys) if self.kind == "additive" else ops.sum(queries * keys, -1) / self.units**0.5
        weights = ops.softmax(ops.concatenate([scores, ops.cast(own, "float32")[..., None]], axis=-1))
        weights, rest = weights[..., :-1], ops.cast(weights[..., -1:], memory.dtype)
        return ops.matmul(ops.cast(weights, memory.dtype), memory) + rest * sentinel, weights

    def _score(self, sums):
        return ops.dot(ops.tanh(sums), ops.cast(self.score_vector, self.compute_dtype))

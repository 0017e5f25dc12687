"""What every search shares: the `Hypotheses` it returns, one call of the model's step function, and the choice of the
best tokens from a step's log probabilities."""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

VOID = -1e9  # score of a hypothesis which does not exist: finite, so that sums and quotients of it never become NaN
BLOCK = 64  # vocabulary entries looked at together by top_k: near the fastest for 8,000 and for 32,000


class Hypotheses(NamedTuple):
    """The K best token sequences of each of B sentences, best first, over the T steps that the search took.

    tokens: (B, K, T) int32, without bos, with eos where the hypothesis is finished, pad after its end.
    lengths: (B, K) int32, eos counted. 0 marks a slot for which no hypothesis exists; its scores are `VOID`.
    scores: (B, K) float32, what ranks the hypotheses.
    log_probs: (B, K) float32, natural log probability of the tokens under the model.
    attention: (B, K, T, S) float32, where the model looked for each token; 0 after the end; None without attention.
    """

    tokens: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    log_probs: tf.Tensor
    attention: tf.Tensor | None

    def numpy(self) -> "Hypotheses":
        """The same in NumPy's arrays."""
        return Hypotheses(*(None if values is None else values.numpy() for values in self))


def tile_beams(nest, beam_size):
    """Repeats each row of every tensor in a nest: (B, ...) -> (B * beam_size, ...), row b at b * beam_size + k.

    `beam_search` tiles and reorders the state itself. A tensor that never changes and is the same for all beams of a
    sentence, such as the encoder's memory, would be copied at every step for nothing if it sat in the state: tile it
    with this function once and let the step function capture it.
    """
    return tf.nest.map_structure(lambda tensor: tf.repeat(tensor, beam_size, axis=0), nest)


def attention_of(state):
    """The attention (N, S) float32 of the step that made this state; None unless it is a mapping with "attention"."""
    return tf.cast(state["attention"], tf.float32) if isinstance(state, Mapping) and "attention" in state else None


def advance(step, tokens, state):
    """One step of the model. Raises ValueError or TypeError if the state changes its structure on the way."""
    log_probs, new_state = step(tokens, state)
    tf.nest.assert_same_structure(state, new_state)
    for before, after in zip(tf.nest.flatten(state), tf.nest.flatten(new_state), strict=True):
        after.set_shape(before.shape)  # a loop keeps what is known of its tensors' shapes
    return tf.cast(log_probs, tf.float32), new_state


def clip_lengths(max_lengths, max_steps):
    """Most tokens that each sentence may have, (B,) int32: its own maximum within 1 and max_steps."""
    max_steps = tf.maximum(tf.cast(max_steps, tf.int32), 1)
    return tf.clip_by_value(tf.cast(max_lengths, tf.int32), 1, max_steps)


def top_k(values, count):
    """`tf.math.top_k` over (N, V), the lower index first among equals, several times faster for small counts.

    The count largest values lie in the count blocks with the largest maxima, so only those blocks are searched.
    """
    size = values.shape[-1]
    if size is None:
        return tf.math.top_k(values, tf.minimum(count, tf.shape(values)[-1]))
    if size < 4 * BLOCK * count:
        return tf.math.top_k(values, min(count, size))
    if size % BLOCK:
        values = tf.pad(values, [[0, 0], [0, -size % BLOCK]], constant_values=float("-inf"))
    blocks = tf.reshape(values, (-1, -(-size // BLOCK), BLOCK))
    best_blocks = tf.sort(tf.math.top_k(tf.reduce_max(blocks, axis=2), count).indices, axis=1)  # keeps ties in order
    few = tf.reshape(tf.gather(blocks, best_blocks, batch_dims=1), (-1, count * BLOCK))
    best, where = tf.math.top_k(few, count)
    return best, tf.gather(best_blocks, where // BLOCK, batch_dims=1) * BLOCK + where % BLOCK


def top_tokens(log_probs, count, pad, bos):
    """The best tokens other than pad and bos: log_probs (N, V) -> values (N, C), tokens (N, C), C = min(count, V).

    Asks for two more than wanted and strikes pad and bos from those, so that nothing of size (N, V) is copied.
    """
    values, tokens = top_k(log_probs, count + 2)
    values = tf.where((tokens == pad) | (tokens == bos), VOID, values)
    values, ranks = top_k(values, count)
    return values, tf.gather(tokens, ranks, batch_dims=1)

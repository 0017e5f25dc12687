"""Beam search: a step function and a start state go in, the K best hypotheses of every sentence come out. One
`tf.while_loop` advances all beams of all sentences; what it writes per step (token, parent beam, attention) is put
together into sequences by following the parents back once the loop has ended."""

from typing import NamedTuple

import tensorflow as tf

from shared.decoding.protocol import (
    VOID,
    Hypotheses,
    advance,
    attention_of,
    clip_lengths,
    tile_beams,
    top_tokens,
)

UNSEEN = 1e-10  # least coverage of a source position: log(0) would make all hypotheses that skip one equally bad


class Beams(NamedTuple):
    """(B, K) hypotheses; a slot whose score is VOID is empty. A sequence is known by its length and its last slot."""

    scores: tf.Tensor
    log_probs: tf.Tensor
    lengths: tf.Tensor
    slots: tf.Tensor


def beam_search(
    step,
    state,
    batch_size,
    max_lengths,
    max_steps,
    beam_size,
    length_penalty=0.0,
    coverage_penalty=0.0,
    no_repeat_ngram=0,
    source_mask=None,
    pad=0,
    bos=1,
    eos=2,
):
    """Finds the beam_size most probable hypotheses of each sentence under the score of GNMT (Wu et al. 2016, eq. 14):

        score(Y) = log P(Y) / ((5 + |Y|) / 6)^length_penalty
                 + coverage_penalty * sum over source positions s of log(min(1, sum over tokens t of attention[t, s]))

    with |Y| counting eos. At every step the beam_size most probable extensions of a sentence's live hypotheses are
    kept. Those that end in eos leave the beam for the pool of the beam_size best-scored finished hypotheses, where
    nothing touches them any more but a better one; the others go on. A sentence stops when no live hypothesis is left,
    when none can beat the worst of a full pool (log probability only falls, so the bound is the present one, normalised
    for the maximum length, with full coverage), or at its maximum length. Hypotheses cut off there, without eos, rank
    behind all finished ones whatever their score. Equal scores: the one found first, then the one from the better beam,
    then the lower token id comes first. A beam of 1 is greedy search.

    step: `step(tokens (N,) int32, state) -> (log_probs (N, V), state)` with N = batch_size * beam_size, row
        b * beam_size + k being beam k of sentence b; log_probs <= 0. pad and bos are never generated.
    state: nest of tensors with batch_size rows, tiled here (for tensors the step captures see `tile_beams`). If it is a
        dict with "attention" (N, S), then the attention of every step is returned; its start (zeros) is not read here.
    batch_size: int or scalar tensor. max_steps: int or scalar tensor, bound on all lengths.
    max_lengths: (B,) integers, most tokens of each sentence, eos included; at least 1, and at most max_steps.
    no_repeat_ngram: no hypothesis contains an n-gram of this many tokens twice (0: anything goes).
    source_mask: (B, S), false on padding of the source, which need not be covered. Without it padding lowers all scores
        of a sentence alike: the order stays, but the search cannot stop early.
    Returns Hypotheses with K = beam_size. Raises ValueError for settings that cannot be, among them a coverage penalty
    without attention.
    """
    if beam_size < 1 or min(length_penalty, coverage_penalty, no_repeat_ngram) < 0:
        raise ValueError("beam search needs a beam_size of at least 1, and no penalty or no_repeat_ngram below 0")
    if coverage_penalty and attention_of(state) is None:
        raise ValueError('a coverage penalty needs a model with attention: state["attention"], (rows, source length)')
    max_lengths = clip_lengths(max_lengths, max_steps)
    state = tile_beams(state, beam_size)
    tracked = {}  # what else must be known of each live hypothesis; its rows move with the state's
    if coverage_penalty:
        tracked["coverage"] = tf.zeros_like(attention_of(state))
        padding = 0.0 if source_mask is None else 1.0 - tf.cast(tile_beams(source_mask, beam_size), tf.float32)
    if no_repeat_ngram:
        width = no_repeat_ngram - 1 + tf.reduce_max(max_lengths)
        tracked["history"] = tf.fill([batch_size * beam_size, width], -1)

    def body(index, tokens, state, tracked, live, finished, running, histories):
        log_probs, state = advance(step, tokens, state)
        length = index + 1
        if no_repeat_ngram:
            log_probs = _without_repeats(log_probs, tracked["history"], index, no_repeat_ngram)
        log_probs, parents, tokens = _extend(live.log_probs, log_probs, pad, bos)
        scores = log_probs / _length_penalty(length, length_penalty)
        if coverage_penalty:
            tracked = {**tracked, "coverage": tracked["coverage"] + attention_of(state)}
            covered = tf.math.log(tf.clip_by_value(tracked["coverage"] + padding, UNSEEN, 1.0))
            covered = tf.reshape(tf.reduce_sum(covered, axis=1), tf.shape(parents))
            scores += coverage_penalty * tf.gather(covered, parents, batch_dims=1)

        slots = tf.broadcast_to(tf.range(beam_size), tf.shape(parents))
        extended = Beams(scores, log_probs, tf.fill(tf.shape(parents), length), slots)
        live, finished = _settle(live, finished, extended, tokens == eos, running)
        running &= _can_improve(live, finished, length, max_lengths, length_penalty)

        records = {"tokens": tokens, "parents": parents, "attention": attention_of(state)}
        histories = {name: history.write(index, records[name]) for name, history in histories.items()}
        rows = tf.reshape(tf.range(batch_size)[:, None] * beam_size + parents, [-1])
        tokens = tf.reshape(tokens, [-1])
        state, tracked = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), (state, tracked))
        if no_repeat_ngram:
            column = index + no_repeat_ngram - 1
            tracked["history"] = tf.where(tf.range(width) == column, tokens[:, None], tracked["history"])
        return length, tokens, state, tracked, live, finished, running, histories

    def going_on(index, tokens, state, tracked, live, finished, running, histories):
        return tf.reduce_any(running)

    zeros = tf.fill([batch_size, beam_size], 0)
    root = Beams(tf.zeros_like(zeros, tf.float32), tf.zeros_like(zeros, tf.float32), zeros, zeros)
    live, finished = _only(root, tf.range(beam_size) == 0), _only(root, False)  # one empty hypothesis is alive
    histories = {name: tf.TensorArray(tf.int32, size=0, dynamic_size=True) for name in ("tokens", "parents")}
    if attention_of(state) is not None:
        histories["attention"] = tf.TensorArray(tf.float32, size=0, dynamic_size=True)
    tokens, running = tf.fill([batch_size * beam_size], bos), tf.fill([batch_size], True)
    start = (0, tokens, state, tracked, live, finished, running, histories)
    _, _, _, _, live, finished, _, histories = tf.while_loop(going_on, body, start)
    return _assemble(live, finished, histories, pad)


def _extend(live_log_probs, log_probs, pad, bos):
    """The K most probable one-token extensions of K hypotheses: log probabilities, parents, tokens, all (B, K)."""
    beam_size = live_log_probs.shape[1]
    batch_size = tf.shape(live_log_probs)[0]
    values, tokens = top_tokens(log_probs, beam_size, pad, bos)
    live_log_probs = live_log_probs[:, :, None]
    values = live_log_probs + tf.reshape(values, (batch_size, beam_size, -1))
    values = tf.where(live_log_probs > VOID / 2, values, VOID)  # whatever an empty slot's row may say, NaN included
    per_beam = tf.shape(values)[2]
    values, chosen = tf.math.top_k(tf.reshape(values, (batch_size, -1)), beam_size)
    tokens = tf.gather(tf.reshape(tokens, (batch_size, -1)), chosen, batch_dims=1)
    return values, chosen // per_beam, tokens


def _only(beams, condition):
    """Empties the slots for which the condition does not hold."""
    return beams._replace(
        scores=tf.where(condition, beams.scores, VOID), log_probs=tf.where(condition, beams.log_probs, VOID)
    )


def _best(beams, others):
    """The K best-scored of two sets of K hypotheses; among equals those of the first set."""
    both = Beams(*(tf.concat(pair, axis=1) for pair in zip(beams, others, strict=True)))
    order = tf.math.top_k(both.scores, beams.scores.shape[1]).indices
    return Beams(*(tf.gather(values, order, batch_dims=1) for values in both))


def _settle(live, finished, extended, is_end, running):
    """Replaces live hypotheses by their extensions, those that ended going to the pool; only in running sentences."""
    exists = extended.log_probs > VOID / 2
    finished = _best(finished, _only(extended, exists & is_end & running[:, None]))
    extended = _only(extended, exists & ~is_end)
    live = Beams(*(tf.where(running[:, None], new, old) for new, old in zip(extended, live, strict=True)))
    return live, finished


def _length_penalty(lengths, exponent):
    return ((5.0 + tf.cast(lengths, tf.float32)) / 6.0) ** exponent


def _can_improve(live, finished, length, max_lengths, exponent):
    """Which sentences (B,) have a live hypothesis that may still beat the worst finished one of a full pool."""
    best_live = tf.reduce_max(live.log_probs, axis=1)
    possible = best_live / _length_penalty(max_lengths, exponent)
    return (length < max_lengths) & (best_live > VOID / 2) & (possible > finished.scores[:, -1])


def _without_repeats(log_probs, history, length, order):
    """Strikes each token that would complete an n-gram, n = order, which its row's history (N, order - 1 + T) holds.

    The first order - 1 columns and those after the row's tokens so far, `length` of them, are -1.
    """
    num_windows = tf.shape(history)[1] - (order - 1)
    following = history[:, order - 1 :]
    repeated = following >= 0
    for place in range(order - 1):
        repeated &= history[:, place : place + num_windows] == history[:, length + place][:, None]
    where = tf.where(repeated)
    banned = tf.stack([where[:, 0], tf.cast(tf.gather_nd(following, where), tf.int64)], axis=1)
    return tf.tensor_scatter_nd_update(log_probs, banned, tf.fill([tf.shape(banned)[0]], VOID))


def _assemble(live, finished, histories, pad):
    """Ranks the finished hypotheses before those that were cut off, and follows each back through its parents."""
    cut_off = _best(_only(live, False), live)
    both = Beams(*(tf.concat(pair, axis=1) for pair in zip(finished, cut_off, strict=True)))
    exists = tf.cast(both.scores > VOID / 2, tf.int32)
    order = tf.math.top_k(exists, live.scores.shape[1]).indices  # the lower index comes first among equals
    best = Beams(*(tf.gather(values, order, batch_dims=1) for values in both))
    lengths = tf.where(best.scores > VOID / 2, best.lengths, 0)

    tokens, parents = histories["tokens"].stack(), histories["parents"].stack()
    steps = tf.range(tf.shape(tokens)[0])

    def parent(slots, step):
        index, parents = step
        return tf.where(index < lengths, tf.gather(parents, slots, batch_dims=1), slots)

    path = tf.scan(parent, (steps, parents), initializer=best.slots, reverse=True)
    slots = tf.concat([path[1:], best.slots[None]], axis=0)
    inside = steps[:, None, None] < lengths
    tokens = tf.where(inside, tf.gather(tokens, slots, batch_dims=2), pad)
    attention = None
    if "attention" in histories:
        attention = histories["attention"].stack()  # (T, B * K, S), of the beam that was extended
        attention = tf.reshape(attention, tf.concat([tf.shape(parents), [-1]], axis=0))
        attention = tf.where(inside[..., None], tf.gather(attention, path, batch_dims=2), 0.0)
        attention = tf.transpose(attention, (1, 2, 0, 3))
    return Hypotheses(tf.transpose(tokens, (1, 2, 0)), lengths, best.scores, best.log_probs, attention)

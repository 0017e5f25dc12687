"""Decoding with one hypothesis per sentence: a step function and a start state go in, and each sentence grows by the
most probable token (`greedy`) or by a random one (`sample`) until it writes eos or reaches its maximum length."""

import math

import tensorflow as tf

from shared.decoding.protocol import Hypotheses, advance, attention_of, clip_lengths, top_tokens


def greedy(step, state, batch_size, max_lengths, max_steps, pad=0, bos=1, eos=2):
    """Takes the most probable token at every step, the lowest id among equals.

    step: `step(tokens (N,) int32, state) -> (log_probs (N, V), state)`; pad and bos are never generated.
    state: nest of tensors with batch_size rows. If it is a dict with "attention" (N, S), then the attention of every
        step is returned; what lies there at the start (zeros) is not read here.
    max_lengths: (B,) integers, most tokens of each sentence, eos included; at least 1, and at most max_steps.
    Returns Hypotheses with K = 1, whose score is the log probability.
    """

    return _generate(chooser(0, pad=pad, bos=bos), step, state, batch_size, max_lengths, max_steps, pad, bos, eos)


def sample(
    step,
    state,
    batch_size,
    max_lengths,
    max_steps,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    seed=1,
    pad=0,
    bos=1,
    eos=2,
):
    """Draws a token from the model's distribution at every step, sharpened and truncated as asked (see `truncate`).

    seed: integer or scalar integer tensor. The same seed gives the same text; batches that shall differ need different
        seeds. Everything else is as in `greedy`, which temperature 0 equals. The log probability returned is the
        model's own, before temperature and truncation. Raises ValueError for settings outside their range.
    """
    choose = chooser(temperature, top_k, top_p, min_p, seed, pad, bos)
    return _generate(choose, step, state, batch_size, max_lengths, max_steps, pad, bos, eos)


def chooser(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, pad=0, bos=1):
    """The function that `sample` chooses each token with: (log_probs (N, V), index of the step) -> tokens (N,) int32.

    For those who go on step by step themselves, such as to show a text while it is written. Arguments as in `sample`.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(
            "sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1, "
            f"not {temperature}, {top_k}, {top_p} and {min_p}"
        )
    if temperature == 0:
        return lambda log_probs, _: top_tokens(log_probs, 1, pad, bos)[1][:, 0]

    def choose(log_probs, step_index):
        vocabulary = tf.range(tf.shape(log_probs)[1])
        log_probs = tf.where((vocabulary == pad) | (vocabulary == bos), float("-inf"), log_probs)
        logits, tokens = truncate(log_probs, temperature, top_k, top_p, min_p)
        seeds = tf.stack([tf.cast(seed, tf.int64), tf.cast(step_index, tf.int64)])
        chosen = tf.random.stateless_categorical(logits, 1, seeds, dtype=tf.int32)
        chosen = tf.minimum(chosen, tf.shape(logits)[1] - 1)  # past the end where no logit is a finite number
        return tf.gather(tokens, chosen, batch_dims=1)[:, 0]

    return choose


def truncate(log_probs, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Divides log probabilities (N, V) by the temperature, then drops the improbable tokens, in this order:

    top_k: all but the k most probable ones (0: none);
    top_p: all outside the nucleus, the smallest set of the most probable remaining tokens whose share of the remaining
        probability is at least p (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", equation 2);
    min_p: all less probable than min_p times the most probable one (Nguyen et al. 2024, "Turning Up the Heat").
    Returns logits (N, C), -inf where dropped, and the tokens (N, C) they belong to.
    """
    logits = (log_probs - tf.reduce_max(log_probs, axis=1, keepdims=True)) / temperature
    vocabulary_size = tf.shape(logits)[1]
    if top_k or top_p < 1:
        logits, tokens = tf.math.top_k(logits, tf.minimum(top_k, vocabulary_size) if top_k else vocabulary_size)
    else:
        tokens = tf.broadcast_to(tf.range(vocabulary_size), tf.shape(logits))
    if top_p < 1:
        more_probable = tf.cumsum(tf.nn.softmax(logits), axis=1, exclusive=True)
        logits = tf.where(more_probable < top_p, logits, float("-inf"))
    if min_p > 0:
        logits = tf.where(logits >= math.log(min_p), logits, float("-inf"))  # the most probable one has logit 0
    return logits, tokens


def _generate(choose, step, state, batch_size, max_lengths, max_steps, pad, bos, eos):
    """Runs the step function with the tokens that `choose(log_probs (B, V), step index) -> (B,)` picks."""
    max_lengths = clip_lengths(max_lengths, max_steps)
    histories = {"tokens": tf.TensorArray(tf.int32, size=0, dynamic_size=True)}
    if attention_of(state) is not None:
        histories["attention"] = tf.TensorArray(tf.float32, size=0, dynamic_size=True)

    def body(index, tokens, state, running, lengths, totals, histories):
        log_probs, state = advance(step, tokens, state)
        tokens = tf.where(running, choose(log_probs, index), pad)
        totals += tf.where(running, tf.gather(log_probs, tokens, batch_dims=1), 0.0)
        lengths += tf.cast(running, tf.int32)
        records = {"tokens": tokens}
        if "attention" in histories:
            records["attention"] = tf.where(running[:, None], attention_of(state), 0.0)
        histories = {name: history.write(index, records[name]) for name, history in histories.items()}
        running &= (tokens != eos) & (lengths < max_lengths)
        return index + 1, tokens, state, running, lengths, totals, histories

    def going_on(index, tokens, state, running, lengths, totals, histories):
        return tf.reduce_any(running)

    rows = [batch_size]
    start = (0, tf.fill(rows, bos), state, tf.fill(rows, True), tf.fill(rows, 0), tf.fill(rows, 0.0), histories)
    _, _, _, _, lengths, totals, histories = tf.while_loop(going_on, body, start)
    tokens = tf.transpose(histories["tokens"].stack())
    attention = None
    if "attention" in histories:
        attention = tf.transpose(histories["attention"].stack(), (1, 0, 2))[:, None]
    return Hypotheses(tokens[:, None], lengths[:, None], totals[:, None], totals[:, None], attention)

"""A model and text in, probabilities and new text out.

Whatever is scored is rows of ids, each begun after an end of line. A row is read in windows with the state carried from
one to the next, so that it may have any length, and as many rows are read side by side as fit.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import tensorflow as tf

from shared.batching import padded_array, padded_length
from shared.decoding import chooser, search
from shared.text import BOS, EOS, UNK
from tasks.language_model.config import GAP

WINDOW = 128  # steps read at once
LOGITS = 1 << 25  # at most so many at once: 128 MiB
IDS = tf.TensorSpec((None, None), tf.int32)  # (batch, time)
PLACEHOLDER = "\ue000"  # a letter of nobody's alphabet, so that it becomes an unknown word


def decode(config, model, features, corpus, split, limit) -> list[dict]:
    """Scores the first `limit` (0: all) texts of a split.

    Returns:
        One dict per text in the split's order: id, text, output (see `output_line`), log_prob (nats, read on its own,
        the end of the line included), tokens, unknown and characters; of a model that reads from the left also
        stream_log_prob, with all that came before it in mind, and where asked for cache_log_prob and dynamic_log_prob,
        the same with a continuous cache and under dynamic evaluation; and of the first `training.sample_examples` also
        continuation, what the model writes after the first three words.
    """
    examples = [*corpus.splits[split]().take(limit or -1).as_numpy_iterator()]
    texts = [example["text"].decode("utf-8") for example in examples]
    rows = features.encode(texts)
    results = [
        {"id": int(example["id"]), "text": text.rstrip("\n"), "output": "", **counts(row, text)}
        for example, text, row in zip(examples, texts, rows, strict=True)
    ]
    scores = {"log_prob": token_log_probs(model, rows, config.decoding.batch_size)}
    if not config.model.bidirectional:
        begins = [bool(example["begins"]) for example in examples]
        scores |= stream_log_probs(config, model, rows, begins, scores["log_prob"])
    for name, found in scores.items():
        for result, log_probs in zip(results, found, strict=True):
            result[name] = float(np.sum(log_probs))
    for result in results:
        result["output"] = output_line(result)
    if not config.model.bidirectional:
        shown = results[: config.training.sample_examples]
        written = generate(config, model, features, [" ".join(result["text"].split()[:3]) for result in shown])
        for result, new in zip(shown, written, strict=True):
            result["continuation"] = new["output"]
    return results


def counts(row, text) -> dict:
    """Tokens, unknown ones among them, and characters of a text, runs of blanks being one and an end of line one."""
    characters = sum(len(" ".join(line.split())) for line in text.split("\n")) + text.count("\n")
    return {"tokens": len(row), "unknown": row.count(UNK), "characters": characters}


def output_line(result) -> str:
    """What is printed of a scored text: log10 probability, tokens, unknown tokens, perplexity, with tabs between."""
    log10 = result["log_prob"] / math.log(10)
    each = perplexity(-result["log_prob"], result["tokens"])
    return f"{log10:.4f}\t{result['tokens']}\t{result['unknown']}\t{each:.4f}"


def perplexity(nats, tokens) -> float:
    """exp(nats / tokens); infinite of a model that has diverged, where exp would raise."""
    return math.exp(nats / tokens) if nats < 700 * tokens else math.inf


def score_texts(config, model, features, texts: Sequence[str]) -> list[dict]:
    """Scores texts, each on its own; one without an end of line at its end is given it.

    Returns:
        For each text log_prob (nats), tokens, unknown, and of each of its tokens pieces and log_probs.
    """
    texts = [text if text.endswith("\n") else f"{text}\n" for text in texts]
    rows, names = features.encode(texts), features.vocabulary.tokens()
    return [
        {
            "log_prob": float(np.sum(log_probs)),
            "tokens": len(row),
            "unknown": row.count(UNK),
            "pieces": [names[index] for index in row],
            "log_probs": log_probs.tolist(),
        }
        for row, log_probs in zip(rows, token_log_probs(model, rows, config.decoding.batch_size), strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- probabilities


def stream_log_probs(config, model, rows, begins, alone=None) -> dict[str, list[np.ndarray]]:
    """Log probabilities of each row's tokens given all rows before it, back to where a document begins.

    Args:
        begins: whether a document begins with each row.
        alone: the log probabilities of each row on its own, where they are known: if every row is a document, those.

    Returns:
        "stream_log_prob" -> one array a row; with `decoding.cache_size` also "cache_log_prob", and with
        `decoding.dynamic_rate` also "dynamic_log_prob".
    """
    decoding = config.decoding
    ids, edges = np.array([token for row in rows for token in row], np.int32), np.cumsum([len(row) for row in rows])
    documents = {int(edge) - len(row) for row, edge, begin in zip(rows, edges, begins, strict=True) if begin}
    cuts = sorted({0, len(ids), *documents, *np.linspace(0, len(ids), decoding.streams + 1).astype(int).tolist()})
    streams = [ids[a:b] for a, b in pairwise(cuts)]
    firsts = [ids[a - 1] if a else EOS for a in cuts[:-1]]
    size = decoding.batch_size
    known = alone if all(begins) and decoding.streams == 1 else None
    found = {"stream_log_prob": known or token_log_probs(model, streams, size, firsts)}
    if decoding.cache_size:
        settings = decoding.cache_size, decoding.cache_flatness, decoding.cache_weight
        found["cache_log_prob"] = token_log_probs(model, streams, size, firsts, settings)
    if decoding.dynamic_rate:
        found["dynamic_log_prob"] = dynamic_log_probs(config, model, streams, firsts)
    return {name: np.split(np.concatenate(values), edges[:-1]) for name, values in found.items()}


def token_log_probs(model, rows, batch_size, firsts=None, cache=None) -> list[np.ndarray]:
    """Log probability of every token of each row, in nats.

    Args:
        rows: sequences of ids.
        firsts: the token before each row; None: the end of a line.
        cache: (size, theta, lambda) of a continuous cache, or None.
    """
    firsts = [EOS] * len(rows) if firsts is None else firsts
    results = [np.zeros(0, np.float32)] * len(rows)
    order = sorted((i for i, row in enumerate(rows) if len(row)), key=lambda i: -len(rows[i]))
    while order:
        size = batch_size
        if model.backward is not None:  # rows are read whole, since what a word is predicted from reaches to their ends
            size = max(1, min(batch_size, LOGITS // (len(rows[order[0]]) * model.size)))
        batch, order = order[:size], order[size:]
        found = _read([rows[i] for i in batch], [firsts[i] for i in batch], model, cache)
        for i, log_probs in zip(batch, found, strict=True):
            results[i] = log_probs
    return results


def _read(rows, firsts, model, cache):
    """`token_log_probs` of one batch, the longest row first."""
    longest = len(rows[0])
    steps = max(1, min(WINDOW, LOGITS // (len(rows) * model.size))) if model.backward is None else longest
    targets = np.zeros((len(rows), -(-longest // steps) * steps), np.int32)
    for i, row in enumerate(rows):
        targets[i, : len(row)] = row
    tokens = np.concatenate([np.array(firsts, np.int32)[:, None], targets[:, :-1]], axis=1)
    state = model.stack.zero_state(len(rows))
    if cache:
        memory = tf.zeros((len(rows), cache[0], model.output_units)), tf.zeros((len(rows), cache[0]), tf.int32)
    found = []
    for start in range(0, longest, steps):
        end = start + (steps if longest - start >= steps else padded_length(longest - start))
        window = tokens[:, start:end], targets[:, start:end]
        if cache:
            log_probs, state, memory = _cached(model, *cache)(*window, state, memory)
        else:
            log_probs, state = _scored(model)(*window, state)
        found.append(log_probs.numpy())
    found = np.concatenate(found, axis=1)
    return [found[i, : len(row)] for i, row in enumerate(rows)]


@functools.lru_cache(maxsize=4)
def _scored(model):
    """Compiled: token ids, target ids, state -> log probabilities of the targets (batch, time), new state."""

    @tf.function(autograph=False, reduce_retracing=True)
    def scored(tokens, targets, state):
        outputs, state = model.read(tokens, targets, state)
        return _log_probs(model, outputs, targets), state

    return scored


def _log_probs(model, outputs, targets):
    return -model.cross_entropy(targets, outputs)


@functools.lru_cache(maxsize=4)
def _cached(model, size, theta, weight):
    """Compiled: as `_scored`, with a continuous cache (Grave, Joulin & Usunier 2017, equations 2 and 3).

        p(w) = (1 - weight) p_model(w) + weight sum_i [w = w_i] softmax_i(theta h_t . h_i)

    over the last `size` pairs of a state h_i and the word w_i that came after it.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def cached(tokens, targets, state, memory):
        outputs, state = model.read(tokens, targets, state)
        own = _log_probs(model, outputs, targets)
        outputs, time = tf.cast(outputs, tf.float32), tf.shape(targets)[1]
        keys, words = tf.concat([memory[0], outputs], axis=1), tf.concat([memory[1], targets], axis=1)
        scores = theta * tf.matmul(outputs, keys, transpose_b=True)
        age = tf.range(time)[:, None] + size - tf.range(size + time)[None]
        visible = (age > 0) & (age <= size) & (words[:, None] > 0)
        shares = tf.nn.softmax(tf.where(visible, scores, -1e9))
        same = tf.cast(visible & (words[:, None] == targets[:, :, None]), tf.float32)
        # With nothing in the cache yet, the model's own probability is all there is.
        share = tf.where(tf.reduce_any(visible, axis=2), weight, 0.0)
        parts = tf.math.log1p(-share) + own, tf.math.log(share * tf.reduce_sum(shares * same, axis=2))
        return tf.reduce_logsumexp(tf.stack(parts), axis=0), state, (keys[:, time:], words[:, time:])

    return cached


def dynamic_log_probs(config, model, streams, firsts) -> list[np.ndarray]:
    """Dynamic evaluation (Krause et al. 2018): after each window the weights learn from it, and the next one profits.

        weights += decay (trained weights - weights) - rate gradient, clipped to training.clip_norm

    Streams are read one after the other, since what is learned of one would tell another what comes later in the text.
    The weights are as before in the end.
    """
    decoding = config.decoding
    trained = [tf.identity(weight.value) for weight in model.trainable_weights]

    @tf.function(autograph=False, reduce_retracing=True)
    def learn(tokens, targets, state):
        with tf.GradientTape() as tape:
            outputs, new_state = model.read(tokens, targets, state)
            log_probs = _log_probs(model, outputs, targets)
            loss = -tf.reduce_mean(log_probs)
        variables = [weight.value for weight in model.trainable_weights]
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, variables)]
        if config.training.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.training.clip_norm)
        for variable, start, gradient in zip(variables, trained, gradients, strict=True):
            variable.assign_add(decoding.dynamic_decay * (start - variable) - decoding.dynamic_rate * gradient)
        return log_probs, new_state

    results = []
    try:
        for row, first in zip(streams, firsts, strict=True):
            tokens, state, found = np.append(first, row[:-1]).astype(np.int32), model.stack.zero_state(1), []
            for start in range(0, len(row), decoding.dynamic_window):
                end = start + decoding.dynamic_window
                log_probs, state = learn(tokens[None, start:end], row[None, start:end], state)
                found.append(log_probs.numpy()[0])
            results.append(np.concatenate(found))
    finally:
        for weight, value in zip(model.trainable_weights, trained, strict=True):
            weight.assign(value)
    return results


# ------------------------------------------------------------------------------------------------------------ new text


def generate(config, model, features, prompts: Sequence[str]) -> list[dict]:
    """One line of text from each prompt on, to its end or `decoding.max_tokens` tokens.

    Returns:
        For each prompt the best hypothesis' output (with the prompt), log_prob (nats, of what is new) and tokens, and
        n_best, output, score and log_prob of all, best first.
    """
    decoding, results = config.decoding, []
    rows = features.vocabulary.encode(prompts)
    for number, start in enumerate(range(0, len(rows), decoding.batch_size)):
        some = rows[start : start + decoding.batch_size]
        found = _search(model, decoding)(padded_array(some, first=[EOS]), decoding.seed + number).numpy()
        results += [_written(features, prompts[start + i], row, found, i) for i, row in enumerate(some)]
    return results


def stream(config, model, features, prompt: str) -> Iterator[str]:
    """The line that `generate` writes from a prompt on, piece by piece as it is written, the prompt first."""
    decoding = config.decoding
    if decoding.method == "beam":
        yield generate(config, model, features, [prompt])[0]["output"]
        return
    ids, unknown = features.vocabulary.encode([prompt])[0], _unknown(features, prompt)
    yield (shown := features.vocabulary.decode(ids, unknown))
    start, step = _steps(model, decoding)
    tokens, state = start(padded_array([ids], first=[EOS]))
    for index in range(decoding.max_tokens):
        tokens, state = step(tokens, state, index)
        ids = [*ids, int(tokens[0])]
        if ids[-1] == EOS:
            return
        text = features.vocabulary.decode(ids, unknown)
        yield text[len(shown) :]
        shown = text


def _unknown(features, text) -> list[str]:
    """The words of a text that the vocabulary does not know, to be written as they are."""
    return [surface for index, _, surface in features.vocabulary.pieces(text) if index == UNK]


@functools.lru_cache(maxsize=4)
def _search(model, decoding):
    """The compiled search of a model: prompts (batch, time) and a seed -> hypotheses."""

    @tf.function(autograph=False, input_signature=[IDS, tf.TensorSpec((), tf.int32)])
    def run(prompts, seed):
        state, step = model.start(prompts)
        rows = tf.shape(prompts)[0]
        return search(decoding, step, state, rows, tf.fill([rows], decoding.max_tokens), decoding.max_tokens, seed)

    return run


@functools.lru_cache(maxsize=4)
def _steps(model, decoding):
    """Compiled: prompts -> first tokens, state; and tokens, state, index of the step -> next tokens, state."""
    temperature = decoding.temperature if decoding.method == "sample" else 0
    choose = chooser(temperature, decoding.top_k, decoding.top_p, decoding.min_p, decoding.seed)

    @tf.function(autograph=False, input_signature=[IDS])
    def start(prompts):
        return tf.fill([tf.shape(prompts)[0]], BOS), model.start(prompts)[0]

    @tf.function(autograph=False, reduce_retracing=True)
    def step(tokens, state, index):
        log_probs, state = model.step(tokens, state)
        return choose(log_probs, index), state

    return start, lambda tokens, state, index: step(tokens, state, tf.constant(index))


def _written(features, prompt, ids, found, row) -> dict:
    unknown = _unknown(features, prompt)
    n_best = [
        {
            "output": features.vocabulary.decode([*ids, *found.tokens[row, k, :length]], unknown),
            "score": float(found.scores[row, k]),
            "log_prob": float(found.log_probs[row, k]),
        }
        for k, length in enumerate(found.lengths[row])
        if length
    ]
    return {**n_best[0], "tokens": int(found.lengths[row, 0]), "n_best": n_best}


def fill(config, model, features, lines: Sequence[str], count: int) -> list[list[tuple[str, float]]]:
    """The `count` most probable words for the gap, "___", in each line, with their probabilities.

    A gap is filled by one token.

    Args:
        model: a bidirectional one.
        lines: each with exactly one gap.
    """
    gaps = [_with_gap(features, line) for line in lines]
    rows, places = [row for row, _ in gaps], [place for _, place in gaps]
    names, results = features.vocabulary.tokens(), []
    for start in range(0, len(rows), config.decoding.batch_size):
        some = slice(start, start + config.decoding.batch_size)
        array = padded_array(rows[some], first=[EOS])
        log_probs = _at_gaps(model)(array[:, :-1], array[:, 1:], np.array(places[some], np.int32)).numpy()
        log_probs[:, : UNK + 1] = -np.inf  # neither an unknown word nor the end of a line is a word
        best = np.argsort(-log_probs, axis=1, kind="stable")[:, :count]
        results += [
            [(names[i].strip("▁") or "▁", float(np.exp(row[i]))) for i in order if np.isfinite(row[i])]
            for row, order in zip(log_probs, best, strict=True)
        ]
    return results


def _with_gap(features, line) -> tuple[list[int], int]:
    """The ids of a line, its end included, with an unknown token in place of the gap, and where that is."""
    pieces = features.vocabulary.pieces(line.replace(GAP, PLACEHOLDER))
    place = next(i for i, (index, _, surface) in enumerate(pieces) if index == UNK and PLACEHOLDER in surface)
    ids = [index for index, _, _ in pieces]
    before, after = ids[:place], ids[place + 1 :]
    if features.vocabulary.unit in ("bpe", "unigram") and place and pieces[place - 1][1] == "▁":
        before.pop()  # the mark of the blank belongs to the word that is missing
    return [*before, UNK, *after, EOS], len(before)


@functools.lru_cache(maxsize=4)
def _at_gaps(model):
    """Compiled: token ids, target ids, one place in each row -> log probabilities (rows, size) of a word there."""

    @tf.function(autograph=False, input_signature=[IDS, IDS, tf.TensorSpec((None,), tf.int32)])
    def at_gaps(tokens, targets, places):
        outputs, _ = model.read(tokens, targets)
        return tf.nn.log_softmax(model.logits(tf.gather(outputs, places, batch_dims=1)))

    return at_gaps

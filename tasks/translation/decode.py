"""A model and sentences in, translations out: searched for in length-sorted batches, returned in input order."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from shared.batching import padded_array
from shared.decoding import fuse, search
from shared.evaluate import restore_language_model
from shared.losses import token_cross_entropy
from shared.pictures import rendered
from shared.text import BOS, EOS, UNK


def decode(config, model, features, corpus, split, limit) -> list[dict]:
    """Translates the first `limit` (0: all) pairs of a split and scores their references.

    Returns:
        One dict per pair in the split's order: id, source, target, output, score, log_prob, n_best, and for the
        reference under teacher forcing target_log_prob (nats, eos included) and target_tokens.
    """
    pairs = read_pairs(corpus.splits[split](), limit)
    sources = [pair["source"] for pair in pairs]
    targets = [pair["target"] for pair in pairs]
    translations = translate(config, model, features, sources)
    references = score_pairs(config, model, features, sources, targets)
    return [
        {**pair, **translation, "target_log_prob": log_prob, "target_tokens": tokens}
        for pair, translation, (log_prob, tokens) in zip(pairs, translations, references, strict=True)
    ]


def read_pairs(examples, limit=0) -> list[dict]:
    """Examples of a dataset as Python values, in the order of their ids; only the first `limit` unless it is 0."""
    pairs = [
        {"id": int(pair["id"]), "source": pair["source"].decode("utf-8"), "target": pair["target"].decode("utf-8")}
        for pair in examples.as_numpy_iterator()
    ]
    return sorted(pairs, key=lambda pair: pair["id"])[: limit or None]


def translate(config, model, features, sources: Sequence[str], attention=False) -> list[dict]:
    """Translations of sentences, in their order.

    Returns:
        For each sentence the best hypothesis' output, score (what the search ranks by) and log_prob (nats), n_best,
        the same of all hypotheses, best first, and source_tokens, of which the first `data.max_length` were read. An
        empty sentence has an empty output and no hypotheses. With `attention` also the best one's "attention", (output
        tokens with eos, source tokens with eos), and "pieces" of both sides.
    """
    decoding = config.decoding
    language_model = None
    if decoding.language_model:
        language_model = restore_language_model(decoding.language_model, features.target.digest()).model
    whole = features.source.encode(sources)
    rows = [row[: config.data.max_length] for row in whole]
    nothing = {"output": "", "score": 0.0, "log_prob": 0.0, "n_best": []}
    results = [{**nothing, "source_tokens": len(row)} for row in whole]
    for number, batch in enumerate(length_sorted(rows, decoding.batch_size)):
        sources_read = padded_array([rows[i] for i in batch], last=[EOS])
        found = _search(model, decoding, language_model)(sources_read, decoding.seed + number).numpy()
        for row, i in enumerate(batch):
            results[i] |= _result(features, decoding, sources[i], found, row, len(rows[i]), attention)
    return results


def length_sorted(rows: Sequence[Sequence], batch_size: int) -> Iterator[list[int]]:
    """Positions of the rows that are not empty, in batches of similar length, the longest first."""
    order = sorted((i for i, row in enumerate(rows) if row), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@functools.lru_cache(maxsize=4)
def _search(model, decoding, language_model):
    """The compiled search of a model: (batch, positions) ids and a seed -> hypotheses. One graph serves all shapes."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((), tf.int32)])
    def run(source, seed):
        rows = tf.shape(source)[0]
        state, step = model.start(source, decoding.beams)
        if language_model:
            state, step = fuse(state, step, *language_model.start_of_text(rows), decoding.language_model_weight)
        lengths = tf.reduce_sum(tf.cast(source != 0, tf.float32), axis=1)
        longest = tf.cast(decoding.max_length_ratio * lengths, tf.int32) + decoding.max_length_extra
        return search(decoding, step, state, rows, longest, tf.reduce_max(longest), seed, source != 0)

    return run


def _result(features, decoding, source, found, row, source_length, attention) -> dict:
    """One sentence's hypotheses as text."""
    pieces = features.source.pieces(source)[:source_length]

    def text(k):
        tokens = found.tokens[row, k, : found.lengths[row, k]]
        unknown = []
        if decoding.replace_unknown and found.attention is not None:
            # Each unknown word becomes the source word that was looked at while it was written (Jean et al. 2015).
            peaks = found.attention[row, k, : len(tokens), :source_length].argmax(axis=-1)
            unknown = [pieces[peak][2] for peak in peaks[tokens == UNK]]
        return features.target.decode(tokens, unknown)

    n_best = [
        {"output": text(k), "score": float(found.scores[row, k]), "log_prob": float(found.log_probs[row, k])}
        for k in range(found.tokens.shape[1])
        if found.lengths[row, k]
    ]
    result = {**n_best[0], "n_best": n_best}
    if attention and found.attention is not None:
        length = found.lengths[row, 0]
        names = features.target.tokens()
        result["attention"] = found.attention[row, 0, :length, : source_length + 1]
        result["pieces"] = [*(piece[1] for piece in pieces), "<eos>"], [names[i] for i in found.tokens[row, 0, :length]]
    return result


def score_pairs(config, model, features, sources, targets) -> list[tuple[float, int]]:
    """For each pair, log p(target | source) in nats, eos included, and the number of target tokens with eos."""
    source_rows, target_rows = features.source.encode(sources), features.target.encode(targets)
    results = [(0.0, 0)] * len(sources)
    for batch in length_sorted(
        [[*s, 0, *t] for s, t in zip(source_rows, target_rows, strict=True)], config.decoding.batch_size
    ):
        source = padded_array([source_rows[i] for i in batch], last=[EOS])
        target = padded_array([target_rows[i] for i in batch], first=[BOS], last=[EOS])
        log_probs = _teacher_forced(model)(source, target).numpy()
        for i, log_prob in zip(batch, log_probs, strict=True):
            results[i] = float(log_prob), len(target_rows[i]) + 1
    return results


@functools.lru_cache(maxsize=4)
def _teacher_forced(model):
    """Compiled: source ids, target ids from bos to eos -> sums of log probabilities (batch,)."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None), tf.int32)] * 2)
    def log_probs(source, target):
        logits = model({"source": source, "target": target[:, :-1]}, training=False)
        words = target[:, 1:]
        return -tf.reduce_sum(token_cross_entropy(words, logits) * tf.cast(words != 0, tf.float32), axis=1)

    return log_probs


def draw_attention(weights: np.ndarray, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """An attention map as a picture, uint8 (height, width, 3): one row per written token, one column per read one.

    Args:
        weights: (target tokens, source tokens), each row summing to 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 0.38 * len(source), 1.2 + 0.3 * len(target)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=60, ha="left")
    axes.set_yticks(range(len(target)), target)
    axes.xaxis.tick_top()
    return rendered(figure)

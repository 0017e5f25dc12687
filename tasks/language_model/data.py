"""Text and vocabulary in, windows of parallel streams out: (inputs, targets, weights) to train.

The training split is one long row of ids. It is cut into `data.batch_size` streams, and these are read side by side,
window by window; what the model remembers at the end of a window it takes into the next (Mikolov et al. 2010).
"""

import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from shared.config import UserError
from shared.text import EOS, UNK
from tasks.language_model.features import encoded

logger = logging.getLogger(__name__)

SHORTEST_WINDOW = 5


class Tokens(NamedTuple):
    """A split as ids, in files that are read where they are needed and never loaded whole."""

    ids: np.ndarray
    """(tokens,) int32."""
    starts: np.ndarray
    """(documents,) int64: positions at which one begins."""


def training_batches(config, corpus, features, first_step) -> tf.data.Dataset:
    """Endless training batches from `first_step` on, a pure function of (training.seed, step).

    Yields ({"tokens": (streams, time), "targets": (streams, time), "begins": (streams,)}, targets, weights): int32 ids,
    a target being the token after; `begins` true where the window begins a stream or a document, so that the state
    starts anew; weights (streams, time) 1 on real targets and 0 on the padding of windows that are shorter than others.
    UserError as in `steps_per_pass`.
    """
    tokens, streams = load_tokens(config, corpus, features, "train"), config.data.batch_size
    steps = steps_per_pass(config, corpus, features)
    if (each := len(tokens.ids) // streams) < config.data.window:
        logger.warning("each of the %d streams has %d tokens, fewer than one window", streams, each)

    @functools.lru_cache(maxsize=1)
    def windows_of(number):
        return layout(tokens, config.data, [config.training.seed, number])

    def batch(step):
        number, place = divmod(int(step), steps)
        nothing = np.zeros(3, np.int64)
        return cut(tokens.ids, [stream[place] if place < len(stream) else nothing for stream in windows_of(number)])

    def read(step):
        types = (tf.int32, tf.int32, tf.bool, tf.float32)
        inputs, targets, begins, weights = tf.numpy_function(batch, [step], types, stateful=False)
        for array in (inputs, targets, weights):
            array.set_shape([streams, None])
        begins.set_shape([streams])
        return {"tokens": inputs, "targets": targets, "begins": begins}, targets, weights

    return tf.data.Dataset.range(first_step, tf.int64.max).map(read).prefetch(4)


def steps_per_pass(config, corpus, features) -> int:
    """Windows of the stream that has most of them. Raises UserError for a text too short for so many streams."""
    tokens, streams = load_tokens(config, corpus, features, "train"), config.data.batch_size
    if len(tokens.ids) < 2 * streams:
        raise UserError(
            f"data.batch_size: {streams} streams need at least {2 * streams} tokens, and {corpus.name} has "
            f"{len(tokens.ids)}; choose fewer"
        )
    return max(map(len, layout(tokens, config.data, 0)))


def layout(tokens, data, seed) -> list[np.ndarray]:
    """Stream -> its windows in the order in which they are read: rows (start, end, whether the state starts anew).

    No window reaches over the start of a document. With `data.random_windows` their lengths are drawn by `seed`, but
    their number is always the same; every stream draws the same ones, so that those side by side are equally long but
    for what documents change.
    """
    size = len(tokens.ids)
    length = -(-size // data.batch_size)
    streams = []
    for first in range(0, data.batch_size * length, length):
        first, last = min(first, size), min(first + length, size)
        inside = tokens.starts[(tokens.starts > first) & (tokens.starts < last)]
        edges = np.array([first, *inside, last] if first < last else [], np.int64)
        rng = np.random.default_rng(seed) if data.random_windows else None
        streams.append(_windows(edges[:-1], edges[1:], data.window, rng))
    return streams


def _windows(starts, ends, window, rng) -> np.ndarray:
    """Cuts documents (start, end) into windows of `window` steps, or of random lengths around that: see `layout`."""
    counts = -(-(ends - starts) // window)
    document = np.repeat(np.arange(len(counts)), counts)
    firsts = np.cumsum(counts) - counts
    if rng is None:
        lengths = np.full(len(document), window, np.float64)
    else:
        # Merity et al. 2018, section 4.1: now and then half as long, with a spread of 5.
        base = np.where(rng.random(len(document)) < 0.95, window, window / 2)
        lengths = np.maximum(rng.normal(base, 5), SHORTEST_WINDOW)
        total = np.add.reduceat(lengths, firsts) if len(firsts) else lengths
        lengths *= ((ends - starts) / total)[document]  # to fit the document
    reach = np.cumsum(lengths)
    reach -= (reach - lengths)[firsts][document]
    window_ends = np.minimum(starts[document] + np.round(reach).astype(np.int64), ends[document])
    window_starts = np.append(0, window_ends)[:-1]
    window_starts[firsts] = starts
    begins = np.zeros(len(document), np.int64)
    begins[firsts] = 1
    return np.stack([window_starts, window_ends, begins], axis=1)


def cut(ids, windows):
    """Inputs, targets, begins and weights of one window (start, end, begins) of each stream, padded to the longest."""
    longest = max(int(end - start) for start, end, _ in windows)
    inputs, targets = np.zeros((2, len(windows), longest), np.int32)
    for row, (start, end, _) in enumerate(windows):
        if start < end:
            targets[row, : end - start] = ids[start:end]
            inputs[row, 1 : end - start] = ids[start : end - 1]
            inputs[row, 0] = ids[start - 1] if start else EOS
    begins = np.array([begin for _, _, begin in windows], bool)
    return inputs, targets, begins, (targets != 0).astype(np.float32)


def load_tokens(config, corpus, features, split) -> Tokens:
    """The ids of a split, from files beside the corpus that are written on the first call."""
    folder = Path(config.data.cache, "tokens", f"{corpus.identity}-{features.vocabulary.digest()}")
    paths = [folder / f"{split}.{kind}" for kind in ("ids", "starts")]
    if not all(path.exists() for path in paths):
        _write_tokens(corpus.splits[split](), features, paths)
    ids = np.memmap(paths[0], np.int32, "r")
    return Tokens(ids, np.fromfile(paths[1], np.int64))


def _write_tokens(examples, features, paths):
    """Writes the ids and the document starts of examples into two files, each whole or not at all."""
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    unfinished = [path.with_name(f"{path.name}.{os.getpid()}.unfinished") for path in paths]
    position = unknown = 0
    with open(unfinished[0], "wb") as ids, open(unfinished[1], "wb") as starts:
        for some, lengths, begins in encoded(examples, features):
            some.tofile(ids)
            (position + np.cumsum(lengths) - lengths)[begins].astype(np.int64).tofile(starts)
            position, unknown = position + some.size, unknown + np.count_nonzero(some == UNK)
    logger.info("%d tokens, %.2f %% unknown, in %s", position, 100 * unknown / max(position, 1), paths[0].parent)
    for path, source in zip(paths, unfinished, strict=True):
        os.replace(source, path)

"""A model and pictures in, captions out, each word with the region that it was written from; or captions scored."""

import functools
import textwrap
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from shared.batching import padded_array
from shared.decoding import fuse, search
from shared.evaluate import restore_language_model
from shared.losses import token_cross_entropy
from shared.pictures import rendered
from shared.text import BLANK, BOS, EOS
from tasks.captioning.features import seen


def decode(config, model, features, corpus, split, limit) -> list[dict]:
    """Captions of the first `limit` (0: all) pictures of a split, and how probable their references are.

    Returns:
        One dict per picture in the split's order: id, name, what `describe` gives, captions (the references), scene (as
        the corpus has it), novel (no caption of the training split says the same), and for the references under teacher
        forcing caption_log_prob (their sum, nats, eos included) and caption_tokens.
    """
    records, arrays = seen(config, corpus, features, split)
    records, arrays = records[: limit or None], arrays[: limit or None]
    known = _known_captions(config, corpus, features)
    references = score_captions(config, model, features, arrays, [record["captions"] for record in records])
    results = []
    for i, (record, found) in enumerate(zip(records, describe(config, model, features, arrays), strict=True)):
        log_probs, tokens = zip(*references[i], strict=True)
        results.append(
            {
                **{"id": i, "name": record["name"], **found, "captions": record["captions"], "scene": record["scene"]},
                "novel": _plain(found["output"]) not in known,
                **{"caption_log_prob": sum(log_probs), "caption_tokens": sum(tokens)},
            }
        )
    return results


@functools.lru_cache(maxsize=1)
def _known_captions(config, corpus, features) -> set[str]:
    """What the training captions say, read off as outputs are."""
    records, _ = seen(config, corpus, features, "train")
    rows = features.vocabulary.encode([caption for record in records for caption in record["captions"]])
    return {_plain(features.vocabulary.decode(row)) for row in rows}


def _plain(caption: str) -> str:
    return caption.rstrip(" .")


def describe(config, model, features, arrays: np.ndarray, attention: bool = False) -> list[dict]:
    """Captions of pictures, as `Features.read` has them (n, ...), in their order.

    Returns:
        For each picture the best hypothesis' output, score (what the search ranks by) and log_prob (nats); n_best, the
        same of all hypotheses, best first; and of a model with attention `regions`: for each token of the best one, its
        end left out, what it says, [left, top, right, bottom] of the region looked at most, in shares of the picture's
        width and height, and the weight of that region. With `attention` also all weights (tokens, rows, columns).
    """
    decoding, language_model = config.decoding, None
    if decoding.language_model:
        language_model = restore_language_model(decoding.language_model, features.vocabulary.digest()).model
    results = []
    for number, start in enumerate(range(0, len(arrays), decoding.batch_size)):
        some = np.asarray(arrays[start : start + decoding.batch_size])
        found = _search(model, decoding, language_model)(some, decoding.seed + number).numpy()
        results += [_result(model, features, found, row, attention) for row in range(len(some))]
    return results


def seen_of(model) -> tf.TensorSpec:
    """What `model.see` takes: pictures, or regions of them where the encoder is not part of the model."""
    if model.encoder:
        return tf.TensorSpec((None, *[model.config.image_size] * 2, 3), tf.uint8)
    return tf.TensorSpec((None, model.rows * model.columns, model.channels), tf.float16)


@functools.lru_cache(maxsize=4)
def _search(model, decoding, language_model):
    """The compiled search of a model: what is seen of pictures and a seed -> hypotheses."""

    @tf.function(autograph=False, input_signature=[seen_of(model), tf.TensorSpec((), tf.int32)])
    def run(pictures, seed):
        rows = tf.shape(pictures)[0]
        state, step = model.start(pictures, decoding.beams)
        if language_model:
            state, step = fuse(state, step, *language_model.start_of_text(rows), decoding.language_model_weight)
        return search(decoding, step, state, rows, tf.fill([rows], decoding.max_length), decoding.max_length, seed)

    return run


def _result(model, features, found, row, attention) -> dict:
    """One picture's hypotheses as text, and where each word of the best was seen."""
    n_best = [
        {
            "output": features.vocabulary.decode(found.tokens[row, k, : found.lengths[row, k]]),
            "score": float(found.scores[row, k]),
            "log_prob": float(found.log_probs[row, k]),
        }
        for k in range(found.tokens.shape[1])
        if found.lengths[row, k]
    ]
    result = {**n_best[0], "n_best": n_best}
    if found.attention is not None:
        tokens = found.tokens[row, 0, : found.lengths[row, 0]]
        tokens = tokens[tokens != EOS]
        weights, names = found.attention[row, 0, : len(tokens)], features.vocabulary.tokens()
        result["regions"] = [
            [names[token].replace(BLANK, ""), box(model, int(each.argmax())), float(each.max())]
            for token, each in zip(tokens, weights, strict=True)
        ]
        if attention:
            result["attention"] = weights.reshape(-1, model.rows, model.columns)
    return result


def box(model, region: int) -> list[float]:
    """[left, top, right, bottom] of a region, in shares of the picture's width and height."""
    y, x = divmod(region, model.columns)
    return [x / model.columns, y / model.rows, (x + 1) / model.columns, (y + 1) / model.rows]


def score_captions(config, model, features, arrays, captions: Sequence[Sequence[str]]) -> list[list[tuple[float, int]]]:
    """For each picture and each caption given for it, log p(caption | picture) in nats, eos included, and its tokens
    with eos.

    Args:
        arrays: (n, ...), see `Features.read`. captions: those of each of the n pictures; at least one.
    """
    results = []
    for start in range(0, len(arrays), config.decoding.batch_size):
        some = np.asarray(arrays[start : start + config.decoding.batch_size])
        rows = [features.vocabulary.encode(list(each)) for each in captions[start : start + len(some)]]
        flat = [row for each in rows for row in each]
        pictures = np.repeat(np.arange(len(some), dtype=np.int32), [len(each) for each in rows])
        log_probs = _teacher_forced(model)(some, pictures, padded_array(flat, first=[BOS], last=[EOS])).numpy()
        scored = iter(zip(log_probs.tolist(), (len(row) + 1 for row in flat), strict=True))
        results += [[next(scored) for _ in each] for each in rows]
    return results


@functools.lru_cache(maxsize=4)
def _teacher_forced(model):
    """Compiled: what is seen of pictures, each caption's picture, its ids -> sums of log probabilities (captions,)."""
    ids = tf.TensorSpec((None, None), tf.int32)

    @tf.function(autograph=False, input_signature=[seen_of(model), tf.TensorSpec((None,), tf.int32), ids])
    def log_probs(pictures, numbers, captions):
        view = tf.nest.map_structure(lambda part: tf.gather(part, numbers), model.see(pictures, training=False))
        logits, _ = model.writer.read(captions[:, :-1], *view, training=False)
        words = captions[:, 1:]
        return -tf.reduce_sum(token_cross_entropy(words, logits) * tf.cast(words != 0, tf.float32), axis=1)

    return log_probs


# ------------------------------------------------------------------------------------------------------------ pictures


def draw_attention(picture: np.ndarray, regions: Sequence, weights: np.ndarray) -> np.ndarray:
    """A picture once for each word of its caption, brighter where the word was seen, uint8 (height, width, 3).

    Args:
        picture: uint8 (height, width, 3). regions: as `describe` has them. weights: (words, rows, columns).
    """
    from matplotlib.figure import Figure

    columns = min(6, len(regions) + 1)
    lines = -(-(len(regions) + 1) // columns)
    figure = Figure(figsize=(1.7 * columns, 1.95 * lines), dpi=80, layout="constrained")
    axes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axis in axes:
        axis.set_axis_off()
    height, width = picture.shape[:2]
    axes[0].imshow(picture)
    for axis, (word, _, _), heat in zip(axes[1:], regions, weights, strict=False):
        axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        axis.imshow(heat, cmap="inferno", alpha=0.6, extent=(0, width, height, 0), interpolation="bilinear", vmin=0)
        axis.set_title(word, size=9, parse_math=False)
    return rendered(figure)


def draw_captions(pictures: Sequence[np.ndarray], predictions: Sequence[dict], columns: int = 4) -> np.ndarray:
    """A grid of pictures, each over its caption and its first reference, uint8 (height, width, 3)."""
    from matplotlib.figure import Figure

    lines = -(-len(pictures) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.7 * lines), dpi=80, layout="constrained")
    axes = np.ravel(figure.subplots(lines, columns, squeeze=False))
    for axis in axes:
        axis.set_axis_off()
    for axis, picture, prediction in zip(axes, pictures, predictions, strict=False):
        axis.imshow(picture)
        said = textwrap.fill(prediction["output"], 38), textwrap.fill(f"({prediction['captions'][0]})", 38)
        axis.set_title("\n".join(said), size=9, parse_math=False)
    return rendered(figure)

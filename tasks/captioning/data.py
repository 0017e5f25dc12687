"""Pictures and captions in, batches out: (inputs, targets, weights) to train.

A pass shows every caption once, `data.captions_per_picture` of one picture at a time: of which there is more to say is
seen more often.
"""

import functools
import json
import re
from itertools import pairwise

import numpy as np
import tensorflow as tf

from shared.batching import length_sorted_batches, padded_array, passes
from shared.text import BOS, EOS
from shared.tiny_world.pictures import LANGUAGES, places
from tasks.captioning.config import AugmentConfig
from tasks.captioning.features import fits, seen, turns


def training_batches(config, corpus, features, first_step) -> tf.data.Dataset:
    """Endless training batches from `first_step` on, a pure function of (training.seed, step).

    Yields ({"seen": (pictures, ...), "tokens": (captions, time), "targets": (captions, time)}, targets, weights):
    what the model reads of each picture, see `Features.read`; int32 ids of its captions, the k of each picture next to
    each other, begun by bos in "tokens" and ended by eos in "targets"; weights 1 on words and eos, 0 on padding. With
    training.objective cider also "references" (pictures, captions, time), all captions of each, ended by eos. With
    model.attention_supervision also "places" (captions, time, boxes, 4), where each target is to be seen, see
    `tiny_world.pictures.places`, in shares of the picture; boxes of nothing are padding. Captions and places
    of a flipped picture are those of what is then to be seen.
    """
    records, arrays = seen(config, corpus, features, "train")
    trained_on = [encoded(record["captions"], config, features) for record in records]
    captions = [[ids for _, ids in each] for each in trained_on]
    pairs = config.augment.flip_words
    mirrored = _of_mirrored(trained_on, pairs, features.vocabulary) if pairs else captions
    parts = _parts(config, arrays)
    data, seed, steps = config.data, config.training.seed, steps_per_pass(config, corpus, features)
    shown = [(i, turn) for i, ids in enumerate(captions) for turn in range(turns(ids, data))]
    # Captions of one length are of pictures with as many things. Where the encoder normalises by what a batch shows,
    # that would tell it what it has to find out, and what no single picture tells it later.
    pool = 1 if config.model.normalises_batches else data.sort_pool

    def choose(turn, pass_seed):
        """A picture, which captions of it are shown at this turn of a pass, and the length of the longest."""
        picture, number = turn
        ids = captions[picture]
        order = np.random.default_rng([picture, pass_seed]).permutation(len(ids))
        chosen = order[number * data.captions_per_picture :][: data.captions_per_picture]
        chosen = np.resize(chosen, data.captions_per_picture)  # over again where there are fewer
        return turn[:1], chosen, np.array([max(len(ids[i]) for i in chosen)])

    def batches_of(shown, pass_seed):
        def example(turn):
            drawn = tf.numpy_function(choose, (turn, pass_seed), (tf.int64,) * 3, stateful=False)
            return {
                name: tf.ensure_shape(part, [None])
                for name, part in zip(("picture", "chosen", "length"), drawn, strict=True)
            }

        return length_sorted_batches(
            shown.map(example), lambda rows: rows["length"].flat_values, per_batch(data), pool, pass_seed
        )

    def collate(number, some, chosen):
        rng = np.random.default_rng([seed, number])
        flipped = config.augment.flip & (rng.random(len(some)) < 0.5)
        told = [(mirrored if turned else captions)[i] for i, turned in zip(some, flipped, strict=True)]
        targets = padded_array(
            [of_picture[k] for of_picture, ks in zip(told, chosen, strict=True) for k in ks], last=[EOS]
        )
        tokens = np.pad(targets, [[0, 0], [1, 0]], constant_values=BOS)[:, :-1]
        found = [augmented(arrays[some], flipped, config.augment, rng), tokens, targets]
        if "references" in parts:
            found.append(_stacked(told))
        if "places" in parts:
            boxes = _boxes([placed(i, k) for i, ks in zip(some, chosen, strict=True) for k in ks], targets)
            found.append(_mirrored(boxes, np.repeat(flipped, chosen.shape[1])))
        return found

    @functools.cache
    def placed(picture, number):
        caption, _ = trained_on[picture][number]
        return places(caption, LANGUAGES[data.language], json.loads(records[picture]["scene"]))

    def read(number, some):
        chosen = some["chosen"][:, : data.captions_per_picture]  # without what it was padded with
        types = [dtype for dtype, _ in parts.values()]
        found = tf.numpy_function(collate, (number, some["picture"][:, 0], chosen), types, stateful=False)
        inputs = {name: tf.ensure_shape(each, parts[name][1]) for name, each in zip(parts, found, strict=True)}
        return inputs, inputs["targets"], tf.cast(inputs["targets"] != 0, tf.float32)

    examples = tf.data.Dataset.from_tensor_slices(np.array(shown, np.int64))
    batches = passes(examples, batches_of, len(shown), seed, steps, first_step)
    return batches.enumerate(first_step).map(read).prefetch(4)


def _parts(config, arrays) -> dict[str, tuple]:
    """Name -> dtype and shape of what the model is given of a batch."""
    parts = {
        "seen": (arrays.dtype, [None, *arrays.shape[1:]]),
        **dict.fromkeys(("tokens", "targets"), (tf.int32, [None, None])),
    }
    if config.training.objective == "cider":
        parts["references"] = tf.int32, [None, None, None]
    if config.model.attention_supervision:
        parts["places"] = tf.float32, [None, None, None, 4]
    return parts


def per_batch(data) -> int:
    """Pictures in a batch."""
    return data.batch_size // data.captions_per_picture


def steps_per_pass(config, corpus, features) -> int:
    """Batches in one pass over the training captions that are short enough."""
    return -(-features.num_turns // per_batch(config.data))


def encoded(captions: list[str], config, features) -> list[tuple[str, list[int]]]:
    """The captions that are trained on, each with its ids without eos."""
    pairs = zip(captions, features.vocabulary.encode(captions), strict=True)
    return [(caption, ids) for caption, ids in pairs if fits(ids, config.data.max_length)]


def _of_mirrored(captions, pairs: str, vocabulary) -> list[list[list[int]]]:
    """Of each picture what `encoded` returned as ids that are true of it with left and right exchanged."""
    return [vocabulary.encode([exchanged(text, pairs) for text, _ in each]) for each in captions]


def _stacked(captions: list[list[list[int]]]) -> np.ndarray:
    """The captions of each picture, ended by eos, (pictures, captions, time) padded with 0."""
    flat = padded_array([ids for each in captions for ids in each], last=[EOS])
    edges = np.cumsum([0, *map(len, captions)])
    found = np.zeros((len(captions), max(map(len, captions)), flat.shape[1]), np.int32)
    for i, (start, end) in enumerate(pairwise(edges)):
        found[i, : end - start] = flat[start:end]
    return found


def _boxes(captions: list[list[list[list[float]]]], targets: np.ndarray) -> np.ndarray:
    """The boxes of each word of each caption, (captions, time, boxes, 4), padded with boxes of nothing."""
    most = max((len(boxes) for words in captions for boxes in words), default=0)
    found = np.zeros((*targets.shape, most, 4), np.float32)
    for i, words in enumerate(captions):
        for j, boxes in enumerate(words):
            found[i, j, : len(boxes)] = boxes or 0
    return found


def exchanged(caption: str, pairs: str) -> str:
    """The caption with each word of a pair, see `AugmentConfig.flip_words`, in place of the other one."""
    words = pairs.lower().split()
    other = dict(zip(words[::2], words[1::2], strict=True)) | dict(zip(words[1::2], words[::2], strict=True))
    return re.sub(r"\w+", lambda word: other.get(word[0].lower(), word[0]), caption)


def _mirrored(boxes: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Boxes (n, ..., 4), in shares of the picture, with left and right exchanged where flipped (n,)."""
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    turned = np.stack([1 - right, top, 1 - left, bottom], axis=-1)
    return np.where(flipped[(..., *[None] * (boxes.ndim - 1))], turned, boxes)


def augmented(
    pictures: np.ndarray, flipped: np.ndarray, augment: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Pictures (n, size, size, 3) uint8, flipped where `flipped` (n,), moved, brightened and steepened by chance; see
    the section."""
    if augment == AugmentConfig():
        return pictures
    turned = [picture[:, ::-1] if flip else picture for picture, flip in zip(pictures, flipped, strict=True)]
    return np.stack([_changed(picture, augment, rng) for picture in turned])


def _changed(picture, augment, rng):
    size = len(picture)
    if reach := round(augment.shift * size):
        top, left = rng.integers(0, 2 * reach, 2, endpoint=True)
        picture = np.pad(picture, [[reach, reach], [reach, reach], [0, 0]], "edge")[top:, left:][:size, :size]
    if not (augment.brightness or augment.contrast):
        return picture
    factor = 1 + rng.uniform(-augment.contrast, augment.contrast)
    offset = 255 * rng.uniform(-augment.brightness, augment.brightness)
    mean = picture.mean()
    return np.clip((picture - mean) * factor + mean + offset, 0, 255).astype(np.uint8)

"""A corpus and features in, utterances as frames and ids out: batches to train, rows to recognise.

The frames of a split lie in files and are read where they are needed. What is cheap is done anew at every reading:
normalising, stacking, and the masks of SpecAugment (Park et al. 2019).
"""

import functools
import itertools
import logging
from fnmatch import fnmatch

import numpy as np
import soxr
import tensorflow as tf

from shared.batching import length_sorted_batches, padded_length, passes
from shared.config import UserError
from shared.text import UNK
from tasks.speech.config import FeaturesConfig
from tasks.speech.features import frame_time, kept_frames, left_out, num_columns, num_steps, step_seconds, thin

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------- utterances


class Utterances:
    """The utterances of a split, in its order, as the model reads them; copies of all of them follow, where asked for.

    Attributes, one entry per utterance:
        names, speakers, texts, phone_strings: as the corpus has them.
        phones: lists of ids; empty where none are known.
        seconds: (n,) float64. num_steps: (n,) int64, what the model reads of each.
    """

    def __init__(self, config, features, records: list[dict], rows: list[np.ndarray]):
        self._settings, self._features, self._records, self._rows = config.features, features, records, rows
        keys = ("name", "speaker", "text", "phones")
        self.names, self.speakers, self.texts, self.phone_strings = ([each[key] for each in records] for key in keys)
        self.phones = features.phones.encode(self.phone_strings) if features.phones else [[] for _ in records]
        self._labels = self.phones
        if features.labels is not features.phones:
            self._labels = features.labels.encode(self.texts)
        self.seconds = np.array([each["seconds"] for each in records])
        self.num_steps = num_steps(np.array([len(each) for each in rows], np.int64), config.features)

    def __len__(self) -> int:
        return len(self._records)

    def normalized(self, i: int) -> np.ndarray:
        """(frames, columns) float32 of utterance i, normalised, neither stacked nor thinned out."""
        return self._features.normalized(self._rows[i], self.speakers[i])

    def frames(self, i: int) -> np.ndarray:
        """(steps, columns * stack) float32, what the model reads of utterance i."""
        return thin(self.normalized(i), self._settings)

    def labels(self, i: int) -> np.ndarray:
        """(n,) int32: what CTC is to write."""
        return np.array(self._labels[i], np.int32)

    def segments(self, i: int) -> list[tuple[str, float, float]]:
        """(phone, start, end) in seconds; empty where no times are known."""
        starts, ends = self._times(i)
        return list(zip(self.phone_strings[i].split(), starts, ends, strict=True)) if starts else []

    def frame_phones(self, i: int) -> np.ndarray:
        """(steps,) int32: the phone at the middle of each step, 0 where none is known."""
        starts, ends = self._times(i) if self._features.phones else ([], [])
        return frame_phones(self.phones[i], starts, ends, int(self.num_steps[i]), self._settings)

    def left_out(self, config, i: int) -> str:
        """Why utterance i is not trained on; empty if it is."""
        timed = len(self._records[i]["starts"]) > 0
        return left_out(config, self.seconds[i], self.num_steps[i], self._labels[i], timed)

    def _times(self, i: int) -> tuple[list[float], list[float]]:
        return self._records[i]["starts"], self._records[i]["ends"]


def utterances(config, corpus, features, split: str, noise=(), copies: int = 0) -> Utterances:
    """The utterances of a split; of valid and test only those to be scored.

    Args:
        noise: [] or the signal-to-noise ratio in decibels at which noise is mixed in, the same at every call.
        copies: how many of each utterance follow, changed as `augment` says.

    Raises RunError if their frames cannot be written.
    """
    noisy = functools.partial(_noisy, decibels=noise[0]) if noise else None
    found = list(kept_frames(config, corpus, split, noisy, list(noise) or None))
    for copy in range(1, copies + 1):
        change = functools.partial(changed, augment=config.augment, copy=copy)
        drawn = (copy, config.augment.speeds, config.augment.gain, config.augment.noise)
        found += kept_frames(config, corpus, split, change, drawn)
    if split != "train":
        found = [pair for pair in found if not _unscored(pair[0]["name"], config.data.unscored)]
    rows = Utterances(config, features, [record for record, _ in found], [frames for _, frames in found])
    for kind, ids in (("phones", rows.phones), (config.model.labels, map(rows.labels, range(len(rows))))):
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int32)
        if unknown := int(np.sum(flat == UNK)):
            _warn_once(f"{corpus.name}: {unknown} of {len(flat)} {kind} of {split} are not in the training split")
    return rows


def frame_phones(ids, starts, ends, num_steps: int, settings: FeaturesConfig) -> np.ndarray:
    """The phone at the middle of each step.

    Args:
        ids, starts, ends: (n,), phones and their seconds, in order; empty where no times are known.

    Returns:
        (num_steps,) int32, 0 where there is no phone. Where the times end less than a step too early, as they do when
        they were measured on another grid, the last phone reaches to the end.
    """
    found = np.zeros(num_steps, np.int32)
    if len(starts) and num_steps:
        times = frame_time(np.arange(num_steps), settings)
        places = np.searchsorted(starts, times, side="right") - 1
        inside = (places >= 0) & (times < np.asarray(ends)[places])
        found[inside] = np.asarray(ids)[places[inside]]
        if times[-1] < ends[-1] + step_seconds(settings):
            found[times >= ends[-1]] = ids[-1]
    return found


def _unscored(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name.rsplit("/", 1)[-1], pattern) for pattern in patterns)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)


# -------------------------------------------------------------------------------------------------------- augmentation


def changed(samples: np.ndarray, rate: int, augment, copy: int, position: int) -> tuple[np.ndarray, float]:
    """A copy of a recording, and its speed: faster or slower (Ko et al. 2015), with noise, and louder or softer.

    What is drawn depends on the number of the copy and the recording's position alone, so that all trainings share it.
    """
    rng = np.random.default_rng([copy, position])
    speed, gain = float(rng.choice(augment.speeds)), rng.uniform(-augment.gain, augment.gain)
    if speed != 1:
        samples = soxr.resample(samples, rate * speed, rate)
    if augment.noise:
        samples = with_noise(samples, rng.uniform(*augment.noise), rng)
    return samples * np.float32(10 ** (gain / 20)), speed


def with_noise(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """Samples (n,) float32 with white or pink noise, as is drawn, so far below their mean power over the recording."""
    noise = rng.standard_normal(len(samples))
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))  # power falls as 1 / frequency
        noise = np.fft.irfft(spectrum, len(samples))
    power, wanted = np.mean(noise**2), np.mean(np.square(samples, dtype=np.float64)) / 10 ** (decibels / 10)
    return (samples + noise * np.sqrt(wanted / max(power, 1e-30))).astype(np.float32)


def _noisy(samples, rate, decibels, position):
    del rate  # noise of every rate is alike
    return with_noise(samples, decibels, np.random.default_rng([0, position])), 1.0


def masked(frames: np.ndarray, config, rng: np.random.Generator) -> np.ndarray:
    """Normalised frames (n, columns) with bands and stretches of time set to 0, their mean (Park et al. 2019).

    The slopes of a band that is masked are masked with it; the energy is left. Widths are drawn from 0 to their limit.
    """
    augment, settings = config.augment, config.features
    if not (augment.frequency_masks or augment.time_masks):
        return frames
    frames = frames.copy()
    group = frames.shape[1] // (1 + settings.deltas)
    bands = group - settings.energy
    for _ in range(augment.frequency_masks):
        first, last = _span(bands, augment.frequency_width, rng)
        frames.reshape(len(frames), -1, group)[:, :, first:last] = 0
    for _ in range(augment.time_masks):
        first, last = _span(len(frames), augment.time_width, rng)
        frames[first:last] = 0
    return frames


def _span(size: int, limit: int, rng: np.random.Generator) -> tuple[int, int]:
    width = rng.integers(0, min(limit, size), endpoint=True)
    first = rng.integers(0, size - width, endpoint=True)
    return first, first + width


# ------------------------------------------------------------------------------------------------------------- batches


def training_batches(config, corpus, features, first_step) -> tf.data.Dataset:
    """Endless training batches from `first_step` on, a pure function of (training.seed, step).

    Yields ({"features": (batch, steps, columns) float32, "lengths": (batch,) steps of each, "frame_phones": (batch,
    steps), "labels": (batch, labels)}, targets (batch, steps) of zeros, since the model
    computes its own losses, and weights (batch, steps) float32, 1 on steps and 0 on padding). Ids and lengths are
    int32; all is padded on the right with 0.

    Raises UserError for a validation split by which no round could be told from another.
    """
    _check_validation(config, corpus, features)
    rows, kept = _trained_on(config, corpus, features)
    lengths, columns = tf.constant(rows.num_steps), num_columns(config.features) * config.features.stack
    examples = tf.data.Dataset.from_tensor_slices({"row": tf.RaggedTensor.from_row_lengths(kept, np.ones_like(kept))})

    def batches_of(examples, seed):
        def steps_of(some):
            return tf.gather(lengths, some["row"].flat_values)

        return length_sorted_batches(examples, steps_of, config.data.batch_size, config.data.sort_pool, seed)

    def collate(number, some):
        rng = np.random.default_rng([config.training.seed, number])
        parts = [thin(masked(rows.normalized(i), config, rng), config.features) for i in some]
        frames, lengths = padded(parts, np.float32)
        phones, _ = padded([rows.frame_phones(i) for i in some], np.int32)
        labels, _ = padded([rows.labels(i) for i in some], np.int32)
        return frames, lengths, phones, labels

    def read(number, some):
        types = (tf.float32, tf.int32, tf.int32, tf.int32)
        arrays = tf.numpy_function(collate, (number, some["row"][:, 0]), types, stateful=False)
        shapes = ([None, None, columns], [None], [None, None], [None, None])
        frames, lengths, phones, labels = map(tf.ensure_shape, arrays, shapes)
        inputs = {"features": frames, "lengths": lengths, "frame_phones": phones, "labels": labels}
        weights = tf.sequence_mask(lengths, tf.shape(frames)[1], tf.float32)
        return inputs, tf.zeros_like(phones), weights

    steps = -(-len(kept) // config.data.batch_size)
    batches = passes(examples, batches_of, len(kept), config.training.seed, steps, first_step)
    return batches.enumerate(first_step).map(read).prefetch(4)


def steps_per_pass(config, corpus, features) -> int:
    """Batches in one pass over the training utterances and their copies."""
    _, kept = _trained_on(config, corpus, features)
    return -(-len(kept) // config.data.batch_size)


def padded(rows: list[np.ndarray], dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, ...) -> (rows, padded length, ...), padded on the right with 0, and their lengths (rows,) int32."""
    lengths = np.array([len(row) for row in rows], np.int32)
    array = np.zeros((len(rows), padded_length(max(1, int(lengths.max()))), *rows[0].shape[1:]), dtype)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array, lengths


def _check_validation(config, corpus, features) -> None:
    rows = utterances(config, corpus, features, "valid", config.decoding.noise)
    kind, said = ("text", rows.texts) if config.writes_characters else ("phones", rows.phone_strings)
    if not any(map(str.strip, said)):
        raise UserError(
            f"data.valid: of {len(rows)} utterances to be scored none has {kind}, so no round can be told from "
            "another; name utterances of which it is known what they say"
        )


def _trained_on(config, corpus, features) -> tuple[Utterances, np.ndarray]:
    """The training split with its copies, and which of them are trained on."""
    rows = utterances(config, corpus, features, "train", copies=config.augment.copies)
    return rows, np.array([i for i in range(len(rows)) if not rows.left_out(config, i)], np.int64)

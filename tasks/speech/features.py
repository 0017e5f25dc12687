"""Sound in, frames of numbers out; and what is fitted on the training split: vocabularies, statistics, a phone bigram.

A frame holds the logarithms of the energies in bands of the mel scale, or their cosine transform (Davis & Mermelstein
1980), the energy of its window, and slopes of all these over time. Whole recordings and streams give the same frames.
"""

import functools
import io
import logging
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import librosa.filters  # not librosa.feature, whose first import compiles for a minute
import numpy as np
import scipy.fft
import scipy.signal
import scipy.sparse
import soxr

from shared.cache import computed_once
from shared.config import UserError
from shared.corpora import folder_name
from shared.recordings import decode_sound
from shared.run import write_atomically
from shared.task import Corpus
from shared.text import BOS, EOS, UNK, Vocabulary, read_vocabulary
from tasks.speech.config import FeaturesConfig, SpeechConfig

logger = logging.getLogger(__name__)

VERSION = 2  # of the files that hold frames; raise it when `compute` or the changes of `data` do
FLOOR = 1e-10  # of power, below the rounding noise of 16 bits: the logarithm of digital silence
TOGETHER = 4096  # frames whose spectra are in memory at once
REACH = 2  # frames to either side of one that its slope is fitted to
SMALLEST_DEVIATION = 1e-3  # of a column; those that vary less, such as of digital silence, are not scaled


# -------------------------------------------------------------------------------------------------------------- frames


def compute(samples: np.ndarray, rate: int, settings: FeaturesConfig) -> np.ndarray:
    """The frames of a recording, before they are normalised, stacked and thinned out.

    Frame t covers the samples [t * hop, t * hop + window) at `settings.sample_rate`; what is shorter than one window
    is filled up with silence to one.

    Args:
        samples: (n,) in [-1, 1], at `rate` Hz.

    Returns:
        (frames, num_columns(settings)) float32: mel bands or coefficients, the energy, then the slopes of all of them.
        UserError if the mel bands are too narrow for the window.
    """
    signal = np.asarray(samples, np.float32)
    if rate != settings.sample_rate:
        signal = soxr.resample(signal, rate, settings.sample_rate)
    return _with_deltas(_spectral(_at_least_one_window(signal, settings), settings), settings.deltas)


class Stream:
    """The same frames from sound that arrives in blocks of any size, each as soon as what it needs has arrived."""

    def __init__(self, settings: FeaturesConfig, rate: int):
        self._settings, self._reach = settings, REACH * settings.deltas
        self._resampler = None
        if rate != settings.sample_rate:
            self._resampler = soxr.ResampleStream(rate, settings.sample_rate, 1, dtype="float32")
        self._signal = np.zeros(0, np.float32)  # from the first sample of the next window on
        self._frames = np.zeros((0, num_columns(settings) // (1 + settings.deltas)), np.float32)  # without slopes
        self._emitted = 0  # of `_frames`; only those are kept that the slopes of later ones need
        self._shorter_than_a_window = True

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The frames (new ones, columns) that `samples` (n,) complete."""
        self._hear(samples, last=False)
        return self._emit(len(self._frames) - self._reach)

    def finish(self) -> np.ndarray:
        """The frames that are left, at the end of the sound."""
        self._hear(np.zeros(0, np.float32), last=True)
        if self._shorter_than_a_window:
            self._frames = _spectral(_at_least_one_window(self._signal, self._settings), self._settings)
        return self._emit(len(self._frames))

    def _hear(self, samples: np.ndarray, last: bool) -> None:
        samples = np.asarray(samples, np.float32)
        if self._resampler:
            samples = self._resampler.resample_chunk(samples, last=last)
        self._signal = np.concatenate([self._signal, samples])
        window, hop = _window_and_hop(self._settings)
        if len(self._signal) >= window:
            self._frames = np.concatenate([self._frames, _spectral(self._signal, self._settings)])
            self._shorter_than_a_window = False
            self._signal = self._signal[((len(self._signal) - window) // hop + 1) * hop :]

    def _emit(self, end: int) -> np.ndarray:
        frames = _with_deltas(self._frames, self._settings.deltas)[self._emitted : max(end, self._emitted)]
        self._emitted += len(frames)
        done = max(0, self._emitted - self._reach)
        self._frames, self._emitted = self._frames[done:], self._emitted - done
        return frames


def num_columns(settings: FeaturesConfig) -> int:
    """Numbers in a frame, before neighbouring frames are stacked."""
    values = settings.mels if settings.kind == "log_mel" else settings.coefficients
    return (values + settings.energy) * (1 + settings.deltas)


def step_seconds(settings: FeaturesConfig) -> float:
    """From one step, which is what the model reads at a time, to the next."""
    return settings.subsample * _window_and_hop(settings)[1] / settings.sample_rate


def frame_time(step, settings: FeaturesConfig):
    """Seconds at the middle of what a step, or an array of them, covers; at step - 0.5 it begins to be the nearest."""
    window, hop = _window_and_hop(settings)
    return step * step_seconds(settings) + (window + (settings.stack - 1) * hop) / 2 / settings.sample_rate


def num_steps(num_frames, settings: FeaturesConfig):
    """Steps that `thin` makes of so many frames, a number or an array."""
    return -(-num_frames // settings.subsample)


def thin(frames: np.ndarray, settings: FeaturesConfig) -> np.ndarray:
    """(frames, columns) -> (steps, columns * stack): step i joins the frames from i * subsample on, `stack` of them.

    The last frame stands for those behind the end.
    """
    if settings.stack == settings.subsample == 1:
        return frames
    firsts = np.arange(num_steps(len(frames), settings))[:, None] * settings.subsample
    places = np.minimum(firsts + np.arange(settings.stack), len(frames) - 1)
    return frames[places].reshape(len(places), -1)


def _window_and_hop(settings: FeaturesConfig) -> tuple[int, int]:
    """In samples."""
    return tuple(max(1, round(each * settings.sample_rate / 1000)) for each in (settings.window, settings.hop))


def _at_least_one_window(signal: np.ndarray, settings: FeaturesConfig) -> np.ndarray:
    missing = _window_and_hop(settings)[0] - len(signal)
    return np.pad(signal, (0, missing)) if missing > 0 else signal


def _spectral(signal: np.ndarray, settings: FeaturesConfig) -> np.ndarray:
    """Mel bands or coefficients and energy of every whole window of a signal (at least one)."""
    window, hop = _window_and_hop(settings)
    taper, filters = _filters(settings)
    windows = np.lib.stride_tricks.sliding_window_view(signal, window)[::hop]
    parts = []
    for first in range(0, len(windows), TOGETHER):
        some = windows[first : first + TOGETHER]
        power = np.abs(scipy.fft.rfft(some * taper, 2 * (filters.shape[0] - 1))) ** 2
        columns = [_log(power @ filters)]
        if settings.kind == "mfcc":
            columns = [scipy.fft.dct(columns[0], norm="ortho")[:, : settings.coefficients]]
        if settings.energy:
            columns.append(_log(np.sum(some**2, axis=1, keepdims=True)))
        parts.append(np.concatenate(columns, axis=1))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _filters(settings: FeaturesConfig) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """The Hann window (samples,), and the weight (bins, mels) of each bin of the spectrum in each band.

    The spectrum has a power of two of bins, so that windows are filled up with zeros and even narrow bands get some.
    """
    window, _ = _window_and_hop(settings)
    size = 1 << max(1, (window - 1).bit_length())
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the error below says it better
        filters = librosa.filters.mel(sr=settings.sample_rate, n_fft=size, n_mels=settings.mels)
    if not filters.any(axis=1).all():
        raise UserError(
            f"features.mels: {settings.mels} bands are too narrow for a window of features.window={settings.window} ms "
            f"at features.sample_rate={settings.sample_rate}; choose fewer"
        )
    # Sparse, as two bands share a bin: a dense product so small costs less than starting the threads for it.
    return scipy.signal.get_window("hann", window).astype(np.float32), scipy.sparse.csr_array(filters.T)


def _log(power: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(power, FLOOR))


def _with_deltas(frames: np.ndarray, orders: int) -> np.ndarray:
    """Each column's slope per frame beside it, by linear regression over 2 frames on either side, and so on."""
    columns = [frames]
    for _ in range(orders):
        columns.append(
            scipy.signal.savgol_filter(columns[-1], 2 * REACH + 1, polyorder=1, deriv=1, axis=0, mode="nearest")
            if len(frames)
            else frames
        )
    return np.concatenate(columns, axis=1)


# ------------------------------------------------------------------------------------------------- frames kept in files


def kept_frames(
    config: SpeechConfig, corpus: Corpus, split: str, change: Callable | None = None, decided_by=None
) -> Iterator[tuple[dict, np.ndarray]]:
    """A split's utterances, of which the frames are computed once and kept in files beside the corpus.

    Args:
        change: (samples, rate, position=) -> (samples, speed), applied to each recording; None for nothing.
        decided_by: what tells this change from every other.

    Yields:
        What is known of an utterance, as in the corpus but without sound, and what `compute` makes of it, read from the
        disk where it is used. RunError if the files cannot be written.
    """
    settings = replace(config.features, normalize="none", stack=1, subsample=1)
    name = folder_name(f"{corpus.identity}-{split}", VERSION, settings, decided_by)
    folder = Path(config.data.cache, "frames", name)

    def compute_all() -> Iterator[tuple[dict, np.ndarray]]:
        logger.info("computing the frames of %s utterances in %s", corpus.sizes.get(split, "all"), folder)
        for position, example in enumerate(corpus.splits[split]().as_numpy_iterator()):
            samples, rate = decode_sound(example["sound"])
            samples, speed = change(samples, rate, position=position) if change else (samples, 1.0)
            frames = compute(samples, rate, settings)
            yield _record(example, speed, len(frames)), frames

    records, rows = computed_once(folder, compute_all)
    first = 0
    for record in records:
        yield record, rows[first : first + record["frames"]]
        first += record["frames"]


def _record(example: dict, speed: float, num_frames: int) -> dict:
    record = {key: example[key].decode("utf-8") for key in ("name", "speaker", "text", "phones")}
    record["seconds"] = float(example["seconds"]) / speed
    record |= {key: (np.asarray(example[key], np.float64) / speed).tolist() for key in ("starts", "ends")}
    return record | {"frames": num_frames}


# ------------------------------------------------------------------------------------- what the training split teaches


@dataclass(frozen=True, eq=False)
class Features:
    """What turns recordings into what the model reads, and phones and text into ids and back."""

    phones: Vocabulary | None
    """Of the framewise head; None where no training utterance has phones, so that there is only text."""
    labels: Vocabulary
    """Of the CTC head: the very object `phones`, or one of characters."""
    mean: np.ndarray
    std: np.ndarray
    """(columns,) float32 each, over all frames trained on."""
    speakers: dict[str, tuple[np.ndarray, np.ndarray]]
    """Training speaker -> mean and std of what he or she says."""
    bigram: np.ndarray | None
    """(phones, phones) float32, log p(next phone | phone); row BOS for the first one, column EOS for the end."""
    num_utterances: int
    """Training recordings that `left_out` leaves in."""
    normalize: str = "global"

    def normalized(self, frames: np.ndarray, speaker: str) -> np.ndarray:
        """Frames (n, columns) with mean 0 and variance 1, as `features.normalize` says.

        A speaker who was not in training counts as one who has said nothing but these frames.
        """
        if self.normalize == "none":
            return frames
        mean, std = self.mean, self.std
        if self.normalize != "global":
            known = self.speakers.get(speaker) if self.normalize == "speaker" else None
            mean, std = known or _mean_and_std(_moments(frames))
        return (frames - mean) / std

    def save(self, directory: str | Path) -> None:
        """Writes the vocabularies and statistics into a folder, made where missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {"mean": self.mean, "std": self.std, "num_utterances": np.array(self.num_utterances)}
        arrays["speakers"] = np.array(list(self.speakers), np.str_)
        arrays["speaker_statistics"] = np.array(list(self.speakers.values()), np.float32)
        if self.phones:
            self.phones.save(directory / "vocabulary.json")
            arrays["bigram"] = self.bigram
        if self.labels is not self.phones:
            self.labels.save(directory / "labels.json")
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(directory / "statistics.npz", content.getvalue())


def fit(config: SpeechConfig, corpus: Corpus) -> Features:
    """Features learned from two passes over the training split alone, the second one over its frames.

    Raises UserError if it lacks what the heads are to write, or holds no utterance that can be trained on.
    """
    phones, labels, bigram = _learn(config, corpus)
    moments = defaultdict(lambda: np.zeros((3, num_columns(config.features))))
    reasons = Counter()
    for record, frames in kept_frames(config, corpus, "train"):
        ids = labels.encode([record["text" if config.model.labels == "characters" else "phones"]])[0]
        steps = num_steps(len(frames), config.features)
        reason = left_out(config, record["seconds"], steps, ids, len(record["starts"]) > 0)
        reasons[reason] += 1
        if not reason:
            moments[record["speaker"]] += _moments(frames)
    kept = reasons.pop("", 0)
    said = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    if not kept:
        raise UserError(f"data.train: nothing in {corpus.name} can be trained on: {said or 'it is empty'}")
    if reasons:
        logger.warning("%d of %d training utterances are left out: %s", reasons.total(), kept + reasons.total(), said)
    sizes = [len(vocabulary) - UNK - 1 if vocabulary else 0 for vocabulary in (phones, labels)]
    logger.info("%d training utterances, %d phones, %d %s to write", kept, *sizes, config.model.labels)
    mean, std = _mean_and_std(sum(moments.values()))
    speakers = {name: _mean_and_std(some) for name, some in moments.items() if name}
    return Features(phones, labels, mean, std, speakers, bigram, kept, config.features.normalize)


def load(config: SpeechConfig, directory: str | Path) -> Features:
    """The features that `save` wrote. Raises UserError if a file is missing or damaged."""
    path = Path(directory, "statistics.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        fitted = [arrays[name] for name in ("mean", "std", "speakers", "speaker_statistics", "num_utterances")]
    except Exception as error:  # NumPy, zipfile and zlib each have their own for a damaged file
        raise UserError(f"{path}: missing or damaged, so the run is incomplete") from error
    mean, std, speakers, statistics, num_utterances = fitted
    phones = read_vocabulary(Path(directory, "vocabulary.json")) if "bigram" in arrays else None
    labels = phones if config.model.labels == "phones" else read_vocabulary(Path(directory, "labels.json"))
    known = {str(name): tuple(some) for name, some in zip(speakers, statistics, strict=True)}
    normalize = config.features.normalize
    return Features(phones, labels, mean, std, known, arrays.get("bigram"), int(num_utterances), normalize)


def left_out(config: SpeechConfig, seconds: float, steps: int, labels: Sequence[int], timed: bool) -> str:
    """Why an utterance is not trained on; empty if it is. `timed`: whether its phones have times."""
    if seconds > config.data.max_seconds:
        return f"longer than data.max_seconds={config.data.max_seconds:g}"
    if config.model.head == "frames":
        return "" if timed else "without times of phones"
    if not len(labels):
        return f"without {config.model.labels}"
    # CTC writes at most one label a step, and a blank between two equal ones (Graves et al. 2006).
    needed = len(labels) + sum(first == second for first, second in pairwise(labels))
    return f"with more {config.model.labels} than steps" if needed > steps else ""


def _learn(config: SpeechConfig, corpus: Corpus) -> tuple[Vocabulary | None, Vocabulary, np.ndarray | None]:
    """Phones, labels, and the phones' bigram, from what is written about the training split."""
    strings, texts, timed = [], [], 0
    for example in corpus.splits["train"]().as_numpy_iterator():
        strings.append(example["phones"].decode("utf-8"))
        texts.append(example["text"].decode("utf-8"))
        timed += len(example["starts"]) > 0
    head, kind = config.model.head, config.model.labels
    phones = Vocabulary.train(strings, "whitespace", 0) if any(map(str.strip, strings)) else None
    if head != "ctc" and not (phones and timed):
        raise UserError(f"model.head: {head} needs the times of phones, and {corpus.name} has none; choose ctc")
    if kind == "phones" and not phones:
        raise UserError(f"model.labels: {corpus.name} has no phones; choose characters")
    if kind == "characters" and not any(map(str.strip, texts)):
        raise UserError(f"model.labels: {corpus.name} has no text, so no characters; choose phones")
    labels = phones if kind == "phones" else Vocabulary.train(texts, "character", 0)
    return phones, labels, _bigram(phones, strings) if phones else None


def _bigram(phones: Vocabulary, strings: list[str]) -> np.ndarray:
    """log p(next | phone), every pair being counted once more than it is seen."""
    counts = np.ones((len(phones), len(phones)))
    for ids in phones.encode(strings):
        if ids:
            np.add.at(counts, ([BOS, *ids], [*ids, EOS]), 1)
    return np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)


def _moments(frames: np.ndarray) -> np.ndarray:
    """(3, columns): how many, their sum, the sum of their squares."""
    rows = frames.astype(np.float64)
    return np.stack([np.full(rows.shape[1], len(rows)), rows.sum(axis=0), (rows**2).sum(axis=0)])


def _mean_and_std(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, total, squares = moments
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(std < SMALLEST_DEVIATION, 1, std).astype(np.float32)

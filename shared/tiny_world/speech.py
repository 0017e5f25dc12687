"""The corpus of spoken sentences: scenes flow in; shards of sound with the times of its phones flow out.

eSpeak NG speaks them and says where each phone begins, to the sample.
"""

import _ctypes
import contextlib
import ctypes
import dataclasses
import io
import itertools
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr
import tensorflow_datasets as tfds

from shared.config import UserError

from . import english
from .grammar import SPLITS, Grammar
from .text import TextConfig

SAMPLE_RATE = 16000
SILENCE = "sil"
STOPS = ("p", "b", "t", "d", "k", "g")  # and what begins with them: "tS", "t#"

ESPEAK_RATE = 22050
_SYNCHRONOUS = 2  # output mode: the callback is called within espeak_Synth, no thread is started
_PHONE_EVENTS = 0x0001  # options of espeak_Initialize
_DO_NOT_EXIT = 0x8000  # where the voices are missing, which would else end the process
_CHARACTERS, _UTF8 = 1, 1  # how espeak_Synth is to read positions and bytes
_RATE, _PITCH, _INTONATION = 1, 3, 4  # parameters
_LAST, _PHONE = 0, 7  # types of events

_speaking = threading.Lock()  # eSpeak's state is the process's


@dataclasses.dataclass(frozen=True)
class Voice:
    """Who speaks, and how."""

    name: str  # of a voice of eSpeak, with a variant of it: "en-us+f1"; an unknown variant is spoken as none
    rate: int = 175  # words per minute, 80 to 450
    pitch: int = 50  # 0 to 100; 50 is the variant's own
    intonation: int = 50  # 0 to 100; how far the pitch moves
    silence: float = 0.1  # seconds before and after the text


# Variants with an echo are left out: silence is not silent in them, so that closures could not be found.
VOICES = {
    split: tuple(Voice(f"en-us+{variant}") for variant in variants.split())
    for split, variants in {
        "train": "f1 Annie linda steph m1 m3 m7 m8",
        "valid": "Gene m6",
        "test": "aunty belinda m4 m5",
    }.items()
}


# -------------------------------------------------------------------------------------------------------- synthesis


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_void_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def synthesize(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Speaks a text; the result depends on nothing but the arguments.

    Returns:
        Samples, float32 (n,) in [-1, 1] at `SAMPLE_RATE`, and segments (phone, start, end) in seconds: each begins
        where the one before it ends, the first at 0, the last ends with the sound, none is empty. Phones have
        eSpeak's names without marks of stress; pauses are `SILENCE`. The closure of a stop belongs to it.

    Raises:
        UserError: eSpeak NG cannot be loaded.
        ValueError: eSpeak NG does not have this voice, or refuses to speak.
    """
    spoken, events = _speak(text, voice)
    starts = list(_starts(spoken, events))
    margin = np.zeros(round(voice.silence * ESPEAK_RATE), np.float32)
    samples = np.concatenate([margin, spoken.astype(np.float32) / 32768, margin])
    samples = np.clip(soxr.resample(samples, ESPEAK_RATE, SAMPLE_RATE), -1, 1)
    starts = [(phone, (len(margin) + start) / ESPEAK_RATE) for phone, start in starts]
    return samples, _segments([(SILENCE, 0.0), *starts], len(samples) / SAMPLE_RATE)


def _speak(text: str, voice: Voice) -> tuple[np.ndarray, list[tuple[str, int]]]:
    """int16 samples at `ESPEAK_RATE`, and (eSpeak's name, sample) of each of its phones and pauses."""
    blocks, events = [np.zeros(0, np.int16)], []

    @_Callback
    def receive(samples, count, event):
        if samples:
            blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        for each in itertools.takewhile(lambda each: each.type != _LAST, map(event.__getitem__, itertools.count())):
            if each.type == _PHONE:
                events.append((each.id.string.decode(), each.sample))
        return 0

    with _speaking, _library() as library:
        library.espeak_SetSynthCallback(receive)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the breath of some voices; else the time of day
        refused = library.espeak_SetVoiceByName(voice.name.encode())
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_INTONATION, voice.intonation)):
            refused = refused or library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        refused = refused or library.espeak_Synth(
            data, ctypes.c_size_t(len(data) + 1), 0, _CHARACTERS, 0, _UTF8, None, None
        )
    if refused:
        raise ValueError(f"eSpeak NG cannot speak {text!r} with {voice}")
    return np.concatenate(blocks), events


@contextlib.contextmanager
def _library() -> Iterator[ctypes.CDLL]:
    """eSpeak NG, as if never used before.

    The phase of a voice's flutter goes on from one text to the next, and nothing but loading the library anew, 3 ms,
    resets it. UserError if that fails.
    """
    try:
        import espeakng_loader

        library, voices = ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        raise _unusable(error) from error
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "voices")  # eSpeak NG takes no path of more than 160 bytes
        os.symlink(voices, path)
        try:
            if library.espeak_Initialize(_SYNCHRONOUS, 0, path.encode(), _PHONE_EVENTS | _DO_NOT_EXIT) != ESPEAK_RATE:
                raise _unusable(f"no voices in {voices}")
            yield library
        finally:
            library.espeak_Terminate()
            _ctypes.dlclose(library._handle)


def _unusable(reason: object) -> UserError:
    return UserError(
        f"eSpeak NG cannot be loaded ({reason}); install it with pip install --force-reinstall espeakng-loader, "
        "or choose another data.corpus"
    )


# Where events stand was measured: 8 ms windows left and right of a segment's start differ most at that start, to the
# millisecond, so an event is where its phone begins to sound. Two things follow from eSpeak NG's own ways. Pauses, `_:`
# and `_`, have events, but 8 to 61 ms of digital zeros stand before many consonants that have none of their own, and by
# the events belong to whatever sounded before; before a stop they are its closure. And a vowel after a liquid or a
# nasal begins behind the transition to it, about 10 ms after the greatest change.


def _starts(samples: np.ndarray, events: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """(phone, first sample) of each event."""
    before, previous = SILENCE, 0
    for name, start in events:
        phone = SILENCE if name.startswith("_") else name.lstrip("',%=")
        if phone.startswith(STOPS) and before != SILENCE:
            sounding = np.flatnonzero(samples[previous:start])
            start = previous + (int(sounding[-1]) + 1 if len(sounding) else 0)
        yield phone, start
        before, previous = phone, start


def _segments(starts: Iterable[tuple[str, float]], end: float) -> list[tuple[str, float, float]]:
    """Segments from their starts: equal neighbours are one where they are silence, empty ones are left out."""
    segments = []
    for (phone, start), (_, stop) in itertools.pairwise([*starts, (SILENCE, end)]):
        if segments and phone == segments[-1][0] == SILENCE:
            segments[-1] = (SILENCE, segments[-1][1], stop)
        elif start < stop:
            segments.append((phone, start, stop))
    return segments


# --------------------------------------------------------------------------------------------------------------- corpus


@dataclasses.dataclass
class SpeechConfig(TextConfig):
    """Number of utterances of each split, and the seed that draws them."""

    train: int = 2000
    valid: int = 200
    test: int = 200


class TinyWorldSpeech(tfds.core.GeneratorBasedBuilder):
    """Scenes told in English and spoken; no two of "train", "valid" and "test" have a scene or a voice in common.

    An example is {"id": int64 (position in its split), "name": string, "speaker": string (name of the voice), "sound":
    string (mono 16-bit FLAC at `SAMPLE_RATE`), "seconds": float32, "phones": string (with blanks between), "starts"
    and "ends": float64 (phones,) in seconds, "text": string (no punctuation)}. The voices of a split take turns; rate,
    pitch, intonation and the silence before and after are drawn for each utterance. A larger split begins with the
    examples of a smaller one of the same seed. Needs a `SpeechConfig` as `config`.
    """

    # To be raised whenever the sentences, the voices or eSpeak NG change: it tells caches apart.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in ("name", "speaker", "phones", "text")}
        times = {name: tfds.features.Tensor(shape=(None,), dtype=np.float64) for name in ("starts", "ends")}
        sound = tfds.features.Tensor(shape=(), dtype=np.str_)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes of coloured shapes, told in English by eSpeak NG, with the times of the phones.",
            features=tfds.features.FeaturesDict(
                {"id": np.int64, "sound": sound, "seconds": np.float32, **texts, **times}
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        config, voices = self.builder_config, VOICES[split]
        scenes = itertools.islice(Grammar().scenes(split, config.seed), getattr(config, split))
        rng = np.random.default_rng([config.seed, SPLITS.index(split), 1])  # [seed, split] draws the scenes
        for position, scene in enumerate(scenes):
            sentence, voice = english.tell(scene), _drawn(voices[position % len(voices)], rng)
            samples, segments = synthesize(sentence, voice)
            phones, starts, ends = zip(*segments, strict=True)
            yield (
                position,
                {
                    "id": position,
                    "name": f"voice-{position:05d}",
                    "speaker": voice.name,
                    "sound": _flac(samples),
                    "seconds": len(samples) / SAMPLE_RATE,
                    "phones": " ".join(phones),
                    "starts": np.array(starts),
                    "ends": np.array(ends),
                    "text": sentence.removesuffix("?"),
                },
            )


def _drawn(voice: Voice, rng: np.random.Generator) -> Voice:
    """The same speaker in another mood."""
    return dataclasses.replace(
        voice,
        rate=int(rng.integers(130, 211)),
        pitch=int(rng.integers(30, 71)),
        intonation=int(rng.integers(30, 71)),
        silence=float(rng.uniform(0.05, 0.3)),
    )


def _flac(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def prepare_speech(cache_dir: str | os.PathLike, size: int, seed: int) -> TinyWorldSpeech:
    """The builder of `size` training, 200 validation and 200 test utterances, prepared on the first call.

    Of a corpus smaller than 200, validation and test have `size` utterances, too.

    Args:
        cache_dir: folder, made where missing; corpora of other sizes and seeds can lie in the same one.

    Raises:
        UserError: eSpeak NG cannot be loaded.
    """
    held_out = min(size, SpeechConfig.valid)
    config = SpeechConfig(train=size, valid=held_out, test=held_out, seed=seed)
    builder = TinyWorldSpeech(data_dir=cache_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder

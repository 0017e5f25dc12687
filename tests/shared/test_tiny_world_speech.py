"""The tiny world's speech: the same sound for the same text and voice, and phones that are where they are heard."""

import io
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from shared.config import UserError
from shared.tiny_world import english
from shared.tiny_world.grammar import split_of
from shared.tiny_world.speech import (
    SAMPLE_RATE,
    VOICES,
    SpeechConfig,
    TinyWorldSpeech,
    Voice,
    prepare_speech,
    synthesize,
)

ROOT = Path(__file__).resolve().parents[2]
TRAIN, VALID, TEST = (VOICES[split] for split in ("train", "valid", "test"))
ALL_VOICES = (*TRAIN, *VALID, *TEST)
SENTENCE = "i see that two tiny black triangles touch a big grey cross"
OTHER = "do three small yellow clouds cover a big green arrow?"


def phones_of(segments):
    return [phone for phone, _, _ in segments]


def piece(samples, start, end):
    return samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]


def power(samples):
    return float(np.mean(samples**2))


def hiss(samples):
    """Power above 4 kHz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return spectrum[len(spectrum) // 2 :].mean()


def check(samples, segments, tolerance=0):
    """What holds for everything that is ever spoken."""
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.abs(samples).max(initial=0) <= 1
    assert segments[0][1] == 0 and abs(segments[-1][2] - len(samples) / SAMPLE_RATE) <= tolerance
    assert all(end == start for (_, _, end), (_, start, _) in pairwise(segments))
    assert all(start < end and phone and not set(phone) & set(" '_,") for phone, start, end in segments)
    assert all((one, two) != ("sil", "sil") for one, two in pairwise(phones_of(segments)))


# ------------------------------------------------------------------------------------------------------------ synthesis


@pytest.mark.parametrize("voice", [TRAIN[0], TRAIN[3], TEST[2]], ids=lambda voice: voice.name)
def test_what_was_said_before_changes_nothing(voice):
    samples, segments = synthesize(SENTENCE, voice)
    synthesize(OTHER, replace(TRAIN[1], rate=300, pitch=90, intonation=5))
    again = synthesize(SENTENCE, voice)
    assert np.array_equal(again[0], samples) and again[1] == segments


def test_another_process_says_the_same_a_second_later():
    breathing = Voice("en-us+victor")  # with noise, which eSpeak NG would seed with the second of the day
    expected = synthesize(SENTENCE, breathing)[0].tobytes()
    code = (
        "import sys, time; time.sleep(1); from shared.tiny_world.speech import Voice, synthesize;"
        f"sys.stdout.buffer.write(synthesize({SENTENCE!r}, {breathing})[0].tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == expected


def test_threads_do_not_disturb_each_other():
    jobs = [(text, voice) for voice in (TRAIN[0], TEST[0]) for text in (SENTENCE, OTHER)]
    one_by_one = [synthesize(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: synthesize(*job), jobs))
    for (samples, segments), (expected, expected_segments) in zip(together, one_by_one, strict=True):
        assert np.array_equal(samples, expected) and segments == expected_segments


@pytest.mark.parametrize(
    "text", ["", "...", "a", SENTENCE, "Wait, it is 5 o'clock! Uh-oh (mountain button).", "Größe 中文"]
)
@pytest.mark.parametrize("silence", [0.0, 0.1])
def test_segments_fill_the_sound(text, silence):
    samples, segments = synthesize(text, replace(TRAIN[0], silence=silence))
    check(samples, segments)


def test_silence_stands_before_and_after():
    samples, segments = synthesize(SENTENCE, replace(TRAIN[0], silence=0.25))
    assert segments[0][0] == segments[-1][0] == "sil"
    assert segments[0][2] >= 0.25 - 1 / SAMPLE_RATE and segments[-1][2] - segments[-1][1] >= 0.25 - 1 / SAMPLE_RATE
    assert np.abs(piece(samples, 0, 0.24)).max() < 1e-3 and np.abs(samples[-round(0.24 * SAMPLE_RATE) :]).max() < 1e-3


def test_a_pause_within_the_text_is_silence():
    segments = synthesize("a red star, a blue star", TRAIN[0])[1]
    inner = [end - start for phone, start, end in segments[1:-1] if phone == "sil"]
    assert len(inner) == 1 and inner[0] > 0.1


def test_voices_differ_in_sound_but_not_in_phones():
    spoken = [synthesize(SENTENCE, voice) for voice in ALL_VOICES]
    assert len({tuple(phones_of(segments)) for _, segments in spoken}) == 1
    # A variant that eSpeak NG does not know is spoken as none, and two of them would be equal.
    plain = synthesize(SENTENCE, Voice("en-us"))[0]
    assert len({samples.tobytes() for samples in (plain, *(samples for samples, _ in spoken))}) == len(ALL_VOICES) + 1


def test_phones_are_what_is_said():
    phones = phones_of(synthesize("two tiny rings", TRAIN[0])[1])
    assert phones == ["sil", "t", "u:", "t", "aI", "n", "i", "r", "I", "N", "z", "sil"]


def test_a_faster_rate_shortens_the_segments():
    slow, fast = (synthesize(SENTENCE, replace(TRAIN[4], rate=rate))[1] for rate in (130, 210))
    assert phones_of(slow) == phones_of(fast)
    shorter = [f[2] - f[1] < s[2] - s[1] for s, f in zip(slow[1:-1], fast[1:-1], strict=True)]
    assert np.mean(shorter) > 0.8 and fast[-1][2] < 0.8 * slow[-1][2]


def test_pitch_raises_the_voice():
    def fundamental(pitch):
        samples, segments = synthesize("a red star", replace(TRAIN[4], pitch=pitch, intonation=0))
        phone, start, end = segments[-2]
        assert phone == "A@"
        vowel = piece(samples, start, end)
        correlation = np.correlate(vowel, vowel, "full")[len(vowel) :]
        low, high = SAMPLE_RATE // 200, SAMPLE_RATE // 50
        return SAMPLE_RATE / (low + 1 + np.argmax(correlation[low:high]))

    assert fundamental(70) > 1.1 * fundamental(30)


@pytest.mark.parametrize("voice", ALL_VOICES, ids=lambda voice: voice.name)
def test_a_stop_begins_with_its_closure(voice):
    samples, segments = synthesize(SENTENCE, voice)
    vowels = [power(piece(samples, start, end)) for phone, start, end in segments if phone in ("aI", "i:", "u:", "a")]
    voiceless = [
        (start, end)
        for (before, _, _), (phone, start, end) in pairwise(segments)
        if phone in ("t", "k", "tS") and before != "sil"
    ]
    assert len(vowels) >= 5 and len(voiceless) >= 6
    for start, end in voiceless:
        closure = power(piece(samples, start + 0.002, start + 0.015))
        assert closure < 1e-3 * min(vowels) and closure < 0.1 * power(piece(samples, start, end))


@pytest.mark.parametrize("voice", ALL_VOICES, ids=lambda voice: voice.name)
def test_hissing_sounds_begin_and_end_where_they_are_heard(voice):
    """The 8 ms on both sides of a boundary of an s or z are told apart; a boundary 8 ms beside it tells nothing."""
    samples, segments = synthesize("two tiny stars are below a small circle and above six grey houses", voice)
    vowels = {"i:", "I", "I#", "a#", "eI", "aU", "3:", "u:", "@", "i", "A@"}

    def contrast(shift):
        """How much more the hissing side hisses, in the median."""
        ratios = []
        for (left, _, edge), (right, _, _) in pairwise(segments):
            if {left, right} & {"s", "z"} and {left, right} & vowels:
                edge += shift
                before, behind = hiss(piece(samples, edge - 0.008, edge)), hiss(piece(samples, edge, edge + 0.008))
                ratios.append(before / behind if left in ("s", "z") else behind / before)
        assert len(ratios) >= 6
        return np.median(ratios)

    assert contrast(0) > 10
    assert contrast(-0.008) < 2 and contrast(0.008) < 2


def test_an_unknown_voice_is_refused():
    with pytest.raises(ValueError, match="xx-yy"):
        synthesize("a", Voice("xx-yy"))


def test_a_missing_library_is_one_line_with_a_remedy(monkeypatch, tmp_path):
    def refuse():
        with pytest.raises(UserError, match="pip install") as caught:
            synthesize("a", TRAIN[0])
        assert "\n" not in str(caught.value)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "espeakng_loader", None)
        refuse()
    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_library_path", lambda: str(tmp_path / "none.so"))
        refuse()
    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path))
        refuse()
    check(*synthesize("a", TRAIN[0]))


def test_a_project_deep_in_the_file_system_can_speak(monkeypatch, tmp_path):
    deep = tmp_path.joinpath(*["folder"] * 40)
    deep.mkdir(parents=True)
    os.symlink(espeakng_loader.get_data_path(), deep / "espeak-ng-data")
    expected = synthesize("a", TRAIN[0])[0]
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    assert np.array_equal(synthesize("a", TRAIN[0])[0], expected)


# --------------------------------------------------------------------------------------------------------------- corpus


def built(cache_dir, **sizes):
    builder = TinyWorldSpeech(data_dir=cache_dir, config=SpeechConfig(**sizes))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def read(builder, split):
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def builder(cache_dir):
    def no_network(*_):
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        return built(cache_dir, train=12, valid=4, test=6, seed=3)


@pytest.fixture(scope="module")
def splits(builder):
    return {split: read(builder, split) for split in ("train", "valid", "test")}


def equal(one, two):
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(one, two, strict=True)
    )


def scene_of(text):
    try:
        return english.parse(text)
    except ValueError:
        return english.parse(f"{text}?")


def test_examples_are_what_every_speech_corpus_has(splits):
    types = {"id": np.int64, "seconds": np.float32, "starts": np.float64, "ends": np.float64}
    for split, examples in splits.items():
        assert len(examples) == {"train": 12, "valid": 4, "test": 6}[split]
        for position, example in enumerate(examples):
            assert set(example) == {*types, "name", "speaker", "sound", "phones", "text"}
            assert all(example[key].dtype == kind for key, kind in types.items())
            assert example["id"] == position and example["name"].decode() == f"voice-{position:05d}"
            phones = example["phones"].decode().split(" ")
            samples, rate = soundfile.read(io.BytesIO(example["sound"]), dtype="float32")
            assert rate == SAMPLE_RATE and example["seconds"] == np.float32(len(samples) / rate)
            segments = list(zip(phones, example["starts"], example["ends"], strict=True))
            check(samples, segments, tolerance=1e-6)  # TFDS stores 32 bits of every float
            info = soundfile.info(io.BytesIO(example["sound"]))
            assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 1)


def test_the_text_is_what_is_spoken(splits):
    for examples in splits.values():
        for example in examples:
            text = example["text"].decode()
            assert not set(text) - set("abcdefghijklmnopqrstuvwxyz ")
            said = phones_of(synthesize(english.tell(scene_of(text)), TRAIN[0])[1])
            assert example["phones"].decode().split() == said


def test_splits_share_neither_scenes_nor_voices(splits):
    speakers = {split: {example["speaker"].decode() for example in examples} for split, examples in splits.items()}
    for split, examples in splits.items():
        assert all(split_of(scene_of(example["text"].decode())) == split for example in examples)
        assert speakers[split] == {voice.name for voice in VOICES[split]}
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values()))


def test_utterances_of_a_voice_differ_in_rate_and_silence(splits):
    first = [example for example in splits["train"] if example["speaker"] == splits["train"][0]["speaker"]]
    assert len(first) >= 2 and len({example["ends"][0] for example in first}) == len(first)


def test_a_larger_corpus_begins_with_the_smaller_and_another_seed_does_not(splits, cache_dir):
    larger = built(cache_dir, train=14, valid=4, test=6, seed=3)
    other = built(cache_dir, train=2, valid=1, test=1, seed=4)
    assert equal(read(larger, "train")[:12], splits["train"]) and equal(read(larger, "test"), splits["test"])
    assert not equal(read(other, "train"), splits["train"][:2])


def test_preparing_again_leaves_the_files_alone(tmp_path):
    def files():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    small = prepare_speech(tmp_path, size=2, seed=1)
    before = files()
    assert [small.info.splits[split].num_examples for split in ("train", "valid", "test")] == [2, 2, 2]
    prepare_speech(tmp_path, size=2, seed=1)
    assert files() == before != {}

"""Frames are what they are said to be, however the sound arrives; what is fitted is that of the training split."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import soxr
import tensorflow as tf

from shared.config import UserError
from shared.recordings import decode_sound, encode_sound
from shared.task import Corpus
from shared.text import BOS, EOS, PAD, UNK
from tasks.speech.config import DataConfig, FeaturesConfig, ModelConfig, SpeechConfig
from tasks.speech.data import frame_phones
from tasks.speech.features import (
    FLOOR,
    Stream,
    compute,
    fit,
    frame_time,
    left_out,
    load,
    num_columns,
    num_steps,
    step_seconds,
    thin,
)

RATE = 16000
RANDOM = np.random.default_rng(5)
NOISE = (0.1 * RANDOM.standard_normal(RATE)).astype(np.float32)
SETTINGS = {
    "log_mel": FeaturesConfig(),
    "deltas": FeaturesConfig(deltas=2),
    "mfcc": FeaturesConfig(kind="mfcc", deltas=1, energy=False),
    "uneven": FeaturesConfig(sample_rate=11025, window=23.3, hop=7.7, mels=20, deltas=1),
}
every_kind = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def tone(hertz, seconds=0.5, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- frames


@every_kind
def test_a_frame_every_hop_as_long_as_there_is_a_whole_window(settings):
    window = round(settings.window * settings.sample_rate / 1000)
    hop = round(settings.hop * settings.sample_rate / 1000)
    for length, expected in ((0, 1), (1, 1), (window, 1), (window + hop - 1, 1), (window + hop, 2), (9000, None)):
        frames = compute(NOISE[:length], settings.sample_rate, settings)
        assert frames.shape == (expected or 1 + (length - window) // hop, num_columns(settings))
        assert frames.dtype == np.float32 and np.isfinite(frames).all()


@every_kind
def test_a_frame_depends_on_the_samples_it_covers_and_no_others(settings):
    settings = dataclasses.replace(settings, deltas=0)
    window = round(settings.window * settings.sample_rate / 1000)
    hop = round(settings.hop * settings.sample_rate / 1000)
    frames = compute(NOISE, settings.sample_rate, settings)
    for t in (0, 3, len(frames) - 1):
        alone = compute(NOISE[t * hop : t * hop + window], settings.sample_rate, settings)
        np.testing.assert_allclose(alone, frames[t : t + 1], atol=1e-4)


@every_kind
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("block", [1, 37, 160, 4000, 10**6])
def test_streaming_gives_the_frames_of_the_whole(settings, rate, block):
    sound = NOISE[: 700 if block == 1 else None]
    stream = Stream(settings, rate)
    parts = [stream.push(sound[first : first + block]) for first in range(0, len(sound), block)]
    streamed = np.concatenate([*parts, stream.finish()])
    np.testing.assert_allclose(streamed, compute(sound, rate, settings), atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 100, 399, 400, 559, 560, 1500])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_short_sound_streams_too(length, rate):
    for settings in SETTINGS.values():
        stream = Stream(settings, rate)
        streamed = np.concatenate([stream.push(NOISE[:length]), stream.finish()])
        np.testing.assert_allclose(streamed, compute(NOISE[:length], rate, settings), atol=1e-5)


def test_a_stream_emits_a_frame_as_soon_as_its_slopes_allow():
    plain, slopes = (Stream(SETTINGS[name], RATE) for name in ("log_mel", "deltas"))
    hops = [NOISE[:240], *NOISE[240:8240].reshape(-1, 160)]
    counts = np.array([[len(stream.push(block)) for stream in (plain, slopes)] for block in hops])
    assert counts[0].tolist() == [0, 0]
    assert np.all(counts[1:, 0] == 1) and np.all(counts[1:5, 1] == 0) and np.all(counts[5:, 1] == 1)
    assert len(slopes._frames) < 20  # however long the sound


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("hertz", [300, 1000, 2500, 5000])
def test_a_pure_tone_lands_in_its_band(hertz, rate):
    frames = compute(tone(hertz, rate=rate), rate, FeaturesConfig(energy=False))
    # The mel scale of Slaney's auditory toolbox: linear up to 1000 Hz, logarithmic above.
    mel = [f * 3 / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4) for f in (hertz, 8000)]
    assert np.all(np.abs(frames.argmax(axis=1) + 1 - mel[0] / mel[1] * 41) <= 0.6)


def test_twice_the_amplitude_adds_log_4_to_every_energy():
    frames, louder = (compute(sound, RATE, FeaturesConfig()) for sound in (NOISE, 2 * NOISE))
    np.testing.assert_allclose(louder - frames, math.log(4), atol=1e-4)
    # Of cepstral coefficients only the first knows the amplitude.
    frames, louder = (compute(sound, RATE, FeaturesConfig(kind="mfcc", energy=False)) for sound in (NOISE, 2 * NOISE))
    np.testing.assert_allclose((louder - frames)[:, 0], math.sqrt(40) * math.log(4), atol=1e-3)
    np.testing.assert_allclose((louder - frames)[:, 1:], 0, atol=1e-3)


def test_the_last_base_column_is_the_energy_of_the_window():
    energy = compute(NOISE, RATE, FeaturesConfig())[:, -1]
    windows = np.lib.stride_tricks.sliding_window_view(NOISE, 400)[::160]
    np.testing.assert_allclose(energy, np.log((windows.astype(np.float64) ** 2).sum(axis=1)), atol=1e-5)


def test_digital_silence_is_the_floor():
    assert np.all(compute(np.zeros(RATE), RATE, FeaturesConfig()) == np.float32(math.log(FLOOR)))


def test_slopes_are_those_of_a_straight_line_and_its_bend():
    settings = FeaturesConfig(energy=False, deltas=2)
    frames = compute(NOISE, RATE, settings)
    base, first, second = np.split(frames, 3, axis=1)
    for values, slopes in ((base, first), (first, second)):
        edged = np.pad(values, ((2, 2), (0, 0)), mode="edge")
        ends = len(edged)
        shifted = [weight * edged[2 + weight : ends - 2 + weight] for weight in (-2, -1, 1, 2)]
        np.testing.assert_allclose(slopes, sum(shifted) / 10, atol=1e-5)


def test_another_rate_makes_nearly_the_same_frames():
    sound = np.sin(2 * np.pi * np.cumsum(np.linspace(200, 3000, 48000)) / 48000).astype(np.float32)
    settings = FeaturesConfig(mels=20)
    frames, other = compute(soxr.resample(sound, 48000, RATE), RATE, settings), compute(sound, 48000, settings)
    assert np.array_equal(frames, other)
    audible = frames > -5
    narrow = compute(soxr.resample(sound, 48000, 8000), 8000, settings)
    assert narrow.shape == frames.shape and audible.mean() > 0.1
    np.testing.assert_allclose(narrow[audible], frames[audible], atol=0.05)


def test_bands_too_narrow_for_the_window_are_refused():
    with pytest.raises(UserError, match=r"features\.mels: 128 bands .* features\.window=10 ms .* choose fewer"):
        compute(NOISE, RATE, FeaturesConfig(mels=128, window=10, hop=10))


@pytest.mark.slow
def test_bands_are_those_of_librosa():
    import librosa

    padded = np.pad(NOISE, 56)  # librosa puts a window of 400 in the middle of 512
    mels = librosa.feature.melspectrogram(
        y=padded, sr=RATE, n_fft=512, win_length=400, hop_length=160, center=False, n_mels=40
    )
    np.testing.assert_allclose(compute(NOISE, RATE, FeaturesConfig(energy=False)), np.log(mels.T), atol=1e-4)
    mfcc = librosa.feature.mfcc(S=np.log(mels), n_mfcc=13)
    settings = FeaturesConfig(kind="mfcc", energy=False, deltas=1)
    expected = np.concatenate([mfcc, librosa.feature.delta(mfcc, width=5, mode="nearest")])
    np.testing.assert_allclose(compute(NOISE, RATE, settings), expected.T, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize(("stack", "subsample"), [(1, 1), (3, 3), (3, 2), (1, 4), (4, 1)])
@pytest.mark.parametrize("size", [1, 2, 6, 7])
def test_a_step_joins_frames_and_the_last_stands_for_those_behind_the_end(stack, subsample, size):
    settings = FeaturesConfig(stack=stack, subsample=subsample)
    steps = thin(np.arange(2 * size).reshape(size, 2).astype(np.float32), settings)
    rows = [[min(first + k, size - 1) for k in range(stack)] for first in range(0, size, subsample)]
    assert steps.tolist() == [[2 * frame + side for frame in row for side in (0, 1)] for row in rows]
    assert num_steps(size, settings) == len(steps)


def test_times_are_those_of_the_middle_of_what_a_step_covers():
    assert frame_time(0, FeaturesConfig()) == 0.0125 and step_seconds(FeaturesConfig()) == 0.01
    settings = FeaturesConfig(stack=3, subsample=2)  # step 5 covers the frames 10, 11, 12: from 0.1 to 0.145 seconds
    assert frame_time(5, settings) == pytest.approx(0.1225) and step_seconds(settings) == 0.02
    # A hop that is no whole number of samples does not drift away from the frames.
    settings = FeaturesConfig(sample_rate=11025)
    assert step_seconds(settings) * 11025 == pytest.approx(110) and frame_time(0, settings) * 11025 == 138


def test_a_click_is_heard_at_its_time():
    sound = np.zeros(3 * RATE, np.float32)
    sound[2 * RATE + 40] = 1
    for settings in (SETTINGS["log_mel"], FeaturesConfig(stack=3, subsample=3), FeaturesConfig(sample_rate=11025)):
        frames = thin(compute(sound, RATE, settings), settings).sum(axis=1)
        loudest = frame_time(np.flatnonzero(frames == frames.max()), settings)
        assert abs(loudest.mean() - 2.0025) <= step_seconds(settings) / 2


def test_steps_carry_the_phone_at_their_middle():
    # Middles at 12.5, 22.5, 32.5, ... milliseconds.
    ids, starts, ends = [5, 6, 7], [0.0, 0.0225, 0.05], [0.0225, 0.05, 0.0831]
    found = frame_phones(ids, starts, ends, 8, FeaturesConfig())
    assert found.tolist() == [5, 6, 6, 6, 7, 7, 7, 7] and found.dtype == np.int32
    settings = FeaturesConfig(stack=2, subsample=2)  # middles at 17.5, 37.5, 57.5, ...
    assert frame_phones(ids, starts, ends, 4, settings).tolist() == [5, 6, 7, 7]


def test_where_nothing_is_aligned_there_is_no_phone():
    settings = FeaturesConfig()
    assert frame_phones([5, 6], [0.02, 0.06], [0.04, 0.08], 7, settings).tolist() == [0, 5, 5, 0, 0, 6, 6]
    assert frame_phones([], [], [], 3, settings).tolist() == [0, 0, 0]
    # The end is stretched by less than a step, and not by more.
    assert frame_phones([5], [0.0], [0.03], 3, settings).tolist() == [5, 5, 5]
    assert frame_phones([5], [0.0], [0.03], 4, settings).tolist() == [5, 5, 0, 0]


# ------------------------------------------------------------------------------------------------------- what is fitted


def said(phones="", text="", speaker="", seconds=0.5, timed=True, silent=False):
    """An utterance of noise with phones of equal length."""
    samples = 0.1 * RANDOM.standard_normal(round(seconds * RATE)) * RANDOM.uniform(0.5, 2)
    edges = np.linspace(0, seconds, len(phones.split()) + 1) if timed and phones else np.zeros(1)
    return {
        "speaker": speaker, "sound": encode_sound(samples * (not silent), RATE), "seconds": seconds,
        "phones": phones, "text": text, "starts": edges[:-1], "ends": edges[1:],
    }  # fmt: skip


NUMBERS = itertools.count()  # of corpora, since the frames of one are kept


@pytest.fixture(autouse=True)
def _frames_are_kept_in_a_folder_of_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus_of(*utterances):
    columns = {key: [row[key] for row in utterances] for key in utterances[0]}
    columns |= {key: tf.ragged.constant(list(map(list, columns[key])), tf.float64) for key in ("starts", "ends")}
    columns |= {"id": np.arange(len(utterances)), "name": [f"noise-{i}" for i in range(len(utterances))]}
    examples = tf.data.Dataset.from_tensor_slices(columns)
    return Corpus(
        {"train": lambda: examples}, {"train": len(utterances)}, name="noises", identity=f"noises-{next(NUMBERS)}"
    )


SLOPES = FeaturesConfig(deltas=1)


def configured(head="frames", labels="phones", features=SLOPES, **data):
    return SpeechConfig(data=DataConfig(**data), model=ModelConfig(head=head, labels=labels), features=features)


CORPUS = corpus_of(
    said("sil a b sil", "ab", "ann"),
    said("sil a b a", "aba", "ann", 0.3),
    said("b a", "ba", "bob", 0.8),
    said("a", "a"),
)


def frames_of(corpus, settings):
    examples = corpus.splits["train"]().as_numpy_iterator()
    return [compute(*decode_sound(example["sound"]), settings) for example in examples]


def test_training_frames_have_mean_0_and_variance_1():
    for normalize in ("global", "speaker", "utterance"):
        config = configured(features=FeaturesConfig(deltas=1, normalize=normalize))
        features, frames = fit(config, CORPUS), frames_of(CORPUS, config.features)
        groups = {
            "global": [[0, 1, 2, 3]], "speaker": [[0, 1], [2], [3]], "utterance": [[0], [1], [2], [3]],
        }[normalize]  # fmt: skip
        speakers = ["ann", "ann", "bob", ""]
        rows = [features.normalized(row, speaker) for row, speaker in zip(frames, speakers, strict=True)]
        for group in groups:
            together = np.concatenate([rows[i] for i in group]).astype(np.float64)
            np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-4)
            np.testing.assert_allclose(together.var(axis=0), 1, atol=1e-3)
        assert rows[0].dtype == np.float32 and features.mean.shape == features.std.shape == (82,)


def test_normalizing_may_be_left_out_and_strangers_count_as_themselves():
    frames = frames_of(CORPUS, FeaturesConfig(deltas=1))[0]
    fitted = {
        kind: fit(configured(features=FeaturesConfig(deltas=1, normalize=kind)), CORPUS)
        for kind in ("none", "speaker", "utterance")
    }
    assert np.array_equal(fitted["none"].normalized(frames, "ann"), frames)
    own = fitted["utterance"].normalized(frames, "ann")
    assert np.array_equal(fitted["speaker"].normalized(frames, "stranger"), own)
    assert not np.allclose(fitted["speaker"].normalized(frames, "ann"), own)
    assert set(fitted["speaker"].speakers) == {"ann", "bob"}


def test_digital_silence_is_no_division_by_zero():
    for normalize in ("global", "speaker", "utterance"):
        config = configured(features=FeaturesConfig(normalize=normalize))
        corpus = corpus_of(said("sil", "x", "ann", silent=True), said("sil", "x", "ann", silent=True))
        frames = fit(config, corpus).normalized(frames_of(corpus, config.features)[0], "ann")
        np.testing.assert_allclose(frames, 0, atol=1e-4)


def test_phones_are_words_and_characters_are_of_the_text():
    features = fit(configured(), CORPUS)
    assert features.labels is features.phones and len(features.phones) == 4 + 3
    (ids,) = features.phones.encode(["sil a b sil"])
    assert ids[0] == ids[3] > UNK and len(set(ids)) == 3 and features.phones.encode(["zh"]) == [[UNK]]
    features = fit(configured("both", "characters"), CORPUS)
    assert features.phones.encode(["sil a b sil"]) == [ids] and features.labels.unit == "character"
    assert features.labels.decode(features.labels.encode(["ab ba"])[0]) == "ab ba"


def test_the_bigram_is_that_of_the_training_phones():
    features = fit(configured(), CORPUS)
    bigram, size = np.exp(features.bigram), len(features.phones)
    sil, a, b = features.phones.encode(["sil a b"])[0]
    assert bigram.shape == (size, size) and features.bigram.dtype == np.float32
    np.testing.assert_allclose(bigram.sum(axis=1), 1, rtol=1e-6)
    assert bigram[BOS, sil] == pytest.approx(3 / (4 + size)) and bigram[BOS, PAD] == pytest.approx(1 / (4 + size))
    assert bigram[a, b] == pytest.approx(3 / (5 + size)) and bigram[a, EOS] == pytest.approx(4 / (5 + size))
    assert bigram[b, b] == pytest.approx(1 / (3 + size))
    features = fit(configured(), corpus_of(said("a b a b")))  # a pair may come twice in a string
    (a, b), size = features.phones.encode(["a b"])[0], len(features.phones)
    assert np.exp(features.bigram)[a, b] == pytest.approx(3 / (2 + size))


@pytest.mark.parametrize(
    ("head", "labels"), [("frames", "phones"), ("ctc", "phones"), ("ctc", "characters"), ("both", "characters")]
)
def test_saved_features_are_found_again(tmp_path, head, labels):
    config = configured(head, labels, FeaturesConfig(normalize="speaker"))
    features = fit(config, CORPUS)
    features.save(tmp_path / "features")
    again = load(config, tmp_path / "features")
    names = {"vocabulary.json", "statistics.npz"} | ({"labels.json"} if labels == "characters" else set())
    assert {path.name for path in (tmp_path / "features").iterdir()} == names
    for name in ("mean", "std", "bigram"):
        assert np.array_equal(getattr(again, name), getattr(features, name))
        assert getattr(again, name).dtype == np.float32
    assert (again.labels is again.phones) == (labels == "phones")
    assert again.phones.tokens() == features.phones.tokens() and again.labels.digest() == features.labels.digest()
    assert (again.num_utterances, again.normalize) == (features.num_utterances, "speaker")
    frames = frames_of(CORPUS, config.features)[2]
    for speaker in ("ann", "bob", ""):
        assert np.array_equal(again.normalized(frames, speaker), features.normalized(frames, speaker))


def test_text_alone_has_no_phones(tmp_path):
    config = configured("ctc", "characters")
    features = fit(config, corpus_of(said(text="on a"), said(text="no")))
    features.save(tmp_path)
    for some in (features, load(config, tmp_path)):
        assert some.phones is None and some.bigram is None and some.labels.encode(["no"]) != [[]]
        assert some.speakers == {}
    assert not (tmp_path / "vocabulary.json").exists()


def test_a_damaged_or_missing_file_is_one_line(tmp_path):
    features = fit(configured(), CORPUS)
    features.save(tmp_path)
    content = (tmp_path / "statistics.npz").read_bytes()
    for damaged in (content[:-100], b"", b"nothing", content.replace(b"std", b"xyz")):
        (tmp_path / "statistics.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"statistics\.npz: missing or damaged"):
            load(configured(), tmp_path)
    (tmp_path / "statistics.npz").unlink()
    with pytest.raises(UserError, match=r"statistics\.npz: missing or damaged"):
        load(configured(), tmp_path)


@pytest.mark.parametrize(
    ("rows", "head", "labels", "message"),
    [
        ([said(text="a")], "frames", "phones", "model.head: frames needs the times of phones, and noises has none"),
        ([said("a b", timed=False)], "both", "phones", "model.head: both needs the times of phones"),
        ([said(text="a")], "ctc", "phones", "model.labels: noises has no phones; choose characters"),
        ([said("a b")], "ctc", "characters", "model.labels: noises has no text"),
        ([said("a b", "a", seconds=0.03)], "ctc", "phones", "data.train: .* 1 with more phones than steps"),
        ([said("a b", "a", seconds=1.5)], "ctc", "phones", "1 longer than data.max_seconds=1"),
    ],
)
def test_what_cannot_be_trained_is_one_line(rows, head, labels, message):
    with pytest.raises(UserError, match=message):
        fit(configured(head, labels, max_seconds=1), corpus_of(*rows))


def test_utterances_are_left_out_for_a_reason():
    def reason(head="ctc", seconds=1.0, steps=9, labels=(5, 6), timed=True):
        return left_out(configured(head, max_seconds=2), seconds, steps, labels, timed)

    assert reason() == reason("both") == reason("frames") == reason(seconds=2.0) == ""
    assert reason(seconds=2.1) == reason("frames", seconds=2.1) == "longer than data.max_seconds=2"
    assert reason("frames", timed=False) == "without times of phones" and reason(timed=False) == ""
    assert reason(labels=()) == reason("both", labels=()) == "without phones" and reason("frames", labels=()) == ""
    # A label takes a step, and two equal neighbours one more, for the blank between them.
    assert reason(labels=(5, 6, 5), steps=3) == "" and reason(labels=(5, 6, 5), steps=2) != ""
    assert reason(labels=(5, 5, 5), steps=5) == "" and reason(labels=(5, 5, 5), steps=4) != ""


def test_what_is_left_out_is_counted_and_teaches_nothing(caplog):
    loud = said("a b", speaker="eve", seconds=1.5)
    rows = [said("a b", speaker="ann"), said("b a"), loud, said("a b", timed=False), said("b", timed=False)]
    with caplog.at_level("INFO"):
        features = fit(configured(max_seconds=1), corpus_of(*rows))
    assert features.num_utterances == 2 and set(features.speakers) == {"ann"}
    assert "3 of 5 training utterances are left out: 2 without times of phones; 1 longer than" in caplog.text
    assert np.array_equal(features.mean, fit(configured(), corpus_of(*rows[:2])).mean)

"""Utterances are read as they were computed, once; batches hold all that can be trained on, whatever the step."""

import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from shared.batching import padded_length
from shared.config import TrainingConfig, UserError
from shared.recordings import decode_sound, encode_sound
from shared.task import Corpus
from shared.text import UNK
from tasks.speech import data
from tasks.speech.config import AugmentConfig, DataConfig, FeaturesConfig, ModelConfig, SpeechConfig
from tasks.speech.data import (
    changed,
    frame_phones,
    masked,
    padded,
    steps_per_pass,
    training_batches,
    utterances,
    with_noise,
)
from tasks.speech.features import compute, fit, thin

RATE, BATCH = 8000, 3
RANDOM = np.random.default_rng(7)
SMALL = FeaturesConfig(sample_rate=RATE, mels=8, deltas=1)
LENGTHS = [0.15, 0.4, 0.22, 0.3, 0.5, 0.21, 0.35, 0.28, 0.19, 0.45]
PHONES = ["sil a", "sil a b a sil", "a b", "b b a", "sil", "b a", "a sil", "sil b", "a b a", "sil a b"]


def said(phones, seconds, name, speaker="", text="", timed=True):
    """An utterance of noise with phones of equal length."""
    edges = np.linspace(0, seconds, len(phones.split()) + 1) if timed else np.zeros(1)
    samples = 0.1 * RANDOM.standard_normal(round(seconds * RATE))
    return {
        "name": name, "speaker": speaker, "sound": encode_sound(samples, RATE), "seconds": np.float32(seconds),
        "phones": phones, "text": text or phones.replace(" ", ""), "starts": edges[:-1], "ends": edges[1:],
    }  # fmt: skip


def corpus_of(identity="noises", **splits):
    def opened(rows):
        columns = {key: [row[key] for row in rows] for key in rows[0]} | {"id": np.arange(len(rows))}
        columns |= {key: tf.ragged.constant(list(map(list, columns[key])), tf.float64) for key in ("starts", "ends")}
        return tf.data.Dataset.from_tensor_slices(columns)

    datasets = {split: opened(rows) for split, rows in splits.items()}
    return Corpus(
        {split: functools.partial(lambda dataset: dataset, dataset) for split, dataset in datasets.items()},
        {split: len(rows) for split, rows in splits.items()}, name="noises", identity=identity,
    )  # fmt: skip


TRAIN = [said(PHONES[i], LENGTHS[i], f"dr1-ann/s{i}", speaker="ann" if i % 2 else "bob") for i in range(10)]
VALID = [said("a zh b", 0.3, "dr2-eve/sa1"), said("zh b", 0.2, "dr2-eve/si2"), said("a b", 0.4, "sa-joe/sx3")]
CORPUS = corpus_of(train=TRAIN, valid=VALID)


@pytest.fixture
def made(tmp_path):
    """Options -> configuration, corpus, features."""

    def make(corpus=CORPUS, head="frames", labels="phones", features=SMALL, seed=1, augment=None, **options):
        options = {"batch_size": BATCH, "sort_pool": 2, "cache": str(tmp_path)} | options
        config = SpeechConfig(
            data=DataConfig(**options), features=features, augment=AugmentConfig(**(augment or {})),
            model=ModelConfig(head=head, labels=labels), training=TrainingConfig(seed=seed),
        )  # fmt: skip
        corpus = dataclasses.replace(corpus, splits={"valid": corpus.splits["train"], **corpus.splits})
        return config, corpus, fit(config, corpus)

    return make


def frames_of(example, settings=SMALL):
    return compute(*decode_sound(example["sound"]), settings)


def stream(made, steps, first_step=0):
    return list(training_batches(*made, first_step).take(steps).as_numpy_iterator())


# ---------------------------------------------------------------------------------------------------------- utterances


def test_utterances_are_those_of_the_split_in_its_order(made):
    config, corpus, features = made(features=dataclasses.replace(SMALL, stack=2, subsample=2))
    rows = utterances(config, corpus, features, "train")
    assert len(rows) == 10 and rows.names == [row["name"] for row in TRAIN]
    assert rows.phone_strings == PHONES and rows.phones == features.phones.encode(PHONES)
    assert rows.texts[1] == "silabasil" and rows.speakers[:2] == ["bob", "ann"]
    np.testing.assert_allclose(rows.seconds, LENGTHS, rtol=1e-6)
    for i, row in enumerate(TRAIN):
        expected = thin(features.normalized(frames_of(row), row["speaker"]), config.features)
        np.testing.assert_array_equal(rows.frames(i), expected)
        assert rows.frames(i).dtype == np.float32 and rows.num_steps[i] == len(expected)
        assert rows.segments(i) == list(zip(PHONES[i].split(), row["starts"], row["ends"], strict=True))
        truth = frame_phones(rows.phones[i], row["starts"], row["ends"], len(expected), config.features)
        np.testing.assert_array_equal(rows.frame_phones(i), truth)
        assert rows.labels(i).tolist() == rows.phones[i] and rows.labels(i).dtype == np.int32
        assert 0 not in truth


def test_labels_may_be_characters_and_phones_unknown(made):
    rows = [said("", 0.5, "one", text="on a", timed=False), said("", 0.5, "two", text="no", timed=False)]
    config, corpus, features = made(corpus_of("texts", train=rows), "ctc", "characters")
    some = utterances(config, corpus, features, "train")
    assert [features.labels.decode(some.labels(i)) for i in range(2)] == ["on a", "no"]
    assert some.phones == [[], []] and some.segments(0) == [] and not some.frame_phones(0).any()
    assert len(some.frame_phones(0)) == some.num_steps[0]
    inputs, _, _ = stream((config, corpus, features), 1)[0]
    assert sorted(np.count_nonzero(inputs["labels"], axis=1)) == [3, 5] and not inputs["frame_phones"].any()


def test_unknown_phones_are_counted_and_said_once(made, caplog):
    data._warn_once.cache_clear()
    settings = made()
    with caplog.at_level(logging.WARNING):
        rows = utterances(*settings, "valid")
        utterances(*settings, "valid")
        utterances(*settings, "train")
    assert caplog.text.count("2 of 7 phones of valid are not in the training split") == 1 == len(caplog.records)
    assert rows.phones[1][0] == UNK and UNK in rows.frame_phones(1) and rows.segments(1)[0][0] == "zh"


def test_what_is_not_scored_is_left_out_of_validation_alone(made):
    config, corpus, features = made(unscored=["sa*", "s4"])
    assert utterances(config, corpus, features, "valid").names == ["dr2-eve/si2", "sa-joe/sx3"]
    rows = utterances(config, corpus, features, "valid")
    np.testing.assert_array_equal(rows.frames(1), features.normalized(frames_of(VALID[2]), ""))
    assert len(utterances(config, corpus, features, "train")) == 10


# --------------------------------------------------------------------------------------------------------------- files


def written(folder):
    """Every file's name -> when it was written."""
    paths = [path for path in Path(folder, "frames").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def without_sound(corpus):
    def refuse():
        raise AssertionError("the sound was read again")

    return dataclasses.replace(corpus, splits=dict.fromkeys(corpus.splits, refuse))


def test_frames_are_computed_once_and_read_where_needed(made, tmp_path):
    config, corpus, features = made(augment={"copies": 1})
    first = utterances(config, corpus, features, "train", copies=1)
    before = written(tmp_path)
    assert len(before) == 6 and not any("unfinished" in name for name in before)
    again = utterances(config, without_sound(corpus), features, "train", copies=1)
    assert written(tmp_path) == before and again.names == first.names
    for i in range(20):
        np.testing.assert_array_equal(again.frames(i), first.frames(i))
    base = again._rows[0]
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_other_frames_have_other_files_and_the_same_are_shared(made, tmp_path):
    config, corpus, features = made()
    kept = utterances(config, corpus, features, "train").frames(0)
    assert len(written(tmp_path)) == 3

    def files_with(corpus=corpus, copies=0, noise=(), split="train", augment=None, **changes):
        """How many files there are more than before."""
        before = len(written(tmp_path))
        other = dataclasses.replace(config, features=dataclasses.replace(SMALL, **changes))
        other = dataclasses.replace(other, augment=AugmentConfig(**(augment or {})))
        utterances(other, corpus, features, split, noise, copies)
        return len(written(tmp_path)) - before

    for decided_anew in ({"normalize": "speaker"}, {"stack": 3}, {"subsample": 2}, {"augment": {"time_masks": 2}}):
        assert files_with(**decided_anew) == 0
    others = [{"mels": 6}, {"window": 30.0}, {"hop": 8.0}, {"deltas": 0}, {"energy": False}, {"sample_rate": 6000}]
    others += [{"noise": [10]}, {"noise": [5]}, {"copies": 1}, {"split": "valid"}, {"split": "valid", "noise": [10]}]
    others += [{"copies": 1, "augment": {"gain": 3.0}}, {"kind": "mfcc", "coefficients": 5}]
    others += [{"corpus": corpus_of("other", train=TRAIN)}]
    for other in others:
        assert files_with(**other) == 3, other
        assert files_with(**other) == 0, other
    assert files_with(copies=2) == 3  # only the second is new
    np.testing.assert_array_equal(utterances(config, corpus, features, "train").frames(0), kept)


# -------------------------------------------------------------------------------------------------------- augmentation


def power(samples):
    return np.mean(np.square(samples, dtype=np.float64))


@pytest.mark.parametrize("decibels", [-5, 0, 10, 30])
def test_noise_is_as_loud_as_asked(decibels):
    tone = np.sin(np.arange(RATE) / 3).astype(np.float32)
    colours = set()
    for seed in range(6):
        noisy = with_noise(tone, decibels, np.random.default_rng(seed))
        noise = noisy.astype(np.float64) - tone
        assert 10 * np.log10(power(tone) / power(noise)) == pytest.approx(decibels, abs=0.01)
        assert noisy.dtype == np.float32 and len(noisy) == RATE
        spectrum = np.abs(np.fft.rfft(noise)) ** 2
        low, high = spectrum[1 : RATE // 4].mean(), spectrum[RATE // 4 :].mean()
        colours.add("white" if low / high < 1.3 else "pink" if low / high > 3 else "other")
    assert colours == {"white", "pink"}


def test_silence_stays_silent():
    for size in (1, 2, 500):
        for seed in range(4):
            assert not with_noise(np.zeros(size, np.float32), 10, np.random.default_rng(seed)).any()


def test_noise_of_evaluation_is_the_same_at_every_call(made, tmp_path):
    config, corpus, features = made()
    clean, noisy = (utterances(config, corpus, features, "valid", noise) for noise in ((), [10]))
    (decoded, rate), rng = decode_sound(VALID[1]["sound"]), np.random.default_rng([0, 1])
    expected = features.normalized(compute(with_noise(decoded, 10, rng), rate, SMALL), "")
    np.testing.assert_array_equal(noisy.frames(1), expected)
    assert not np.allclose(clean.frames(1), expected)
    assert noisy.segments(1) == clean.segments(1) and np.array_equal(noisy.seconds, clean.seconds)


def test_copies_carry_scaled_times_and_follow_the_recordings(made):
    config, corpus, features = made(augment={"copies": 2, "speeds": [0.8, 1.25], "gain": 0.0})
    rows, plain = (utterances(config, corpus, features, "train", copies=copies) for copies in (2, 0))
    assert rows.names == plain.names * 3 and rows.phones == plain.phones * 3 and len(rows) == 30
    speeds = []
    for i in range(30):
        original = i % 10
        speed = plain.seconds[original] / rows.seconds[i]
        speeds.append(round(speed, 5))
        for (phone, *times), (same, *before) in zip(rows.segments(i), plain.segments(original), strict=True):
            assert phone == same
            np.testing.assert_allclose(np.array(times) * speed, before, atol=1e-12)
        seconds = (rows.num_steps[i] - 1) * 0.01 + 0.025
        assert rows.seconds[i] - 0.011 < seconds <= rows.seconds[i] + 0.001
        assert 0 not in rows.frame_phones(i)
        np.testing.assert_array_equal(rows.frames(i), rows.frames(i))
    assert speeds[:10] == [1] * 10 and set(speeds[10:20]) == set(speeds[20:]) == {0.8, 1.25}
    assert speeds[10:20] != speeds[20:]


def test_a_copy_has_another_speed_gain_and_noise_drawn_for_its_place():
    tone = (0.1 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.float32)
    drawn = [changed(tone, RATE, AugmentConfig(speeds=[0.5, 2.0], gain=6), 1, position) for position in range(30)]
    for samples, speed in drawn:
        assert len(samples) == pytest.approx(RATE / speed, abs=1) and samples.dtype == np.float32
        peak = np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)
        assert peak == pytest.approx(500 * speed, rel=0.01)
    gains = [10 * np.log10(power(samples) / power(tone)) for samples, _ in drawn]
    assert -6.1 < min(gains) < -3 and 3 < max(gains) < 6.1 and {speed for _, speed in drawn} == {0.5, 2.0}
    (same, _), (other, _) = (changed(tone, RATE, AugmentConfig(speeds=[1.0]), copy, 0) for copy in (1, 2))
    assert np.allclose(same, changed(tone, RATE, AugmentConfig(speeds=[1.0]), 1, 0)[0]) and not np.allclose(same, other)
    noisy, _ = changed(tone, RATE, AugmentConfig(speeds=[1.0], gain=0.0, noise=[15, 25]), 1, 0)
    assert 15 <= 10 * np.log10(power(tone) / power(noisy - tone)) <= 25


def masks_of(frames, augment, settings, seed):
    config = SpeechConfig(features=settings, augment=augment)
    return masked(frames, config, np.random.default_rng(seed)) == 0


def test_masks_stay_within_their_bounds_and_move():
    frames = np.ones((50, 18), np.float32)  # eight bands and the energy, and their slopes
    widths, starts = set(), set()
    for seed in range(300):
        masks = masks_of(frames, AugmentConfig(frequency_masks=1, frequency_width=3), SMALL, seed)
        assert np.array_equal(masks, np.tile(masks[0], (50, 1))) and np.array_equal(masks[0, :9], masks[0, 9:])
        bands = np.flatnonzero(masks[0, :9])
        assert not masks[0, 8] and (len(bands) == 0 or bands[-1] - bands[0] + 1 == len(bands))
        widths.add(len(bands))
        starts |= set(bands[:1].tolist())
        masks = masks_of(frames, AugmentConfig(time_masks=1, time_width=10), SMALL, seed)
        assert np.array_equal(masks, np.tile(masks[:, :1], (1, 18)))
        times = np.flatnonzero(masks[:, 0])
        assert len(times) <= 10 and (len(times) == 0 or times[-1] - times[0] + 1 == len(times))
        starts |= {f"time {start}" for start in times[:1].tolist()}
    assert widths == {0, 1, 2, 3} and {0, 7} < starts and len([s for s in starts if isinstance(s, str)]) > 30
    assert frames.all()
    # Where there is less than a mask may cover, and where there is none.
    for seed in range(20):
        masks_of(np.ones((1, 18), np.float32), AugmentConfig(time_masks=2, frequency_masks=2), SMALL, seed)
    assert masked(frames, SpeechConfig(features=SMALL), np.random.default_rng(1)) is frames


# ------------------------------------------------------------------------------------------------------------- batches


def test_every_utterance_comes_once_a_pass_as_it_is(made):
    settings = made(features=dataclasses.replace(SMALL, stack=2, subsample=2), head="both")
    rows, steps = utterances(*settings, "train"), steps_per_pass(*settings)
    assert steps == 4 and settings[2].num_utterances == 10
    for batches_of_pass in (stream(settings, steps), stream(settings, steps, steps)):
        found = []
        for inputs, targets, weights in batches_of_pass:
            assert {each.dtype for name, each in inputs.items() if name != "features"} == {np.dtype("int32")}
            assert inputs["features"].dtype == weights.dtype == np.float32 and targets.dtype == np.int32
            assert targets.shape == weights.shape == inputs["frame_phones"].shape == inputs["features"].shape[:2]
            assert not targets.any() and weights.shape[1] == padded_length(int(inputs["lengths"].max()))
            np.testing.assert_array_equal(weights, np.arange(weights.shape[1]) < inputs["lengths"][:, None])
            for i, length in enumerate(inputs["lengths"]):
                (place,) = [n for n in range(10) if np.array_equal(rows.frames(n), inputs["features"][i, :length])]
                np.testing.assert_array_equal(inputs["frame_phones"][i, :length], rows.frame_phones(place))
                labels, count = inputs["labels"][i], len(rows.labels(place))
                np.testing.assert_array_equal(labels[:count], rows.labels(place))
                assert not labels[count:].any() and not inputs["features"][i, length:].any()
                assert not inputs["frame_phones"][i, length:].any()
                found.append(place)
        assert sorted(found) == list(range(10))
    shapes = training_batches(*settings, 0).element_spec[0]["features"].shape
    assert shapes.as_list() == [None, None, 36]


MASKS = {"copies": 1, "frequency_masks": 1, "frequency_width": 4, "time_masks": 1, "time_width": 9}


def test_starting_later_is_the_same_stream(made):
    settings = made(augment=MASKS)
    steps = steps_per_pass(*settings)
    assert steps == 7
    whole = stream(settings, 2 * steps + 2)
    for first_step in (steps - 1, steps + 2):
        started = stream(settings, 3, first_step)
        tf.nest.map_structure(np.testing.assert_array_equal, started, whole[first_step : first_step + 3])
    other = stream(made(augment=MASKS, seed=2), steps)
    assert [b[0]["lengths"].tolist() for b in other] != [b[0]["lengths"].tolist() for b in whole[:steps]]


def test_masks_are_drawn_anew_in_every_pass_and_nowhere_else(made):
    settings = made(augment={"time_masks": 2, "time_width": 9}, batch_size=10)
    rows = utterances(*settings, "train")
    first, second = (inputs["features"] for inputs, _, _ in stream(settings, 2))
    covered = []
    for features in (first, second):
        for n in range(10):
            length = rows.num_steps[n]
            same = [row for row in features if np.isin(row[:length], [*rows.frames(n).ravel(), 0]).all()]
            assert len(same) >= 1
        covered.append([np.sum(~row.any(axis=1)) for row in features])
    assert covered[0] != covered[1]


def test_what_cannot_be_trained_on_is_left_out(made):
    rows = [
        *TRAIN[:4],
        said("a b", 0.9, "long"),
        said("a b a b a b", 0.065, "crowded"),  # five frames
        said("a a b", 0.055, "repeated"),  # four, and just enough
        said("a b", 0.3, "untimed", timed=False),
        said("", 0.3, "unlabelled", timed=False),
    ]
    corpus = corpus_of("mixed", train=rows)
    for head, names in (("frames", ["crowded", "repeated"]), ("ctc", ["repeated", "untimed"])):
        settings = made(corpus, head, batch_size=4, max_seconds=0.8)
        some = utterances(*settings, "train")
        kept = [some.names[i] for i in range(len(some)) if not some.left_out(settings[0], i)]
        assert kept == [row["name"] for row in TRAIN[:4]] + names
        assert settings[2].num_utterances == len(kept) == 6 and steps_per_pass(*settings) == 2
        lengths = np.concatenate([inputs["lengths"] for inputs, _, _ in stream(settings, 2)])
        assert sorted(lengths) == sorted(some.num_steps[i] for i in range(9) if some.names[i] in kept or i < 4)


def test_a_validation_split_that_nothing_is_known_of_is_refused(made):
    mute = corpus_of("mute", train=TRAIN, valid=[said("", 0.3, "s1", text="a b", timed=False)])
    message = r"^data\.valid: of 1 utterances to be scored none has phones[^\n]*$"
    for corpus, options in ((mute, {}), (CORPUS, {"unscored": ["*"]})):
        with pytest.raises(UserError, match=message.replace("1", "0") if options else message):
            stream(made(corpus, **options), 1)
    assert stream(made(mute, head="ctc", labels="characters"), 1)


def test_rows_side_by_side_are_padded_on_the_right(made):
    rows = utterances(*made(), "train")
    frames = [rows.frames(i) for i in range(len(rows))]
    features, lengths = padded(frames, np.float32)
    assert features.shape == (10, padded_length(int(lengths.max())), 18) and lengths.dtype == np.int32
    assert lengths.tolist() == rows.num_steps.tolist()
    for row, length, own in zip(features, lengths, frames, strict=True):
        np.testing.assert_array_equal(row[:length], own)
        assert not row[length:].any()

"""Batches of captioning hold every caption once a pass, as many of a picture together as asked, whatever the step."""

import dataclasses
import functools
import io
import json
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shared.batching import padded_length
from shared.task import Corpus
from shared.text import BOS, EOS, PAD
from shared.tiny_world import english
from shared.tiny_world.pictures import LANGUAGES, described, draw, judge, places
from shared.tiny_world.pictures import captions as tiny_captions
from tasks.captioning.config import AugmentConfig, CaptioningConfig, DataConfig, ModelConfig, VocabularyConfig
from tasks.captioning.corpus import prepare
from tasks.captioning.data import augmented, encoded, exchanged, steps_per_pass, training_batches
from tasks.captioning.features import fit, seen

LONGEST, BATCH, TWO = 6, 8, 2
RANDOM = np.random.default_rng(2)
WORDS = ["red", "green", "blue", "large", "small", "house", "bear", "oil"]


def caption(length):
    return " ".join(RANDOM.choice(WORDS, length))


# Of the 22 pictures two have no caption that is short enough; some have more captions than a pass shows, some fewer.
CAPTIONS = [[caption(RANDOM.integers(1, LONGEST + 2)) for _ in range(1 + i % 4)] for i in range(20)]
CAPTIONS += [[caption(LONGEST + 1)] * 2, [caption(LONGEST), caption(LONGEST + 1), caption(1)]]
KEPT = {i: [each for each in some if len(each.split()) <= LONGEST] for i, some in enumerate(CAPTIONS)}
KEPT = {i: some for i, some in KEPT.items() if some}
TURNS = {i: -(-len(some) // TWO) for i, some in KEPT.items()}
STEPS = -(-sum(TURNS.values()) * TWO // BATCH)


def png(level):
    """A picture of one colour, which tells its number."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (10 * level, 5, 200)).save(file, "PNG")
    return file.getvalue()


def corpus_of(captions, identity="levels"):
    def opened():
        columns = {
            "id": list(range(len(captions))),
            "name": [f"{i}.png" for i in range(len(captions))],
            "picture": [png(i) for i in range(len(captions))],
            "captions": tf.ragged.constant(captions),
            "scene": [""] * len(captions),
        }
        rows = tf.data.Dataset.from_tensor_slices(columns)
        return rows.map(lambda row: {**row, "captions": tf.convert_to_tensor(row["captions"])})

    return Corpus({"train": opened}, {"train": len(captions)}, name="levels", identity=identity)


CORPUS = corpus_of(CAPTIONS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def made(cache):
    """Options -> configuration, corpus, features."""

    @functools.cache
    def make(corpus=CORPUS, seed=1, objective="words", augment=None, encoder="small", **data):
        options = {"max_length": LONGEST, "batch_size": BATCH, "sort_pool": 2, "captions_per_picture": TWO} | data
        config = CaptioningConfig(
            data=DataConfig(cache=cache, **options),
            vocabulary=VocabularyConfig(unit="word"),
            augment=augment or AugmentConfig(),
            model=ModelConfig(image_size=32, encoder=encoder),
        )
        config = dataclasses.replace(
            config, training=dataclasses.replace(config.training, seed=seed, objective=objective)
        )
        return config, corpus, fit(config, corpus)

    return make


@pytest.fixture(scope="module")
def stream(made):
    """(steps, first step, options) -> batches."""

    @functools.cache
    def stream(steps, first_step=0, **options):
        return list(training_batches(*made(**options), first_step).take(steps).as_numpy_iterator())

    return stream


def numbers(batch):
    """Which pictures a batch shows."""
    return (batch[0]["seen"][:, 0, 0, 0] // 10).tolist()


def shown(batches, features, copies=TWO):
    """(picture, its captions) of some batches, in their order."""
    found = []
    for batch in batches:
        texts = [features.vocabulary.decode(row) for row in batch[1]]
        assert len(texts) == copies * len(numbers(batch))
        found += [(i, texts[copies * row : copies * (row + 1)]) for row, i in enumerate(numbers(batch))]
    return found


def test_every_caption_is_seen_once_a_pass_beside_its_picture(made, stream):
    assert len(KEPT) == 20 and steps_per_pass(*made()) == STEPS
    batches = stream(2 * STEPS)
    first, second = (shown(batches[start : start + STEPS], made()[2]) for start in (0, STEPS))
    assert [i for i, _ in first] != [i for i, _ in second]
    for found in (first, second):
        assert Counter(i for i, _ in found) == TURNS
        for i, captions in KEPT.items():
            texts = Counter(text for number, some in found if number == i for text in some)
            assert texts.keys() == set(captions)
            filled = TWO * TURNS[i] - len(captions)  # a turn that is not full shows one again
            assert (texts - Counter(captions)).total() == filled
    assert sorted(first) != sorted(second)  # others together, too


def test_length_says_nothing_of_a_batch_that_an_encoder_normalises(stream):
    """But to others come captions of similar length."""
    spreads = {}
    for encoder in ("small", "MobileNetV2"):
        batches = stream(4 * STEPS, encoder=encoder, sort_pool=STEPS)
        spreads[encoder] = np.mean([np.ptp((batch[1] != 0).sum(axis=1)) for batch in batches])
    assert spreads["small"] > 1.2 * spreads["MobileNetV2"]


def test_batches_are_what_the_model_reads(stream):
    for inputs, targets, weights in stream(2 * STEPS):
        assert set(inputs) == {"seen", "tokens", "targets"}
        assert inputs["seen"].dtype == np.uint8 and inputs["seen"].shape[1:] == (32, 32, 3)
        assert np.ptp(inputs["seen"], axis=(1, 2)).max() == 0  # each of one colour still
        tokens = inputs["tokens"]
        np.testing.assert_array_equal(inputs["targets"], targets)
        assert {array.dtype for array in (tokens, targets)} == {np.dtype("int32")} and weights.dtype == np.float32
        lengths = np.sum(targets != PAD, axis=1)
        assert len(targets) <= BATCH and targets.shape[1] == padded_length(int(lengths.max())) <= LONGEST + 1
        np.testing.assert_array_equal(targets == EOS, np.arange(targets.shape[1]) == lengths[:, None] - 1)
        assert np.all(targets[np.arange(targets.shape[1]) >= lengths[:, None]] == PAD) and not np.any(targets == BOS)
        np.testing.assert_array_equal(tokens[:, 0], BOS)
        np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])
        np.testing.assert_array_equal(weights, targets != PAD)


CHANGED = AugmentConfig(flip=True, shift=0.1, brightness=0.05)


@pytest.mark.parametrize("options", [{}, {"objective": "cider", "augment": CHANGED}], ids=["plain", "all"])
@pytest.mark.parametrize("first_step", [3, STEPS, STEPS + 2])
def test_starting_later_is_the_same_stream(stream, first_step, options):
    expected = stream(2 * STEPS, **options)[first_step : first_step + 4]
    tf.nest.map_structure(np.testing.assert_array_equal, stream(len(expected), first_step, **options), expected)


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_every_seed_gives_batches_of_its_own(made, stream, seed):
    tf.random.set_seed(seed)  # as training does
    try:
        found = shown(stream(STEPS, seed=seed), made()[2])
    finally:
        tf.random.set_seed(1)
    assert Counter(i for i, _ in found) == TURNS
    assert [i for i, _ in found] != [i for i, _ in shown(stream(2 * STEPS)[:STEPS], made()[2])]


@pytest.mark.parametrize("copies", [1, 3, 33])
def test_there_are_as_many_captions_as_asked(made, stream, copies):
    options = {"captions_per_picture": copies, "batch_size": copies + 1}  # of one picture, or two if copies is 1
    found = shown(stream(4, **options), made()[2], copies)
    assert len(found) == (4 if copies > 1 else 8)
    turns = sum(-(-len(some) // copies) for some in KEPT.values())
    assert steps_per_pass(*made(**options)) == -(-turns // (1 if copies > 1 else 2))
    for i, texts in found:
        counts = [texts.count(text) for text in KEPT[i]]
        distinct = len(set(KEPT[i])) == len(KEPT[i]) <= copies
        assert set(texts) <= set(KEPT[i]) and (not distinct or max(counts) - min(counts) <= 1)


def test_the_order_of_captions_is_no_part_of_what_is_encoded(made):
    config, _, features = made()
    kept = ["red", "blue bear"]
    found = encoded(["red", "", caption(LONGEST + 1), "blue bear"], config, features)
    assert found == list(zip(kept, features.vocabulary.encode(kept), strict=True))


# -------------------------------------------------------------------------------------------------------------- places


def test_every_word_knows_where_the_next_noun_is_to_be_seen(cache):
    """Of tiny world's own pictures, whose captions say what is in them."""
    config = CaptioningConfig(
        data=DataConfig(cache=cache, size=12, batch_size=8, captions_per_picture=2),
        model=ModelConfig(attention_supervision=1.0),
    )
    corpus = prepare(config)
    features = fit(config, corpus)
    told = {}  # caption -> the boxes of its words, in each picture that it is a caption of
    for record in seen(config, corpus, features, "train")[0]:
        for text in record["captions"]:
            told.setdefault(text, []).append(places(text, english, json.loads(record["scene"])))
    for inputs, targets, _ in training_batches(config, corpus, features, 0).take(3).as_numpy_iterator():
        assert inputs["places"].shape[:2] == targets.shape and inputs["places"].shape[3] == 4
        for row, boxes in zip(targets, inputs["places"], strict=True):
            text = features.vocabulary.decode(row)
            found = [[box.round(4).tolist() for box in each if box.any()] for each in boxes]
            known = [[np.float32(each).round(4).tolist() for each in word] for word in told[text][0]]
            assert len(told[text]) == 1 and found[: len(known)] == known and not any(found[len(known) :])


def test_boxes_are_no_part_of_a_batch_unless_asked_for(stream):
    assert set(stream(1)[0][0]) == {"seen", "tokens", "targets"}


# ---------------------------------------------------------------------------------------------------------- references


def test_rewards_compare_with_all_captions_of_a_picture(made, stream):
    _, _, features = made(objective="cider")
    for batch in stream(STEPS, objective="cider"):
        references = batch[0]["references"]
        assert references.dtype == np.int32 and len(references) == len(batch[0]["seen"])
        for i, rows in zip(numbers(batch), references, strict=True):
            real = [row for row in rows if row.any()]
            assert [features.vocabulary.decode(row) for row in real] == KEPT[i]
            assert all((row == EOS).sum() == 1 and row[np.sum(row != PAD) - 1] == EOS for row in real)
    assert [features.vocabulary.decode(row) for row in features.references[1]] == KEPT[1]


# --------------------------------------------------------------------------------------------------------- augmentation


PICTURES = np.random.default_rng(4).integers(60, 180, (40, 12, 12, 3)).astype("uint8")


NONE_FLIPPED = np.zeros(len(PICTURES), bool)


def changed(**options):
    def make(seed):
        return augmented(PICTURES, NONE_FLIPPED, AugmentConfig(**options), np.random.default_rng(seed))

    found = make(5)
    assert found.dtype == np.uint8 and found.shape == PICTURES.shape
    np.testing.assert_array_equal(found, make(5))
    assert np.any(found != make(6))
    return found


def test_nothing_is_changed_unless_asked():
    assert augmented(PICTURES, NONE_FLIPPED, AugmentConfig(), np.random.default_rng(5)) is PICTURES


def test_left_and_right_are_exchanged_where_asked():
    flipped = np.random.default_rng(7).random(len(PICTURES)) < 0.5
    found = augmented(PICTURES, flipped, AugmentConfig(flip=True), np.random.default_rng(5))
    np.testing.assert_array_equal(found[flipped], PICTURES[flipped][:, :, ::-1])
    np.testing.assert_array_equal(found[~flipped], PICTURES[~flipped])


@pytest.mark.parametrize("language, pair", [("en", "left right"), ("de", "links rechts")])
def test_captions_of_mirrored_scenes_are_true(language, pair):
    """The boxes that are exchanged with them, too."""
    told = set()
    for position in range(40):
        scene, boxes, _ = draw("train", 3, position)
        seen = described(scene, boxes)
        mirrored = [{**group, "boxes": mirrored_boxes(group["boxes"])} for group in seen]
        for caption in tiny_captions(scene, LANGUAGES[language]):
            turned = exchanged(caption, pair)
            told.add(turned == caption)
            assert judge(turned, LANGUAGES[language], mirrored).true
            assert exchanged(turned, pair) == caption
    assert told == {True, False}


def mirrored_boxes(boxes):
    return [[round(edge, 4) for edge in (1 - right, top, 1 - left, bottom)] for left, top, right, bottom in boxes]


def test_words_are_exchanged_whole_and_whatever_their_case():
    pairs = "left right Up down"
    assert exchanged("Left, leftmost: an upright man looks down", pairs) == "right, leftmost: an upright man looks up"


def test_half_of_the_pictures_are_flipped_and_told_so(cache):
    config = CaptioningConfig(
        data=DataConfig(cache=cache, size=12, batch_size=8, captions_per_picture=2),
        augment=AugmentConfig(flip=True, flip_words="left right"),
        model=ModelConfig(attention_supervision=1.0),
    )
    corpus = prepare(config)
    features = fit(config, corpus)
    records, pictures = seen(config, corpus, features, "train")
    flips, relations = [], set()
    for inputs, targets, _ in training_batches(config, corpus, features, 0).take(20).as_numpy_iterator():
        for i, picture in enumerate(inputs["seen"]):
            (position,) = np.flatnonzero(
                [any(np.array_equal(picture, way) for way in (each, each[:, ::-1])) for each in pictures]
            )
            flips.append(not np.array_equal(picture, pictures[position]))
            scene = json.loads(records[position]["scene"])
            if flips[-1]:
                scene = [{**group, "boxes": mirrored_boxes(group["boxes"])} for group in scene]
            for row, boxes in zip(targets[2 * i : 2 * i + 2], inputs["places"][2 * i : 2 * i + 2], strict=True):
                text = features.vocabulary.decode(row)
                assert judge(text, english, scene).true
                found = [[box.round(4).tolist() for box in each if box[0] < box[2]] for each in boxes]
                known = [[np.float32(each).round(4).tolist() for each in word] for word in places(text, english, scene)]
                for word, expected in zip(found, known, strict=False):
                    np.testing.assert_allclose(word, expected, atol=2e-4)
                assert not any(found[len(known) :])
                relations |= {word for word in ("left", "right") if word in text.split()}
    assert 20 < sum(flips) < 0.7 * len(flips) and relations == {"left", "right"}


def test_pictures_are_moved_by_no_more_than_their_share():
    padded = np.pad(PICTURES, [(0, 0), (3, 3), (3, 3), (0, 0)], "edge")
    moves = []
    for after, wide in zip(changed(shift=0.25), padded, strict=True):
        (move,) = [(y, x) for y in range(7) for x in range(7) if np.array_equal(wide[y:, x:][:12, :12], after)]
        moves.append(move)
    assert {y for y, _ in moves} == {x for _, x in moves} == set(range(7))  # both ways, each on its own
    assert len(set(moves)) > 20


def test_brightness_adds_the_same_everywhere():
    differences = changed(brightness=0.1).astype(int) - PICTURES
    assert np.ptp(differences, axis=(1, 2, 3)).max() <= 1  # rounding
    assert 15 < np.abs(differences).max() <= 26 and len(np.unique(differences)) > 20


def test_contrast_leaves_the_mean():
    found = changed(contrast=0.5)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), PICTURES.mean(axis=(1, 2, 3)), atol=1)
    ratios = found.std(axis=(1, 2, 3)) / PICTURES.std(axis=(1, 2, 3))
    assert 0.49 < ratios.min() < 0.7 and 1.3 < ratios.max() < 1.51


def test_what_is_too_bright_is_white():
    dark = augmented(PICTURES // 2, NONE_FLIPPED, AugmentConfig(brightness=0.9), np.random.default_rng(5))
    assert dark.min() == 0 and dark.max() == 255


def test_batches_show_changed_pictures(stream):
    plain, found = stream(4, seed=3), stream(4, seed=3, augment=AugmentConfig(brightness=0.2))
    for (before, *_), (after, *_) in zip(plain, found, strict=True):
        np.testing.assert_array_equal(before["tokens"], after["tokens"])
        assert np.any(before["seen"] != after["seen"]) and np.ptp(after["seen"], axis=(1, 2)).max() == 0

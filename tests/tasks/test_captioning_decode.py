"""Captions keep their order and do not depend on their batch, and are worth what the model says they are."""

import functools
import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shared.task import Corpus
from shared.text import BOS, EOS, UNK, Vocabulary
from tasks.captioning import decode as module
from tasks.captioning.config import CaptioningConfig, DataConfig, DecodingConfig, ModelConfig
from tasks.captioning.decode import box, decode, describe, draw_attention, draw_captions, score_captions
from tasks.captioning.features import Features
from tasks.captioning.model import Captioner

WORDS = [f"w{number}" for number in range(8)]
ROWS, COLUMNS, CHANNELS, LONGEST = 2, 3, 5, 7
# With seeds that make captions differ in words and length; see `test_captions_differ`.
VARIANTS = {
    "simple": {"seed": 61, "cell": "simple"},
    "sentinel": {"seed": 4, "attention": "dot", "gate": "sentinel"},
    "none": {"seed": 10, "attention": "none"},
}
PIXELS = {"seed": 54, "train_encoder": True}
SIMPLE, SENTINEL, NONE = VARIANTS.values()
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
REGIONS = 2 * np.random.default_rng(6).normal(size=(9, ROWS * COLUMNS, CHANNELS)).astype("float16")
REFERENCES = [["w3 w2"], ["w1 w1 w1", "w4", "w5 w6 w0"], ["w5"], ["w0 w7 w0"], ["w2", "w2 w1"], ["w7"]]
REFERENCES += [["w4 w4"], ["w6 w5 w4 w3 w2 w1"], ["w0"]]


@functools.cache
def features():
    return Features(Vocabulary.train(iter(WORDS), unit="word"), len(REFERENCES))


@functools.cache
def captioner(seed, **options):
    """Random, without biases that would say the same of all pictures, and with a dislike of unknown words."""
    small = {"image_size": 32, "channels": 2, "memory_units": 6, "embedding_units": 6, "units": 7, "attention_units": 4}
    config = ModelConfig(**{**small, "train_encoder": False} | options)
    keras.utils.set_random_seed(1)
    regions = None if config.train_encoder else (ROWS, COLUMNS, CHANNELS)
    model = Captioner(config, len(features().vocabulary), regions)
    model.build()
    random = np.random.default_rng(seed)
    for weight in (*model.projection.weights, *model.writer.weights):
        spread = 0.4 if "embeddings" in weight.path else 1.2 if len(weight.shape) > 1 or "score" in weight.path else 0
        weight.assign(spread * random.normal(size=weight.shape))
    model.writer.output_bias.assign(-20.0 * (np.arange(len(features().vocabulary)) == UNK))
    return model


def configured(cache="data", **decoding):
    options = {"beam_size": 3, "max_length": LONGEST} | decoding
    model = ModelConfig(image_size=32)
    return CaptioningConfig(data=DataConfig(cache=str(cache)), model=model, decoding=DecodingConfig(**options))


BEAM, GREEDY = configured(length_penalty=2.0), configured(method="greedy")
# No more than stay compiled.
SEARCHES = {"simple": (SIMPLE, GREEDY), "beam": (SIMPLE, BEAM), "sentinel": (SENTINEL, BEAM), "none": (NONE, GREEDY)}
searches = pytest.mark.parametrize(("options", "config"), SEARCHES.values(), ids=SEARCHES)


def described(options, config=BEAM, regions=REGIONS, **others):
    return describe(config, captioner(**options), features(), regions, **others)


def assert_equal_captions(actual, expected):
    assert [found["output"] for found in actual] == [found["output"] for found in expected]
    for found, other in zip(actual, expected, strict=True):
        hypotheses = [[(one["score"], one["log_prob"]) for one in side["n_best"]] for side in (found, other)]
        np.testing.assert_allclose(*hypotheses, rtol=1e-4)
        assert [one["output"] for one in found["n_best"]] == [one["output"] for one in other["n_best"]]
        assert [region[:2] for region in found.get("regions", [])] == [
            region[:2] for region in other.get("regions", [])
        ]


def read(model, regions, captions):
    """For each picture and its caption, read by themselves: log p, tokens with the end, and the attention at each."""
    found = []
    for picture, ids in zip(regions, features().vocabulary.encode(captions), strict=True):
        logits, weights = model.writer.read(np.array([[BOS, *ids]]), *model.see(picture[None]))
        log_probs = tf.nn.log_softmax(logits[0]).numpy()
        total = sum(log_probs[place, token] for place, token in enumerate([*ids, EOS]))
        found.append((total, len(ids) + 1, None if weights is None else weights[0].numpy()))
    return found


# ---------------------------------------------------------------------------------------------------------- captions


@searches
def test_captions_differ(options, config):
    """Without which the tests below would say little."""
    outputs = [found["output"] for found in described(options, config)]
    assert len(set(outputs)) >= 3 and len({len(output.split()) for output in outputs}) >= 2


@searches
def test_a_caption_does_not_depend_on_its_batch(options, config):
    together = described(options, config)
    alone = [described(options, config, REGIONS[i : i + 1])[0] for i in range(len(REGIONS))]
    assert_equal_captions(alone, together)
    assert_equal_captions(described(options, config, REGIONS[::-1])[::-1], together)
    assert described(options, config, REGIONS[:0]) == []


def test_captions_keep_the_order_of_the_pictures():
    found = described(NONE, configured(method="greedy", batch_size=4))
    assert_equal_captions(found, described(NONE, GREEDY))


def test_a_beam_of_one_is_greedy():
    greedy = described(SIMPLE, GREEDY)
    beam = described(SIMPLE, configured(beam_size=1))
    assert [one["output"] for one in beam] == [one["output"] for one in greedy]
    assert [one["log_prob"] for one in beam] == pytest.approx([one["log_prob"] for one in greedy], rel=1e-4)
    assert all(len(one["n_best"]) == 1 for one in beam + greedy)


def test_hypotheses_come_best_first():
    # As long as they like, for those that are cut off come behind all others.
    for found in described(SIMPLE, configured(max_length=100)):
        scores = [hypothesis["score"] for hypothesis in found["n_best"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3
        assert {key: found[key] for key in ("output", "score", "log_prob")} == found["n_best"][0]
        assert len({hypothesis["output"] for hypothesis in found["n_best"]}) == 3


def test_samples_follow_the_seed():
    def outputs(**options):
        return [one["output"] for one in described(SIMPLE, configured(method="sample", **options))]

    assert outputs() == outputs() != outputs(seed=2)
    # Each batch draws its own.
    same = np.repeat(REGIONS[:1], 8, axis=0)
    found = described(SIMPLE, configured(method="sample", batch_size=2), same)
    assert len({tuple(one["output"] for one in found[i : i + 2]) for i in range(0, 8, 2)}) > 1


@searches
def test_what_the_search_says_of_a_caption_is_what_the_model_says(options, config):
    pairs = [
        (picture, hypothesis)
        for picture, one in zip(REGIONS, described(options, config), strict=True)
        for hypothesis in one["n_best"]
    ]
    scored = read(captioner(**options), [picture for picture, _ in pairs], [one["output"] for _, one in pairs])
    compared = 0
    for (_, hypothesis), (expected, tokens, _) in zip(pairs, scored, strict=True):
        if tokens <= LONGEST:  # was not cut off before its end
            assert hypothesis["log_prob"] == pytest.approx(expected, rel=1e-4)
            score = expected / ((5 + tokens) / 6) ** 2 if config is BEAM else expected
            assert hypothesis["score"] == pytest.approx(score, rel=1e-4)
            compared += 1
    assert compared >= 5


# ----------------------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("search", ["simple", "beam", "sentinel"])
def test_regions_are_where_the_attention_is_greatest(search):
    options, config = SEARCHES[search]
    found, places = described(options, config, attention=True), set()
    scored = read(captioner(**options), REGIONS, [one["output"] for one in found])
    for one, (_, _, expected) in zip(found, scored, strict=True):
        words, attention = one["output"].split(), one["attention"]
        assert [word for word, _, _ in one["regions"]] == words
        assert attention.shape == (len(words), ROWS, COLUMNS)
        np.testing.assert_allclose(attention.reshape(-1, ROWS * COLUMNS), expected[: len(words)], atol=1e-5)
        for (_, (left, top, right, bottom), weight), heat in zip(one["regions"], attention, strict=True):
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            assert (left, top, right, bottom) == pytest.approx((x / 3, y / 2, (x + 1) / 3, (y + 1) / 2))
            assert weight == pytest.approx(heat.max())
            places.add((x, y))
    assert len(places) >= 3


def test_there_are_no_regions_without_attention():
    for one in described(NONE, GREEDY, attention=True):
        assert set(one) == {"output", "score", "log_prob", "n_best"}
    assert "attention" not in described(SIMPLE)[0]


def test_regions_fill_the_picture_row_by_row():
    model = SimpleNamespace(rows=2, columns=4)
    boxes = [box(model, i) for i in range(8)]
    assert boxes[0] == [0, 0, 0.25, 0.5] and boxes[3] == [0.75, 0, 1, 0.5] and boxes[4] == [0, 0.5, 0.25, 1]
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------ scoring


@variants
def test_captions_are_worth_what_the_model_says_whatever_the_batch(options):
    pairs = [(picture, each) for picture, some in zip(REGIONS, REFERENCES, strict=True) for each in some]
    expected = [pair[:2] for pair in read(captioner(**options), *zip(*pairs, strict=True))]
    for batch_size in (1, 4, 64):
        found = score_captions(configured(batch_size=batch_size), captioner(**options), features(), REGIONS, REFERENCES)
        assert [len(scores) for scores in found] == [len(captions) for captions in REFERENCES]
        np.testing.assert_allclose([pair for scores in found for pair in scores], expected, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- a split


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = np.random.default_rng(8).integers(0, 256, (6, 4, 4, 3)).astype("uint8").repeat(8, axis=1).repeat(8, axis=2)


def corpus_of(identity, **captions):
    def opened(split):
        rows = [
            {"id": i, "name": f"{i}.png", "picture": png(PICTURES[i]), "captions": some, "scene": f"[{i}]"}
            for i, some in enumerate(captions[split])
        ]
        kinds = {"id": tf.int64, "name": tf.string, "picture": tf.string, "captions": tf.string, "scene": tf.string}
        signature = {key: tf.TensorSpec([None] if key == "captions" else [], kind) for key, kind in kinds.items()}
        return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

    splits = {split: functools.partial(opened, split) for split in captions}
    return Corpus(splits, {split: len(rows) for split, rows in captions.items()}, identity=identity)


def test_decoding_a_split_says_all_that_scores_need(tmp_path):
    config, model = configured(tmp_path, method="greedy", batch_size=4), captioner(**PIXELS)
    outputs = describe(config, model, features(), PICTURES)
    known = {outputs[0]["output"], "w1"}
    corpus = corpus_of("known", train=[["w1"], ["w7 w7", f"  {outputs[0]['output']} "]], test=REFERENCES[:6])
    found = decode(config, model, features(), corpus, "test", 0)
    assert [one["id"] for one in found] == list(range(6)) and found[5]["name"] == "5.png"
    assert [one["captions"] for one in found] == REFERENCES[:6] and found[2]["scene"] == "[2]"
    assert_equal_captions(found, outputs)
    assert [one["novel"] for one in found] == [one["output"] not in known for one in outputs]
    other = corpus_of("unknown", train=[["w7 w6 w5 w4 w3 w2 w1"]], test=REFERENCES[:6])
    assert all(one["novel"] for one in decode(config, model, features(), other, "test", 0))
    scored = score_captions(config, model, features(), PICTURES, REFERENCES[:6])
    sums = [np.sum(scores, axis=0) for scores in scored]
    np.testing.assert_allclose([(one["caption_log_prob"], one["caption_tokens"]) for one in found], sums, rtol=1e-5)
    assert_equal_captions(decode(config, model, features(), corpus, "test", 2), found[:2])


# --------------------------------------------------------------------------------------------------- language models


class Listener:
    """In place of a language model: likes one word and then the end."""

    def __init__(self, word):
        self.word = word

    def start_of_text(self, rows):
        def step(tokens, state):
            likely = tf.where(tokens == BOS, features().vocabulary.encode([self.word])[0][0], EOS)
            return tf.one_hot(likely, len(features().vocabulary), 0.0, -50.0), state

        return {"written": tf.zeros((rows, 1))}, step


def test_a_language_model_takes_part_by_its_weight(monkeypatch):
    asked, listener = [], Listener("w5")

    def restored(directory, digest):
        asked.append((directory, digest))
        return SimpleNamespace(model=listener)

    monkeypatch.setattr(module, "restore_language_model", restored)

    def heard(weight):
        config = configured(length_penalty=2.0, language_model="runs/lm", language_model_weight=weight)
        return described(SIMPLE, config, attention=True)

    silent, alone = heard(0.0), described(SIMPLE, BEAM, attention=True)
    assert_equal_captions(silent, alone)
    np.testing.assert_allclose(silent[0]["attention"], alone[0]["attention"], atol=1e-6)
    assert {one["output"] for one in heard(5.0)} == {"w5"} != {one["output"] for one in alone}
    assert set(asked) == {("runs/lm", features().vocabulary.digest())}


# ----------------------------------------------------------------------------------------------------------- pictures


def assert_picture(found):
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.std() > 5
    return found.shape[:2]


def test_heat_is_drawn_for_each_word():
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype("uint8")
    sizes = []
    for count in (0, 1, 5, 6):
        regions = [["$^$\\x_{", [0, 0, 1, 1], 0.5]] * count
        sizes.append(assert_picture(draw_attention(picture, regions, np.full((count, 2, 3), 0.2))))
    assert sizes == sorted(sizes) and sizes[2][0] < sizes[3][0]  # the sixth begins another line
    heat = np.zeros((1, 2, 3))
    heat[0, 0, 0] = 1
    first, second = (draw_attention(picture, [["w", [], 1]], each) for each in (heat, heat[:, ::-1, ::-1]))
    assert np.any(first != second)


def test_a_grid_shows_pictures_with_what_is_said_of_them():
    predictions = [{"output": f"w{i} $ \\frac" * i, "captions": [f"reference {i} % _ ^", "other"]} for i in range(6)]
    sizes = [assert_picture(draw_captions(list(PICTURES[:count]), predictions)) for count in (1, 4, 6)]
    assert sizes[0][0] == sizes[1][0] < sizes[2][0]

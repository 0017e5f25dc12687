"""Features of captioning: the training split's vocabulary, and an encoder that a run keeps and runs once a picture."""

import io
import json
import logging
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from shared.pictures import decode_picture
from shared.task import Corpus
from shared.text import UNK
from tasks.captioning import features as module
from tasks.captioning.config import (
    CaptioningConfig,
    CaptionTrainingConfig,
    DataConfig,
    ModelConfig,
    VocabularyConfig,
)
from tasks.captioning.features import Encoder, fit, load, seen
from tests.errors import one_line_error

CAPTIONS = {
    "train": [["The cat sees the dog", "a dog"], ["two Dogs"], ["the dog sees a cat and a dog", ""], ["a cat"] * 3],
    "valid": [["a zebra"], ["a dog"]],
}
RANDOM = np.random.default_rng(3)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = {
    split: [png(RANDOM.integers(0, 256, (8, 10, 3)).astype("uint8").repeat(5, axis=0)) for _ in captions]
    for split, captions in CAPTIONS.items()
}


def corpus_of(captions, identity="pets"):
    def opened(split):
        rows = [
            {"id": i, "name": f"{split}-{i}.png", "picture": PICTURES[split][i], "captions": some, "scene": f"[{i}]"}
            for i, some in enumerate(captions[split])
        ]
        kinds = {"id": tf.int64, "name": tf.string, "picture": tf.string, "captions": tf.string, "scene": tf.string}
        signature = {key: tf.TensorSpec([None] if key == "captions" else [], kind) for key, kind in kinds.items()}
        return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

    return Corpus(
        splits={split: lambda split=split: opened(split) for split in captions},
        sizes={split: len(rows) for split, rows in captions.items()}, name="pets", identity=identity,
    )  # fmt: skip


CORPUS = corpus_of(CAPTIONS)


def configured(cache="data", max_length=60, objective="words", model=None, **vocabulary):
    return CaptioningConfig(
        data=DataConfig(cache=str(cache), max_length=max_length),
        vocabulary=VocabularyConfig(**{"unit": "word", "size": 100} | vocabulary),
        model=ModelConfig(**{"image_size": 32, "channels": 2} | (model or {})),
        training=CaptionTrainingConfig(objective=objective),
    )


# ------------------------------------------------------------------------------------------------------------ captions


def test_only_the_training_split_is_learned_from():
    features = fit(configured(unit="character"), CORPUS)
    assert UNK in features.vocabulary.encode(["a zebra"])[0]
    assert UNK not in features.vocabulary.encode(["two cats"])[0]
    assert features.encoder is None and features.references is None


def test_the_section_reaches_the_vocabulary():
    features = fit(configured(size=9, min_count=4), CORPUS)
    assert features.vocabulary.unit == "word" and features.vocabulary.tokens()[4:] == ["▁a", "▁cat", "▁dog"]
    assert features.vocabulary.encode(["A Dog"]) == features.vocabulary.encode(["a dog"])
    assert "▁Dogs" in fit(configured(lowercase=False), CORPUS).vocabulary.tokens()


def test_captions_that_are_too_long_or_empty_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        features = fit(configured(max_length=2, objective="cider"), CORPUS)
    assert "3 of 8 training captions are left out: empty, or longer than data.max_length=2" in caplog.text
    assert features.num_turns == 5
    texts = [[features.vocabulary.decode(ids) for ids in rows] for rows in features.references]
    assert texts == [["a dog"], ["two dogs"], [], ["a cat"] * 3]
    caplog.clear()
    assert fit(configured(), corpus_of({"train": CAPTIONS["train"][:2]})).num_turns == 3
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_corpus_without_captions_is_one_line():
    one_line_error(lambda: fit(configured(), corpus_of({"train": [["", " "]]})), "vocabulary: no text", "pets")
    one_line_error(lambda: fit(configured(max_length=1), CORPUS), "data.max_length: 1", "pets", "choose more")


# --------------------------------------------------------------------------------------------------------------- files


def test_features_come_back_as_they_were(tmp_path):
    for objective, names in (("words", set()), ("cider", {"references.json"})):
        config = configured(objective=objective)
        features = fit(config, CORPUS)
        features.save(tmp_path / objective / "features")
        found = load(config, tmp_path / objective / "features")
        assert found.vocabulary.tokens() == features.vocabulary.tokens() and found.encoder is None
        assert (found.num_turns, found.references) == (features.num_turns, features.references)
        written = {path.name for path in (tmp_path / objective / "features").iterdir()}
        assert written == {"vocabulary.json", "statistics.json", *names}
        assert json.loads((tmp_path / objective / "features/statistics.json").read_text()) == {"num_turns": 7}


def test_weights_that_are_not_there_are_one_line(tmp_path):
    model = {"encoder": "VGG16", "weights": str(tmp_path / "weights.h5")}
    one_line_error(lambda: fit(configured(model=model), CORPUS), f"{tmp_path}/weights.h5: no such file of weights")


def test_other_statistics_are_one_line(tmp_path):
    fit(configured(), CORPUS).save(tmp_path)
    for content in ("{}", "[]", "3"):
        (tmp_path / "statistics.json").write_text(content)
        one_line_error(lambda: load(configured(), tmp_path), "statistics.json: ")


@pytest.mark.parametrize("name", ["vocabulary.json", "statistics.json", "references.json"])
@pytest.mark.parametrize("damage", ["missing", "half"])
def test_damaged_features_are_one_line(tmp_path, name, damage):
    config = configured(objective="cider")
    fit(config, CORPUS).save(tmp_path)
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text((tmp_path / name).read_text()[:9])
    one_line_error(lambda: load(config, tmp_path), f"{name}: ")


# ------------------------------------------------------------------------------------------------------------- encoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of MobileNetV2, whose batch normalisation has seen something."""
    keras.utils.set_random_seed(4)
    network = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3))
    random = np.random.default_rng(5)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(random.uniform(0.02, 0.1, layer.moving_variance.shape))
            layer.beta.assign(random.normal(size=layer.beta.shape))
    path = tmp_path_factory.mktemp("weights") / "mobile.weights.h5"
    network.save_weights(path)
    return path


@pytest.fixture(scope="module")
def frozen(weights, tmp_path_factory):
    """Configuration and features of a frozen encoder, and a folder where they were saved."""
    folder = tmp_path_factory.mktemp("frozen")
    model = {"encoder": "MobileNetV2", "weights": str(weights), "train_encoder": False}
    config = configured(folder / "cache", model=model)
    features = fit(config, CORPUS)
    features.save(folder / "features")
    return config, features, folder / "features"


def pixels(split="train"):
    return np.stack([decode_picture(content, 32) for content in PICTURES[split]])


def test_a_frozen_encoder_is_kept_in_the_run(frozen):
    config, features, folder = frozen
    found = load(config, folder)
    regions = features.read(pixels())
    assert regions.dtype == np.float16 and regions.shape == (4, 1, 1280) and regions.std(axis=0).max() > 0.1
    np.testing.assert_array_equal(found.read(pixels()), regions)
    assert found.encoder.regions == [1, 1, 1280]
    assert "encoder.weights.h5" in {path.name for path in folder.iterdir()}


def test_a_damaged_encoder_is_one_line(frozen, tmp_path):
    config, _, folder = frozen
    copied = shutil.copytree(folder, tmp_path / "features")
    path = copied / "encoder.weights.h5"
    path.write_bytes(path.read_bytes()[:1000])
    one_line_error(lambda: load(config, copied), f"{path}: missing, damaged, or of another encoder")
    path.unlink()
    one_line_error(lambda: load(config, copied), f"{path}: missing")


def test_an_encoder_that_comes_trained_stays_as_in_use(frozen):
    encoder = frozen[1].encoder
    before = [weight.numpy() for weight in encoder.network.non_trainable_weights]
    np.testing.assert_array_equal(encoder(pixels(), training=True), encoder(pixels(), training=False))
    after = [weight.numpy() for weight in encoder.network.non_trainable_weights]
    assert before and all(map(np.array_equal, before, after))


def test_an_encoder_from_scratch_does_as_in_training():
    keras.utils.set_random_seed(1)
    encoder = Encoder(ModelConfig(image_size=64, channels=2))
    pictures = np.stack([decode_picture(content, 64) for content in PICTURES["train"]])
    found = encoder(pictures)
    rows, columns, channels = encoder.regions
    assert found.shape == (4, rows * columns, channels) and rows == columns == 8 and np.min(found) >= 0
    alone = encoder(pictures[:1])
    np.testing.assert_allclose(alone, found[:1], atol=1e-5)
    if encoder.network.non_trainable_weights:
        assert np.abs(encoder(pictures, training=True) - found).max() > 1e-3


def test_pictures_are_scaled_as_the_network_learned_them(frozen):
    encoder = frozen[1].encoder
    expected = encoder.network(pixels() / 127.5 - 1, training=False)
    np.testing.assert_allclose(encoder(pixels()), np.reshape(expected, (4, 1, 1280)), atol=1e-4)


def test_weights_that_do_not_fit_are_one_line(tmp_path, weights):
    def encoder(path, name="MobileNetV2", size=32):
        return Encoder(ModelConfig(encoder=name, image_size=size), str(path) if path else None)

    other = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(other)
    one_line_error(lambda: encoder(other), f"model.weights: {other} does not fit model.encoder=MobileNetV2")
    other.write_bytes(b"no weights at all")
    one_line_error(lambda: encoder(other), f"model.weights: {other}")
    one_line_error(lambda: encoder(weights, "MobileNet"), f"model.weights: {weights} does not fit", "MobileNet:")
    one_line_error(lambda: encoder(None, "InceptionV3"), "model.image_size: 32", "InceptionV3", "75")


# ------------------------------------------------------------------------------------------------------ computed once


def untouched(monkeypatch):
    monkeypatch.setattr(module, "decode_picture", lambda *_: pytest.fail("it was read again"))


def test_pictures_are_read_once(tmp_path, monkeypatch):
    config = configured(tmp_path)
    features = fit(config, CORPUS)
    records, arrays = seen(config, CORPUS, features, "train")
    assert records[1] == {"name": "train-1.png", "scene": "[1]", "captions": ["two Dogs"]}
    assert [record["captions"] for record in records] == CAPTIONS["train"]
    np.testing.assert_array_equal(arrays, pixels())
    _, others = seen(config, CORPUS, features, "valid")
    np.testing.assert_array_equal(others, pixels("valid"))
    untouched(monkeypatch)
    found, again = seen(config, CORPUS, features, "train")
    assert found == records
    np.testing.assert_array_equal(again, arrays)


def test_another_corpus_or_size_is_read_anew(tmp_path):
    config, larger = configured(tmp_path), configured(tmp_path, model={"image_size": 40})
    features = fit(config, CORPUS)
    assert seen(config, CORPUS, features, "valid")[1].shape == (2, 32, 32, 3)
    assert seen(larger, CORPUS, features, "valid")[1].shape == (2, 40, 40, 3)
    other = corpus_of({"train": [["a bird"]], "valid": [["a bird"]]}, identity="birds")
    assert [record["captions"] for record in seen(config, other, features, "valid")[0]] == [["a bird"]]


def test_regions_are_computed_once_for_all_runs_with_the_encoder(frozen, monkeypatch):
    config, features, folder = frozen
    records, regions = seen(config, CORPUS, features, "train")
    assert regions.dtype == np.float16 and [record["name"] for record in records] == [
        f"train-{i}.png" for i in range(4)
    ]
    np.testing.assert_array_equal(regions, features.read(pixels()))
    found = load(config, folder)
    with monkeypatch.context() as patch:
        untouched(patch)
        np.testing.assert_array_equal(seen(config, CORPUS, found, "train")[1], regions)
    kernel = found.encoder.network.trainable_weights[0]
    kernel.assign(kernel + 0.1)
    np.testing.assert_array_equal(seen(config, CORPUS, found, "train")[1], found.read(pixels()))
    assert np.any(found.read(pixels()) != regions)

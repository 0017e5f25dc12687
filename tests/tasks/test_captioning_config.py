"""The captioning configuration: what cannot work is one line that names the key, the value and the remedy."""

import inspect
import subprocess
import sys
from importlib.util import find_spec
from shutil import which

import pytest

from shared.config import load_config
from tasks.captioning.config import ENCODERS, CaptioningConfig
from tests.commands import ROOT
from tests.errors import one_line_error

FROZEN = ["model.encoder=MobileNetV2", "model.weights=imagenet", "model.train_encoder=false"]
OWN = ["data.corpus=captions", "data.dir=pictures"]
CIDER = ["training.objective=cider", "model.start_from=runs/one"]


@pytest.fixture
def load(tmp_path):
    """Overrides -> configuration."""
    path = tmp_path / "captioning.yaml"
    path.write_text("# all by overrides\n")
    return lambda *overrides: load_config(CaptioningConfig, path, overrides)


def test_the_defaults_pass_their_own_checks(load):
    assert load() == CaptioningConfig()
    assert load().vocabulary.lowercase


@pytest.mark.parametrize("path", sorted((ROOT / "configs/captioning").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path):
    assert load_config(CaptioningConfig, path)


def test_encoders_are_those_of_keras_applications():
    import keras

    found = {
        name
        for name, value in vars(keras.applications).items()
        if inspect.isfunction(value) and "include_top" in inspect.signature(value).parameters
    }
    assert len(found) > 30 and set(ENCODERS) == {"small", *found} and len(set(ENCODERS)) == len(ENCODERS)


def test_checking_loads_nothing_heavy():
    code = (
        "import sys; from shared.config import load_config; from tasks.captioning.config import CaptioningConfig; "
        "load_config(CaptioningConfig, 'configs/captioning/quickstart.yaml', ['model.encoder=ResNet50']); "
        "print([name for name in ('tensorflow', 'keras', 'matplotlib', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done


@pytest.mark.parametrize(
    "overrides",
    [
        [*OWN, "data.test=", "data.images=", "data.captions_per_picture=64"],
        ["data.corpus=coco", "data.dir=coco", "data.on_error=skip"],
        ["data.corpus=karpathy", "data.dir=coco", "data.captions=dataset.json"],
        ["data.corpus=tfds:coco_captions", "data.language=fr"],
        ["model.attention=none", "model.layers=1"],
        ["model.image_size=32", "model.encoder_rate=0", "model.gate=sentinel", "model.attention_penalty=1"],
        ["model.attention_supervision=0.5", "model.coordinates=4", "model.look_alikes=true"],
        FROZEN,
        ["model.train_encoder=false", "model.start_from=runs/one"],
        ["model.encoder=VGG16", "model.weights=moved/since/weights.h5"],
        ["model.encoder=ResNet50", "augment.flip=true", "augment.shift=0.1"],
        [*CIDER, "augment.brightness=0.2"],
        ["augment.flip=true", "augment.flip_words=left right", "model.attention_supervision=1"],
        ["decoding.max_length=1", "decoding.coverage_penalty=0.2"],
    ],
)
def test_what_can_work_is_taken(load, overrides):
    assert load(*overrides)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.corpus=cocoa"], ["data.corpus: 'cocoa'", "tiny_world, captions, coco, karpathy, flickr8k, tfds:NAME"]),
        (["data.corpus=tfds:"], ["data.corpus: 'tfds:'"]),
        (["data.corpus=captions"], ["data.dir: missing", "data.corpus=captions"]),
        (["data.corpus=coco"], ["data.dir: missing", "data.corpus=coco"]),
        (["data.corpus=karpathy", "data.dir=coco"], ["data.captions: missing", "data.corpus=karpathy"]),
        (["data.corpus=flickr8k", "data.dir=flickr"], ["data.captions: missing", "data.corpus=flickr8k"]),
        (["data.on_error=ignore"], ["data.on_error: 'ignore'", "stop, skip"]),
        (["data.language=fr"], ["data.language: 'fr'", "en, de"]),
        (["data.size=0"], ["data.size: 0"]),
        (["data.max_length=0"], ["data.max_length: 0"]),
        (["data.max_pixels=0"], ["data.max_pixels: 0"]),
        (["data.batch_size=0"], ["data.batch_size: 0"]),
        (["data.sort_pool=0"], ["data.sort_pool: 0"]),
        (["data.captions_per_picture=0"], ["data.captions_per_picture: 0"]),
        (["data.captions_per_picture=9", "data.batch_size=8"], ["data.captions_per_picture: 9", "at most 8"]),
        (["data.cache="], ["data.cache: must not be empty"]),
        (["data.train="], ["data.train: must not be empty"]),
        (["data.valid="], ["data.valid: must not be empty"]),
        (["vocabulary.unit=syllable"], ["vocabulary.unit: 'syllable'"]),
        (["augment.shift=1"], ["augment.shift: 1", "below 1"]),
        (["augment.brightness=-0.1"], ["augment.brightness: -0.1"]),
        (["augment.contrast=1"], ["augment.contrast: 1"]),
        (["augment.flip=true", "augment.flip_words=left"], ["augment.flip_words:", "left", "pairs"]),
        (["augment.flip=true", "augment.flip_words=left Left"], ["augment.flip_words:", "Left", "pairs"]),
        (["augment.flip_words=left right"], ["augment.flip_words:", "augment.flip=true"]),
        ([*FROZEN, "augment.flip=true"], ["augment:", "model.train_encoder=false", "choose true"]),
        (["model.encoder=MobileNetV5"], ["model.encoder: 'MobileNetV5'", "MobileNetV2"]),
        (["model.cell=rnn"], ["model.cell: 'rnn'", "simple, lstm, gru"]),
        (["model.attention=soft"], ["model.attention: 'soft'", "additive, dot, none"]),
        (["model.gate=adaptive"], ["model.gate: 'adaptive'", "none, gate, sentinel"]),
        *([[f"model.{name}=0"], [f"model.{name}: 0"]] for name in ("channels", "memory_units", "embedding_units")),
        *([[f"model.{name}=0"], [f"model.{name}: 0"]] for name in ("units", "layers", "attention_units")),
        (["model.image_size=31"], ["model.image_size: 31", "at least 32"]),
        (["model.attention_penalty=-1"], ["model.attention_penalty: -1"]),
        (["model.attention_supervision=-1"], ["model.attention_supervision: -1"]),
        (["model.coordinates=-1"], ["model.coordinates: -1"]),
        (
            [*OWN, "model.attention_supervision=1"],
            ["model.attention_supervision:", "data.corpus=tiny_world", "or 0"],
        ),
        (
            ["vocabulary.unit=bpe", "vocabulary.size=50", "model.attention_supervision=1"],
            ["model.attention_supervision:", "vocabulary.unit=word", "or 0"],
        ),
        (["augment.shift=0.1", "model.attention_supervision=1"], ["model.attention_supervision:", "augment.shift=0"]),
        (
            ["augment.flip=true", "model.attention_supervision=1"],
            ["model.attention_supervision:", "augment.flip=false", "augment.flip_words"],
        ),
        (
            [*CIDER, "model.attention_supervision=1"],
            ["model.attention_supervision:", "training.objective=words"],
        ),
        (["model.encoder_rate=1.5"], ["model.encoder_rate: 1.5", "at most 1"]),
        *([[f"model.dropout_{name}=1"], [f"model.dropout_{name}: 1"]] for name in ("embedding", "memory")),
        *([[f"model.dropout_{name}=1"], [f"model.dropout_{name}: 1"]] for name in ("output", "layers")),
        (["model.scheduled_sampling=1"], ["model.scheduled_sampling: 1", "below 1"]),
        (["model.layers=1"], ["model.layers: 1", "model.attention=additive", "model.attention=none"]),
        (["model.attention=none", "model.gate=gate"], ["model.gate:", "model.attention is none"]),
        *(
            [["model.attention=none", f"model.{name}=1"], [f"model.{name}:", "model.attention is none"]]
            for name in ("attention_penalty", "attention_supervision", "coordinates")
        ),
        (["model.weights=imagenet"], ["model.weights:", "model.encoder=small"]),
        (["model.train_encoder=false"], ["model.train_encoder: false", "model.weights", "model.start_from"]),
        (["training.objective=bleu"], ["training.objective: 'bleu'", "words, cider"]),
        (["training.learning_rate=0"], ["training.learning_rate: 0"]),
        (["training.objective=cider"], ["training.objective: cider", "model.start_from"]),
        ([*CIDER, "model.scheduled_sampling=0.2"], ["model.scheduled_sampling:", "training.objective=words"]),
        ([*CIDER, "training.label_smoothing=0.1"], ["training.label_smoothing:", "training.objective=words"]),
        (["decoding.max_length=0"], ["decoding.max_length: 0"]),
        (["decoding.beam_size=0"], ["decoding.beam_size: 0"]),
        (["model.attention=none", "decoding.coverage_penalty=1"], ["decoding.coverage_penalty:", "choose 0"]),
    ],
)
def test_what_cannot_work_is_one_line(load, overrides, parts):
    one_line_error(lambda: load(*overrides), *parts)


@pytest.mark.skipif(bool(which("java") and find_spec("pycocoevalcap")), reason="all that METEOR needs is there")
def test_meteor_says_what_it_lacks(load):
    one_line_error(lambda: load("decoding.meteor=true"), "decoding.meteor: true needs", "install what is missing")

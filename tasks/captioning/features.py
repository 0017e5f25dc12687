"""What turns examples into arrays: a corpus flows in; the vocabulary, pictures and their regions flow out.

The encoder is here and not in the model, since it may be both: with `model.train_encoder` it is the lowest part of the
model, else what it makes of a picture is computed once, and is a feature like any other. Then its weights are kept in
the run (`encoder.weights.h5`), so that new pictures can be described without the file that they came from.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from shared.cache import computed_once
from shared.checkpoints import Buffer
from shared.config import RunError, UserError, load_config, missing_path, one_line
from shared.pictures import decode_picture
from shared.run import Run, to_json, write_atomically
from shared.task import Corpus
from shared.text import Vocabulary, read_vocabulary
from tasks.captioning.config import OWN_ENCODER, CaptioningConfig, DataConfig, ModelConfig

logger = logging.getLogger(__name__)

BATCH = 64  # pictures that are encoded at once
VERSION = 1  # of the computed files; raise it when decoding or encoding changes


class Encoder(layers.Layer):
    """A convolutional network: pictures (batch, size, size, 3), uint8 -> regions (batch, rows * columns, channels).

    Dropout, and the statistics of batch normalisation, stay as in use where the network comes trained, also while it is
    trained further: small batches of another kind of pictures would only spoil them.

    Args:
        config: a ModelConfig. weights: of a network of keras.applications: "imagenet", a file, or None for random ones.
    """

    def __init__(self, config: ModelConfig, weights: str | None = None):
        super().__init__(name="encoder")
        self.own = config.encoder == OWN_ENCODER
        shape = (config.image_size, config.image_size, 3)
        if self.own:
            self.network, self.scale = own_network(shape, config.channels), lambda pictures: pictures / 127.5 - 1
        else:
            application = getattr(keras.applications, config.encoder)
            self.network = pretrained(application, weights, shape, config)
            self.scale = importlib.import_module(application.__module__).preprocess_input
        _, *self.regions = self.network.output_shape  # rows, columns, channels
        self.build((None, *shape))
        # As a graph, which frees what each layer made once the next has read it: of 64 pictures that is gigabytes.
        self.compiled = tf.function(
            lambda pictures: tf.cast(self(pictures, training=False), tf.float16),
            autograph=False,
            input_signature=[tf.TensorSpec((None, *shape), tf.uint8)],
        )

    def build(self, shape):
        """Nothing to do: the network is built already."""
        self.built = True

    def call(self, pictures, training=None):
        """See the class."""
        scaled = ops.cast(self.scale(ops.cast(pictures, "float32")), self.compute_dtype)
        found = self.network(scaled, training=training if self.own else False)
        rows, columns, channels = self.regions
        return ops.reshape(found, (-1, rows * columns, channels))


def own_network(shape, channels: int) -> keras.Model:
    """Six convolutions of 3x3 with batch normalisation (Ioffe & Szegedy 2015), small enough to be trained on a CPU.

    A region of the last one is 8 pixels wide and high, and has seen 55.
    """
    outputs = inputs = keras.Input(shape)
    for width, stride in ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 1)):
        outputs = layers.Conv2D(width * channels, 3, stride, "same", use_bias=False)(outputs)
        outputs = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(outputs))
    return keras.Model(inputs, outputs)


def pretrained(application, weights, shape, config) -> keras.Model:
    """A network of keras.applications without its classifier. UserError for weights or a size that do not fit it."""
    try:
        with _nothing_left_out():
            return application(include_top=False, weights=weights, input_shape=shape)
    except Exception as error:  # whatever a download raises
        if weights == "imagenet" and not isinstance(error, ValueError):
            raise RunError(f"model.weights: imagenet cannot be had: {one_line(error)}") from error
        key = f"model.weights: {weights}" if weights else f"model.image_size: {config.image_size}"
        raise UserError(f"{key} does not fit model.encoder={config.encoder}: {one_line(error)}") from error


@contextlib.contextmanager
def _nothing_left_out() -> Iterator[None]:
    """While it lasts, Keras raises a UserWarning for layers that a file of weights lacks, which else stay random."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Skipping nested container")
        yield


@dataclass(frozen=True, eq=False)
class Features:
    """What describes pictures and captions by numbers."""

    vocabulary: Vocabulary
    num_turns: int
    """Training examples of a pass, see `turns`."""
    encoder: Encoder | None = None
    """The encoder where it is not trained, else None: then it is part of the model."""
    references: list[list[list[int]]] | None = None
    """Ids of the captions of every training picture, where training is rewarded for being like them, else None."""

    def save(self, directory: str | Path) -> None:
        """Writes a file for each into a folder, made where missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(directory / "vocabulary.json")
        write_atomically(directory / "statistics.json", to_json({"num_turns": self.num_turns}))
        if self.encoder:
            content = Buffer()
            self.encoder.network.save_weights(content)
            write_atomically(directory / "encoder.weights.h5", content.getvalue())
        if self.references:
            write_atomically(directory / "references.json", json.dumps(self.references))

    def read(self, pictures: np.ndarray) -> np.ndarray:
        """What the model reads of pictures (n, size, size, 3) uint8: themselves, or regions (n, regions, channels) in
        float16."""
        if self.encoder is None:
            return pictures
        return self.encoder.compiled(pictures).numpy()


def fit(config: CaptioningConfig, corpus: Corpus) -> Features:
    """Features learned from the training split alone, which is streamed. UserError if it holds no usable caption, or if
    weights are missing."""
    source, options = _source(config.model), config.vocabulary
    captions = (caption for some in _captions(corpus) for caption in some)
    try:
        vocabulary = Vocabulary.train(captions, options.unit, options.size, options.lowercase, options.min_count)
    except ValueError as error:
        raise UserError(f"vocabulary: {error} (the captions of {corpus.name})") from error
    longest, total = config.data.max_length, 0
    references = []
    for some in _captions(corpus):
        references.append([ids for ids in vocabulary.encode(some) if fits(ids, longest)])
        total += len(some)
    if left_out := total - sum(map(len, references)):
        message = "%d of %d training captions are left out: empty, or longer than data.max_length=%d tokens"
        logger.warning(message, left_out, total, longest)
    num_turns = sum(turns(captions, config.data) for captions in references)
    if not num_turns:
        raise UserError(f"data.max_length: {longest} tokens leave no training caption of {corpus.name}; choose more")
    logger.info("vocabulary: %d entries", len(vocabulary))
    encoder = None
    if not config.model.train_encoder:
        encoder = Encoder(config.model, config.model.weights or None)
        if source:
            load_encoder(encoder, source.features)
    rewarded = config.training.objective == "cider"
    return Features(vocabulary, num_turns, encoder, references if rewarded else None)


def _source(model: ModelConfig) -> Run | None:
    """The run that this training starts from. UserError if it, or the file of weights, is missing or of no use."""
    if model.weights not in ("", "imagenet") and not Path(model.weights).is_file():
        raise missing_path(model.weights, "file of weights")
    if not model.start_from:
        return None
    run = Run.open(model.start_from, CaptioningConfig)
    if not model.train_encoder and load_config(CaptioningConfig, run.config).model.train_encoder:
        raise UserError(
            f"model.start_from: {run.directory} has trained its encoder, which lies in its checkpoints; choose "
            "model.train_encoder=true, where model.encoder_rate=0 leaves it as it is"
        )
    return run


def fits(caption: list[int], max_length: int) -> bool:
    """Whether an encoded caption is trained on: neither empty nor longer than `max_length` tokens."""
    return 0 < len(caption) <= max_length


def turns(captions: list, data: DataConfig) -> int:
    """How often a pass shows a picture with these captions: with `data.captions_per_picture` at a time, once each."""
    return -(-len(captions) // data.captions_per_picture)


def load(config: CaptioningConfig, directory: str | Path) -> Features:
    """The features that `save` wrote. Raises UserError if a file is missing or damaged."""
    directory = Path(directory)
    encoder, references = None, None
    with _readable(directory / "statistics.json") as path:
        num_turns = int(json.loads(path.read_bytes())["num_turns"])
    if not config.model.train_encoder:
        encoder = Encoder(config.model)
        load_encoder(encoder, directory)
    if config.training.objective == "cider":
        with _readable(directory / "references.json") as path:
            references = json.loads(path.read_bytes())
    return Features(read_vocabulary(directory / "vocabulary.json"), num_turns, encoder, references)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Yields the path. UserError if the body finds no file there, or in it not what it looks for."""
    try:
        yield path
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: missing or damaged, so the run is incomplete") from error


def load_encoder(encoder: Encoder, directory: Path) -> None:
    """Sets the weights of the encoder that a run keeps among its features. UserError if they are not there."""
    path = directory / "encoder.weights.h5"
    try:
        with _nothing_left_out():
            encoder.network.load_weights(path)
    except (OSError, ValueError, UserWarning) as error:
        raise UserError(f"{path}: missing, damaged, or of another encoder: {one_line(error)}") from error


def seen(config: CaptioningConfig, corpus: Corpus, features: Features, split: str) -> tuple[list[dict], np.ndarray]:
    """The pictures of a split as the model reads them, computed on the first call and found again on later ones.

    Returns:
        {"name", "captions", "scene"} of each picture, as the corpus has them, and `Features.read` of all pictures (n,
        ...), read from the disk where it is used. RunError if they cannot be written.
    """
    kind = f"pictures{config.model.image_size}"
    if features.encoder:
        kind = f"{config.model.encoder}-{_digest(features.encoder)}-{kind}"
    folder = Path(config.data.cache, "pictures", f"{corpus.identity}-{kind}-{VERSION}", split)
    found, started = folder.exists(), time.perf_counter()
    records, rows = computed_once(folder, lambda: _read(config, corpus, features, split))
    if not found:
        count, seconds = len(records), time.perf_counter() - started
        logger.info("%s: %d pictures read in %.1f s, %.1f a second", split, count, seconds, count / seconds)
    return records, rows.reshape(len(records), -1, *rows.shape[1:])


def _read(config, corpus, features, split) -> Iterator[tuple[dict, np.ndarray]]:
    examples = corpus.splits[split]().as_numpy_iterator()
    while some := list(islice(examples, BATCH)):
        pictures = np.stack([decode_picture(example["picture"], config.model.image_size) for example in some])
        for example, array in zip(some, features.read(pictures), strict=True):
            captions = [caption.decode("utf-8") for caption in example["captions"]]
            record = {"name": example["name"].decode("utf-8"), "scene": example["scene"].decode("utf-8")}
            yield {**record, "captions": captions}, array


def _captions(corpus: Corpus) -> Iterator[Sequence[str]]:
    for example in corpus.splits["train"]().as_numpy_iterator():
        yield [caption.decode("utf-8") for caption in example["captions"]]


def _digest(encoder: Encoder) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for weight in encoder.network.get_weights():
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()

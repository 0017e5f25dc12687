"""What users watch while a model trains: scalars, texts, pictures, hyper-parameters and embeddings go in; TensorBoard
files come out.

A run that is resumed goes on in the same folder with a file of its own, and TensorBoard reads the files in order. Steps
that it makes a second time are there twice; since a resumed run repeats them exactly, the curves lie on each other, and
nothing needs to be purged.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.projector import ProjectorConfig

from shared.config import flatten
from shared.run import write_atomically

PROJECTOR_CONFIG = "projector_config.pbtxt"  # the name that the projector looks for


class EventWriter:
    """Appends to a folder of event files; TensorFlow flushes after each call, so what it wrote outlives a kill."""

    def __init__(self, directory: str | Path):
        self._writer = tf.summary.create_file_writer(str(directory))

    def hyperparameters(self, config: Any) -> None:
        """Shows the configuration in the HParams tab; lists, which that tab does not know, are left out."""
        values = {key: value for key, value in flatten(config).items() if isinstance(value, str | int | float)}
        with self._writer.as_default():
            hparams.hparams(values)

    def scalars(self, step: int, values: Mapping[str, float | str]) -> None:
        """One point on each curve; strings among scores, such as signatures, are left out."""
        with self._writer.as_default(step):
            for name, value in values.items():
                if not isinstance(value, str):
                    tf.summary.scalar(name, value)

    def texts(self, step: int, values: Mapping[str, str]) -> None:
        """Markdown, as TensorBoard renders it."""
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.text(name, value)

    def images(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Pictures, uint8 (height, width, 1, 3 or 4). Raises ValueError for another type, which would be rescaled."""
        with self._writer.as_default(step):
            for name, value in values.items():
                if value.dtype != np.uint8:
                    raise ValueError(f"{name}: a picture of {value.dtype}, not uint8")
                tf.summary.image(name, value[np.newaxis])

    def sounds(self, step: int, values: Mapping[str, tuple[np.ndarray, int]]) -> None:
        """Recordings: samples (n,) in [-1, 1] and their rate in Hz."""
        with self._writer.as_default(step):
            for name, (samples, rate) in values.items():
                tf.summary.audio(name, samples[np.newaxis, :, np.newaxis], rate)

    def close(self) -> None:
        """Ends the file; the writer cannot be used any more."""
        self._writer.close()


def write_projector(directory: str | Path, name: str, matrix: np.ndarray, tokens: Sequence[str]) -> None:
    """Shows an embedding in the Projector tab beside those that the folder has; one of the same name is replaced.

    `matrix`: (tokens, units); the projector reads it when TensorBoard starts. `directory`: the folder of event files.
    Raises ValueError unless there is a token for each row.
    """
    if matrix.ndim != 2 or len(matrix) != len(tokens):
        raise ValueError(f"{name}: a matrix of shape {matrix.shape} for {len(tokens)} tokens")
    directory = Path(directory)
    stem = re.sub(r"\W", "_", name)
    content = bytearray(matrix.astype("<f4").tobytes())
    # The projector takes a file for text until it meets a byte that is none: one at the very start, the lowest digits
    # of the first number, makes sure of that.
    content[:1] = b"\xff"
    write_atomically(directory / f"{stem}.bytes", bytes(content))
    write_atomically(directory / f"{stem}.tsv", "".join(f"{_printable(token)}\n" for token in tokens))
    path = directory / PROJECTOR_CONFIG
    config = ProjectorConfig()
    if path.exists():
        text_format.Parse(path.read_text(encoding="utf-8"), config)
    others = [embedding for embedding in config.embeddings if embedding.tensor_name != name]
    config = ProjectorConfig(embeddings=others)
    config.embeddings.add(
        tensor_name=name, tensor_shape=matrix.shape, tensor_path=f"{stem}.bytes", metadata_path=f"{stem}.tsv"
    )
    write_atomically(path, text_format.MessageToString(config))


def _printable(token: str) -> str:
    """A token as one visible line: what would break the line or show nothing is written as Python writes it."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
    return escaped if escaped.strip() else repr(token)

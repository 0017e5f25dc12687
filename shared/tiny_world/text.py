"""The corpus of sentence pairs as a TFDS builder: scenes flow in, shards of {id, english, german} flow out."""

import dataclasses
import itertools
import os

import numpy as np
import tensorflow_datasets as tfds

from . import english, german
from .grammar import SPLITS, Grammar


@dataclasses.dataclass
class TextConfig(tfds.core.BuilderConfig):
    """Number of examples of each split, and the seed that draws them; its name says all four, so each has a folder."""

    name: str = dataclasses.field(init=False)
    train: int = 40000
    valid: int = 1000
    test: int = 1000
    seed: int = 1

    def __post_init__(self):
        self.name = f"train{self.train}_valid{self.valid}_test{self.test}_seed{self.seed}"


class TinyWorldText(tfds.core.GeneratorBasedBuilder):
    """Scenes told in English and in German; "train", "valid" and "test" have no scene in common (`grammar.split_of`).

    An example is {"id": int64 (position in its split), "english": string, "german": string}, the strings in UTF-8.
    Examples are stored in the order of their ids. They are independent draws, so one may be there more than once in a
    split. A larger split begins with the examples of a smaller one of the same seed. Needs a `TextConfig` as `config`.
    """

    # To be raised whenever the grammar's probabilities or a language's sentences change: it tells caches apart.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Scenes of coloured shapes, told in English and in German.",
            features=tfds.features.FeaturesDict(
                {"id": np.int64, "english": tfds.features.Text(), "german": tfds.features.Text()}
            ),
            supervised_keys=("english", "german"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        config = self.builder_config
        scenes = Grammar().scenes(split, config.seed)
        for position, scene in enumerate(itertools.islice(scenes, getattr(config, split))):
            yield position, {"id": position, "english": english.tell(scene), "german": german.tell(scene)}


def prepare_text(cache_dir: str | os.PathLike, size: int, seed: int) -> TinyWorldText:
    """The builder of `size` training, 1000 validation and 1000 test examples, prepared on the first call.

    Args:
        cache_dir: folder, made where missing; corpora of other sizes and seeds can lie in the same one.
    """
    builder = TinyWorldText(data_dir=cache_dir, config=TextConfig(train=size, seed=seed))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder

"""The corpus of pictures: their positions flow in; shards of pictures, with captions and boxes of objects, flow out."""

import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import tensorflow_datasets as tfds

from .grammar import SPLITS
from .pictures import example
from .text import TextConfig

MANY = 1000  # pictures, from which on processes of their own are worth their start


@dataclasses.dataclass
class PicturesConfig(TextConfig):
    """Number of pictures of each split, and the seed that draws them."""

    train: int = 4000
    valid: int = 500
    test: int = 500


class TinyWorldPictures(tfds.core.GeneratorBasedBuilder):
    """Scenes drawn, and told in English and in German; no two of "train", "valid" and "test" have one in common.

    An example is {"id": int64 (position in its split), "name": string, "picture": string (PNG, RGB, `SIZE` pixels
    square), "english" and "german": string (captions,), "scene": string (JSON of what `described` returns)}. The
    captions are all that tell the scene. A larger split begins with the examples of a smaller one of the same seed.
    Needs a `PicturesConfig` as `config`.
    """

    # To be raised whenever scenes, captions or pictures change: it tells caches apart.
    VERSION = tfds.core.Version("1.6.0")

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in ("name", "scene")}
        told = {name: tfds.features.Sequence(tfds.features.Text()) for name in ("english", "german")}
        picture = tfds.features.Tensor(shape=(), dtype=np.str_)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures of coloured shapes, told in English and in German.",
            features=tfds.features.FeaturesDict({"id": np.int64, "picture": picture, **texts, **told}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split):
        config = self.builder_config
        yield from enumerate(_examples(split, config.seed, getattr(config, split)))


def _examples(split: str, seed: int, count: int) -> Iterator[dict]:
    """The examples of a split in order, drawn by all cores where they are many."""
    draw_one = functools.partial(example, split, seed)
    if count < MANY:
        yield from map(draw_one, range(count))
        return
    # Not forked: that would copy whatever locks TensorFlow's threads hold just now.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn, initializer=_end_with_parent) as processes:
        yield from processes.map(draw_one, range(count), chunksize=50)


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, which may be killed and then cannot say so."""

    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def prepare_pictures(cache_dir: str | os.PathLike, size: int, seed: int) -> TinyWorldPictures:
    """The builder of `size` training, 500 validation and 500 test pictures, prepared on the first call.

    Of a corpus smaller than 500, validation and test have `size` pictures, too.

    Args:
        cache_dir: folder, made where missing; corpora of other sizes and seeds can lie in the same one.
    """
    held_out = min(size, PicturesConfig.valid)
    config = PicturesConfig(train=size, valid=held_out, test=held_out, seed=seed)
    builder = TinyWorldPictures(data_dir=cache_dir, config=config)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder

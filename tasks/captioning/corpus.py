"""Where pictures come from: the configuration flows in, a `Corpus` of pictures with their captions flows out.

Six kinds of corpus: the embedded tiny world, the user's pictures with captions in files of four kinds, and the public
sets of TFDS by name; all are converted once to TFDS shards. An example is {"id": int64 (position in the split, from 0),
"name": string, unique in the split, "picture": string (a JPEG or PNG, as `shared.pictures` encodes it), "captions":
string (n,), one at least, "scene": string (JSON of what is to be seen, where that is known, else empty)}.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from shared import captions, corpora
from shared.captions import Captions, Faults
from shared.config import UserError, missing_path
from shared.corpora import SPLITS
from shared.pictures import encode_picture, read_picture
from shared.task import Corpus
from tasks.captioning.config import CaptioningConfig, DataConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

TINY_WORLD_FEATURES = {"en": "english", "de": "german"}
TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus


def prepare(config: CaptioningConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails. Whether the user's files are still those that were converted is
    told by the captions, but of pictures only by names and sizes.
    """
    with corpora.preparing():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config.data)
        return _files(config.data)


def _tiny_world(data: DataConfig) -> Corpus:
    from shared.tiny_world import pictures

    builder = corpora.built(lambda: pictures.prepare_pictures(data.cache, data.size, TINY_WORLD_SEED), data.cache)
    language = TINY_WORLD_FEATURES[data.language]
    return _prepared(builder, f"tiny world {data.language}", language, f"-{data.language}")


def _prepared(builder: tfds.core.DatasetBuilder, name: str, told: str = "captions", variant: str = "") -> Corpus:
    """The corpus in shards whose captions are in the feature `told`."""

    def opened(split: str) -> "tf.data.Dataset":
        def example(position, found):
            return {"captions": found[told], **{key: found[key] for key in ("id", "name", "picture", "scene")}}

        return corpora.numbered(builder, split).map(example)

    return Corpus(
        splits={split: functools.partial(opened, split) for split in SPLITS if split in builder.info.splits},
        sizes={split: found.num_examples for split, found in builder.info.splits.items()},
        name=name,
        identity=builder.info.full_name.replace("/", "-") + variant,
    )


# ------------------------------------------------------------------------------------------------------------ shards


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture before it is read."""

    name: str
    picture: Path | bytes
    captions: Sequence[str]


@dataclasses.dataclass
class PicturesConfig(tfds.core.BuilderConfig):
    """What is converted; the name, which is the folder's, is made from what is known of it."""

    splits: dict[str, Sequence[Captioned]] = dataclasses.field(default_factory=dict)
    max_pixels: int = 0
    skip: bool = False


class CaptionedPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures and their captions as TFDS shards, in their order. Needs a `PicturesConfig` as `config`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the folder's name; raise it when the conversion changes

    def _info(self) -> tfds.core.DatasetInfo:
        texts = dict.fromkeys(("name", "picture", "scene"), tfds.features.Text())
        told = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures and their captions.",
            features=tfds.features.FeaturesDict({"id": np.int64, **texts, "captions": told}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.builder_config.splits}

    def _generate_examples(self, split):
        config, count = self.builder_config, 0
        found = config.splits[split]
        # TFDS sorts by the key, on disk in files for equal parts of all keys there can be.
        step = 2**shuffle.HKEY_SIZE // max(len(found), 1)
        for each in found:
            label = each.name if isinstance(each.picture, bytes) else str(each.picture)
            try:
                picture = encode_picture(read_picture(each.picture, label, config.max_pixels))
            except UserError as error:
                if not config.skip:
                    raise UserError(f"{error} (data.on_error=skip leaves it out)") from error
                logger.warning("left out: %s", error)
                continue
            example = {"id": count, "name": each.name, "picture": picture, "captions": each.captions, "scene": ""}
            yield count * step, example
            count += 1
        if not count:
            raise UserError(f"data.{split}: none of its {len(found)} pictures can be used")
        if count < len(found):
            logger.warning("%s split: %d of %d pictures left out", split, len(found) - count, len(found))


# ------------------------------------------------------------------------------------------------ the user's pictures


def _files(data: DataConfig) -> Corpus:
    if not Path(data.dir).is_dir():
        raise missing_path(data.dir, "folder for data.dir")
    faults = Faults()
    splits = flickr8k(data, faults)
    faults.settle(data.dir, data.on_error == "skip")
    config = PicturesConfig(
        name=_folder_name(data, splits), splits=splits, max_pixels=data.max_pixels, skip=data.on_error == "skip"
    )
    builder = corpora.converted(CaptionedPictures, config, data.dir, data.cache)
    return _prepared(builder, Path(data.dir).resolve().name)


def _folder_name(data: DataConfig, splits: dict[str, list[Captioned]]) -> str:
    parts = [
        (split, each.name, each.picture.stat().st_size, each.captions)
        for split, found in splits.items()
        for each in found
    ]
    return corpora.folder_name(Path(data.dir).resolve().name, (data.on_error, data.max_pixels), *parts)


def flickr8k(data: DataConfig, faults: Faults) -> dict[str, list[Captioned]]:
    """Pictures by the lists that data.train, data.valid and data.test name, captions from data.captions."""
    path = _existing(data, "captions")
    told = captions.gathered(captions.token_rows(path, faults), path, faults)
    lists = {split: found for split in SPLITS if (found := _split_file(data, split))}
    return {
        split: _pictures(Path(data.dir, data.images), _listed(captions.picture_list(path, faults), told), faults)
        for split, path in lists.items()
    }


def _listed(names: Iterable[str], told: Captions) -> Captions:
    return {name: told.get(name, []) for name in names}


def _pictures(folder: Path, told: Captions, faults: Faults) -> list[Captioned]:
    """Those that are there and have captions; the others are faults."""
    found = []
    for name, texts in told.items():
        if not (folder / name).is_file():
            faults.add(f"no such picture in {folder}", name)
        elif not texts:
            faults.add("pictures without a caption", name)
        else:
            found.append(Captioned(name, folder / name, texts))
    return found


def _existing(data: DataConfig, key: str) -> Path:
    path = Path(data.dir, getattr(data, key))
    if found := corpora.existing(path):
        return found
    raise missing_path(path, f"file, which data.{key} names")


def _split_file(data: DataConfig, split: str) -> Path | None:
    if split == "test" and not (data.test and corpora.existing(Path(data.dir, data.test))):
        logger.info("%s: no file %r for data.test, so nothing to test on", data.dir, data.test)
        return None
    return _existing(data, split)

"""Where pictures come from: the configuration flows in, a `Corpus` of pictures with their captions flows out.

Six kinds of corpus: the embedded tiny world, the user's pictures with captions in files of four kinds, and the public
sets of TFDS by name; all of them come to lie in TFDS shards. An example is {"id": int64 (position in the split, from
0), "name": string, unique in the split, "picture": string (a JPEG or PNG, as `shared.pictures` encodes it), "captions":
string (n,), at least one, "scene": string (JSON of what is to be seen, where that is known, else empty)}.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds

from shared import captions, corpora
from shared.captions import Captions, Faults
from shared.config import UserError, missing_path
from shared.corpora import SPLITS
from shared.files import files_in
from shared.pictures import ENDINGS, encode_picture, read_picture
from shared.task import Corpus
from tasks.captioning.config import CaptioningConfig, DataConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

TINY_WORLD_FEATURES = {"en": "english", "de": "german"}
TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus
NO_CAPTION = "pictures without a caption"


def prepare(config: CaptioningConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails. Whether the user's files are still those that were converted is
    told by the captions, but of pictures only by names and sizes.
    """
    with corpora.preparing():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config.data)
        if config.data.corpus in LAYOUTS:
            return _files(config.data)
        return _public(config.data)


def _tiny_world(data: DataConfig) -> Corpus:
    from shared.tiny_world import picture_corpus

    builder = corpora.built(lambda: picture_corpus.prepare_pictures(data.cache, data.size, TINY_WORLD_SEED), data.cache)
    return _prepared(builder, f"tiny world {data.language}", TINY_WORLD_FEATURES[data.language])


def _prepared(builder: tfds.core.DatasetBuilder, name: str, told: str = "captions") -> Corpus:
    """The corpus in shards that have its captions in the feature `told`."""

    def opened(split: str) -> "tf.data.Dataset":
        def example(position, found):
            return {"captions": found[told], **{key: found[key] for key in ("id", "name", "picture", "scene")}}

        return corpora.numbered(builder, split).map(example)

    return Corpus(
        splits={split: functools.partial(opened, split) for split in SPLITS if split in builder.info.splits},
        sizes={split: found.num_examples for split, found in builder.info.splits.items()},
        name=name,
        identity=f"{corpora.identity(builder)}-{told}",
    )


# -------------------------------------------------------------------------------------------------------------- shards


@dataclasses.dataclass(frozen=True)
class Captioned:
    """A picture, a file or its content, before it is read."""

    name: str
    picture: Path | bytes
    captions: Sequence[str]


@dataclasses.dataclass
class PicturesConfig(tfds.core.BuilderConfig):
    """What is converted, anything that has a length and runs over `Captioned` for each split; the name, which is the
    folder's, tells it apart from all else."""

    splits: dict[str, Sequence[Captioned]] = dataclasses.field(default_factory=dict)
    max_pixels: int = 0
    skip: bool = False


class CaptionedPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures with their captions as TFDS shards, in their order. Needs a `PicturesConfig` as `config`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the folder's name; raise it when the conversion changes

    def _info(self) -> tfds.core.DatasetInfo:
        texts = dict.fromkeys(("name", "picture", "scene"), tfds.features.Text())
        told = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures with their captions.",
            features=tfds.features.FeaturesDict({"id": np.int64, **texts, "captions": told}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.builder_config.splits}

    def _generate_examples(self, split):
        config, count = self.builder_config, 0
        found = config.splits[split]
        step = corpora.key_step(len(found))
        for each in found:
            try:
                picture = _encoded(each, config.max_pixels)
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


def _encoded(each: Captioned, max_pixels: int) -> bytes:
    label = each.name if isinstance(each.picture, bytes) else str(each.picture)
    if not each.captions:
        raise UserError(f"{label}: has no caption")
    return encode_picture(read_picture(each.picture, label, max_pixels))


def _converted(splits: dict[str, Sequence[Captioned]], name: str, source: str, data: DataConfig):
    """The builder of these splits, converted on the first call."""
    config = PicturesConfig(name=name, splits=splits, max_pixels=data.max_pixels, skip=data.on_error == "skip")
    return corpora.converted(CaptionedPictures, config, source, data.cache)


# -------------------------------------------------------------------------------------------------- the user's pictures


def _files(data: DataConfig) -> Corpus:
    for path, key in ((Path(data.dir), "data.dir"), (Path(data.dir, data.images), "data.images")):
        if not path.is_dir():
            raise missing_path(path, f"folder for {key}")
    faults = Faults()
    told = LAYOUTS[data.corpus](data, faults)
    splits = {split: _pictures(_folder(data, split), pictures, faults) for split, pictures in told.items()}
    if data.corpus == "captions":  # the other kinds list what belongs to them, whatever else lies there
        _note_pictures_without_captions(data, told, faults)
    faults.settle(data.dir, data.on_error == "skip")
    _check_splits(data, splits)
    parts = [
        (split, each.name, each.picture.stat().st_size, each.captions)
        for split, found in splits.items()
        for each in found
    ]
    label = Path(data.dir).resolve().name
    name = corpora.folder_name(label, (data.on_error, data.max_pixels), *parts)
    return _prepared(_converted(splits, name, data.dir, data), label)


def _folder(data: DataConfig, split: str) -> Path:
    """Where the pictures of a split lie: what COCO's captions_train2017.json is about may have a folder train2017."""
    folder = Path(data.dir, data.images)
    own = folder / Path(getattr(data, split)).name.split(".")[0].partition("_")[2]
    return own if data.corpus == "coco" and own.is_dir() else folder


def _pictures(folder: Path, told: Captions, faults: Faults) -> list[Captioned]:
    """Those that are there and have captions; the others are noted."""
    found = []
    for name, texts in told.items():
        if not (folder / name).is_file():
            faults.add(f"{'captions' if texts else 'names'} without a picture in {folder}", name)
        elif not texts:
            faults.add(NO_CAPTION, name)
        else:
            found.append(Captioned(name, folder / name, texts))
    return found


def _note_pictures_without_captions(data: DataConfig, told: dict[str, Captions], faults: Faults) -> None:
    folder, named = Path(data.dir, data.images), set().union(*told.values())
    for path in files_in(folder, ENDINGS, "picture"):
        if (name := path.relative_to(folder).as_posix()) not in named:
            faults.add(NO_CAPTION, name)


def _check_splits(data: DataConfig, splits: dict[str, list[Captioned]]) -> None:
    for split in ("train", "valid", *splits):
        if not splits.get(split):
            raise UserError(f"{data.dir}: no picture with a caption is left for the {split} split")
    trained = {each.picture for each in splits["train"]}
    for split in splits.keys() - {"train"}:
        if both := [each.name for each in splits[split] if each.picture in trained]:
            message = "%s: %d of %d pictures of the %s split are in the training split, too, such as %s"
            logger.warning(message, data.dir, len(both), len(splits[split]), split, both[0])


# -------------------------------------------------------------------------- split -> its pictures, each with captions


def _table(data: DataConfig, faults: Faults) -> dict[str, Captions]:
    paths = _split_files(data, captions.TABLES)
    return {split: captions.gathered(captions.table_rows(path, faults), path, faults) for split, path in paths.items()}


def _coco(data: DataConfig, faults: Faults) -> dict[str, Captions]:
    paths = _split_files(data)
    return {split: captions.gathered(captions.coco_rows(path), path, faults) for split, path in paths.items()}


def _karpathy(data: DataConfig, faults: Faults) -> dict[str, Captions]:
    path = _existing(data, "captions")
    rows = captions.karpathy_rows(path)
    return {split: captions.gathered(rows[split], path, faults) for split in SPLITS if split in rows}


def _flickr8k(data: DataConfig, faults: Faults) -> dict[str, Captions]:
    path = _existing(data, "captions")
    told = captions.gathered(captions.token_rows(path, faults), path, faults)
    lists = {split: captions.picture_list(path, faults) for split, path in _split_files(data).items()}
    return {split: {name: told.get(name, []) for name in names} for split, names in lists.items()}


LAYOUTS: dict[str, Callable[[DataConfig, Faults], dict[str, Captions]]] = {
    **{"captions": _table, "coco": _coco, "karpathy": _karpathy, "flickr8k": _flickr8k}
}


def _split_files(data: DataConfig, endings: Iterable[str] = ()) -> dict[str, Path]:
    """Split -> its file; there may be none for testing."""
    found = {split: _existing(data, split, endings) for split in ("train", "valid")}
    if test := _find(data, "test", endings):
        return {**found, "test": test}
    logger.info("%s: no file %r for data.test, so nothing to test on", data.dir, data.test)
    return found


def _existing(data: DataConfig, key: str, endings: Iterable[str] = ()) -> Path:
    if found := _find(data, key, endings):
        return found
    kind = f"file for data.{key}" + (f" with {', '.join(endings)} behind it" if endings else "")
    raise missing_path(Path(data.dir, getattr(data, key)), kind)


def _find(data: DataConfig, key: str, endings: Iterable[str]) -> Path | None:
    """The file that data.KEY names: of one of these endings, whether named with or without it; or of any."""
    name = getattr(data, key)
    if not endings or Path(name.removesuffix(".gz")).suffix in endings:
        return corpora.existing(Path(data.dir, name)) if name else None
    paths = (corpora.existing(Path(data.dir, f"{name}{ending}")) for ending in endings)
    return next(filter(None, paths), None)


# --------------------------------------------------------------------------------------------------------- public sets


@dataclasses.dataclass(frozen=True)
class PublicSplit:
    """A split or a slice of a public set."""

    builder: tfds.core.DatasetBuilder
    split: str
    instruction: str
    size: int
    image: str
    """The feature that is the picture."""
    text: tuple[str, ...]
    """The feature that holds the captions, and the one within it."""
    name: str
    """The feature that is the picture's name, or empty."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Captioned]:
        dataset = self.builder.as_dataset(
            split=self.instruction,
            decoders={self.image: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        names = set()
        for position, example in enumerate(dataset.as_numpy_iterator()):
            name = example[self.name].decode("utf-8", "replace") if self.name else ""
            if not name or name in names:
                name = f"{self.split}-{position:06d}"
            names.add(name)
            told = functools.reduce(lambda found, key: found[key], self.text, example)
            texts = (" ".join(text.decode("utf-8", "replace").split()) for text in np.atleast_1d(told))
            yield Captioned(name, example[self.image], list(filter(None, texts)))


def _public(data: DataConfig) -> Corpus:
    name = data.corpus.removeprefix("tfds:")
    builder = corpora.public_builder(name, data.cache)
    features = _public_features(builder, name, data)
    corpora.download(builder, name)
    found = corpora.public_splits(builder, name, data)
    splits = {
        split: PublicSplit(builder, split, instruction, size, *features) for split, (instruction, size) in found.items()
    }
    folder = corpora.folder_name(corpora.identity(builder), features, found, data.on_error, data.max_pixels)
    return _prepared(_converted(splits, folder, data.corpus, data), name)


def _public_features(builder: tfds.core.DatasetBuilder, name: str, data: DataConfig) -> tuple:
    """The features of a public set that are the picture, the captions and the picture's name, as `PublicSplit` has
    them."""
    features = builder.info.features
    images = [each for each, kind in features.items() if isinstance(kind, tfds.features.Image)]
    if not images:
        raise UserError(f"data.corpus: tfds:{name} has no pictures; it has {', '.join(features)}")
    texts = {"/".join(path): path for path in _texts(features)}
    chosen = [label for label in texts if label == data.captions or (not data.captions and "caption" in label)]
    if not chosen:
        has = ", ".join(texts) or "none"
        raise UserError(f"data.captions: {data.captions!r} is no text of tfds:{name}; name one that it has: {has}")
    names = [label for label, path in texts.items() if len(path) == 1 and "file" in label]
    return images[0], texts[chosen[0]], next(iter(names), "")


def _texts(features: tfds.features.FeaturesDict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The ways to all texts, or sequences of texts."""
    for name, kind in features.items():
        kind = kind.feature if isinstance(kind, tfds.features.Sequence) else kind
        if isinstance(kind, tfds.features.FeaturesDict):
            yield from _texts(kind, (*path, name))
        elif kind.np_dtype == np.object_ and not kind.shape:
            yield (*path, name)

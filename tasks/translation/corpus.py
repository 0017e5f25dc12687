"""Where sentence pairs come from: the configuration flows in, a `Corpus` of {"id", "source", "target"} flows out.

Three kinds of corpus: the embedded tiny world, the user's own line-aligned or tab-separated files (converted once to
TFDS shards, however large they are), and the public translation sets of TFDS by name. An example is {"id": int64,
"source": string, "target": string}, the strings in UTF-8; the id is the position in the split, counted from 0 and, for
the user's files, by lines. The shards are shuffled when they are written: sort by id for the order of the file.
"""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds

from shared import corpora
from shared.config import UserError
from shared.corpora import SPLITS
from shared.task import Corpus
from tasks.translation.config import DataConfig, TranslationConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

TINY_WORLD_FEATURES = {"en": "english", "de": "german"}
TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus


def prepare(config: TranslationConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails.
    """
    with corpora.preparing():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config.data)
        if config.data.corpus == "files":
            return _files(config.data)
        return _public(config.data)


def _tiny_world(data: DataConfig) -> Corpus:
    from shared.tiny_world import text

    builder = corpora.built(lambda: text.prepare_text(data.cache, data.size, TINY_WORLD_SEED), data.cache)
    source, target = TINY_WORLD_FEATURES[data.source], TINY_WORLD_FEATURES[data.target]
    return Corpus(
        splits={split: functools.partial(_open, builder, split, source, target) for split in SPLITS},
        sizes={split: builder.info.splits[split].num_examples for split in SPLITS},
        # Every sentence has exactly one translation, so the best model is certain of each token.
        optimum=dict.fromkeys(SPLITS, 1.0),
        name=f"tiny world {_pair(data)}",
    )


def _files(data: DataConfig) -> Corpus:
    files = {split: found for split in SPLITS if (found := _find(data, split))}
    config = SentencePairsConfig(name=_identity(data, files), files=files, skip=data.on_error == "skip")
    builder = corpora.converted(SentencePairs, config, data.dir, data.cache)
    return Corpus(
        splits={split: functools.partial(_open, builder, split, "source", "target") for split in files},
        sizes={split: builder.info.splits[split].num_examples for split in files},
        name=f"{Path(data.dir).name} {_pair(data)}",
    )


def _public(data: DataConfig) -> Corpus:
    name = data.corpus.removeprefix("tfds:")
    builder = corpora.public_builder(name, data.cache)
    for side in ("source", "target"):
        corpora.check_text(builder, name, f"data.{side}", getattr(data, side))
    corpora.download(builder, name)
    splits = corpora.public_splits(builder, name, data)
    return Corpus(
        splits={
            split: functools.partial(_open, builder, instruction, data.source, data.target, has_ids=False)
            for split, (instruction, _) in splits.items()
        },
        sizes={split: size for split, (_, size) in splits.items()},
        name=f"{name} {_pair(data)}",
    )


def _open(
    builder: tfds.core.DatasetBuilder, instruction: str, source: str, target: str, has_ids: bool = True
) -> "tf.data.Dataset":
    def pair(position, example):
        return {"id": example["id"] if has_ids else position, "source": example[source], "target": example[target]}

    return corpora.numbered(builder, instruction).map(pair)


def _pair(data: DataConfig) -> str:
    return f"{data.source}-{data.target}"


# ---------------------------------------------------------------------------------------------------- the user's files


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """One split: the source's and the target's file, or one tab-separated file and where both are in its columns."""

    paths: tuple[Path, ...]
    columns: tuple[int, ...] = ()


@dataclasses.dataclass
class SentencePairsConfig(tfds.core.BuilderConfig):
    """What is converted; the name, which is the folder's, is made from the files' content."""

    files: dict[str, SplitFiles] = dataclasses.field(default_factory=dict)
    skip: bool = False


class SentencePairs(tfds.core.GeneratorBasedBuilder):
    """The user's sentence pairs as TFDS shards. Needs a `SentencePairsConfig` as `config`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the folder's name; raise it when the conversion changes

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Line-aligned sentence pairs.",
            features=tfds.features.FeaturesDict(
                {"id": np.int64, "source": tfds.features.Text(), "target": tfds.features.Text()}
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.builder_config.files}

    def _generate_examples(self, split):
        config = self.builder_config
        for position, source, target in pairs(config.files[split], config.skip, keep_empty=split != "train"):
            yield position, {"id": position, "source": source, "target": target}


def pairs(files: SplitFiles, skip_undecodable: bool, keep_empty: bool) -> Iterator[tuple[int, str, str]]:
    """(line counted from 0, source, target) of each usable pair, one at a time; what is left out is counted and logged.

    UserError for files that are empty, unreadable, of different lengths or with too few columns, and for lines that are
    not UTF-8 unless they are to be skipped.
    """
    total = undecodable = empty = 0
    for row in _columns(files) if files.columns else _aligned(*files.paths):
        total += 1
        try:
            source, target = (cell.decode("utf-8") for cell in row)
        except UnicodeDecodeError as error:
            undecodable += 1
            if skip_undecodable:
                continue
            path = files.paths[min(row.index(error.object), len(files.paths) - 1)]
            raise corpora.undecodable(path, total, error) from error
        if not keep_empty and not (source.strip() and target.strip()):
            empty += 1
            continue
        yield total - 1, source, target
    names = " and ".join(map(str, files.paths))
    if total == undecodable + empty:
        raise UserError(f"{names}: no sentence pair in {total} lines" if total else f"{names}: empty")
    if undecodable or empty:
        reasons = f"{undecodable} not valid UTF-8, {empty} with an empty side"
        logger.warning("%s: %d of %d lines left out: %s", names, undecodable + empty, total, reasons)


def _aligned(source: Path, target: Path) -> Iterator[tuple[bytes, bytes]]:
    sides = {source: corpora.lines(source), target: corpora.lines(target)}
    for position, row in enumerate(itertools.zip_longest(*sides.values())):
        if None in row:
            lengths = {path: position + (line is not None) for path, line in zip(sides, row, strict=True)}
            longer = max(lengths, key=lengths.get)
            lengths[longer] += sum(1 for _ in sides[longer])
            counts = " but ".join(f"{path} has {length} lines" for path, length in lengths.items())
            raise UserError(f"{counts}; line n of one must translate line n of the other")
        yield row


def _columns(files: SplitFiles) -> Iterator[tuple[bytes, bytes]]:
    needed = max(files.columns) + 1
    for number, line in enumerate(corpora.lines(files.paths[0]), start=1):
        cells = line.split(b"\t") if line.strip() else [b""] * needed
        if len(cells) < needed:
            raise UserError(
                f"{files.paths[0]}: line {number} has {len(cells)} of the {needed} tab-separated columns needed; "
                "data.columns names them"
            )
        yield tuple(cells[column] for column in files.columns)


def _find(data: DataConfig, split: str) -> SplitFiles | None:
    """The files of a split, plain before compressed; None for a test split of which there is nothing."""
    folder, stem = Path(data.dir), getattr(data, split)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of your files with data.dir=FOLDER")
    sides = [corpora.existing(folder / f"{stem}.{language}") for language in (data.source, data.target)]
    if all(sides):
        return SplitFiles(tuple(sides))
    table = corpora.existing(folder / f"{stem}.tsv")
    if table and not any(sides):
        columns = data.columns or [data.source, data.target]
        return SplitFiles((table,), (columns.index(data.source), columns.index(data.target)))
    if split == "test" and not any(sides):
        logger.info("%s: no %s split, so nothing to test on", folder, stem)
        return None
    side = "target" if sides[0] else "source"
    missing = f"{stem}.{getattr(data, side)}"
    raise UserError(
        f"{folder / missing}: no such file, nor {missing}.gz, nor {stem}.tsv; it is named by data.dir, data.{split} "
        f"and data.{side}{corpora.nearest(missing, (path.name for path in folder.iterdir()))}"
    )


def _identity(data: DataConfig, files: dict[str, SplitFiles]) -> str:
    parts = [((split, found.columns), *found.paths) for split, found in files.items()]
    return corpora.folder_name(
        f"{Path(data.dir).resolve().name}_{data.source}_{data.target}",
        (data.source, data.target, data.on_error),
        *itertools.chain.from_iterable(parts),
    )

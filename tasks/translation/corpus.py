"""Where sentence pairs come from: the configuration flows in, a `Corpus` of {"id", "source", "target"} flows out.

Three kinds of corpus: the embedded tiny world, the user's own line-aligned or tab-separated files (converted once to
TFDS shards, however large they are), and the public translation sets of TFDS by name. An example is {"id": int64,
"source": string, "target": string}, the strings in UTF-8; the id is the position in the split, counted from 0 and, for
the user's files, by lines. The shards are shuffled when they are written: sort by id for the order of the file.
"""

import codecs
import contextlib
import dataclasses
import difflib
import errno
import functools
import gzip
import hashlib
import io
import itertools
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from shared.config import RunError, UserError, one_line
from shared.task import Corpus
from tasks.translation.config import DataConfig, TranslationConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
TINY_WORLD_FEATURES = {"en": "english", "de": "german"}
TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus
SHUFFLE_MEMORY = 64 << 20  # bytes held before TFDS shuffles on disk; its own limit is a gigabyte, plus Python's objects
SHUFFLE_FILES = 128  # open at once when it does; its own number is 1000, more than some systems allow


def prepare(config: TranslationConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails.
    """
    with _quiet(), _shuffling_on_disk():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config.data)
        if config.data.corpus == "files":
            return _files(config.data)
        return _public(config.data)


def _tiny_world(data: DataConfig) -> Corpus:
    from shared.tiny_world import text

    builder = _built(lambda: text.prepare_text(data.cache, data.size, TINY_WORLD_SEED), data.cache)
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

    def build() -> tfds.core.DatasetBuilder:
        builder = SentencePairs(data_dir=data.cache, config=config)
        if not builder.is_prepared():
            logger.info("converting %s to shards in %s", data.dir, builder.data_dir)
            builder.download_and_prepare()
        return builder

    builder = _built(build, data.cache)
    return Corpus(
        splits={split: functools.partial(_open, builder, split, "source", "target") for split in files},
        sizes={split: builder.info.splits[split].num_examples for split in files},
        name=f"{Path(data.dir).name} {_pair(data)}",
    )


def _public(data: DataConfig) -> Corpus:
    name = data.corpus.removeprefix("tfds:")
    builder = _public_builder(name, data)
    if not builder.is_prepared():
        logger.info("downloading tfds:%s (%s) to %s", name, builder.info.download_size, builder.data_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever its download, its extraction or its code raises
        raise RunError(f"tfds:{name}: cannot be downloaded and prepared: {one_line(error)}") from error
    splits = {split: found for split in SPLITS if (found := _public_split(builder, name, data, split))}
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

    reading = tfds.ReadConfig(try_autocache=False)
    return builder.as_dataset(split=instruction, read_config=reading).enumerate().map(pair)


def _pair(data: DataConfig) -> str:
    return f"{data.source}-{data.target}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TFDS prints off stdout, which belongs to results, and its progress bars and warnings to terminals."""
    verbosity = absl.logging.get_verbosity()
    tfds.display_progress_bar(sys.stdout.isatty())
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _shuffling_on_disk() -> Iterator[None]:
    assign = tfds.core.utils.temporary_assignment
    with assign(shuffle, "MAX_MEM_BUFFER_SIZE", SHUFFLE_MEMORY), assign(shuffle, "BUCKETS_NUMBER", SHUFFLE_FILES):
        yield


def _built(build: Callable[[], tfds.core.DatasetBuilder], cache: str) -> tfds.core.DatasetBuilder:
    """What `build` prepares. TFDS writes beside the final folder and renames, so nothing half-done is ever found."""
    for attempt in (1, 2):
        try:
            return build()
        except UserError:
            raise
        except Exception as error:  # Python, TensorFlow and TFDS each have their own for a full disk
            taken = isinstance(error, FileExistsError) or getattr(error, "errno", None) == errno.ENOTEMPTY
            if taken and attempt == 1:
                continue  # another process prepared the same corpus meanwhile
            raise RunError(f"data.cache: the corpus cannot be prepared in {cache}: {one_line(error)}") from error


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
            raise UserError(
                f"{path}: line {total} is not valid UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file, "
                "or leave such lines out with data.on_error=skip"
            ) from error
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
    sides = {source: _lines(source), target: _lines(target)}
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
    for number, line in enumerate(_lines(files.paths[0]), start=1):
        cells = line.split(b"\t") if line.strip() else [b""] * needed
        if len(cells) < needed:
            raise UserError(
                f"{files.paths[0]}: line {number} has {len(cells)} of the {needed} tab-separated columns needed; "
                "data.columns names them"
            )
        yield tuple(cells[column] for column in files.columns)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends; only a line feed, with or without a carriage return before it, ends one."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file):
                start = codecs.BOM_UTF8 if number == 0 else b""
                yield line.removeprefix(start).removesuffix(b"\n").removesuffix(b"\r")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


def _find(data: DataConfig, split: str) -> SplitFiles | None:
    """The files of a split, plain before compressed; None for a test split of which there is nothing."""
    folder, stem = Path(data.dir), getattr(data, split)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of your files with data.dir=FOLDER")
    sides = [_existing(folder / f"{stem}.{language}") for language in (data.source, data.target)]
    if all(sides):
        return SplitFiles(tuple(sides))
    table = _existing(folder / f"{stem}.tsv")
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
        f"and data.{side}{_nearest(missing, (path.name for path in folder.iterdir()))}"
    )


def _existing(path: Path) -> Path | None:
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _identity(data: DataConfig, files: dict[str, SplitFiles]) -> str:
    """A folder's name that changes with the content of any file, and not with its date or place."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((data.source, data.target, data.on_error)).encode())
    for split, found in files.items():
        digest.update(repr((split, found.columns)).encode())
        for path in found.paths:
            try:
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "blake2b").digest())
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    label = re.sub(r"\W+", "_", f"{Path(data.dir).resolve().name}_{data.source}_{data.target}", flags=re.ASCII)
    return f"{label}_{digest.hexdigest()}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# ------------------------------------------------------------------------------------------------ the public TFDS sets


def _public_builder(name: str, data: DataConfig) -> tfds.core.DatasetBuilder:
    dataset, *variant = re.split(r"[/:]", name, maxsplit=2)
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        raise UserError(f"data.corpus: TFDS has no dataset {dataset!r}{_nearest(dataset, known)}")
    configs = list(tfds.builder_cls(dataset).builder_configs)
    if f"{dataset}/" in name and configs and variant[0] not in configs:
        near = _nearest(variant[0], configs) or f"; it has {', '.join(configs[:8])}"
        raise UserError(f"data.corpus: tfds:{dataset} has no configuration {variant[0]!r}{near}")
    try:
        builder = tfds.builder(name, data_dir=data.cache)
    except Exception as error:  # whatever the dataset's code raises, such as for a version that it never had
        raise UserError(f"data.corpus: tfds:{name} cannot be used: {one_line(error)}") from error
    texts = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Text)]
    for side in ("source", "target"):
        language = getattr(data, side)
        if language not in texts:
            has = ", ".join(texts) or "none"
            raise UserError(f"data.{side}: {language!r} is no text of tfds:{name}, which has {has}")
    return builder


def _public_split(builder: tfds.core.DatasetBuilder, name: str, data: DataConfig, split: str) -> tuple[str, int] | None:
    """The name or slice of a split as the dataset knows it, and its size; None for a test split that it lacks."""
    wanted = getattr(data, split)
    for instruction in (wanted, re.sub(r"^valid\b", "validation", wanted)):
        with contextlib.suppress(KeyError, ValueError, AssertionError):
            size = int(builder.as_dataset(split=instruction).cardinality())
            if size > 0:
                return instruction, size
    has = ", ".join(builder.info.splits)
    if split == "test":
        logger.info("tfds:%s: no split %s, so nothing to test on; it has %s", name, wanted, has)
        return None
    raise UserError(
        f"data.{split}: {wanted!r} is no split of tfds:{name}, which has {has}; slices such as train[:95%] do, too"
    )

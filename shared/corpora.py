"""What the corpora of several tasks share: files and names of TFDS sets flow in; lines, prepared builders, splits out.

Whatever is wrong with a file or a name is a `UserError` of one line, and a failing disk or network a `RunError`.
"""

import codecs
import contextlib
import difflib
import errno
import gzip
import hashlib
import io
import logging
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import absl.logging
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from shared.config import RunError, UserError, one_line

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
SHUFFLE_MEMORY = 64 << 20  # bytes held before TFDS shuffles on disk; its own limit is a gigabyte, plus Python's objects
SHUFFLE_FILES = 128  # open at once when it does; its own number is 1000, more than some systems allow


# ------------------------------------------------------------------------------------------------------------ preparing


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """While it lasts, TFDS keeps off stdout, which belongs to results, and shuffles on disk what is not small."""
    assign = tfds.core.utils.temporary_assignment
    with assign(shuffle, "MAX_MEM_BUFFER_SIZE", SHUFFLE_MEMORY), assign(shuffle, "BUCKETS_NUMBER", SHUFFLE_FILES):
        verbosity = absl.logging.get_verbosity()
        tfds.display_progress_bar(sys.stdout.isatty())
        absl.logging.set_verbosity(absl.logging.ERROR)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            absl.logging.set_verbosity(verbosity)


def built(build: Callable[[], tfds.core.DatasetBuilder], cache: str) -> tfds.core.DatasetBuilder:
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


def converted(
    builder_class: type[tfds.core.DatasetBuilder], config: tfds.core.BuilderConfig, source: str, cache: str
) -> tfds.core.DatasetBuilder:
    """The builder of the user's files, converted on the first call; `source` is what the log calls them."""

    def build() -> tfds.core.DatasetBuilder:
        builder = builder_class(data_dir=cache, config=config)
        if not builder.is_prepared():
            logger.info("converting %s to shards in %s", source, builder.data_dir)
            builder.download_and_prepare()
        return builder

    return built(build, cache)


def key_step(count: int) -> int:
    """By how much the keys of `count` examples differ that keep their order.

    TFDS sorts by the key, on disk in files for equal parts of all keys there can be.
    """
    return 2**shuffle.HKEY_SIZE // max(count, 1)


def identity(builder: tfds.core.DatasetBuilder) -> str:
    """A name for what is prepared that can be part of a folder's, see `shared.task.Corpus`."""
    return builder.info.full_name.replace("/", "-")


def numbered(builder: tfds.core.DatasetBuilder, instruction: str) -> "tf.data.Dataset":
    """(position from 0, example) of a split or slice, in the same order every time."""
    return builder.as_dataset(split=instruction, read_config=tfds.ReadConfig(try_autocache=False)).enumerate()


# ---------------------------------------------------------------------------------------------------- the user's files


def lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends; only a line feed, with or without a carriage return before it, ends one.

    A file whose name ends in .gz is decompressed on the way. UserError if it cannot be read.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file):
                start = codecs.BOM_UTF8 if number == 0 else b""
                yield line.removeprefix(start).removesuffix(b"\n").removesuffix(b"\r")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


def undecodable(path: Path, number: int, error: UnicodeDecodeError) -> UserError:
    """The error for a line, counted from 1, that is not UTF-8 where data.on_error is not skip."""
    return UserError(
        f"{path}: line {number} is not valid UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file, "
        "or leave such lines out with data.on_error=skip"
    )


def existing(path: Path) -> Path | None:
    """The file of this name, or the one with .gz behind it, or None."""
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def folder_name(label: str, *parts: object) -> str:
    """A name for a folder that is another one for other parts; a `Path` counts as its content, not its date or place.

    UserError if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(_content(part) if isinstance(part, Path) else repr(part).encode())
    label = re.sub(r"\W+", "_", label, flags=re.ASCII)
    return f"{label}_{digest.hexdigest()}"


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message that offers the most similar names; empty if none is similar."""
    close = difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


# ------------------------------------------------------------------------------------------------ the public TFDS sets


def public_builder(name: str, cache: str) -> tfds.core.DatasetBuilder:
    """The builder of a public set: NAME, NAME/CONFIG or either with :VERSION. UserError for a name that TFDS lacks."""
    dataset, *variant = re.split(r"[/:]", name, maxsplit=2)
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        raise UserError(f"data.corpus: TFDS has no dataset {dataset!r}{nearest(dataset, known)}")
    configs = list(tfds.builder_cls(dataset).builder_configs)
    if f"{dataset}/" in name and configs and variant[0] not in configs:
        near = nearest(variant[0], configs) or f"; it has {', '.join(configs[:8])}"
        raise UserError(f"data.corpus: tfds:{dataset} has no configuration {variant[0]!r}{near}")
    try:
        return tfds.builder(name, data_dir=cache)
    except Exception as error:  # whatever the dataset's code raises, such as for a version that it never had
        raise UserError(f"data.corpus: tfds:{name} cannot be used: {one_line(error)}") from error


def check_text(builder: tfds.core.DatasetBuilder, name: str, key: str, feature: str) -> None:
    """UserError if `feature`, which the configuration names in `key`, is no text of the public set `name`."""
    texts = [each for each, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in texts:
        has = ", ".join(texts) or "none"
        raise UserError(f"{key}: {feature!r} is no text of tfds:{name}, which has {has}")


def download(builder: tfds.core.DatasetBuilder, name: str) -> None:
    """Downloads and prepares the public set `name` where that was not done before. RunError if it fails."""
    if not builder.is_prepared():
        logger.info("downloading tfds:%s (%s) to %s", name, builder.info.download_size, builder.data_dir)
    try:
        builder.download_and_prepare()
    except Exception as error:  # whatever its download, its extraction or its code raises
        raise RunError(f"tfds:{name}: cannot be downloaded and prepared: {one_line(error)}") from error


def public_splits(builder: tfds.core.DatasetBuilder, name: str, data: Any) -> dict[str, tuple[str, int]]:
    """Split -> what the public set `name` calls it, a name or a slice, and its size.

    `data` names the three splits in its fields train, valid and test. A test split that the set lacks is left out;
    any other is a UserError.
    """
    found = {split: _public_split(builder, name, split, getattr(data, split)) for split in SPLITS}
    return {split: each for split, each in found.items() if each}


def _public_split(builder: tfds.core.DatasetBuilder, name: str, split: str, wanted: str) -> tuple[str, int] | None:
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

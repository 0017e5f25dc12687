"""Where text comes from: the configuration flows in, a `Corpus` of {"id", "text", "begins"} flows out.

Three kinds of corpus: the embedded tiny world, the user's own text files (converted once to TFDS shards, however large
they are), and the public text sets of TFDS by name. An example is {"id": int64 (position in the split, from 0), "text":
string in UTF-8, "begins": bool (whether a document begins here)}, in the order of the text. It is a line with its end,
so that joining the texts restores the text; of a very long line it is a piece, and of a public set one of its examples.
"""

import dataclasses
import functools
import itertools
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow_datasets as tfds

from shared import corpora
from shared.config import UserError, missing_path
from shared.corpora import SPLITS
from shared.task import Corpus
from tasks.language_model.config import DataConfig, LanguageModelConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

TINY_WORLD_FEATURES = {"en": "english", "de": "german"}
TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus
LONGEST = 1 << 16  # characters of an example; a longer line becomes several, so that none needs memory without bound
# Up to and with the last blank that still fits, or all that fits of a word without end.
PIECES = re.compile(rf".{{1,{LONGEST}}}(?:(?<=\s)|\Z)|.{{1,{LONGEST}}}", re.DOTALL)
WHOLE = (0, 20)
CUTS = {"train": (0, 18), "valid": (18, 19), "test": (19, 20)}  # from and to, in twentieths of a single file


def prepare(config: LanguageModelConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails.
    """
    with corpora.preparing():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config)
        if config.data.corpus == "files":
            return _files(config.data)
        return _public(config.data)


def _tiny_world(config: LanguageModelConfig) -> Corpus:
    from shared.tiny_world import text

    data, feature = config.data, TINY_WORLD_FEATURES[config.data.language]
    builder = corpora.built(lambda: text.prepare_text(data.cache, data.size, TINY_WORLD_SEED), data.cache)
    begins = data.documents == "lines"
    comparable = config.vocabulary.unit == "word" and not config.model.bidirectional
    return Corpus(
        splits={split: functools.partial(_open, builder, split, feature, begins) for split in SPLITS},
        sizes={split: builder.info.splits[split].num_examples for split in SPLITS},
        optimum=_optimum(builder, data.language) if comparable else {},
        name=f"tiny world {data.language}",
        identity=f"{_identity(builder)}-{data.language}-{data.documents}",
    )


def _optimum(builder: tfds.core.DatasetBuilder, language: str) -> dict[str, float]:
    """Split -> perplexity of its sentences under the very grammar that drew them, by words and ends of sentences."""
    from shared.tiny_world import english, german
    from shared.tiny_world.grammar import Grammar, words

    grammar, parse = Grammar(), {"en": english, "de": german}[language].parse
    optimum = {}
    for split in ("valid", "test"):
        examples = corpora.numbered(builder, split).as_numpy_iterator()
        sentences = [example[TINY_WORLD_FEATURES[language]].decode("utf-8") for _, example in examples]
        log_prob = sum(grammar.log_prob(parse(sentence)) for sentence in sentences)
        optimum[split] = math.exp(-log_prob / sum(len(words(sentence)) + 1 for sentence in sentences))
    return optimum


def _files(data: DataConfig) -> Corpus:
    files = _find(data)
    config = TextLinesConfig(
        name=_folder_name(data, files), files=files, documents=data.documents, skip=data.on_error == "skip"
    )
    builder = corpora.converted(TextLines, config, data.dir, data.cache)
    return Corpus(
        splits={split: functools.partial(_open_lines, builder, split) for split in files},
        sizes={split: builder.info.splits[split].num_examples for split in files},
        name=Path(data.dir).resolve().name,
        identity=_identity(builder),
    )


def _public(data: DataConfig) -> Corpus:
    name = data.corpus.removeprefix("tfds:")
    builder = corpora.public_builder(name, data.cache)
    corpora.check_text(builder, name, "data.text", data.text)
    corpora.download(builder, name)
    splits = corpora.public_splits(builder, name, data)
    begins = data.documents == "examples"
    return Corpus(
        splits={
            split: functools.partial(_open, builder, instruction, data.text, begins)
            for split, (instruction, _) in splits.items()
        },
        sizes={split: size for split, (_, size) in splits.items()},
        name=name,
        identity=corpora.folder_name(_identity(builder), data.text, data.documents, splits),
    )


def _open(builder: tfds.core.DatasetBuilder, instruction: str, feature: str, begins: bool) -> "tf.data.Dataset":
    def line(position, example):
        return {"id": position, "text": example[feature] + "\n", "begins": begins}

    return corpora.numbered(builder, instruction).map(line)


def _open_lines(builder: tfds.core.DatasetBuilder, split: str) -> "tf.data.Dataset":
    return corpora.numbered(builder, split).map(lambda position, example: example)


def _identity(builder: tfds.core.DatasetBuilder) -> str:
    return builder.info.full_name.replace("/", "-")


# ---------------------------------------------------------------------------------------------------- the user's files


@dataclasses.dataclass(frozen=True)
class SplitFile:
    """The file that a split is in, and which of its lines are the split: from and to, in twentieths."""

    path: Path
    part: tuple[int, int] = WHOLE


@dataclasses.dataclass
class TextLinesConfig(tfds.core.BuilderConfig):
    """What is converted; the name, which is the folder's, is made from the files' content."""

    files: dict[str, SplitFile] = dataclasses.field(default_factory=dict)
    documents: str = "none"
    skip: bool = False


class TextLines(tfds.core.GeneratorBasedBuilder):
    """The user's text as TFDS shards, in its order. Needs a `TextLinesConfig` as `config`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the folder's name; raise it when the conversion changes

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Lines of text.",
            features=tfds.features.FeaturesDict({"id": np.int64, "text": tfds.features.Text(), "begins": np.bool_}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        files = self.builder_config.files
        sizes = {path: sum(1 for _ in self._lines(path)) for path in {file.path for file in files.values()}}
        return {split: self._generate_examples(split, file, sizes[file.path]) for split, file in files.items()}

    def _generate_examples(self, split, file, size):
        first, last = (size * place // WHOLE[1] for place in file.part)
        if size and first == last:
            raise UserError(
                f"{file.path}: its {size} lines are too few to cut into train, valid and test; data.dir=FOLDER takes "
                "each from its own file"
            )
        step = corpora.key_step(size)
        blank = True
        for position, (text, begins) in enumerate(itertools.islice(self._lines(file.path), first, last)):
            blank = blank and not text.strip()
            yield position * step, {"id": position, "text": text, "begins": begins}
        if blank:
            where = f", which would be its {split} split" if size and file.part != WHOLE else ""
            raise UserError(f"{file.path}: no text in {last - first} lines{where}")

    def _lines(self, path):
        return examples(path, self.builder_config.documents, self.builder_config.skip)


def examples(path: Path, documents: str, skip_undecodable: bool) -> Iterator[tuple[str, bool]]:
    """(text, whether a document begins there) of each line or piece of a line; lines that are left out are logged.

    UserError for a file that is unreadable, and for lines that are not UTF-8 unless they are to be skipped.
    """
    total = undecodable = 0
    blank_before = True
    for line in corpora.lines(path):
        total += 1
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            undecodable += 1
            if skip_undecodable:
                continue
            raise corpora.undecodable(path, total, error) from error
        blank = not text.strip()
        begins = documents == "lines" or (documents == "blank_lines" and blank_before and not blank)
        blank_before = blank
        *pieces, last = [text] if len(text) <= LONGEST else PIECES.findall(text)
        for piece in (*pieces, f"{last}\n"):
            yield piece, begins
            begins = False
    if undecodable:
        logger.warning("%s: %d of %d lines left out: not valid UTF-8", path, undecodable, total)


def _find(data: DataConfig) -> dict[str, SplitFile]:
    """Split -> its file, plain before compressed, or its part of a single file; a test split may be missing."""
    place = Path(data.dir)
    if place.is_file():
        return {split: SplitFile(place, part) for split, part in CUTS.items()}
    if not place.is_dir():
        raise missing_path(data.dir, "file or folder for data.dir")
    found = {split: _existing(place, getattr(data, split)) for split in SPLITS}
    for split, path in found.items():
        stem = getattr(data, split)
        if path is None and split == "test":
            logger.info("%s: no %s split, so nothing to test on", place, stem)
        elif path is None:
            near = corpora.nearest(f"{stem}.txt", (path.name for path in place.iterdir()))
            raise UserError(
                f"{place / stem}.txt: no such file, nor {stem}.txt.gz, nor {stem}; it is named by data.dir and "
                f"data.{split}{near}"
            )
    return {split: SplitFile(path) for split, path in found.items() if path}


def _existing(folder: Path, stem: str) -> Path | None:
    return corpora.existing(folder / f"{stem}.txt") or corpora.existing(folder / stem)


def _folder_name(data: DataConfig, files: dict[str, SplitFile]) -> str:
    parts = [((split, file.part), file.path) for split, file in files.items()]
    return corpora.folder_name(
        Path(data.dir).resolve().name, (data.documents, data.on_error), *itertools.chain.from_iterable(parts)
    )

"""What is fitted on the training split: a corpus flows in, the vocabularies of both languages flow out.

With `vocabulary.joint` both are one and the same object, kept in `vocabulary.json`; else they are kept in `source.json` and
`target.json`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.config import UserError
from shared.task import Corpus
from shared.text import Vocabulary
from tasks.translation.config import TranslationConfig

BATCH = 1024  # examples fetched at once, for speed alone


@dataclass(frozen=True)
class Features:
    """The vocabularies that turn sentences into ids and back."""

    source: Vocabulary
    target: Vocabulary

    def save(self, directory: str | Path) -> None:
        """Writes one JSON file per distinct vocabulary into a folder, made where missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.source is self.target:
            self.source.save(directory / "vocabulary.json")
        else:
            self.source.save(directory / "source.json")
            self.target.save(directory / "target.json")


def fit(config: TranslationConfig, corpus: Corpus) -> Features:
    """Vocabularies learned from one pass (joint) or two passes over the training split alone, which is streamed."""
    if config.vocabulary.joint:
        vocabulary = _learn(config, corpus, "source", "target")
        return Features(vocabulary, vocabulary)
    return Features(_learn(config, corpus, "source"), _learn(config, corpus, "target"))


def load(config: TranslationConfig, directory: str | Path) -> Features:
    """The features that `save` wrote. Raises UserError if a file is missing or damaged."""
    directory = Path(directory)
    if config.vocabulary.joint:
        vocabulary = _read(directory / "vocabulary.json")
        return Features(vocabulary, vocabulary)
    return Features(_read(directory / "source.json"), _read(directory / "target.json"))


def _learn(config: TranslationConfig, corpus: Corpus, *sides: str) -> Vocabulary:
    options = config.vocabulary
    lines = _lines(corpus, sides)
    try:
        return Vocabulary.train(lines, options.unit, options.size, options.lowercase, options.min_count)
    except ValueError as error:
        raise UserError(f"vocabulary: {error} (the {' and '.join(sides)} side of {corpus.name})") from error


def _lines(corpus: Corpus, sides: tuple[str, ...]) -> Iterator[str]:
    for batch in corpus.splits["train"]().batch(BATCH).as_numpy_iterator():
        for side in sides:
            for line in batch[side]:
                yield line.decode("utf-8")


def _read(path: Path) -> Vocabulary:
    try:
        return Vocabulary.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, so the run is incomplete") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error

"""What is fitted on the training split: a corpus flows in, the vocabulary flows out, and text becomes ids.

A line's end is a token like any other, eos: what the field calls <eos> and counts. Every text begins after one.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from shared.config import UserError
from shared.task import Corpus
from shared.text import EOS, UNK, Vocabulary, read_vocabulary
from tasks.language_model.config import LanguageModelConfig

logger = logging.getLogger(__name__)

TOGETHER = 1 << 20  # bytes of text encoded at once: fewer are slower, and each takes some hundred bytes of memory


@dataclass(frozen=True)
class Features:
    """The vocabulary that turns text into ids and back."""

    vocabulary: Vocabulary

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, with eos for every line feed in it."""
        lines = [text.split("\n") for text in texts]
        rows = iter(self.vocabulary.encode([line for some in lines for line in some]))
        return [_joined([next(rows) for _ in some]) for some in lines]

    def save(self, directory: str | Path) -> None:
        """Writes the vocabulary into a folder, made where missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.vocabulary.save(directory / "vocabulary.json")


def fit(config: LanguageModelConfig, corpus: Corpus) -> Features:
    """Features learned from one pass over the training split alone, which is streamed.

    Raises UserError if it holds no text, or but one word.
    """
    vocabulary = _learn(config, corpus)
    words = [token.strip("▁") for token in vocabulary.tokens()[UNK + 1 :]]
    if len(words) < 2:
        raise UserError(f"vocabulary: {corpus.name} has but one word, {words[0]!r}, so there is nothing to predict")
    logger.info("vocabulary: %d entries", len(vocabulary))
    return Features(vocabulary)


def load(config: LanguageModelConfig, directory: str | Path) -> Features:
    """The features that `save` wrote. Raises UserError if the file is missing or damaged."""
    del config  # as in the other tasks, where it decides which files there are
    return Features(read_vocabulary(Path(directory, "vocabulary.json")))


def encoded(examples, features: Features) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A dataset's texts, some at a time and in order: their ids one after the other, int32; the number of ids of each
    text; and whether a document begins with it."""
    examples = examples.as_numpy_iterator()
    while some := _some(examples):
        rows = features.encode([example["text"].decode("utf-8") for example in some])
        ids = np.fromiter(chain.from_iterable(rows), np.int32)
        yield ids, np.array([len(row) for row in rows]), np.array([example["begins"] for example in some])


def _some(examples: Iterator[dict]) -> list[dict]:
    some, size = [], 0
    for example in examples:
        some.append(example)
        size += len(example["text"])
        if size >= TOGETHER:
            break
    return some


def _joined(rows: list[list[int]]) -> list[int]:
    ids = rows[0]
    for row in rows[1:]:
        ids += [EOS, *row]
    return ids


def _learn(config: LanguageModelConfig, corpus: Corpus) -> Vocabulary:
    options = config.vocabulary
    if options.file:
        return read_vocabulary(Path(options.file))
    try:
        return Vocabulary.train(_lines(corpus), options.unit, options.size, options.lowercase, options.min_count)
    except ValueError as error:
        raise UserError(f"vocabulary: {error} ({corpus.name})") from error


def _lines(corpus: Corpus) -> Iterator[str]:
    for example in corpus.splits["train"]().as_numpy_iterator():
        yield from example["text"].decode("utf-8").split("\n")

"""What is fitted on the training split: a corpus flows in, the vocabularies and the number of pairs flow out.

With `vocabulary.joint` both vocabularies are one and the same object, kept in `vocabulary.json`; else they are kept in
`source.json` and `target.json`.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shared.config import UserError
from shared.run import to_json, write_atomically
from shared.task import Corpus
from shared.text import Vocabulary, read_vocabulary
from tasks.translation.config import TranslationConfig

logger = logging.getLogger(__name__)

BATCH = 1024  # examples fetched and encoded at once, for speed alone


@dataclass(frozen=True)
class Features:
    """The vocabularies that turn sentences into ids and back."""

    source: Vocabulary
    target: Vocabulary
    num_pairs: int
    """Training pairs that `fits` keeps."""

    def save(self, directory: str | Path) -> None:
        """Writes one JSON file per distinct vocabulary into a folder, made where missing."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.source is self.target:
            self.source.save(directory / "vocabulary.json")
        else:
            self.source.save(directory / "source.json")
            self.target.save(directory / "target.json")
        write_atomically(directory / "statistics.json", to_json({"num_pairs": self.num_pairs}))


def fit(config: TranslationConfig, corpus: Corpus) -> Features:
    """Features learned from two (joint) or three passes over the training split alone, which is streamed.

    Raises UserError if it holds no text, or no pair that is short enough.
    """
    joint = config.vocabulary.joint
    source = _learn(config, corpus, *(("source", "target") if joint else ("source",)))
    target = source if joint else _learn(config, corpus, "target")
    logger.info("vocabularies: %d source and %d target entries", len(source), len(target))
    return Features(source, target, _count(config, corpus, source, target))


def load(config: TranslationConfig, directory: str | Path) -> Features:
    """The features that `save` wrote. Raises UserError if a file is missing or damaged."""
    directory = Path(directory)
    try:
        num_pairs = json.loads((directory / "statistics.json").read_text(encoding="utf-8"))["num_pairs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory / 'statistics.json'}: missing or damaged, so the run is incomplete") from error
    if config.vocabulary.joint:
        vocabulary = read_vocabulary(directory / "vocabulary.json")
        return Features(vocabulary, vocabulary, num_pairs)
    return Features(read_vocabulary(directory / "source.json"), read_vocabulary(directory / "target.json"), num_pairs)


def fits(pair: tuple[list[int], list[int]], max_length: int) -> bool:
    """Whether a pair of encoded sentences is trained on: neither is empty, neither longer than `max_length` tokens."""
    return min(map(len, pair)) > 0 and max(map(len, pair)) <= max_length


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


def _count(config: TranslationConfig, corpus: Corpus, source: Vocabulary, target: Vocabulary) -> int:
    """Training pairs that fit; says how many do not."""
    longest, kept, total = config.data.max_length, 0, 0
    for batch in corpus.splits["train"]().batch(BATCH).as_numpy_iterator():
        sources, targets = ([line.decode("utf-8") for line in batch[side]] for side in ("source", "target"))
        kept += sum(fits(pair, longest) for pair in zip(source.encode(sources), target.encode(targets), strict=True))
        total += len(sources)
    if kept == 0:
        raise UserError(f"data.max_length: {longest} tokens leave no training pair of {corpus.name}; choose more")
    if kept < total:
        message = "%d of %d training pairs are left out: empty, or longer than data.max_length=%d tokens"
        logger.warning(message, total - kept, total, longest)
    return kept

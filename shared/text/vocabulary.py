"""The vocabulary that every text task shares: lines of natural text flow in, lists of ids flow out, and back to text.

A line is normalised (Unicode NFC, runs of blanks made one blank), every word gets the mark "▁" in place of the blank
before it, and punctuation marks and symbols stand alone: "ich sehe, dass" is "▁ich ▁sehe , ▁dass". What remains is cut
by one of four units (byte-pair merges, a unigram model, whole words, characters). A fifth, whitespace, is for text that
is cut into words already: all that stands between two blanks is a word, "n't" and a literal "<unk>" too. Because the
mark says where the blanks were, joining the pieces restores the text exactly, whichever the unit.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from shared.config import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read on first use; data pipelines already fill the cores

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]
UNITS = ("bpe", "unigram", "word", "whitespace", "character")

BLANK = "▁"
BLANKS = r"[\s\x1c-\x1f]+"  # what str.split() takes for blanks
PIECES = rf"{BLANK}?(?:[^{BLANK}\p{{P}}\p{{S}}]+|[[\p{{P}}\p{{S}}]&&[^{BLANK}]])|{BLANK}"
WORDS = rf"{BLANK}[^{BLANK}]+"
CHARACTERS = r"[\s\S]"
PATTERNS = {"whitespace": WORDS, "character": CHARACTERS}  # what a unit cuts out, if not PIECES


class Vocabulary:
    """Text to ids and back; ids 0 to 3 are <pad>, <bos>, <eos> and <unk>, and no text is encoded as the first three.

    A literal "▁" in a text is read as "_", the only character besides blanks that does not come back as it was.
    """

    def __init__(self, tokenizer: Tokenizer):
        tokenizer.encode_special_tokens = True  # a literal "<eos>" in a text is text
        self._tokenizer = tokenizer
        self._tokens = [tokenizer.id_to_token(index) for index in range(tokenizer.get_vocab_size())]
        self.unit = _unit(tokenizer)

    @classmethod
    def train(
        cls, lines: Iterable[str], unit: str = "bpe", size: int = 8000, lowercase: bool = False, min_count: int = 1
    ) -> "Vocabulary":
        """Learn a vocabulary from lines, read once and never held together in memory (only counts of words are).

        `size` counts the four special tokens; 0 keeps every word or character (units word, whitespace and character).
        Characters (for the units word and whitespace: words) seen fewer than `min_count` times become <unk>; merges of
        the unit bpe need that count too. The units bpe and unigram spend at most half of `size`, or 256 if that is
        more, on single characters. Training is deterministic. ValueError if the lines hold no text, or the unit or size
        is impossible. Sennrich et al. 2016 (bpe), Kudo 2018 (unigram).
        """
        if unit not in UNITS:
            raise ValueError(f"unknown unit {unit!r}: one of {', '.join(UNITS)}")
        subwords = unit in ("bpe", "unigram")
        if size < 8 and (subwords or size != 0):
            raise ValueError(f"a vocabulary of size {size} is too small for the unit {unit}")
        tokenizer = _untrained(unit, lowercase)
        if subwords:
            words = _words(lines, tokenizer.normalizer, size, min_count)
            lines = _as_lines(words)
        tokenizer.train_from_iterator(lines, trainer=_trainer(unit, size, min_count))
        if tokenizer.get_vocab_size() == len(SPECIAL_TOKENS):
            raise ValueError("no text to learn a vocabulary from")
        if unit == "unigram":
            tokenizer.model = _settled(tokenizer, words, size)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """The vocabulary that `save` wrote. FileNotFoundError, or ValueError if the file is no such vocabulary."""
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{path} is not a vocabulary: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write everything to one JSON file of the `tokenizers` library, whole or not at all."""
        unfinished = f"{os.fspath(path)}.unfinished"
        self._tokenizer.save(unfinished)
        os.replace(unfinished, path)

    def digest(self) -> str:
        """What tells this vocabulary from every other one that encodes differently: 16 hexadecimal digits."""
        return hashlib.blake2b(self._tokenizer.to_str().encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        return len(self._tokens)

    def tokens(self) -> list[str]:
        """The display piece of every id, in the order of the ids; "▁" stands for the blank before a word."""
        return list(self._tokens)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, without <bos> and <eos>; an empty line has none."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(lines, add_special_tokens=False)]

    def decode(self, ids: Iterable[int], unknown: Sequence[str] = ()) -> str:
        """Text of ids up to the first <eos>; <pad> and <bos> are skipped.

        For text without unknown pieces it is the exact inverse of `encode`, up to normalisation. `unknown` holds what
        to write in the place of the first, second, ... <unk>; those beyond its end are written "<unk>". In the units
        word and whitespace, where an unknown word has lost the blank before it, the blank is put back.
        """
        unknown, pieces = iter(unknown), []
        before = BLANK if self.unit in ("word", "whitespace") else ""
        for index in map(int, ids):
            if index == EOS:
                break
            if index == UNK:
                pieces.append(before + next(unknown, SPECIAL_TOKENS[UNK]))
            elif index > UNK:
                pieces.append(self._tokens[index])
        return " ".join("".join(pieces).replace(BLANK, " ").split())

    def pieces(self, text: str) -> list[tuple[int, str, str]]:
        """(id, display piece, the part of `text` it stands for, without blanks) for each id of `encode([text])[0]`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [(index, self._tokens[index], text[start:end].strip()) for index, (start, end) in spans]


def read_vocabulary(path: Path) -> Vocabulary:
    """A run's vocabulary. UserError if its file is missing or damaged."""
    try:
        return Vocabulary.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, so the run is incomplete") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _untrained(unit: str, lowercase: bool) -> Tokenizer:
    model = {
        "bpe": lambda: models.BPE(unk_token=SPECIAL_TOKENS[UNK]),
        "unigram": models.Unigram,
    }.get(unit, lambda: models.WordLevel(unk_token=SPECIAL_TOKENS[UNK]))()
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Lowercase()] if lowercase else [])
        + [
            normalizers.NFC(),  # last of the two: lower-casing can leave a letter and its mark apart
            normalizers.Replace(BLANK, "_"),
            normalizers.Replace(Regex(BLANKS), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(PATTERNS.get(unit, PIECES)), "isolated"),
        ]
    )
    return tokenizer


def _unit(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer.model, models.BPE):
        return "bpe"
    if isinstance(tokenizer.model, models.Unigram):
        return "unigram"
    split = json.loads(tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][-1]["pattern"]["Regex"]
    return next((unit for unit, pattern in PATTERNS.items() if pattern == split), "word")


def _trainer(unit: str, size: int, min_count: int) -> trainers.Trainer:
    options = {"vocab_size": size or 2**31, "special_tokens": SPECIAL_TOKENS, "show_progress": False}
    if unit == "bpe":
        return trainers.BpeTrainer(min_frequency=min_count, **options)
    if unit == "unigram":
        return trainers.UnigramTrainer(unk_token=SPECIAL_TOKENS[UNK], **options)
    return trainers.WordLevelTrainer(min_frequency=min_count, **options)


def _words(lines: Iterable[str], normalizer: normalizers.Normalizer, size: int, min_count: int) -> Counter:
    """Count the words between blanks, with rare characters blanked out.

    The trainers' own limit drops characters in the order of a hash table, so that vocabularies differ from run to run.
    """
    words = Counter()
    for line in lines:
        words.update(normalizer.normalize_str(line).split())
    characters = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    room = min(size - len(SPECIAL_TOKENS) - 1, max(size // 2, 256))  # one for the mark of the blank
    ranked = sorted((-count, character) for character, count in characters.items() if count >= min_count)
    kept = {character for _, character in ranked[:room]}
    blanked = str.maketrans(dict.fromkeys(characters.keys() - kept, " "))
    frequent = Counter()
    for word, count in words.items():
        frequent[word.translate(blanked)] += count
    return frequent


def _as_lines(words: Counter, longest: int = 1000) -> Iterator[str]:
    """Every word as often as it was counted, which is the only way to tell a trainer its count."""
    for word, count in words.items():
        for start in range(0, count, longest):
            yield " ".join([word] * min(longest, count - start))


def _settled(tokenizer: Tokenizer, words: Counter, size: int) -> models.Unigram:
    """One last step of Viterbi training: each piece's log frequency in the best segmentations, pieces in that order.

    Of very small vocabularies the trainer makes more than `size`: all single characters stay, the rarest others go.

    The trainer adds up in the order of a hash table: pieces and segmentations come out equal from run to run, but not
    the last digits of the scores, and hence not the ids. The frequencies do.
    """
    counts = Counter()
    encodings = tokenizer.encode_batch_fast(list(words), add_special_tokens=False)
    for encoding, count in zip(encodings, words.values(), strict=True):
        for index in encoding.ids:
            counts[index] += count
    pieces = range(len(SPECIAL_TOKENS), tokenizer.get_vocab_size())
    ranked = sorted((-counts[index], tokenizer.id_to_token(index)) for index in pieces)
    ranked = sorted(sorted(ranked, key=lambda entry: len(entry[1]) > 1)[: size - len(SPECIAL_TOKENS)])
    total = sum(counts.values())
    scored = [(piece, round(math.log(max(-count, 0.5) / total), 6)) for count, piece in ranked]
    return models.Unigram([(token, 0.0) for token in SPECIAL_TOKENS] + scored, unk_id=UNK)

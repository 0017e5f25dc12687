"""Corpora of text: joined examples are the text, in its order; what is wrong with a file or a name is one line."""

import gzip
import itertools
import logging
import math
import re
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from shared.config import UserError
from shared.text import Vocabulary
from shared.tiny_world import english, german
from shared.tiny_world.grammar import Grammar, words
from tasks.language_model import corpus as module
from tasks.language_model.config import DataConfig, LanguageModelConfig, VocabularyConfig
from tasks.language_model.corpus import LONGEST, SplitFile, TextLines, TextLinesConfig, examples, prepare
from tests.errors import one_line_error

LINES = [" the cat sat ", "", "on a mat,", "\t", "", "and slept ."]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for stem, count in (("train", 6), ("valid", 3), ("test", 1)):
        write(folder / f"{stem}.txt", LINES[:count])
    return folder


def write(path, lines, end="\n"):
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def configured(place, unit="word", **data):
    options = {"corpus": "files", "dir": str(place), "cache": str(place.parent / "cache")} | data
    return LanguageModelConfig(data=DataConfig(**options), vocabulary=VocabularyConfig(unit=unit))


def read(corpus, split):
    """(text, begins) of a whole split in its order; the ids count the examples."""
    found = list(corpus.splits[split]().as_numpy_iterator())
    assert [example["id"] for example in found] == list(range(corpus.sizes[split]))
    return [(example["text"].decode(), bool(example["begins"])) for example in found]


def texts(corpus, split):
    return [text for text, _ in read(corpus, split)]


def refused(config, *parts):
    return one_line_error(lambda: prepare(config), *parts)


# ------------------------------------------------------------------------------------------------------------ own files


def test_files_come_back_line_by_line_in_their_order(folder, capsys):
    corpus = prepare(configured(folder))
    assert corpus.sizes == {"train": 6, "valid": 3, "test": 1}
    assert not corpus.optimum
    assert corpus.name == "own"
    for split, count in corpus.sizes.items():
        assert read(corpus, split) == [(f"{line}\n", False) for line in LINES[:count]]
    assert capsys.readouterr().out == ""


def test_compressed_files_and_names_in_full_equal_plain_files(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other / "train.txt.gz", LINES)
    write(other / "a.valid.tokens", LINES[:3])
    write(other / "b.test.raw.gz", LINES[:1])
    found = prepare(configured(other, valid="a.valid.tokens", test="b.test.raw.gz"))
    plain = prepare(configured(folder))
    assert found.sizes == plain.sizes
    for split in plain.splits:
        assert read(found, split) == read(plain, split)


def test_only_line_feeds_end_lines(folder):
    strange = ["a\u2028b", "c\x0bd\x85e", "f\x1cg\rh", "\ufeffi", "j\tk\x00"]
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(strange).encode())
    assert texts(prepare(configured(folder)), "train") == [f"{line}\n" for line in strange]


def test_a_missing_test_split_is_absent(folder):
    (folder / "test.txt").unlink()
    corpus = prepare(configured(folder))
    assert set(corpus.splits) == set(corpus.sizes) == {"train", "valid"}


@pytest.mark.parametrize(
    ("documents", "starts"),
    [("none", []), ("lines", [0, 1, 2, 3, 4, 5]), ("blank_lines", [0, 2, 5])],
)
def test_where_documents_begin(folder, documents, starts):
    found = read(prepare(configured(folder, documents=documents)), "train")
    assert [number for number, (_, begins) in enumerate(found) if begins] == starts


@pytest.mark.parametrize("blank", [" ", "  \t", "\u3000", ""], ids=["blank", "blanks", "ideographic", "none"])
def test_a_long_line_is_cut_at_blanks_and_restored_by_joining(tmp_path, blank):
    line = blank.join(f"wörd{number}" for number in range(40_000))
    path = write(tmp_path / "a.txt", ["before", line, "after"])
    found = list(examples(path, "lines", skip_undecodable=False))
    assert "".join(text for text, _ in found) == f"before\n{line}\nafter\n"
    pieces = found[1:-1]
    assert [begins for _, begins in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [text[-1] == "\n" for text, _ in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(text.rstrip("\n")) <= LONGEST for text, _ in pieces)
    if blank:
        assert all(len(text) >= LONGEST - 20 and text[-1].isspace() for text, _ in pieces[:-1])
        vocabulary = Vocabulary.train([line], unit="word", size=0)
        ids = vocabulary.encode([text for text, _ in pieces])
        assert list(itertools.chain.from_iterable(ids)) == vocabulary.encode([line])[0]
    else:
        assert all(len(text) == LONGEST for text, _ in pieces[:-1])


@pytest.mark.parametrize("length", [LONGEST - 1, LONGEST, LONGEST + 1])
def test_a_line_that_just_fits_stays_whole(tmp_path, length):
    path = write(tmp_path / "a.txt", ["x" * length])
    assert len(list(examples(path, "none", skip_undecodable=False))) == (2 if length > LONGEST else 1)


def test_one_line_of_many_megabytes_is_a_corpus(tmp_path):
    line = "one two three " * 200_000
    path = write(tmp_path / "line.txt", [line])
    corpus = prepare(configured(path, documents="lines"))
    assert len(corpus.splits) == 3 and min(corpus.sizes.values()) > 1
    parts = {split: read(corpus, split) for split in ("train", "valid", "test")}
    joined = "".join(text for part in parts.values() for text, _ in part)
    assert joined == f"{line}\n"
    assert [begins for _, begins in parts["train"]] == [True] + [False] * (corpus.sizes["train"] - 1)


def test_a_single_file_is_cut_in_its_order(tmp_path):
    lines = [f"line {number}" for number in range(205)]
    for path in (tmp_path / "all.txt", tmp_path / "all.txt.gz"):
        corpus = prepare(configured(write(path, lines)))
        assert corpus.name == path.name
        assert corpus.sizes == {"train": 184, "valid": 10, "test": 11}
        parts = [texts(corpus, split) for split in ("train", "valid", "test")]
        assert list(itertools.chain.from_iterable(parts)) == [f"{line}\n" for line in lines]


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("count", [1, 2, 10])
def test_a_single_file_of_too_few_lines(tmp_path, count):
    path = write(tmp_path / "all.txt", ["line"] * count)
    refused(configured(path), path, f"its {count} lines are too few", "data.dir=FOLDER")


def test_a_single_file_of_which_one_part_is_blank(tmp_path):
    path = write(tmp_path / "all.txt", ["line"] * 36 + ["", " "] + ["line"] * 2)
    refused(configured(path), path, "no text in 2 lines", "valid split")


def test_missing_files_are_named_with_the_nearest(folder):
    refused(configured(folder.parent / "owm"), folder.parent / "owm", "data.dir", folder)
    (folder / "valid.txt").rename(folder / "valid.text")
    message = refused(configured(folder), folder / "valid.txt", "valid.txt.gz", "data.dir", "data.valid")
    assert re.search(r"did you mean .*valid\.text", message)
    refused(configured(folder, valid="valid.text", train="training"), folder / "training.txt", "train.txt")


@pytest.mark.parametrize("stem", ["train", "valid", "test"])
@pytest.mark.parametrize(("content", "count"), [("", 0), (" \n\n\t\n", 3)], ids=["empty", "blank"])
def test_files_without_text(folder, stem, content, count):
    (folder / f"{stem}.txt").write_text(content)
    refused(configured(folder), folder / f"{stem}.txt", f"no text in {count} lines")


def test_an_empty_single_file(tmp_path):
    refused(configured(write(tmp_path / "all.txt", [])), tmp_path / "all.txt", "no text in 0 lines")


def test_lines_that_are_not_utf8_stop_or_are_left_out(folder, caplog):
    (folder / "train.txt").write_bytes(b"one\ntwo\nthr\xe9\nfour\n\xff\xfef\n")
    refused(configured(folder), folder / "train.txt", "line 3", "0xe9", "data.on_error=skip")
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(folder, on_error="skip"))
    assert texts(corpus, "train") == ["one\n", "two\n", "four\n"]
    assert caplog.text.count("2 of 5 lines left out") == 1
    (folder / "train.txt").write_bytes(b"\xff\n\xff\n")
    refused(configured(folder, on_error="skip"), folder / "train.txt", "no text")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"word\n" * 1000, mtime=0)[:-12]])
def test_damaged_compression(folder, content):
    (folder / "train.txt").unlink()
    (folder / "train.txt.gz").write_bytes(content)
    refused(configured(folder), folder / "train.txt.gz", "cannot be read")


# ----------------------------------------------------------------------------------------------------------- conversion


def test_conversion_happens_once_wherever_the_files_are(folder, tmp_path):
    first = prepare(configured(folder))
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / folder.name)
    with mock.patch.object(TextLines, "_generate_examples", side_effect=AssertionError("converted again")):
        second = prepare(configured(moved, cache=str(tmp_path / "cache")))
    assert read(first, "train") == read(second, "train")
    assert first.identity == second.identity


def test_every_other_content_has_another_identity(folder):
    others = [{}, {"documents": "lines"}, {"on_error": "skip"}, {"valid": "test"}, {"dir": f"{folder}/train.txt"}]
    found = []
    for lines in (["a", "b"] * 20, ["b", "a"] * 20):
        write(folder / "train.txt", lines)
        found += [prepare(configured(folder, **data)).identity for data in others]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch(r"[\w.-]+", identity) for identity in found)


def test_lines_are_read_one_by_one(tmp_path):
    # The generator must hand out lines before it has read the file: the third line is wrong, the first two are not.
    (tmp_path / "a").write_bytes(b"one\ntwo\n\xff\n")
    stream = examples(tmp_path / "a", "none", skip_undecodable=False)
    assert [next(stream), next(stream)] == [("one\n", False), ("two\n", False)]
    with pytest.raises(UserError, match="line 3"):
        next(stream)


def test_a_large_text_is_never_sorted_as_a_whole(folder):
    count, largest = 3000, 0
    write(folder / "train.txt", [f"line {number}" for number in range(count)])

    def read_values(bucket):
        nonlocal largest
        largest = max(largest, len(bucket))
        return original(bucket)

    original = shuffle._Bucket.read_values
    on_disk = mock.patch("shared.corpora.SHUFFLE_MEMORY", 1000)
    with on_disk, mock.patch.object(shuffle._Bucket, "read_values", read_values):
        corpus = prepare(configured(folder))
    assert 0 < largest <= count // 100
    assert texts(corpus, "train") == [f"line {number}\n" for number in range(count)]


def test_the_builder_alone_says_what_it_needs(folder, tmp_path):
    files = {"train": SplitFile(folder / "train.txt")}
    builder = TextLines(data_dir=tmp_path / "cache", config=TextLinesConfig(name="alone", files=files))
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == len(LINES)


# ----------------------------------------------------------------------------------------------------------- tiny world


def tiny_world(tmp_path, unit="word", **data):
    return configured(tmp_path / "unused", unit, corpus="tiny_world", cache=str(tmp_path), size=30, **data)


@pytest.mark.parametrize(("language", "tell"), [("en", english.tell), ("de", german.tell)])
def test_tiny_world(tmp_path, language, tell, capsys):
    corpus = prepare(tiny_world(tmp_path, language=language))
    for split, size in {"train": 30, "valid": 1000, "test": 1000}.items():
        scenes = itertools.islice(Grammar().scenes(split, module.TINY_WORLD_SEED), size)
        assert read(corpus, split) == [(f"{tell(scene)}\n", False) for scene in scenes]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("language", "teller"), [("en", english), ("de", german)])
def test_the_optimum_is_the_grammars_own_perplexity(tmp_path, language, teller):
    optimum = prepare(tiny_world(tmp_path, language=language)).optimum
    assert set(optimum) == {"valid", "test"}
    for split, found in optimum.items():
        scenes = list(itertools.islice(Grammar().scenes(split, module.TINY_WORLD_SEED), 1000))
        nats = -sum(math.log(math.exp(Grammar().log_prob(scene))) for scene in scenes)
        counted = sum(len(words(teller.tell(scene))) + 1 for scene in scenes)
        assert found == pytest.approx(math.exp(nats / counted), rel=1e-9)
        assert found == pytest.approx(Grammar().optimum_perplexity(teller), rel=0.01)


def test_the_optimum_is_unknown_for_other_units(tmp_path):
    assert not any(prepare(tiny_world(tmp_path, unit)).optimum for unit in ("bpe", "whitespace", "character"))


def test_documents_and_identities_of_the_tiny_world(tmp_path):
    options = [{}, {"documents": "lines"}, {"documents": "blank_lines"}, {"language": "de"}]
    corpora = [prepare(tiny_world(tmp_path, **data)) for data in options]
    begins = [{begins for _, begins in read(corpus, "train")} for corpus in corpora]
    assert begins == [{False}, {True}, {False}, {False}]
    assert len({corpus.identity for corpus in corpora}) == len(corpora)
    assert all(re.fullmatch(r"[\w.-]+", corpus.identity) for corpus in corpora)


# ---------------------------------------------------------------------------------------------------------- public sets


class UnrollTestTexts(tfds.core.GeneratorBasedBuilder):
    """A dataset in the registry of TFDS, made as the public text sets are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "title": tfds.features.Text(), "length": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation")}

    def _generate_examples(self):
        for number, line in enumerate(LINES):
            yield number, {"text": f"{line}\nä", "title": f"{number}", "length": len(line)}


def public(tmp_path, name, **data):
    return LanguageModelConfig(data=DataConfig(corpus=f"tfds:{name}", cache=str(tmp_path), **data))


def test_public_sets_by_name(tmp_path, capsys):
    corpus = prepare(public(tmp_path, "unroll_test_texts"))
    assert corpus.sizes == {"train": 6, "valid": 6} and not corpus.optimum
    for split in corpus.splits:
        assert sorted(read(corpus, split)) == sorted((f"{line}\nä\n", False) for line in LINES)
        assert read(corpus, split) == read(corpus, split)
    assert capsys.readouterr().out == ""


def test_public_sets_by_slice_feature_and_document(tmp_path):
    slices = {"train": "train[:3]", "valid": "train[3:]", "test": "validation[:20%]"}
    corpus = prepare(public(tmp_path, "unroll_test_texts", text="title", documents="examples", **slices))
    assert corpus.sizes == {"train": 3, "valid": 3, "test": 1}
    assert sorted(read(corpus, "train") + read(corpus, "valid")) == [(f"{number}\n", True) for number in range(6)]
    other = prepare(public(tmp_path, "unroll_test_texts", **slices)).identity
    whole = prepare(public(tmp_path, "unroll_test_texts")).identity
    assert len({corpus.identity, other, whole}) == 3
    assert all(re.fullmatch(r"unroll_test_texts[\w.-]+", name) for name in (corpus.identity, other, whole))


def test_names_that_a_public_set_lacks(tmp_path):
    refused(public(tmp_path, "tiny_shakespear"), "tiny_shakespear", "tiny_shakespeare")
    refused(public(tmp_path, "wiki40b/em"), "'em'", "wiki40b")
    for feature in ("length", "txt"):
        refused(public(tmp_path, "unroll_test_texts", text=feature), "data.text", f"'{feature}'", "text, title")
    refused(public(tmp_path, "unroll_test_texts", train="trian"), "data.train", "'trian'", "train, validation")
    refused(public(tmp_path, "unroll_test_texts", valid="train[:"), "data.valid", "train, validation")


@pytest.mark.parametrize("name", ["tiny_shakespeare", "lm1b", "wiki40b/en"])
def test_mocked_public_sets(tmp_path, name):
    slices = {"valid": "train[:50%]"} if name == "lm1b" else {}
    with tfds.testing.mock_data(num_examples=4):
        corpus = prepare(public(tmp_path, name, **slices))
        found = read(corpus, "train")
    assert len(found) == 4 and set(corpus.sizes) == {"train", "valid", "test"}
    assert all(text.endswith("\n") for text, _ in found)

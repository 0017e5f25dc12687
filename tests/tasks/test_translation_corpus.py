"""Corpora of sentence pairs: what is in the files comes out, converted once; what is wrong with them is one line."""

import gzip
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from shared.config import RunError, UserError
from tasks.translation.config import DataConfig, TranslationConfig
from tasks.translation.corpus import SentencePairs, SplitFiles, pairs, prepare
from tests.errors import one_line_error

ENGLISH = [f"The {word} is here." for word in ("cat", "dog", "cow", "ox", "fox")]
GERMAN = [f"Hier ist {word}." for word in ("die Katze", "der Hund", "die Kuh", "der Ochse", "der Fuchs")]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for stem, count in (("train", 5), ("valid", 3), ("test", 2)):
        write(folder / f"{stem}.en", ENGLISH[:count])
        write(folder / f"{stem}.de", GERMAN[:count])
    return folder


def write(path, lines, end="\n"):
    content = "".join(f"{line}{end}" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def configured(folder, **data):
    options = {"corpus": "files", "dir": str(folder), "cache": str(folder.parent / "cache")} | data
    return TranslationConfig(data=DataConfig(**options))


def read(corpus, split):
    """(id, source, target) of a whole split in the order of the ids."""
    examples = corpus.splits[split]().as_numpy_iterator()
    return sorted((int(e["id"]), e["source"].decode(), e["target"].decode()) for e in examples)


def numbered(source, target):
    return [(number, *pair) for number, pair in enumerate(zip(source, target, strict=True))]


def refused(config, *parts):
    return one_line_error(lambda: prepare(config), *parts)


# ------------------------------------------------------------------------------------------------------------ own files


def test_files_come_back_by_line_number(folder):
    corpus = prepare(configured(folder))
    assert corpus.sizes == {"train": 5, "valid": 3, "test": 2}
    assert set(corpus.splits) == {"train", "valid", "test"}
    assert not corpus.optimum
    for split, count in corpus.sizes.items():
        assert read(corpus, split) == numbered(ENGLISH[:count], GERMAN[:count])


def test_languages_swap(folder):
    corpus = prepare(configured(folder, source="de", target="en"))
    assert read(corpus, "test") == numbered(GERMAN[:2], ENGLISH[:2])


def test_compressed_files_and_tables_equal_plain_files(folder, tmp_path):
    plain = prepare(configured(folder))
    packed = tmp_path / "packed"
    packed.mkdir()
    for stem in ("train", "valid", "test"):
        write(packed / f"{stem}.en.gz", (folder / f"{stem}.en").read_text().splitlines())
        write(packed / f"{stem}.de", (folder / f"{stem}.de").read_text().splitlines())
    tables = tmp_path / "tables"
    tables.mkdir()
    write(tables / "train.tsv", [f"{english}\t{german}" for english, german in zip(ENGLISH, GERMAN, strict=True)])
    write(tables / "valid.tsv.gz", [f"{ENGLISH[i]}\t{GERMAN[i]}\tCC-BY" for i in range(3)])
    write(tables / "test.tsv", [f"{ENGLISH[i]}\t{GERMAN[i]}" for i in range(2)])
    for other in (prepare(configured(packed)), prepare(configured(tables))):
        assert other.sizes == plain.sizes
        for split in plain.splits:
            assert read(other, split) == read(plain, split)


def test_columns_of_a_table_are_found_by_name(folder):
    for stem in ("a", "b"):
        write(folder / f"{stem}.tsv", ["1\tBaum\tarbre\ttree", "2\tHaus\tmaison\thouse"])
    options = {"train": "a", "valid": "b", "test": "none", "columns": ["number", "de", "fr", "en"]}
    corpus = prepare(configured(folder, source="fr", target="de", **options))
    assert read(corpus, "train") == [(0, "arbre", "Baum"), (1, "maison", "Haus")]
    assert set(corpus.splits) == {"train", "valid"}


def test_only_line_feeds_end_lines(folder):
    strange = ["a\u2028b", "c\x0bd\x85e", "f\x1cg\rh", "\ufeffi", '"j\tk']
    (folder / "train.en").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(strange).encode())
    assert read(prepare(configured(folder)), "train") == numbered(strange, GERMAN)


def test_a_missing_test_split_is_absent(folder):
    (folder / "test.en").unlink()
    (folder / "test.de").unlink()
    corpus = prepare(configured(folder))
    assert set(corpus.splits) == set(corpus.sizes) == {"train", "valid"}


def test_empty_lines_are_left_out_of_training_only(folder, caplog):
    for stem in ("train", "valid"):
        write(folder / f"{stem}.en", ["one", "", "three", " \t", "five"])
        write(folder / f"{stem}.de", ["eins", "zwei", "", "", "fünf"])
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(folder))
    assert read(corpus, "train") == [(0, "one", "eins"), (4, "five", "fünf")]
    assert [number for number, _, _ in read(corpus, "valid")] == [0, 1, 2, 3, 4]
    assert "3 of 5 lines left out" in caplog.text
    assert str(folder / "valid.en") not in caplog.text


def test_lines_that_are_not_utf8_stop_or_are_left_out(folder, caplog):
    (folder / "train.de").write_bytes(b"eins\nzwei\ndr\xe9i\nvier\nf\xfcnf\n")
    config = configured(folder)
    refused(config, folder / "train.de", "line 3", "0xe9", "data.on_error=skip")
    with caplog.at_level(logging.WARNING):
        corpus = prepare(configured(folder, on_error="skip"))
    assert [number for number, _, _ in read(corpus, "train")] == [0, 1, 3]
    assert "2 of 5 lines left out: 2 not valid UTF-8" in caplog.text


def test_missing_folder(tmp_path):
    refused(configured(tmp_path / "nowhere"), tmp_path / "nowhere", "data.dir=")


def test_missing_files_are_named(folder):
    (folder / "valid.de").rename(folder / "valid.dee")
    message = refused(configured(folder), folder / "valid.de", "data.dir", "data.valid", "data.target")
    assert "did you mean" in message
    assert "valid.dee" in message
    refused(configured(folder, train="training"), folder / "training.en", "data.train", "train.en")
    (folder / "valid.dee").rename(folder / "valid.de")
    (folder / "test.en").unlink()
    refused(configured(folder), folder / "test.en")


@pytest.mark.parametrize("stem", ["train", "valid", "test"])
def test_empty_files(folder, stem):
    (folder / f"{stem}.en").write_bytes(b"")
    (folder / f"{stem}.de").write_bytes(b"")
    refused(configured(folder), folder / f"{stem}.en", "empty")


def test_nothing_but_empty_lines(folder):
    write(folder / "train.en", [""] * 5)
    refused(configured(folder), folder / "train.en", "no sentence pair in 5 lines")


@pytest.mark.parametrize(("english", "german"), [(7, 5), (3, 5), (0, 5), (5, 6)])
def test_different_lengths_are_counted(folder, english, german):
    write(folder / "train.en", ["word"] * english)
    write(folder / "train.de", ["Wort"] * german)
    refused(configured(folder), f"train.en has {english} lines", f"train.de has {german} lines")


def test_table_with_too_few_columns(folder):
    write(folder / "table.tsv", ["tree\tBaum", "house\tHaus", "mouse"])
    refused(configured(folder, train="table"), folder / "table.tsv", "line 3", "1 of the 2", "data.columns")


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"word\n" * 1000, mtime=0)[:-12]])
def test_damaged_compression(folder, content):
    (folder / "train.en").unlink()
    (folder / "train.en.gz").write_bytes(content)
    write(folder / "train.de", ["Wort"] * 1000)
    refused(configured(folder), folder / "train.en.gz")


# ----------------------------------------------------------------------------------------------------------- conversion


def test_conversion_happens_once(folder, tmp_path, capsys):
    first = prepare(configured(folder))
    # Neither the date nor the place of a file matters.
    os.utime(folder / "train.en", (1_600_000_000, 1_600_000_000))
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / folder.name)
    with mock.patch.object(SentencePairs, "_generate_examples", side_effect=AssertionError("converted again")):
        second = prepare(configured(moved, cache=str(tmp_path / "cache")))
    assert read(first, "train") == read(second, "train")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", ["text", "order", "size"])
def test_changed_files_are_converted_anew(folder, change):
    prepare(configured(folder))
    changed = {"text": [line.upper() for line in ENGLISH], "order": ENGLISH[::-1], "size": ENGLISH[:4]}[change]
    before = (folder / "train.en").stat()
    write(folder / "train.en", changed)
    write(folder / "train.de", GERMAN[: len(changed)])
    os.utime(folder / "train.en", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(prepare(configured(folder)), "train") == numbered(changed, GERMAN[: len(changed)])


def test_options_that_decide_the_content_are_told_apart(folder):
    write(folder / "table.tsv", ["tree\tBaum\tBäume"])
    options = {"columns": ["en", "one", "many"], "train": "table", "valid": "table", "test": "table"}
    singular = prepare(configured(folder, source="en", target="one", **options))
    plural = prepare(configured(folder, source="en", target="many", **options))
    assert read(singular, "train") == [(0, "tree", "Baum")]
    assert read(plural, "train") == [(0, "tree", "Bäume")]


def test_an_interrupted_conversion_is_not_taken_for_whole(folder):
    config = configured(folder)

    def interrupted(files, *_, **__):
        yield 0, "one", "eins"
        raise KeyboardInterrupt

    with mock.patch("tasks.translation.corpus.pairs", interrupted), pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert read(prepare(config), "train") == numbered(ENGLISH, GERMAN)


def test_a_killed_conversion_is_not_taken_for_whole(folder):
    script = """
import os, sys, tasks.translation.corpus as corpus
from tasks.translation.config import DataConfig, TranslationConfig
def killed(*_, **__):
    yield 0, "one", "eins"
    os._exit(9)
corpus.pairs = killed
corpus.prepare(TranslationConfig(data=DataConfig(corpus="files", dir=sys.argv[1], cache=sys.argv[2])))
"""
    command = [sys.executable, "-c", script, folder, folder.parent / "cache"]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True).returncode == 9
    assert list((folder.parent / "cache").rglob("*incomplete*"))
    assert read(prepare(configured(folder)), "train") == numbered(ENGLISH, GERMAN)


def test_another_process_may_finish_first(folder):
    config = configured(folder)

    def overtaken(files, *_, **__):
        with mock.patch("tasks.translation.corpus.pairs", pairs):
            prepare(config)
        return pairs(files, *_, **__)

    with mock.patch("tasks.translation.corpus.pairs", overtaken):
        assert read(prepare(config), "train") == numbered(ENGLISH, GERMAN)


def test_a_cache_that_cannot_be_written_is_one_line(folder):
    (folder.parent / "cache").write_text("a file")
    with pytest.raises(RunError, match=r"^data\.cache: [^\n]*$"):
        prepare(configured(folder))


def test_a_corpus_that_is_shuffled_on_disk_comes_back_whole(folder):
    count = 500
    write(folder / "train.en", [f"sentence {number}" for number in range(count)])
    write(folder / "train.de", [f"Satz {number}" for number in range(count)])
    wrapped = mock.patch.object(shuffle._Bucket, "add", autospec=True, side_effect=shuffle._Bucket.add)
    with mock.patch("shared.corpora.SHUFFLE_MEMORY", 1000), wrapped as add:
        corpus = prepare(configured(folder))
    assert add.call_count >= count
    examples = [int(example["id"]) for example in corpus.splits["train"]().as_numpy_iterator()]
    assert sorted(examples) == list(range(count))
    assert examples != list(range(count))


def test_pairs_are_read_one_by_one(tmp_path):
    # The generator must hand out pairs before it has read the file: the third line is wrong, the first two are not.
    (tmp_path / "a").write_bytes(b"one\ntwo\n\xff\n")
    (tmp_path / "b").write_bytes(b"eins\nzwei\ndrei\n")
    stream = pairs(SplitFiles((tmp_path / "a", tmp_path / "b")), skip_undecodable=False, keep_empty=False)
    assert [next(stream), next(stream)] == [(0, "one", "eins"), (1, "two", "zwei")]
    with pytest.raises(UserError, match="line 3"):
        next(stream)


# ----------------------------------------------------------------------------------------------------------- tiny world


def test_tiny_world(tmp_path, capsys):
    data = {"corpus": "tiny_world", "dir": "", "size": 30, "cache": str(tmp_path)}
    forward = prepare(TranslationConfig(data=DataConfig(**data)))
    backward = prepare(TranslationConfig(data=DataConfig(**data, source="de", target="en")))
    assert forward.sizes["train"] == 30
    assert forward.optimum == {"train": 1.0, "valid": 1.0, "test": 1.0}
    pairs = read(forward, "train")
    assert [number for number, _, _ in pairs] == list(range(30))
    assert [(number, target, source) for number, source, target in pairs] == read(backward, "train")
    assert any("grün" in target for _, _, target in pairs)
    assert not any("grün" in source for _, source, _ in pairs)
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------------------- public sets


class UnrollTestPairs(tfds.core.GeneratorBasedBuilder):
    """A dataset in the registry of TFDS, made as the public translation sets are."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        languages = tfds.features.Translation(languages=("en", "de"))
        return tfds.core.DatasetInfo(builder=self, features=languages, supervised_keys=("en", "de"))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation")}

    def _generate_examples(self):
        for number, (english, german) in enumerate(zip(ENGLISH, GERMAN, strict=True)):
            yield number, {"en": english, "de": german}


def public(tmp_path, name, **data):
    return TranslationConfig(data=DataConfig(corpus=f"tfds:{name}", cache=str(tmp_path), **data))


def test_public_sets_by_name(tmp_path, capsys):
    corpus = prepare(public(tmp_path, "unroll_test_pairs"))
    assert corpus.sizes == {"train": 5, "valid": 5}
    for split in corpus.splits:
        examples = read(corpus, split)
        assert [number for number, _, _ in examples] == list(range(5))
        assert sorted(pair for _, *pair in examples) == sorted(map(list, zip(ENGLISH, GERMAN, strict=True)))
        assert read(corpus, split) == examples
    assert capsys.readouterr().out == ""


def test_public_sets_by_slice(tmp_path):
    slices = {"train": "train[:3]", "valid": "train[3:]", "test": "validation[:20%]"}
    corpus = prepare(public(tmp_path, "unroll_test_pairs", source="de", target="en", **slices))
    assert corpus.sizes == {"train": 3, "valid": 2, "test": 1}
    apart = {split: {source for _, source, _ in read(corpus, split)} for split in ("train", "valid")}
    assert apart["train"] | apart["valid"] == set(GERMAN)
    assert not apart["train"] & apart["valid"]


def test_names_that_a_public_set_lacks(tmp_path):
    refused(public(tmp_path, "ted_hrlr_translat/pt_to_en"), "ted_hrlr_translat", "ted_hrlr_translate")
    refused(public(tmp_path, "ted_hrlr_translate/pt_to_em"), "'pt_to_em'", "pt_to_en")
    refused(public(tmp_path, "ted_hrlr_translate/pt_to_en:9.9.9"), "9.9.9")
    refused(public(tmp_path, "unroll_test_pairs", source="fr"), "data.source", "'fr'", "en, de")
    refused(public(tmp_path, "unroll_test_pairs", train="trian"), "data.train", "'trian'", "train, validation")
    refused(public(tmp_path, "unroll_test_pairs", valid="train[:"), "data.valid", "train, validation")


def test_mocked_public_set(tmp_path):
    with tfds.testing.mock_data(num_examples=4):
        corpus = prepare(public(tmp_path, "ted_hrlr_translate/pt_to_en", source="pt", target="en"))
        examples = list(corpus.splits["valid"]().as_numpy_iterator())
    assert corpus.sizes == {"train": 4, "valid": 4, "test": 4}
    assert [example["id"] for example in examples] == [0, 1, 2, 3]
    assert all(isinstance(example[side], bytes) for example in examples for side in ("source", "target"))


def test_a_failed_download_is_one_line(tmp_path):
    failure = ConnectionError("no route to host\nand more")
    config = public(tmp_path, "ted_hrlr_translate/pt_to_en", source="pt", target="en")
    no_network = mock.patch.object(tfds.download.DownloadManager, "download_and_extract", side_effect=failure)
    with no_network, pytest.raises(RunError) as caught:
        prepare(config)
    assert re.fullmatch(r"tfds:ted_hrlr_translate/pt_to_en: [^\n]*no route to host[^\n]*", str(caught.value))

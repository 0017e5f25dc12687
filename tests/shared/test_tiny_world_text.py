"""The tiny world's sentence pairs as a TFDS builder: prepared without network, read back as told."""

import socket

import pytest
import tensorflow_datasets as tfds

from shared.tiny_world import english, german
from shared.tiny_world.grammar import split_of
from shared.tiny_world.text import prepare_text


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def builder(cache_dir):
    def no_network(*_):
        raise AssertionError("the network was asked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        return prepare_text(cache_dir, size=60, seed=3)


def read(builder, split):
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


def test_splits_have_their_sizes_and_ids_in_order(builder):
    for split, size in {"train": 60, "valid": 1000, "test": 1000}.items():
        assert builder.info.splits[split].num_examples == size
        assert [example["id"] for example in read(builder, split)] == list(range(size))


def test_both_sentences_tell_one_scene_of_the_split(builder):
    for split in ("train", "valid", "test"):
        for example in read(builder, split):
            scene = english.parse(example["english"].decode())
            assert german.parse(example["german"].decode()) == scene
            assert split_of(scene) == split


def test_preparing_again_leaves_the_files_alone(builder, cache_dir):
    def files():
        return {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*") if path.is_file()}

    before = files()
    again = prepare_text(cache_dir, size=60, seed=3)
    assert files() == before
    assert read(again, "train") == read(builder, "train")


def test_a_larger_corpus_begins_with_the_smaller_and_another_seed_does_not(builder, cache_dir):
    larger, other = prepare_text(cache_dir, size=80, seed=3), prepare_text(cache_dir, size=60, seed=4)
    assert read(larger, "train")[:60] == read(builder, "train")
    assert read(larger, "test") == read(builder, "test")
    assert read(other, "train") != read(builder, "train")

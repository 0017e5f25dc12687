"""Training batches: every token is a target once a pass, in its stream, after the one before it, whatever the step."""

import dataclasses
import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from shared.config import TrainingConfig, UserError
from shared.task import Corpus
from shared.text import EOS, PAD, UNK
from tasks.language_model import data
from tasks.language_model.config import DataConfig, LanguageModelConfig
from tasks.language_model.data import cut, layout, load_tokens, steps_per_pass, training_batches
from tasks.language_model.features import fit

RANDOM = np.random.default_rng(3)
LINES = [" ".join(RANDOM.choice(list("abcdefghij"), RANDOM.integers(0, 12))) + "\n" for _ in range(40)]
DOCUMENTS = {
    "none": [False] * 40,
    "lines": [True] * 40,
    "blank_lines": [number in (0, 9, 10, 31) for number in range(40)],
}
documented = pytest.mark.parametrize("documents", DOCUMENTS)
windows_drawn = pytest.mark.parametrize("random_windows", [False, True], ids=["fixed", "random"])


@pytest.fixture
def made(tmp_path):
    """Options of the data -> configuration, corpus, features."""

    def make(lines=LINES, seed=1, **options):
        options = {"batch_size": 3, "window": 6, "cache": str(tmp_path), "documents": "none"} | options
        config = LanguageModelConfig(data=DataConfig(**options), training=TrainingConfig(seed=seed))
        begins = DOCUMENTS[options["documents"]][: len(lines)]
        columns = {"id": list(range(len(lines))), "text": lines, "begins": begins}
        splits = {"train": lambda: tf.data.Dataset.from_tensor_slices(columns)}
        corpus = Corpus(
            splits, {"train": len(lines)}, name="letters", identity=f"letters-{len(lines)}-{options['documents']}"
        )
        return config, corpus, fit(config, corpus)

    return make


def batches(made, steps, first_step=0):
    return list(training_batches(*made, first_step).take(steps).as_numpy_iterator())


def ids_and_starts(features, lines, begins):
    """All ids, and the places at which a document begins."""
    rows = features.encode(lines)
    places = np.cumsum([0, *map(len, rows)])
    return list(itertools.chain(*rows)), {int(place) for place, begin in zip(places, begins, strict=False) if begin}


def steps_of(some, row):
    """(input, target, whether the state starts anew before it) of all real steps of a stream."""
    found = []
    for inputs, targets, _ in some:
        length = int(np.sum(targets[row] != PAD))
        begins = [bool(inputs["begins"][row])] + [False] * length
        found += zip(inputs["tokens"][row, :length], targets[row, :length], begins, strict=False)
    return found


@windows_drawn
@documented
@pytest.mark.parametrize("streams", [1, 3, 40])
def test_every_token_is_a_target_once_a_pass_after_the_token_before_it(made, streams, documents, random_windows):
    settings = made(documents=documents, batch_size=streams, random_windows=random_windows)
    ids, starts = ids_and_starts(settings[2], LINES, DOCUMENTS[documents])
    steps, length = steps_per_pass(*settings), -(-len(ids) // streams)
    some = batches(settings, 2 * steps)
    for number, row in itertools.product(range(2), range(streams)):
        places = range(row * length, min((row + 1) * length, len(ids)))
        expected = [
            (ids[place - 1] if place else EOS, ids[place], place == places[0] or place in starts) for place in places
        ]
        assert steps_of(some[number * steps : (number + 1) * steps], row) == expected


@windows_drawn
@documented
def test_batches_are_what_the_model_reads(made, documents, random_windows):
    settings = made(documents=documents, random_windows=random_windows)
    widths = set()
    for inputs, targets, weights in batches(settings, steps_per_pass(*settings)):
        assert set(inputs) == {"tokens", "targets", "begins"} and inputs["begins"].dtype == bool
        assert {inputs["tokens"].dtype, targets.dtype} == {np.dtype("int32")} and weights.dtype == np.float32
        assert inputs["tokens"].shape == targets.shape == weights.shape and inputs["begins"].shape == (3,)
        np.testing.assert_array_equal(inputs["targets"], targets)
        lengths = np.sum(targets != PAD, axis=1)
        np.testing.assert_array_equal(weights, np.arange(targets.shape[1]) < lengths[:, None])
        np.testing.assert_array_equal((inputs["tokens"] != PAD), weights)
        assert targets.shape[1] == lengths.max() > 0
        widths |= set(lengths.tolist())
    assert (max(widths) <= 6) != random_windows
    shapes = {name: tensor.shape[0] for name, tensor in training_batches(*settings, 0).element_spec[0].items()}
    assert shapes == {"tokens": 3, "targets": 3, "begins": 3}


@documented
@pytest.mark.parametrize(("window", "streams"), [(1, 1), (2, 3), (6, 3), (35, 2), (500, 2)])
def test_random_windows_are_always_as_many_and_leave_nothing_out(made, documents, window, streams):
    config, corpus, features = made(documents=documents, window=window, batch_size=streams, random_windows=True)
    tokens, starts = load_tokens(config, corpus, features, "train"), set()
    fixed = layout(tokens, dataclasses.replace(config.data, random_windows=False), 0)
    starts |= set(tokens.starts.tolist())
    for seed in range(20):
        drawn = layout(tokens, config.data, seed)
        assert list(map(len, drawn)) == list(map(len, fixed))
        assert max(map(len, drawn)) == steps_per_pass(config, corpus, features)
        for mine, plain in zip(drawn, fixed, strict=True):
            np.testing.assert_array_equal(mine[1:, 0], mine[:-1, 1])  # each begins where the last one ended
            np.testing.assert_array_equal(mine[[0, -1], [0, 1]], plain[[0, -1], [0, 1]])
            assert np.all(mine[:, 0] <= mine[:, 1])
            anew = {int(start) for start, _, begin in mine if begin}
            assert anew == {int(start) for start, _, begin in plain if begin}
            assert {start for start in starts if mine[0, 0] <= start < mine[-1, 1]} <= anew


def test_random_windows_have_lengths_around_their_mean_now_and_then_half_as_long():
    tokens = data.Tokens(np.zeros(400_000, np.int32), np.zeros(0, np.int64))
    (windows,) = layout(tokens, DataConfig(batch_size=1, window=50, random_windows=True), 1)
    lengths = windows[:, 1] - windows[:, 0]
    assert len(windows) == 8000 and lengths.mean() == pytest.approx(50)
    halves = lengths < 38
    # All lengths are drawn out a little, for the halves lower the mean.
    stretch = 1 / 0.975
    assert 0.035 < halves.mean() < 0.065
    assert lengths[halves].mean() == pytest.approx(25 * stretch, abs=1)
    assert lengths[~halves].mean() == pytest.approx(50 * stretch, abs=0.5)
    assert lengths[~halves].std() == pytest.approx(5 * stretch, abs=0.3)
    assert lengths.min() >= data.SHORTEST_WINDOW


def test_random_windows_side_by_side_are_equally_long():
    tokens = data.Tokens(np.zeros(40_000, np.int32), np.zeros(0, np.int64))
    streams = layout(tokens, DataConfig(batch_size=4, window=50, random_windows=True), 1)
    lengths = np.array([windows[:, 1] - windows[:, 0] for windows in streams])
    assert np.all(lengths == lengths[0]) and len(set(lengths[0])) > 10


def test_every_pass_and_every_seed_draws_its_own_windows(made):
    settings = made(random_windows=True)
    steps = steps_per_pass(*settings)
    some, other = batches(settings, 2 * steps), batches(made(random_windows=True, seed=2), steps)
    widths = [[targets.shape[1] for _, targets, _ in part] for part in (some[:steps], some[steps:], other)]
    assert widths[0] != widths[1] and widths[0] != widths[2]
    tf.nest.map_structure(np.testing.assert_array_equal, batches(settings, steps), some[:steps])
    fixed = made()
    once, again = batches(fixed, 2 * steps)[:steps], batches(fixed, 2 * steps)[steps:]
    tf.nest.map_structure(np.testing.assert_array_equal, once, again)


@windows_drawn
@documented
def test_starting_later_is_the_same_stream(made, documents, random_windows):
    settings = made(documents=documents, random_windows=random_windows)
    steps = steps_per_pass(*settings)
    whole = batches(settings, 2 * steps + 3)
    for first_step in (1, steps - 1, steps, steps + 1, 2 * steps):
        started = batches(settings, 3, first_step)
        tf.nest.map_structure(np.testing.assert_array_equal, started, whole[first_step : first_step + 3])


@pytest.mark.parametrize("random_windows", [False, True])
def test_there_may_be_hardly_more_tokens_than_streams(made, random_windows):
    settings = made(["a b c d\n"], batch_size=2, random_windows=random_windows)
    assert [steps_of(batches(settings, 1), row)[0][2] for row in range(2)] == [True, True]
    # Of 9 tokens in 4 streams of 3, the last has none: it is all padding, and its state is left alone.
    settings = made(["a b c d\n", "a b c\n"], batch_size=4, random_windows=random_windows)
    ((inputs, targets, weights),) = batches(settings, 1)
    assert weights.sum(axis=1).tolist() == [3, 3, 3, 0] and targets.shape == (4, 3)
    assert inputs["begins"].tolist() == [True, True, True, False] and not inputs["tokens"][3].any()


def test_a_stream_that_ends_early_waits_for_the_next_pass(made):
    settings = made(["a b c d e f g h i\n"], batch_size=3, window=3)  # 10 tokens in streams of 4, 4 and 2
    some = batches(settings, 4)
    assert [weights.sum(axis=1).tolist() for _, _, weights in some] == [[3, 3, 2], [1, 1, 0]] * 2
    assert [inputs["begins"].tolist() for inputs, _, _ in some] == [[True] * 3, [False] * 3] * 2


def test_unknown_words_are_targets_too(made):
    config, _, features = made()
    other = Corpus(
        {"train": lambda: tf.data.Dataset.from_tensors({"id": 0, "text": "a z b\nc\n", "begins": True})},
        {},
        identity="z",
    )
    ((_, targets, weights),) = batches((config, other, features), 1)
    assert sorted(targets[weights > 0].tolist()) == sorted(features.encode(["a z b\nc\n"])[0]) and UNK in targets


# -------------------------------------------------------------------------------------------------------- token files


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_tokens_are_those_of_the_text_wherever_they_begin(made, monkeypatch):
    monkeypatch.setattr("tasks.language_model.features.TOGETHER", 20)
    for documents, begins in DOCUMENTS.items():
        config, corpus, features = made(documents=documents)
        tokens = load_tokens(config, corpus, features, "train")
        ids, starts = ids_and_starts(features, LINES, begins)
        assert tokens.ids.tolist() == ids and tokens.starts.tolist() == sorted(starts)
        assert (tokens.ids.dtype, tokens.starts.dtype) == (np.int32, np.int64)


def test_token_files_are_written_once_and_found_again(made, tmp_path):
    config, corpus, features = made()
    first = load_tokens(config, corpus, features, "train")
    written = {name: (tmp_path / name).stat().st_mtime_ns for name in files_in(tmp_path)}
    assert len(written) == 2 and not any("unfinished" in name for name in written)

    def refuse():
        raise AssertionError("the text was read again")

    again = load_tokens(config, dataclasses.replace(corpus, splits={"train": refuse}), features, "train")
    np.testing.assert_array_equal(first.ids, again.ids)
    assert isinstance(again.ids, np.memmap)  # read where it is needed, never loaded whole
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in files_in(tmp_path)} == written


def test_another_vocabulary_or_corpus_has_its_own_files(made, tmp_path):
    config, corpus, features = made()
    other = fit(dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, min_count=20)), corpus)
    assert len(other.vocabulary) < len(features.vocabulary)
    first = load_tokens(config, corpus, features, "train").ids.tolist()
    assert load_tokens(config, corpus, other, "train").ids.tolist() != first
    assert len(files_in(tmp_path)) == 4
    load_tokens(config, dataclasses.replace(corpus, identity="other"), features, "train")
    assert len(files_in(tmp_path)) == 6
    assert load_tokens(config, corpus, features, "train").ids.tolist() == first


def test_files_that_were_not_finished_are_written_again(made, tmp_path):
    config, corpus, features = made()
    whole = load_tokens(config, corpus, features, "train").ids.tolist()
    ids, starts = (tmp_path / name for name in files_in(tmp_path))

    def broken():
        yield {"id": 0, "text": LINES[0], "begins": False}
        raise OSError("no space left")

    spec = corpus.splits["train"]().element_spec
    spoiled = Corpus(
        {"train": lambda: tf.data.Dataset.from_generator(broken, output_signature=spec)}, {}, identity="spoiled"
    )
    with pytest.raises(Exception, match="no space left"):
        load_tokens(config, spoiled, features, "train")
    assert not [name for name in files_in(tmp_path) if "spoiled" in name and "unfinished" not in name]
    starts.unlink()  # a process that died between the two
    assert load_tokens(config, corpus, features, "train").ids.tolist() == whole and ids.exists() and starts.exists()


def test_what_was_written_is_counted(made, caplog):
    config, corpus, features = made()
    ids, _ = ids_and_starts(features, LINES, [])
    with caplog.at_level(logging.INFO):
        load_tokens(config, corpus, features, "train")
    assert f"{len(ids)} tokens, 0.00 % unknown" in caplog.text


def test_streams_need_two_tokens_each(made):
    lines = ["a b c d e\n"] * 3
    assert batches(made(lines, batch_size=9), 1)
    message = r"^data\.batch_size: 10 streams need at least 20 tokens, and letters has 18; choose fewer$"
    for ask in (steps_per_pass, lambda *settings: batches(settings, 1)):
        with pytest.raises(UserError, match=message):
            ask(*made(lines, batch_size=10))


def test_a_text_shorter_than_one_window_is_warned_of(made, caplog):
    lines = ["a b c d e\n"] * 3
    for window, said in ((9, False), (10, True)):
        batches(made(lines, batch_size=2, window=window), 1)
        assert ("each of the 2 streams has 9 tokens, fewer than one window" in caplog.text) == said


def test_windows_of_other_lengths_are_padded_to_the_longest():
    ids = np.array([5, 6, 2, 7, 8, 9, 2], np.int32)
    inputs, targets, begins, weights = cut(ids, [(0, 3, 1), (4, 6, 0), (0, 0, 0)])
    np.testing.assert_array_equal(inputs, [[EOS, 5, 6], [7, 8, 0], [0, 0, 0]])
    np.testing.assert_array_equal(targets, [[5, 6, 2], [8, 9, 0], [0, 0, 0]])
    np.testing.assert_array_equal(weights, targets > 0)
    assert begins.tolist() == [True, False, False]

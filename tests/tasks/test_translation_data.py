"""Training batches hold every pair once a pass, begun and ended as they must be, whatever step one starts at."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from shared.batching import padded_length
from shared.config import TrainingConfig
from shared.task import Corpus
from shared.text import BOS, EOS, PAD
from tasks.translation.config import DataConfig, TranslationConfig, VocabularyConfig
from tasks.translation.data import encode_pairs, steps_per_pass, training_batches
from tasks.translation.features import fit

LONGEST, BATCH = 8, 5
RANDOM = np.random.default_rng(2)
WORDS = ["rot", "grün", "blau", "groß", "klein", "Haus", "Bär", "Öl"]


def sentence(length):
    return " ".join(RANDOM.choice(WORDS, length))


# Lengths up to LONGEST + 2, so that some pairs are too long on either side; two more are empty on one side.
PAIRS = [(sentence(RANDOM.integers(1, LONGEST + 3)), sentence(RANDOM.integers(1, LONGEST + 3))) for _ in range(60)]
PAIRS += [("", "rot"), ("rot", " ")]
KEPT = [pair for pair in PAIRS if all(1 <= len(side.split()) <= LONGEST for side in pair)]
STEPS = -(-len(KEPT) // BATCH)


def corpus_of(pairs):
    def opened():
        columns = {"id": list(range(len(pairs))), "source": [s for s, _ in pairs], "target": [t for _, t in pairs]}
        return tf.data.Dataset.from_tensor_slices(columns)

    return Corpus(splits={"train": opened}, sizes={"train": len(pairs)}, name="colours")


def configured(seed=1, **data):
    return TranslationConfig(
        data=DataConfig(max_length=LONGEST, batch_size=BATCH, sort_pool=3, **data),
        vocabulary=VocabularyConfig(unit="word", joint=False),
        training=TrainingConfig(seed=seed),
    )


@functools.cache
def features():
    return fit(configured(), corpus_of(PAIRS))


def stream(steps, first_step=0, **options):
    batches = training_batches(configured(**options), corpus_of(PAIRS), features(), first_step)
    return list(batches.take(steps).as_numpy_iterator())


@functools.cache
def two_passes():
    return stream(2 * STEPS)


def texts(batches):
    """The pairs of some batches, as text."""
    return [
        (features().source.decode(source), features().target.decode(target))
        for inputs, targets, _ in batches
        for source, target in zip(inputs["source"], targets, strict=True)
    ]


def test_pairs_that_are_too_long_are_left_out_and_not_counted():
    assert len(KEPT) < len(PAIRS) - 10 and len(KEPT) % BATCH != 0
    assert features().num_pairs == len(KEPT)
    assert steps_per_pass(configured(), corpus_of(PAIRS), features()) == STEPS
    for number in range(2):
        assert sorted(texts(two_passes()[number * STEPS : (number + 1) * STEPS])) == sorted(KEPT)


def test_a_pair_as_long_as_allowed_is_kept():
    pairs = [("rot " * LONGEST, "rot"), ("rot " * (LONGEST + 1), "rot"), ("rot", "rot " * (LONGEST + 1))]
    encoded = list(encode_pairs(corpus_of(pairs).splits["train"](), features(), LONGEST).as_numpy_iterator())
    assert [len(pair["source"]) for pair in encoded] == [LONGEST + 1]  # and eos


def test_nothing_but_pairs_that_are_too_long_is_no_pair():
    pairs = corpus_of([("rot " * 20, "rot")] * 2).splits["train"]()
    assert list(encode_pairs(pairs, features(), LONGEST)) == []


def test_batches_are_what_the_model_reads():
    for inputs, targets, weights in two_passes():
        source, target = inputs["source"], inputs["target"]
        assert {array.dtype for array in (source, target, targets)} == {np.dtype("int32")}
        assert weights.dtype == np.float32 and target.shape == targets.shape == weights.shape
        for ids in (source, targets):
            lengths = np.sum(ids != PAD, axis=1)
            assert ids.shape[1] == padded_length(int(lengths.max()))
            ends = np.arange(ids.shape[1]) == lengths[:, None] - 1
            np.testing.assert_array_equal(ids == EOS, ends)  # one eos, the last that is not padding
            assert np.all(ids[np.arange(ids.shape[1]) >= lengths[:, None]] == PAD) and not np.any(ids == BOS)
        np.testing.assert_array_equal(target[:, 0], BOS)
        np.testing.assert_array_equal(target[:, 1:], targets[:, :-1])
        np.testing.assert_array_equal(weights, targets != PAD)


def test_every_pass_has_its_own_order():
    first, second = texts(two_passes()[:STEPS]), texts(two_passes()[STEPS:])
    assert first != second and sorted(first) == sorted(second)
    assert texts(stream(STEPS, seed=2)) != first


@pytest.mark.parametrize("options", [{}, {"shuffle_buffer": 20}], ids=["whole", "small buffer"])
@pytest.mark.parametrize("first_step", [3, STEPS, STEPS + 2])
def test_starting_later_is_the_same_stream(first_step, options):
    expected = (stream(first_step + 4, **options) if options else two_passes())[first_step : first_step + 4]
    started = stream(4, first_step, **options)
    tf.nest.map_structure(np.testing.assert_array_equal, started, expected)


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_every_seed_gives_batches(seed):
    tf.random.set_seed(seed)  # as training does
    try:
        assert sorted(texts(stream(STEPS, seed=seed))) == sorted(KEPT)
    finally:
        tf.random.set_seed(1)

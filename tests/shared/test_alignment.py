"""Alignment is tested against the listing of all paths, or of all divisions of the steps among the phones."""

import itertools

import numpy as np
import pytest

from shared.decoding import alignment

pytestmark = pytest.mark.filterwarnings("error")  # minus infinity is a value like others


def posteriors(random, steps, size, impossible=0.0):
    """Log probabilities (steps, size), a share of them minus infinity."""
    logits = 2 * random.normal(size=(steps, size))
    logits[random.random((steps, size)) < impossible] = -np.inf
    logits[:, 0] = np.maximum(logits[:, 0], -9)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def path_score(path, log_probs, transitions, initial, final):
    changes = sum(transitions[a, b] for a, b in itertools.pairwise(path) if a != b)
    return log_probs[np.arange(len(path)), path].sum() + changes + initial[path[0]] + final[path[-1]]


def shortest_run(path):
    return min(len(list(run)) for _, run in itertools.groupby(path))


@pytest.mark.parametrize("impossible", [0.0, 0.3])
@pytest.mark.parametrize("min_frames", [1, 2, 3, 7])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_viterbi_finds_the_best_of_all_paths(steps, min_frames, impossible):
    random = np.random.default_rng(10 * steps + min_frames)
    for _ in range(20):
        log_probs = posteriors(random, steps, 3, impossible)
        costs = posteriors(random, 3, 3, impossible), *posteriors(random, 2, 3, impossible)
        paths = [
            path
            for path in itertools.product(range(3), repeat=steps)
            if shortest_run(path) >= min(min_frames, steps)  # an utterance that is shorter is one segment
        ]
        scores = [path_score(path, log_probs, *costs) for path in paths]
        if max(scores) == -np.inf:
            with pytest.raises(ValueError, match=f"no path through {steps} steps"):
                alignment.viterbi(log_probs, *costs, min_frames)
            continue
        found = alignment.viterbi(log_probs, *costs, min_frames)
        assert found.dtype == np.int32 and tuple(found) == paths[int(np.argmax(scores))]


def test_viterbi_without_costs_is_the_best_of_each_step():
    log_probs, free = posteriors(np.random.default_rng(1), 50, 9), np.zeros(9)
    np.testing.assert_array_equal(alignment.viterbi(log_probs, np.zeros((9, 9)), free, free), log_probs.argmax(axis=1))


def test_viterbi_does_not_change_its_arguments_or_read_the_diagonal():
    random = np.random.default_rng(2)
    log_probs, transitions = posteriors(random, 30, 5), posteriors(random, 5, 5)
    kept, free = transitions.copy(), np.zeros(5)
    expected = alignment.viterbi(log_probs, transitions, free, free, 2)
    np.testing.assert_array_equal(transitions, kept)
    np.fill_diagonal(transitions, 100.0)
    np.testing.assert_array_equal(alignment.viterbi(log_probs, transitions, free, free, 2), expected)


def divisions(steps, parts, least):
    """Every way to cut the steps into so many parts of at least so many steps."""
    for cuts in itertools.combinations(range(1, steps), parts - 1):
        spans = list(itertools.pairwise([0, *cuts, steps]))
        if all(end - start >= least for start, end in spans):
            yield spans


@pytest.mark.parametrize("min_frames", [1, 2, 3])
@pytest.mark.parametrize("ids", [[2], [1, 1, 1], [0, 2, 0], [2, 1]])
def test_known_phones_are_divided_in_the_best_of_all_ways(ids, min_frames):
    random = np.random.default_rng(len(ids) + 10 * min_frames)
    for steps in (len(ids) * min_frames, 9, 10):
        log_probs = posteriors(random, steps, 3)
        every = list(divisions(steps, len(ids), min_frames))
        scores = [
            sum(log_probs[start:end, phone].sum() for phone, (start, end) in zip(ids, spans, strict=True))
            for spans in every
        ]
        best = max(scores)  # equal ones, when a phone follows itself
        found = alignment.align(log_probs, ids, min_frames)
        assert found in [spans for spans, score in zip(every, scores, strict=True) if score > best - 1e-9]


def test_an_impossible_step_is_left_to_the_phone_that_can_take_it():
    log_probs = np.log(np.full((4, 2), 0.5))
    log_probs[2, 0] = -np.inf
    log_probs[1, 1] = -np.inf
    assert alignment.align(log_probs, [0, 1]) == [(0, 2), (2, 4)]
    with pytest.raises(ValueError, match="no path through 4 steps"):
        alignment.align(log_probs, [1, 0])


def test_phones_that_do_not_fit_are_told_in_numbers():
    log_probs = np.zeros((5, 3))
    with pytest.raises(ValueError, match="3 phones of at least 2 steps need 6 steps; there are 5"):
        alignment.align(log_probs, [1, 2, 1], min_frames=2)
    with pytest.raises(ValueError, match="1 phones of at least 1 steps need 1 steps; there are 0"):
        alignment.align(log_probs[:0], [1])


def test_nothing_is_aligned_with_nothing():
    nothing, costs = np.zeros((0, 3)), (np.zeros((3, 3)), np.zeros(3), np.zeros(3))
    assert alignment.viterbi(nothing, *costs, 2).tolist() == [] == alignment.segments([])
    assert alignment.align(nothing, []) == [] == alignment.align(np.zeros((4, 3)), [])


def test_segments_are_the_runs_of_a_path():
    path = np.random.default_rng(3).integers(0, 3, 200)
    found = alignment.segments(path)
    assert [phone for phone, start, end in found for _ in range(start, end)] == path.tolist()
    assert [end for _, _, end in found[:-1]] == [start for _, start, _ in found[1:]]
    assert all(a[0] != b[0] for a, b in itertools.pairwise(found)) and len(found) > 100

"""CTC is tested against the listing of all paths and what each of them spells, and at narrow beams against the search
as it is written in the paper, in plain Python."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from shared.decoding import ctc
from tests.shared.test_alignment import posteriors
from tests.shared.test_decoding import BOS, EOS, Model

pytestmark = pytest.mark.filterwarnings("error")  # minus infinity is a value like others


def spell(path, blank=0):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def brute_force(log_probs, blank=0):
    """Every string and its log probability, summed over the paths that spell it."""
    found = defaultdict(lambda: -np.inf)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        found[spell(path, blank)] = np.logaddexp(found[spell(path, blank)], log_probs[np.arange(len(path)), path].sum())
    return {ids: score for ids, score in found.items() if score > -np.inf}


class Bigram:
    """A toy language model whose state is what it has read, and which notes what it was asked."""

    def __init__(self, random, size, impossible=0.0):
        self.log_probs = posteriors(random, size, size, impossible)
        self.asked = []

    def start(self):
        return ()

    def step(self, states, ids):
        assert len(states) == len(ids) > 0
        states = [(*state, token) for state, token in zip(states, ids, strict=True)]
        self.asked.append(states)
        return self.log_probs[ids], states

    def log_prob(self, ids, end=True):
        return sum(self.log_probs[pair] for pair in itertools.pairwise([BOS, *ids, *([EOS] if end else [])]))


def plain_search(log_probs, beam_size, prune=0.0, said=lambda ids: 0.0, history=None):
    """Prefix beam search after Hannun et al. 2014: prefix -> log probability. Appends the beams to the history."""
    beam = {(): [0.0, -np.inf]}  # log probability ending in a blank, and in the last label
    for row in log_probs:
        found = defaultdict(lambda: [-np.inf, -np.inf])
        for ids, (in_blank, in_label) in beam.items():
            either = np.logaddexp(in_blank, in_label)
            found[ids][0] = np.logaddexp(found[ids][0], either + row[0])
            if ids:
                found[ids][1] = np.logaddexp(found[ids][1], in_label + row[ids[-1]])
            for label in range(1, len(row)):
                longer = (*ids, label)
                if np.exp(row[label]) > prune or longer in beam:
                    more = (in_blank if ids[-1:] == (label,) else either) + row[label]
                    found[longer][1] = np.logaddexp(found[longer][1], more)
        best = sorted(found, key=lambda ids: -np.logaddexp(*found[ids]) - said(ids))[:beam_size]
        beam = {ids: found[ids] for ids in best}
        if history is not None:
            history.append(set(beam))
    return {ids: np.logaddexp(*pair) for ids, pair in beam.items()}


def assert_ranked(found, expected, tolerance=1e-9):
    """What was found is what is expected, each string with its score, best first."""
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    assert len(dict(found)) == len(found)
    expected = {ids: score for ids, score in expected.items() if score > -np.inf}
    assert dict(found) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("impossible", [0.0, 0.3])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_widest_beam_finds_every_string_with_the_sum_over_its_paths(steps, impossible):
    random = np.random.default_rng(steps)
    for blank in (0, 1, 3):
        log_probs = posteriors(random, steps, 4, impossible)
        found = ctc.prefix_beam(log_probs, 1000, blank=blank, prune=0.0)
        assert_ranked(found, brute_force(log_probs, blank))
        assert np.logaddexp.reduce([score for _, score in found]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("eos", [EOS, None])
@pytest.mark.parametrize("impossible", [0.0, 0.3])
def test_the_language_model_s_share_is_that_of_the_whole_string(impossible, eos):
    random = np.random.default_rng(3)
    for weight in (0.4, 1.0, 2.5):
        log_probs, model = posteriors(random, 4, 5, impossible), Bigram(random, 5, impossible)
        found = ctc.prefix_beam(log_probs, 1000, model, weight, prune=0.0, eos=eos)
        sums = brute_force(log_probs)
        assert_ranked(found, {ids: sums[ids] + weight * model.log_prob(ids, eos is not None) for ids in sums})


def test_without_weight_the_language_model_is_not_asked():
    random = np.random.default_rng(4)
    log_probs, model = posteriors(random, 5, 4), Bigram(random, 4)
    assert ctc.prefix_beam(log_probs, 8, model, 0.0) == ctc.prefix_beam(log_probs, 8) and not model.asked


@pytest.mark.parametrize("prune", [0.0, 0.05])
@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 10])
def test_narrow_beams_are_those_of_the_paper(beam_size, prune):
    random = np.random.default_rng(beam_size)
    for _ in range(5):
        log_probs, model = posteriors(random, 25, 5), Bigram(random, 5)
        assert_ranked(ctc.prefix_beam(log_probs, beam_size, prune=prune), plain_search(log_probs, beam_size, prune))
        expected = plain_search(log_probs, beam_size, prune, lambda ids, q=model: 0.7 * q.log_prob(ids, end=False))
        expected = {ids: score + 0.7 * model.log_prob(ids) for ids, score in expected.items()}
        assert_ranked(ctc.prefix_beam(log_probs, beam_size, model, 0.7, prune=prune), expected)


def test_a_prefix_that_comes_back_is_merged_with_its_children():
    """`a` leaves the beam, in which `ab` stays, and comes back: the `ab` that it then becomes is no second one."""
    random, returned = np.random.default_rng(5), 0
    for _ in range(100):
        log_probs, beams = posteriors(random, 16, 3), []
        found = ctc.prefix_beam(log_probs, 5, prune=0.0)
        assert_ranked(found, plain_search(log_probs, 5, history=beams))
        returned += any(
            ids[:-1] in before and ids[:-1] not in between and ids[:-1] in after and ids in between & after
            for before, between, after in zip(beams, beams[1:], beams[2:], strict=False)
            for ids in after
        )
    assert returned > 10


def test_a_narrower_beam_overstates_no_string():
    random = np.random.default_rng(6)
    for _ in range(10):
        log_probs = posteriors(random, 5, 4)
        exact, best = brute_force(log_probs), []
        for beam_size in (1, 4, 16, 4000):
            found = ctc.prefix_beam(log_probs, beam_size, prune=0.0)
            assert len(found) == min(beam_size, len(exact))
            assert all(score <= exact[ids] + 1e-9 for ids, score in found)
            best.append(found[0][1])
        assert max(best) == pytest.approx(best[-1])


def test_pruning_loses_no_more_than_is_pruned():
    random = np.random.default_rng(7)
    for prune in (1e-3, 1e-2, 0.1):
        log_probs = posteriors(random, 5, 4)
        exact, found = brute_force(log_probs), dict(ctc.prefix_beam(log_probs, 4000, prune=prune))
        lost = [np.exp(exact[ids]) - np.exp(found.get(ids, -np.inf)) for ids in exact]
        assert min(lost) > -1e-9 and 0 < sum(lost) <= 5 * 4 * prune


def test_each_new_prefix_is_asked_for_once_and_all_of_a_step_together():
    random = np.random.default_rng(8)
    log_probs, model = posteriors(random, 6, 5), Bigram(random, 5)
    log_probs[2] = log_probs[4] = np.log([1 - 4e-9, 1e-9, 1e-9, 1e-9, 1e-9])  # these are the blank's
    found = ctc.prefix_beam(log_probs, 4000, model, 1.0, prune=1e-6)
    asked = [state for states in model.asked for state in states]
    assert len(model.asked) == 4 + 1  # the steps where something may begin, and the ends
    assert sorted(asked) == sorted((BOS, *ids) for ids, _ in found)

    model.asked.clear()
    ctc.prefix_beam(posteriors(random, 40, 5), 6, model, 1.0)
    assert len(model.asked) <= 41 and max(len(states) for states in model.asked) <= 6


def test_steps_of_the_blank_alone_are_not_lost():
    log_probs = posteriors(np.random.default_rng(9), 5, 3)
    log_probs[[1, 3]] = np.log([0.98, 0.01, 0.01])
    expected = plain_search(log_probs, 4000, prune=0.011)
    assert_ranked(ctc.prefix_beam(log_probs, 4000, prune=0.011), expected)


def test_a_model_of_the_step_protocol_serves_as_language_model():
    model, calls = Model(3, sentences=1, vocabulary=5), []

    def step(tokens, state):
        calls.append(tokens.shape)
        return model.step(tokens, state)

    language_model = ctc.Stepped(model.start(attention=False), step)
    random = np.random.default_rng(10)
    for beam_size in (1000, 3):
        log_probs = posteriors(random, 4, 5)
        sums = brute_force(log_probs)
        expected = {ids: sums[ids] + 0.8 * model.score(0, [*ids, EOS]) for ids in sums}
        found = ctc.prefix_beam(log_probs, beam_size, language_model, 0.8, prune=0.0)
        if beam_size == 1000:
            assert_ranked(found, expected, 1e-4)  # in float32
        assert all(score <= expected[ids] + 1e-4 for ids, score in found)
    assert len(calls) <= 3  # traces: not one for every number of prefixes


def test_nothing_was_said():
    nothing, model = np.zeros((0, 4)), Bigram(np.random.default_rng(11), 4)
    assert ctc.greedy(nothing) == ([], [])
    assert ctc.prefix_beam(nothing, 3) == [((), 0.0)]
    assert ctc.prefix_beam(nothing, 3, model, 0.5) == [((), pytest.approx(0.5 * model.log_prob([])))]
    assert ctc.align(nothing, []) == [] == ctc.align(np.zeros((3, 4)), [])


def test_long_utterances_do_not_underflow():
    log_probs = posteriors(np.random.default_rng(12), 3000, 40)
    (ids, score), *_ = ctc.prefix_beam(log_probs, 4)
    assert -30000 < score < -1000 and len(ids) > 100


def test_a_beam_of_nothing_is_refused():
    with pytest.raises(ValueError, match="beam_size: 0"):
        ctc.prefix_beam(np.zeros((1, 2)), 0)


def test_greedy_spells_the_best_path():
    log_probs = posteriors(np.random.default_rng(13), 200, 4)
    path = log_probs.argmax(axis=1)
    for blank in (0, 2):
        ids, spans = ctc.greedy(log_probs, blank)
        assert tuple(ids) == spell(path, blank)
        inside = np.full(200, blank)
        for symbol, (start, end) in zip(ids, spans, strict=True):
            inside[start:end] = symbol
        np.testing.assert_array_equal(inside, path)


def spans_of(path):
    edges = np.cumsum([0, *(len(list(run)) for _, run in itertools.groupby(path))])
    return [span for span in itertools.pairwise(edges.tolist()) if path[span[0]]]


@pytest.mark.parametrize("impossible", [0.0, 0.2])
@pytest.mark.parametrize("ids", [[1], [2, 2], [1, 2], [1, 2, 1], [2, 2, 1], [1, 1, 1]])
def test_alignment_is_the_best_of_all_paths_that_spell_the_string(ids, impossible):
    random = np.random.default_rng(sum(ids))
    for steps in (len(ids) + 2, 6):
        log_probs = posteriors(random, steps, 3, impossible)
        paths = [path for path in itertools.product(range(3), repeat=steps) if spell(path) == tuple(ids)]
        scores = [log_probs[np.arange(steps), path].sum() for path in paths]
        if max(scores) == -np.inf:
            with pytest.raises(ValueError, match=f"no path through {steps} steps"):
                ctc.align(log_probs, ids)
        else:
            assert ctc.align(log_probs, ids) == spans_of(paths[int(np.argmax(scores))])


def test_alignment_with_another_blank():
    log_probs = posteriors(np.random.default_rng(14), 20, 4)
    moved = log_probs[:, [1, 2, 3, 0]]
    assert ctc.align(moved, [0, 1, 1, 2], blank=3) == ctc.align(log_probs, [1, 2, 2, 3])


def test_labels_that_do_not_fit_are_told_in_numbers():
    log_probs = posteriors(np.random.default_rng(15), 4, 3)
    assert ctc.align(log_probs, [1, 1, 2]) == [(0, 1), (2, 3), (3, 4)]
    with pytest.raises(ValueError, match="3 labels with 2 repeats need 5 steps; there are 4"):
        ctc.align(log_probs, [1, 1, 1])
    with pytest.raises(ValueError, match="1 labels with 0 repeats need 1 steps; there are 0"):
        ctc.align(log_probs[:0], [1])
    with pytest.raises(ValueError, match="label 2 of 3 is the blank, 0"):
        ctc.align(log_probs, [1, 0, 2])

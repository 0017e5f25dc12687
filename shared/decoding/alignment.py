"""Where the phones lie: framewise log probabilities go in, the best path over the phones comes out, either through a
bigram of what follows what (`viterbi`) or along a phone string that is known (`align`). NumPy, one utterance at a time,
in float64 logarithms; every function takes minus infinity for what cannot be."""

from itertools import pairwise

import numpy as np


def viterbi(log_probs, transitions, initial, final, min_frames=1):
    """The phone of every step on the best path, by Viterbi's algorithm (Rabiner 1989, section III.B).

    The score of a path is the sum of the log_probs of its steps, the transitions between neighbouring segments, and
    initial and final of its first and last one. A segment is a run of one phone; staying in it costs nothing, so that
    how long it lasts is for log_probs to say, from min_frames steps on. O(steps V^2) time, O(steps V) memory.

    Args:
        log_probs: (steps, V) natural logs, or these less the log of the phones' priors.
        transitions: (V, V), [phone, next phone], of which the diagonal is not read. initial, final: (V,).
        min_frames: least steps of a segment; an utterance of fewer is one segment.

    Returns:
        int32 (steps,). Raises ValueError if every path has a score of minus infinity.
    """
    log_probs = np.asarray(log_probs, np.float64)
    if not len(log_probs):
        return np.zeros(0, np.int32)
    into = np.array(transitions, np.float64).T
    np.fill_diagonal(into, -np.inf)
    into, phones = np.ascontiguousarray(into), np.arange(len(into))

    def enter(scores):
        arriving = into + scores
        origins = arriving.argmax(axis=1)
        return arriving[phones, origins], origins

    return best_path(log_probs, enter, initial, final, min(min_frames, len(log_probs)))


def align(log_probs, ids, min_frames=1):
    """When each phone of a known string is spoken: the division of the steps with the largest sum of log_probs.

    The dynamic programme of `viterbi` over places in the string, which are taken one after the other, none left out.
    O(steps phones) time and memory.

    Args:
        log_probs: (steps, V) natural logs.
        ids: the phones. min_frames: least steps of each.

    Returns:
        [(first step, last step + 1)] of each phone, without gaps from the first step to the end. Raises ValueError if
        the phones need more steps than there are, or if no division has a probability above 0.
    """
    log_probs, ids = np.asarray(log_probs, np.float64), np.asarray(ids, np.int64)
    if not len(ids):
        return []
    if len(ids) * min_frames > len(log_probs):
        needed = f"{len(ids)} phones of at least {min_frames} steps need {len(ids) * min_frames} steps"
        raise ValueError(f"{needed}; there are {len(log_probs)}")
    places = np.arange(len(ids))

    def enter(scores):
        return np.append(-np.inf, scores[:-1]), places - 1

    first = np.where(places == 0, 0.0, -np.inf)
    path = best_path(log_probs, enter, first, first[::-1], min_frames, ids)
    return [(start, end) for _, start, end in segments(path)]


def segments(path):
    """The runs of equal values of a path (steps,): [(value, first step, last step + 1)]."""
    path = np.asarray(path)
    if not len(path):
        return []
    edges = [0, *(np.flatnonzero(path[1:] != path[:-1]) + 1).tolist(), len(path)]
    return [(int(path[start]), start, end) for start, end in pairwise(edges)]


def best_path(log_probs, enter, initial, final, min_frames=1, columns=None):
    """The best path through states of which each, once entered, lasts at least min_frames steps.

        score_t(s) = log p_t(s) + score_{t-1}(s)                                                  going on, or
                     log p_t(s) + .. + log p_{t-m+1}(s) + max over r of score_{t-m}(r) + cost(r, s)      entered

    with m = min_frames and score_t(s) that of the best path which ends at step t, at least m steps after it entered s.
    Going on wins over entering where they are equal. Two to five bytes are held for every step and state.

    Args:
        log_probs: float64 (steps, V), at least min_frames steps.
        enter: scores (S,) of a step -> the best scores (S,) of entering each state at the next step, and from where.
        initial, final: (S,), scores of beginning and of ending in each state.
        columns: (S,), which of the V each state is; None: S = V, and every state is its own.

    Returns:
        The states, int32 (steps,). Raises ValueError if there is no path above minus infinity.
    """
    steps, states = len(log_probs), len(initial)
    columns = np.arange(states) if columns is None else columns
    lasting = sum(log_probs[place : steps - min_frames + 1 + place] for place in range(min_frames))
    entered = np.zeros((steps, states), bool)
    origins = np.zeros((steps, states), np.min_scalar_type(-states - 1))
    scores = [np.full(states, -np.inf)] * min_frames  # of the last min_frames steps, that of step t at t % min_frames
    scores[-1], entered[min_frames - 1] = lasting[0][columns] + initial, True
    for step in range(min_frames, steps):
        start, place = step - min_frames + 1, step % min_frames
        arriving, origins[start] = enter(scores[place])
        arriving, going_on = arriving + lasting[start][columns], scores[place - 1] + log_probs[step][columns]
        np.greater(arriving, going_on, out=entered[step])
        scores[place] = np.maximum(arriving, going_on)

    ends = scores[(steps - 1) % min_frames] + final
    state, end = int(ends.argmax()), steps
    if not ends[state] > -np.inf:
        raise ValueError(f"no path through {steps} steps has a probability above 0")
    path = np.empty(steps, np.int32)
    while end:
        here, start = state, end - 1
        if entered[start, here]:
            start = end - min_frames
            state = origins[start, here]
        path[start:end], end = here, start
    return path

"""Connectionist temporal classification (CTC, Graves et al. 2006): log probabilities of the labels and of the blank at
every step go in, label strings or the times of a known one come out. A path of one symbol a step spells the string that
is left when equal neighbours are merged and blanks then dropped. NumPy, one utterance at a time, in float64
logarithms; a language model may take part in the search."""

import math

import numpy as np
import tensorflow as tf

from shared.decoding.alignment import best_path, segments


def greedy(log_probs, blank=0):
    """What the most probable path spells (Graves et al. 2006, section 3.2, best path decoding). O(steps V).

    Args:
        log_probs: (steps, V) natural logs.

    Returns:
        ids, a list, and [(first step, last step + 1)] of each.
    """
    found = [run for run in segments(np.argmax(log_probs, axis=1)) if run[0] != blank]
    return [symbol for symbol, _, _ in found], [(start, end) for _, start, end in found]


def align(log_probs, ids, blank=0):
    """When each label of a known string is spoken, on the most probable of the paths that spell it.

    Viterbi's algorithm over the string with a blank before, after and between the labels, which may be left out except
    between equal ones (Graves et al. 2006, section 4.1, with maxima for sums). O(steps labels) time and memory.

    Args:
        log_probs: (steps, V) natural logs.

    Returns:
        [(first step, last step + 1)] of each label; steps of blanks belong to none. Raises ValueError if a label is the
        blank, if the labels need more steps than there are, or if no path has a probability above 0.
    """
    log_probs, ids = np.asarray(log_probs, np.float64), np.asarray(ids, np.int64)
    if not len(ids):
        return []
    if (ids == blank).any():
        raise ValueError(f"label {int((ids == blank).argmax()) + 1} of {len(ids)} is the blank, {blank}")
    repeats = int((ids[1:] == ids[:-1]).sum())
    if len(ids) + repeats > len(log_probs):
        needed = f"{len(ids)} labels with {repeats} repeats need {len(ids) + repeats} steps"
        raise ValueError(f"{needed}; there are {len(log_probs)}")
    symbols = np.full(2 * len(ids) + 1, blank)
    symbols[1::2] = ids
    places, nothing = np.arange(len(symbols)), np.full(2, -np.inf)
    skips = symbols != np.append([blank, blank], symbols[:-2])  # a blank, or a label and the same again, cannot

    def enter(scores):
        before = np.concatenate([nothing, scores])
        near, far = before[1:-1], np.where(skips, before[:-2], -np.inf)
        return np.maximum(near, far), np.where(far > near, places - 2, places - 1)

    first = np.where(places < 2, 0.0, -np.inf)
    path = best_path(log_probs, enter, first, first[::-1], columns=symbols)
    return [(start, end) for place, start, end in segments(path) if place % 2]


def prefix_beam(log_probs, beam_size, language_model=None, weight=0.0, blank=0, prune=1e-5, bos=1, eos=2):
    """The most probable strings, each summed over all paths that spell it, as far as the beam reaches.

    Prefix beam search (Hannun et al. 2014, algorithm 1): a prefix keeps apart the log probability of its paths that end
    in a blank from that of those that end in its last label, since only after the former does the same label add a
    label. The language model joins by shallow fusion (Gulcehre et al. 2015, section 4.1):

        score(y) = log p(y | steps) + weight (sum over n of log q(y_n | y_1 .. y_{n-1}) + log q(eos | y))

    The beam_size best prefixes of every step are kept; with as many as there are strings the scores are exact, with
    fewer they are at most that. O(steps K (K + V)) time for K = beam_size, and O(steps K) memory.

    Args:
        log_probs: (steps, V) natural logs.
        language_model: None, or an object with start() -> state and step(states, ids) -> (log probabilities (n, V),
            n states), lists of n prefixes' states and of the ids read next, bos first of all; see `Stepped`. There is
            at most one call of it a step, for the prefixes that are new in the beam, and one at the end.
        weight: at least 0; with 0 the language model is not asked.
        prune: a symbol at most this probable begins no prefix at this step; it still prolongs those in the beam, or
            leads from one to the other. Where it leaves the blank alone, a step costs next to nothing. All strings
            together lose a probability of at most steps V prune by it; 0 loses nothing.
        eos: what ends a string for the language model; None: the string may go on.

    Returns:
        [(ids, a tuple; score)], best first, at most beam_size and fewer where no other string is possible.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size: {beam_size} must be at least 1")
    log_probs = np.asarray(log_probs, np.float64)
    kept = log_probs > (math.log(prune) if prune else -math.inf)
    kept[:, blank] = False
    prefixes = _Prefixes(bos)
    model = _Fusion(prefixes, language_model, weight)
    beam, said = np.zeros(1, np.int64), np.zeros(1)  # numbers of the prefixes; what the language model says of each
    last, parents = np.full(1, blank), np.full(1, -1)
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)
    child = parent = np.zeros(0, np.int64)  # where a prefix of the beam and the one it extends are
    for row, allowed in zip(log_probs, kept, strict=True):
        either = np.logaddexp(in_blank, in_label)
        new_label = in_label + row[last]
        arriving = np.where(last[child] == last[parent], in_blank[parent], either[parent]) + row[last[child]]
        new_label[child] = np.logaddexp(new_label[child], arriving)
        if not allowed.any():
            in_blank, in_label = either + row[blank], new_label
            continue
        symbols = np.flatnonzero(allowed)
        added = np.where(symbols == last[:, None], in_blank[:, None], either[:, None]) + row[symbols]
        known = allowed[last[child]]
        added[parent[known], np.searchsorted(symbols, last[child[known]])] = -np.inf  # `arriving` has counted them
        added_said = said[:, None] + model.following(beam, symbols)
        in_blank, in_label = either + row[blank], new_label

        scores = np.append(np.logaddexp(in_blank, in_label) + said, added + added_said)
        best = _best(scores, beam_size)
        stay, new = best[best < len(beam)], best[best >= len(beam)] - len(beam)
        origin, label = beam[new // len(symbols)], symbols[new % len(symbols)]
        numbers = [prefixes.extend(*pair) for pair in zip(origin.tolist(), label.tolist(), strict=True)]
        beam = np.append(beam[stay], np.array(numbers, np.int64))
        last, parents = np.append(last[stay], label), np.append(parents[stay], origin)
        said = np.append(said[stay], added_said.ravel()[new])
        in_blank = np.append(in_blank[stay], np.full(len(new), -np.inf))
        in_label = np.append(in_label[stay], added.ravel()[new])
        child, parent = np.nonzero(parents[:, None] == beam)

    scores = np.logaddexp(in_blank, in_label) + said
    if eos is not None:
        scores = scores + model.following(beam, [eos])[:, 0]
    return [(prefixes.ids(int(beam[place])), float(scores[place])) for place in _best(scores, beam_size)]


class Stepped:
    """A model of the search protocol as the language model of `prefix_beam`: the states of the prefixes are gathered
    into one batch, and one call of the step function serves them all.

    Make one for a model, not one for each utterance: it compiles the step function, once for one row and once for any
    number of rows.

    Args:
        state: nest of tensors with one row, what a text begins with: of `start_of_text(1)` for instance.
        step: `step(tokens (N,) int32, state) -> (log_probs (N, V), state)`.
    """

    def __init__(self, state, step):
        self._state = state
        self._step = tf.function(step, autograph=False, reduce_retracing=True)

    def start(self):
        """What nothing was read of yet. A state is a list of arrays, the tensors' rows."""
        return [np.asarray(part)[0] for part in tf.nest.flatten(self._state)]

    def step(self, states, ids):
        """Lists of n states and ids -> log probabilities (n, V) of what follows, n states."""
        gathered = [np.stack(rows) for rows in zip(*states, strict=True)]
        state = tf.nest.pack_sequence_as(self._state, gathered)
        log_probs, state = self._step(np.array(ids, np.int32), state)
        parts = [part.numpy() for part in tf.nest.flatten(state)]
        return log_probs.numpy(), [list(rows) for rows in zip(*parts, strict=True)]


class _Prefixes:
    """The prefixes that were ever in the beam, by number: 0 is the empty one. A number is for good, so that a prefix
    which left the beam is known again by those that extend it."""

    def __init__(self, bos):
        self.entries, self.numbers = [(-1, bos)], {}  # of each its parent's number and the id that was read last

    def extend(self, parent, label):
        """The number of the prefix which is this one and a label."""
        number = self.numbers.setdefault((parent, label), len(self.entries))
        if number == len(self.entries):
            self.entries.append((parent, label))
        return number

    def ids(self, number):
        """The labels of a prefix."""
        found = []
        while number:
            number, label = self.entries[number]
            found.append(label)
        return tuple(reversed(found))


class _Fusion:
    """What a language model says of the labels that may follow the prefixes of the beam; nothing if there is none."""

    def __init__(self, prefixes, language_model, weight):
        self.prefixes, self.weight = prefixes, weight
        self.language_model = language_model if weight else None
        if self.language_model:  # of the prefixes last asked for: weighted log probabilities (V,), state
            self.known = {-1: (None, language_model.start())}

    def following(self, beam, symbols):
        """Weighted log probabilities (prefixes of the beam, symbols), or (1, symbols) zeros."""
        if self.language_model is None or not len(beam):
            return np.zeros((1, len(symbols)))
        numbers = beam.tolist()
        self._ask([number for number in numbers if number not in self.known])
        self.known = {number: self.known[number] for number in numbers}
        return np.array([self.known[number][0][symbols] for number in numbers])

    def _ask(self, new):
        """Lets the language model read on in prefixes whose parents were in the beam when it was last asked."""
        if new:
            parents, ids = zip(*(self.prefixes.entries[number] for number in new), strict=True)
            log_probs, states = self.language_model.step([self.known[parent][1] for parent in parents], list(ids))
            rows = self.weight * np.asarray(log_probs, np.float64)
            self.known.update(zip(new, zip(rows, states, strict=True), strict=True))


def _best(scores, count):
    """Where the `count` largest scores above minus infinity are, best first, the lower index first among equals."""
    least = np.partition(scores, -count)[-count] if len(scores) > count else -np.inf
    places = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return places[np.argsort(-scores[places], kind="stable")][:count]

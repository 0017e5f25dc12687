"""A model and frames in; phones, their times and their probabilities out.

A recording is read as one row or, where it is long, in windows that overlap, of which the outer halves of the overlaps
are thrown away; rows are read side by side, sorted by length. What a head says at every step is then searched: for the
best path of phones through a bigram, for the best label string of CTC, or for the times of a string that is known.
Results come out in the order of the recordings, and those before a recording that cannot be had before its error.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import tensorflow as tf

from shared.config import UserError
from shared.decoding import alignment, ctc
from shared.evaluate import restore_language_model
from shared.text import BOS, EOS, PAD, UNK
from shared.text.vocabulary import BLANK
from tasks.speech.data import padded, utterances
from tasks.speech.features import frame_time, step_seconds

STEPS_HELD = 200_000  # of recordings, sorted by length together; their results come out together
STEPS_IN_BATCH = 32_000  # with padding, since what every layer says at every step is in memory
STEPS_BY_LABELS = 250_000_000  # of a recording and of what is said in it; an alignment needs 3 to 6 bytes for each


def decode(config, model, features, corpus, split, limit) -> list[dict]:
    """Recognises the first `limit` (0: all) utterances of a split.

    Returns:
        One dict per utterance in the split's order: id, name, text and phones as the corpus has them, what `recognise`
        says of it, and where the times of its phones are known `reference`, segments (phone, start, end) in seconds,
        of a model that writes phones `aligned`, the same segments where `align` puts them, and from the frames' head
        frames and correct: steps within a phone, and those of them that were given it.
    """
    rows = utterances(config, corpus, features, split, config.decoding.noise)
    count = min(limit or len(rows), len(rows))
    recordings = ((rows.frames(i), float(rows.seconds[i])) for i in range(count))
    predictions = []
    for i, (result, path, log_probs) in enumerate(recognise(config, model, features, recordings)):
        known = {"id": i, "name": rows.names[i], "text": rows.texts[i], "phones": rows.phone_strings[i]}
        if reference := rows.segments(i):
            known["reference"] = reference
            if path is not None:
                truth = rows.frame_phones(i)
                known |= {"frames": int(np.sum(truth > 0)), "correct": int(np.sum((truth == path) & (truth > 0)))}
            if vocabulary_of(config, features) is features.phones:
                with contextlib.suppress(UserError):  # phones unknown, or too many for so few steps
                    found = _aligned(config, features, rows.phone_strings[i], log_probs, result["seconds"])
                    known["aligned"] = found["segments"]
        predictions.append({**known, **result})
    return predictions


def recognise(config, model, features, recordings: Iterable[tuple]) -> Iterator[tuple[dict, np.ndarray | None, ...]]:
    """What was said, as the search that `decoding` names finds it.

    Args:
        recordings: (frames (steps, columns) as the model reads them, seconds).

    Yields:
        {"seconds", "output": phones with blanks between them, or text, "segments": [[phone or character, start, end,
        probability], ...] in seconds}; of the frames' head the phone at every step, (steps,) ids, else None; and what
        `log_posteriors` says.
    """
    head = head_of(config)
    search = _search_frames if head == "frames" else _search_ctc
    for some in _held(recordings):
        found = log_posteriors(config, model, head, [frames for frames, _ in some])
        for (_, seconds), log_probs in zip(some, found, strict=True):
            spans, path = search(config, features, log_probs)
            output = vocabulary_of(config, features).decode(index for index, _, _ in spans)
            yield _result(config, features, output, spans, log_probs, seconds), path, log_probs


def head_of(config) -> str:
    """The head that is decoded."""
    return config.decoding.head or ("ctc" if config.model.head == "ctc" else "frames")


def vocabulary_of(config, features):
    """What the head that is decoded writes."""
    return features.phones if head_of(config) == "frames" else features.labels


def names_of(vocabulary) -> list[str]:
    """What its entries stand for: phones, or characters with "▁" for the blank."""
    mark = BLANK if vocabulary.unit == "whitespace" else ""  # before each phone, as it is a word of its own
    return [token.removeprefix(mark) for token in vocabulary.tokens()]


def _held(recordings: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Recordings (frames, ...) in lists of about `STEPS_HELD` steps."""
    some, steps = [], 0
    try:
        for recording in recordings:
            some.append(recording)
            steps += len(recording[0])
            if steps >= STEPS_HELD:
                yield some
                some, steps = [], 0
    except UserError:
        if some:
            yield some
        raise
    if some:
        yield some


# ------------------------------------------------------------------------------------------------------- probabilities


def log_posteriors(config, model, head, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Natural logarithms (steps, entries), float32, of what a head says at every step of every row (steps, columns)."""
    window, overlap = _window(config)
    pieces = [
        (number, start, row[start : start + window])
        for number, row in enumerate(rows)
        for start in range(0, max(1, len(row) - overlap), window - overlap)
    ]
    found = _read(_graph(model, head), [piece for _, _, piece in pieces], config.decoding.batch_size)
    whole = [np.empty((len(row), found[0].shape[1]), np.float32) for row in rows]
    for (number, start, _), log_probs in zip(pieces, found, strict=True):
        first = overlap // 2 if start else 0  # what is before was read with more context by the window before
        whole[number][start + first : start + len(log_probs)] = log_probs[first:]
    return whole


def _window(config) -> tuple[int, int]:
    """Steps of a window, and of the overlap of two."""
    step, decoding = step_seconds(config.features), config.decoding
    return max(1, int(decoding.window_seconds / step)), int(decoding.overlap_seconds / step)


def _read(graph, pieces, batch_size) -> list[np.ndarray]:
    """The graph's results for pieces of any length, in their order."""
    found = [np.empty(0)] * len(pieces)
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i]))
    while order:
        count = max(1, min(batch_size, STEPS_IN_BATCH // max(1, len(pieces[order[0]]))))
        some, order = order[:count], order[count:]
        batch, lengths = padded([pieces[i] for i in some], np.float32)
        for i, length, log_probs in zip(some, lengths, graph(batch, lengths).numpy(), strict=True):
            found[i] = log_probs[:length]
    return found


@functools.lru_cache(maxsize=4)
def _graph(model, head):
    """Compiled: features (batch, steps, columns), lengths (batch,) -> log probabilities (batch, steps, entries).

    What neither head is trained to say, <bos>, <eos> and <unk>, has the probability 0, and so has the blank of frames.
    """

    @tf.function(autograph=False, reduce_retracing=True)
    def read(features, lengths):
        logits = model.logits(features, lengths)[head]
        entries = tf.range(tf.shape(logits)[-1])
        special = (entries <= UNK) & ((entries != PAD) | (head == "frames"))
        return tf.nn.log_softmax(tf.where(special, -np.inf, logits))

    return read


# -------------------------------------------------------------------------------------------------------------- search


def _search_frames(config, features, log_probs):
    decoding = config.decoding
    weight = decoding.transition_weight if decoding.path == "viterbi" else 0.0
    bigram = weight * features.bigram
    path = alignment.viterbi(log_probs, bigram, bigram[BOS], bigram[:, EOS], decoding.min_frames)
    return alignment.segments(path), path


def _search_ctc(config, features, log_probs):
    decoding = config.decoding
    if decoding.method == "greedy":
        return [(index, *span) for index, span in zip(*ctc.greedy(log_probs), strict=True)], None
    found, listener = [], _language_model(config, features)
    for first, last in pairwise(_cuts(config, log_probs)):
        part = log_probs[first:last]
        ids = ctc.prefix_beam(part, decoding.beam_size, listener, decoding.language_model_weight)[0][0]
        spans = ctc.align(part, ids)
        found += [(index, first + start, first + end) for index, (start, end) in zip(ids, spans, strict=True)]
    return found, None


def _cuts(config, log_probs) -> list[int]:
    """Steps between which a recording is searched, windows at most, so that memory does not grow with their square.

    Each is where in the last overlap of a window nothing is said most probably: of strings whose paths all have a
    blank there, the parts before and after it can be searched alone.
    """
    window, overlap = _window(config)
    cuts = [0]
    while len(log_probs) - cuts[-1] > window:
        begin = cuts[-1] + window - max(1, overlap)
        cuts.append(begin + 1 + int(np.argmax(log_probs[begin : begin + max(1, overlap), PAD])))
    return [*cuts, len(log_probs)]


def _language_model(config, features):
    """The language model that is mixed into the beam, behind the protocol of `ctc.prefix_beam`; None without one."""
    if not config.decoding.language_model:
        return None
    context = restore_language_model(config.decoding.language_model, features.labels.digest())
    return _stepped(context.model)


@functools.lru_cache(maxsize=1)
def _stepped(model):
    return ctc.Stepped(*model.start_of_text(1))


def align(config, model, features, recordings: Iterable[tuple]) -> Iterator[dict]:
    """When each phone (or character, of a model that writes those) of a known string was said.

    Args:
        recordings: (frames, seconds) as `recognise` has them, the string, and what errors are to call it.

    Yields:
        For each recording what `recognise` gives, one segment for each label, from its beginning to its end.
        UserError for a string with labels that the model does not know, or too many of them.
    """
    for some in _held(recordings):
        found = log_posteriors(config, model, head_of(config), [frames for frames, *_ in some])
        for (_, seconds, string, name), log_probs in zip(some, found, strict=True):
            try:
                result = _aligned(config, features, string, log_probs, seconds)
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
            yield result


def _aligned(config, features, string, log_probs, seconds) -> dict:
    vocabulary = vocabulary_of(config, features)
    (ids,) = vocabulary.encode([string])
    if not ids or UNK in ids:
        unknown = [piece for index, _, piece in vocabulary.pieces(string) if index == UNK]
        raise UserError(f"the model does not know {' '.join(unknown)}" if ids else "is empty")
    if len(ids) * len(log_probs) > STEPS_BY_LABELS:
        long = f"{seconds:.0f} s with {len(ids)} labels are too long to be aligned at once"
        raise UserError(f"{long}; cut the recording into parts")
    search = alignment.align if head_of(config) == "frames" else ctc.align
    try:
        spans = search(log_probs, ids)
    except ValueError as error:
        raise UserError(str(error)) from error
    # Where there are gaps, which CTC fills with blanks, a boundary is put in the middle of each.
    edges = [0, *((last + first) // 2 for (_, last), (first, _) in pairwise(spans)), len(log_probs)]
    timed = [(index, first, last) for index, (first, last) in zip(ids, pairwise(edges), strict=True)]
    return _result(config, features, string, timed, log_probs, seconds)


def _result(config, features, output, spans, log_probs, seconds) -> dict:
    """Spans (id, first step, last + 1) as segments [name, start, end, mean probability]."""
    # A step stands for what is nearer to its middle than to its neighbours'; the first and last reach to the ends.
    edges, seconds = frame_time(np.arange(len(log_probs) + 1) - 0.5, config.features), round(seconds, 4)
    edges[0], edges[-1] = 0.0, seconds
    edges = np.minimum(np.round(edges, 4), seconds).tolist()
    names = names_of(vocabulary_of(config, features))
    segments = [
        [names[index], edges[first], edges[last], round(float(np.exp(log_probs[first:last, index]).mean()), 4)]
        for index, first, last in spans
    ]
    return {"seconds": seconds, "output": output, "segments": segments}

"""The recogniser's search: windows, batches and order change nothing, times are right, known strings are found."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from shared.config import UserError
from shared.text import BOS, EOS, UNK, Vocabulary
from tasks.speech import decode
from tasks.speech.config import DecodingConfig, FeaturesConfig, ModelConfig, SpeechConfig
from tasks.speech.data import frame_phones
from tasks.speech.decode import align, log_posteriors, recognise
from tasks.speech.features import Features, compute, frame_time, num_steps

PHONES = ["sil", "a", "b", "c", "d"]
WORDS = Vocabulary.train([" ".join(PHONES)], "whitespace", 0)
LETTERS = Vocabulary.train(["abc ba cab"], "character", 0)
IDS = {name: WORDS.encode([name])[0][0] for name in PHONES}
SIZE = len(WORDS)
FRAMES, CTC = {"head": "frames"}, {"head": "ctc"}


class Hearing:
    """A model that says what the frames say, each summed with those up to `reach` steps to either side of it."""

    def __init__(self, reach=0):
        self.reach = reach

    def logits(self, features, lengths):
        inside = tf.sequence_mask(lengths, tf.shape(features)[1], tf.float32)[..., None]
        wide = tf.pad(features * inside, [[0, 0], [self.reach, self.reach], [0, 0]])
        scores = tf.add_n([wide[:, i : i + tf.shape(features)[1]] for i in range(2 * self.reach + 1)])
        return {"frames": scores, "ctc": scores}


HEARING = Hearing()


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def configured(model=FRAMES, settings=None, **decoding):
    decoding = {"path": "best", "min_frames": 1, "method": "greedy"} | decoding
    return SpeechConfig(
        features=settings or FeaturesConfig(), model=ModelConfig(**model), decoding=DecodingConfig(**decoding)
    )


def features_of(bigram=None, labels=WORDS):
    flat = np.full((SIZE, SIZE), -np.log(SIZE), np.float32)
    return Features(WORDS, labels, np.zeros(1), np.ones(1), {}, flat if bigram is None else bigram, 1)


def noise(rng, steps, strength=3.0):
    """Frames that say phones at random."""
    return (strength * rng.normal(size=(steps, SIZE))).astype(np.float32)


def saying(ids, strength=20.0):
    """Frames (steps, entries) that leave no doubt."""
    return strength * np.eye(SIZE, dtype=np.float32)[np.asarray(ids)]


def with_seconds(rows, settings=None):
    """Rows as recordings that are as long as their frames."""
    return [(row, float(frame_time(len(row), settings or FeaturesConfig()))) for row in rows]


def results(config, rows, features=None):
    return [result for result, *_ in recognise(config, HEARING, features or features_of(), rows)]


# ------------------------------------------------------------------------------------------- windows, batches and order


def test_windows_hear_what_one_window_hears_if_they_overlap_enough(rng):
    rows = [noise(rng, steps) for steps in (1, 7, 8, 9, 20, 21, 32, 33, 100, 117)]
    config = configured(window_seconds=0.2, overlap_seconds=0.08)
    for reach in (4, 5):
        model = Hearing(reach)
        whole, windows = (log_posteriors(each, model, "frames", rows) for each in (configured(), config))
        for row, one, many in zip(rows, whole, windows, strict=True):
            assert one.shape == many.shape == row.shape and many.dtype == np.float32
            np.testing.assert_allclose(np.exp(many).sum(axis=1), 1, atol=1e-5)
            assert np.allclose(one, many, atol=1e-5) == (reach == 4 or len(row) <= 20)


@pytest.mark.parametrize("decoding", [{"window_seconds": 0.001, "overlap_seconds": 0.0}, {"overlap_seconds": 0.0}])
def test_windows_need_not_overlap(rng, decoding):
    row = noise(rng, 6010)
    (whole,) = log_posteriors(configured(window_seconds=100.0), HEARING, "frames", [row])
    (windows,) = log_posteriors(configured(**decoding), HEARING, "frames", [row])
    np.testing.assert_allclose(windows, whole, atol=1e-5)


@pytest.mark.parametrize("model", [FRAMES, CTC])
def test_recordings_keep_their_order_and_do_not_depend_on_each_other(rng, model, monkeypatch):
    rows = with_seconds([noise(rng, steps) for steps in (30, 1, 200, 7, 7, 90, 2, 41)])
    alone = [results(configured(model), [row])[0] for row in rows]
    assert len({result["output"] for result in alone}) > 4
    for held, batch_size in ((10**6, 64), (10**6, 1), (60, 3), (1, 64)):
        monkeypatch.setattr(decode, "STEPS_HELD", held)
        for result, expected in zip(results(configured(model, batch_size=batch_size), rows), alone, strict=True):
            assert (result["output"], result["seconds"]) == (expected["output"], expected["seconds"])
            times, expected_times = ([segment[:3] for segment in each["segments"]] for each in (result, expected))
            assert times == expected_times


def test_a_batch_holds_no_more_steps_than_memory_may(rng, monkeypatch):
    shapes, graph = [], decode._graph(HEARING, "frames")

    def noted(features, lengths):
        shapes.append(features.shape[:2])
        return graph(features, lengths)

    monkeypatch.setattr(decode, "_graph", lambda model, head: noted)
    monkeypatch.setattr(decode, "STEPS_IN_BATCH", 320)
    lengths = [5, 32, 100, 7, 300, 64, 400, 30]
    found = log_posteriors(configured(batch_size=3), HEARING, "frames", [noise(rng, steps) for steps in lengths])
    assert [len(each) for each in found] == lengths
    assert all(rows == 1 or rows * steps <= 1.3 * 320 for rows, steps in shapes)  # lengths are rounded up
    assert shapes[0][0] == shapes[1][0] == 1 and max(rows for rows, _ in shapes) == 3


@pytest.mark.parametrize("held", [10**6, 8])
def test_what_comes_before_a_recording_that_cannot_be_had_comes_out(rng, held, monkeypatch):
    monkeypatch.setattr(decode, "STEPS_HELD", held)

    def recordings(*more):
        for _ in range(3):
            yield (noise(rng, 5), 0.05, *more)
        raise UserError("three.wav: no such file")

    strings = [recognise(configured(), HEARING, features_of(), recordings())]
    strings.append(align(configured(), HEARING, features_of(), recordings("a b", "some.wav")))
    for found in strings:
        had = []
        with pytest.raises(UserError, match="three"):
            had.extend([next(found), next(found), next(found)])
            next(found)
        assert len(had) == 3


# ---------------------------------------------------------------------------------------------------------------- times


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 560, 719, 720, 3000, 16000])
@pytest.mark.parametrize(("stack", "subsample", "hop"), [(1, 1, 10.0), (3, 3, 10.0), (8, 3, 10.0), (1, 2, 25.0)])
def test_segments_touch_and_reach_from_the_beginning_to_the_end(rng, samples, stack, subsample, hop):
    settings = FeaturesConfig(stack=stack, subsample=subsample, hop=hop)
    steps = num_steps(len(compute(np.zeros(samples), 16000, settings)), settings)
    config = configured(settings=settings)
    (result,) = results(config, [(noise(rng, steps), samples / 16000)])
    starts, ends = ([segment[side] for segment in result["segments"]] for side in (1, 2))
    assert starts[0] == 0 and ends[-1] == result["seconds"] == round(samples / 16000, 4)
    assert starts[1:] == ends[:-1]
    assert all(start <= end for start, end in zip(starts, ends, strict=True))
    assert result["output"] == " ".join(segment[0] for segment in result["segments"])
    assert all(0 < segment[3] <= 1 for segment in result["segments"])


@pytest.mark.parametrize(("stack", "subsample"), [(1, 1), (3, 3), (3, 1)])
def test_a_model_that_knows_the_phone_of_every_step_knows_every_boundary(rng, stack, subsample):
    settings = FeaturesConfig(stack=stack, subsample=subsample)
    edges = np.cumsum(rng.uniform(0.1, 0.3, size=30))
    edges = np.concatenate([[0.0], edges])
    ids = [IDS[PHONES[i % 4]] for i in range(30)]
    steps = num_steps(1 + int((edges[-1] - 0.025) / 0.01), settings)
    truth = frame_phones(ids, edges[:-1], edges[1:], steps, settings)
    (result,) = results(configured(settings=settings), [(saying(truth), edges[-1])])
    assert result["output"].split() == [PHONES[i % 4] for i in range(30)]
    errors = np.abs(np.array([segment[1] for segment in result["segments"]]) - edges[:-1])
    assert errors.max() <= 0.005 * subsample + 1e-4


def test_a_probability_is_the_mean_over_the_segment():
    row = np.full((3, SIZE), -30, np.float32)
    row[:, IDS["a"]], row[2, IDS["b"]] = 0, np.log(4)
    (result,) = results(configured(), [(row, 0.05)])
    assert [segment[3] for segment in result["segments"]] == [1.0, 0.8]


# --------------------------------------------------------------------------------------------------------------- frames


def test_through_a_bigram_of_no_weight_the_path_is_the_best_one(rng):
    bigram = np.log(rng.dirichlet(np.ones(SIZE), size=SIZE)).astype(np.float32)
    rows = with_seconds([noise(rng, 40) for _ in range(5)])
    for min_frames in (1, 3):
        paths = {}
        for path, weight in (("best", 1.0), ("viterbi", 0.0), ("viterbi", 3.0)):
            config = configured(path=path, min_frames=min_frames, transition_weight=weight)
            paths[path, weight] = results(config, rows, features=features_of(bigram))
        assert paths["best", 1.0] == paths["viterbi", 0.0] != paths["viterbi", 3.0]
    logits = rows[0][0].copy()
    logits[:, : UNK + 1] = -np.inf
    (_, path, log_probs), *_ = recognise(configured(), HEARING, features_of(bigram), rows)
    assert path.tolist() == np.argmax(logits, axis=1).tolist() and log_probs.shape == logits.shape


def test_the_bigram_forbids_what_never_follows():
    bigram = np.full((SIZE, SIZE), -2.0, np.float32)
    bigram[IDS["a"], IDS["b"]] = bigram[BOS, IDS["b"]] = bigram[IDS["d"], EOS] = -1000.0
    said = [IDS[name] for name in "baabbd" for _ in range(4)]
    row = saying(said, strength=4.0)
    strings = {}
    for path in ("best", "viterbi"):
        (result,) = results(configured(path=path, min_frames=2), [(row, 0.25)], features=features_of(bigram))
        strings[path] = result["output"].split()
    assert strings["best"] == ["b", "a", "b", "d"]
    pairs = list(zip(strings["viterbi"], strings["viterbi"][1:], strict=False))
    assert ("a", "b") not in pairs and strings["viterbi"][0] != "b" and strings["viterbi"][-1] != "d"


@pytest.mark.parametrize("path", ["best", "viterbi"])
@pytest.mark.parametrize("min_frames", [1, 2, 5])
def test_no_segment_is_shorter_than_it_may_be(rng, path, min_frames):
    config = configured(path=path, min_frames=min_frames)
    rows = [noise(rng, steps) for steps in (60, 9, 5, 4, 1)]
    for row, (_, found, _) in zip(rows, recognise(config, HEARING, features_of(), with_seconds(rows)), strict=True):
        runs = np.diff(np.flatnonzero(np.diff(found, prepend=-1, append=-1)))
        assert len(found) == len(row) and min(runs) >= min(min_frames, len(row))


@pytest.mark.parametrize(("model", "method"), [(FRAMES, "beam"), (CTC, "greedy"), (CTC, "beam")])
def test_special_entries_are_never_heard(rng, model, method):
    row = noise(rng, 50)
    row[:, BOS : UNK + 1] += 20
    (result,) = results(configured(model, method=method), [(row, 0.5)])
    assert result["output"] and set(result["output"].split()) <= set(PHONES)


# ------------------------------------------------------------------------------------------------------------------ CTC


@pytest.mark.parametrize("method", ["greedy", "beam"])
def test_ctc_merges_what_is_equal_and_drops_what_is_blank(method):
    said = [0, IDS["a"], IDS["a"], 0, IDS["a"], IDS["b"], 0, 0, IDS["b"], IDS["sil"]]
    (result,) = results(configured(CTC, method=method), [(saying(said), 0.12)])
    assert result["output"] == "a a b b sil"
    assert [segment[0] for segment in result["segments"]] == result["output"].split()
    edges = frame_time(np.arange(11) - 0.5, FeaturesConfig())
    for (first, last), (_, start, end, probability) in zip(
        [(1, 3), (4, 5), (5, 6), (8, 9)], result["segments"], strict=False
    ):
        assert (start, end) == (pytest.approx(edges[first], abs=1e-4), pytest.approx(edges[last], abs=1e-4))
        assert probability > 0.99
    assert result["segments"][-1][2] == 0.12


def test_a_beam_sums_what_the_best_path_leaves_apart():
    row = np.full((2, SIZE), -30.0, np.float32)
    row[:, 0], row[:, IDS["a"]] = np.log(0.6), np.log(0.4)  # 0.36 says nothing, 0.64 says a
    outputs = [results(configured(CTC, method=method), [(row, 0.03)])[0]["output"] for method in ("greedy", "beam")]
    assert outputs == ["", "a"]


def test_characters_come_out_as_text():
    config = configured({"head": "ctc", "labels": "characters"})
    ids = LETTERS.encode(["cab ba"])[0]
    row = 20 * np.eye(len(LETTERS), dtype=np.float32)[[label for index in ids for label in (index, 0)]]
    (result,) = results(config, [(row, 0.2)], features=features_of(labels=LETTERS))
    assert result["output"] == "cab ba"
    assert [segment[0] for segment in result["segments"]] == list("▁cab▁ba")


@pytest.mark.parametrize("overlap", [0.0, 0.1])
def test_a_long_recording_is_searched_in_parts_that_meet_where_nothing_is_said(rng, overlap, monkeypatch):
    said = [label for index in rng.integers(UNK + 1, SIZE, size=80) for label in (index, index, 0, 0)]
    row = saying(said, strength=4.0) + noise(rng, len(said), strength=0.3)
    sizes, beam = [], decode.ctc.prefix_beam
    monkeypatch.setattr(
        decode.ctc, "prefix_beam", lambda part, *options: sizes.append(len(part)) or beam(part, *options)
    )
    (whole,) = results(configured(CTC, method="beam"), [(row, 3.2)])
    config = configured(CTC, method="beam", window_seconds=0.4, overlap_seconds=overlap)
    (parts,) = results(config, [(row, 3.2)])
    assert sizes[0] == sum(sizes[1:]) == 320 and max(sizes[1:]) <= 40 and len(sizes) > 8
    if overlap:
        assert parts == whole and len(whole["segments"]) == 80
    else:
        assert [segment[1] for segment in parts["segments"]] == sorted(segment[1] for segment in parts["segments"])


# ------------------------------------------------------------------------------------------------------------ alignment


def aligned(config, row, string, seconds=None, features=None):
    recording = (row, seconds or float(frame_time(len(row), config.features)), string, "some.wav")
    (result,) = align(config, HEARING, features or features_of(), [recording])
    return result


def test_the_best_path_is_where_its_own_phones_are_found(rng):
    config = configured()
    for steps in (1, 2, 30, 80):
        row = noise(rng, steps)
        (heard,) = results(config, with_seconds([row]))
        assert aligned(config, row, heard["output"]) == heard


@pytest.mark.parametrize("model", [FRAMES, CTC])
def test_a_known_string_fills_the_recording_in_its_order(rng, model):
    config = configured(model)
    string = "sil a b b a sil"
    result = aligned(config, noise(rng, 30), string, seconds=0.33)
    assert result["output"] == string and [segment[0] for segment in result["segments"]] == string.split()
    starts, ends = ([segment[side] for segment in result["segments"]] for side in (1, 2))
    assert starts[0] == 0 and ends[-1] == 0.33 and starts[1:] == ends[:-1] and starts == sorted(set(starts))


def test_between_labels_of_ctc_the_boundary_is_in_the_middle_of_the_blanks():
    said = [0, 0, IDS["a"], 0, 0, 0, 0, IDS["b"], 0]
    result = aligned(configured(CTC), saying(said), "a b")
    assert result["segments"][0][2] == pytest.approx(frame_time(5 - 0.5, FeaturesConfig()), abs=1e-4)


def test_characters_are_aligned_with_the_blanks_between_words():
    config = configured({"head": "ctc", "labels": "characters"})
    row = np.zeros((40, len(LETTERS)), np.float32)
    result = aligned(config, row, "cab  ba", features=features_of(labels=LETTERS))
    assert [segment[0] for segment in result["segments"]] == list("▁cab▁ba") and result["output"] == "cab  ba"


@pytest.mark.parametrize("model", [FRAMES, CTC])
@pytest.mark.parametrize(
    ("string", "said"),
    [
        ("a zh b q", "does not know zh q"),
        ("<pad> a", "does not know <pad>"),
        ("", "is empty"),
        (" \t", "is empty"),
        ("a b a b a b a b a b a", "steps"),
        ("a " * 400, "too long to be aligned at once"),
    ],
)
def test_a_string_that_cannot_have_been_said_is_refused(rng, monkeypatch, model, string, said):
    monkeypatch.setattr(decode, "STEPS_BY_LABELS", 1000)
    with pytest.raises(UserError) as caught:
        aligned(configured(model), noise(rng, 10), string)
    message = str(caught.value)
    assert message.startswith("some.wav: ") and said in message and "\n" not in message and len(message) < 150


def test_strings_before_one_that_is_refused_are_aligned(rng):
    rows = [(noise(rng, 10), 0.12, string, f"{string}.wav") for string in ("a", "b c", "x", "c")]
    found = align(configured(), HEARING, features_of(), rows)
    assert [next(found)["output"], next(found)["output"]] == ["a", "b c"]
    with pytest.raises(UserError, match=r"x\.wav"):
        next(found)


# -------------------------------------------------------------------------------------------------------------- a split


class Rows(SimpleNamespace):
    def __len__(self):
        return len(self.names)


def test_a_split_is_recognised_with_its_truth_beside_it(monkeypatch):
    truth = [IDS[name] for name in ("sil", "sil", "a", "a", "b", "b")]
    frames = [saying(truth), saying([*truth[:4], IDS["c"], IDS["c"]]), saying(truth)]
    segments = [("sil", 0.0, 0.03), ("a", 0.03, 0.05), ("b", 0.05, 0.08)]
    rows = Rows(
        names=["one", "two", "three"], texts=["", "x", ""], phone_strings=["sil a b"] * 2 + [""],
        seconds=np.array([0.08, 0.08, 0.08]), frames=frames.__getitem__,
        segments=[segments, segments, []].__getitem__, frame_phones=lambda i: np.array([0, *truth[1:]]),
    )  # fmt: skip
    asked = []
    monkeypatch.setattr(decode, "utterances", lambda *arguments: asked.append(arguments) or rows)
    config = configured(noise=[10.0])
    for limit, count in ((0, 3), (2, 2), (9, 3)):
        found = decode.decode(config, HEARING, features_of(), "corpus", "valid", limit)
        assert [(one["id"], one["name"]) for one in found] == list(enumerate(rows.names))[:count]
    assert asked[0][1] == "corpus" and asked[0][3:] == ("valid", [10.0])
    assert [(one.get("frames"), one.get("correct")) for one in found] == [(5, 5), (5, 3), (None, None)]
    assert "reference" not in found[2] and found[0]["reference"] == segments
    assert [one["output"] for one in found] == ["sil a b", "sil a c", "sil a b"]
    phones = [[segment[0] for segment in one["aligned"]] for one in found[:2]]
    assert phones == [["sil", "a", "b"]] * 2 and "aligned" not in found[2]  # whose phones nobody knows
    assert [segment[1:3] for segment in found[0]["aligned"]] == [segment[1:3] for segment in found[0]["segments"]]
    config = configured({"head": "both"}, head="ctc")
    found = decode.decode(config, HEARING, features_of(), "corpus", "valid", 0)
    assert "reference" in found[0] and "frames" not in found[0]

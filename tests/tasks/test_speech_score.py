"""Scores of speech: by hand on small cases, folding included; a perfect recogniser makes no error."""

import pytest

from shared.config import UserError
from tasks.speech.config import DecodingConfig, ModelConfig, SpeechConfig
from tasks.speech.score import TIMIT_39, boundary_scores, folded, matches, read_folding, score

CONFIG = SpeechConfig()
KEPT = "aa ae ah aw ay b ch d dh dx eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z"
REFERENCE = [["sil", 0.0, 0.1], ["aa", 0.1, 0.3], ["t", 0.3, 0.4]]


def prediction(output, **known):
    return {"text": "", "phones": "sil aa t", "output": output, "segments": [], **known}


def test_a_perfect_recogniser_makes_no_error():
    perfect = prediction("sil aa t", reference=REFERENCE, segments=REFERENCE, frames=40, correct=40)
    scores = score([perfect] * 2, CONFIG)
    assert scores["frame_accuracy"] == scores["boundary_f1"] == 100
    assert scores["phone_error_rate"] == scores["sentence_error_rate"] == 0


def test_boundaries_of_known_phones_are_compared_one_by_one():
    moved = [["sil", 0.0, 0.12], ["aa", 0.12, 0.33], ["t", 0.33, 0.4]]  # by 20 and 30 ms
    known = {"reference": REFERENCE, "segments": REFERENCE}
    predictions = [prediction("sil aa t", aligned=moved, **known), prediction("sil aa t", **known)]
    assert score(predictions, CONFIG)["aligned_within_20_ms"] == 50
    assert "aligned_within_20_ms" not in score(predictions[1:], CONFIG)


def test_edits_are_counted_per_phone_said():
    predictions = [prediction("sil aa"), prediction("sil aa d t"), prediction("sil ih t"), prediction("sil aa t")]
    scores = score(predictions, CONFIG)
    assert scores["phone_error_rate"] == pytest.approx(100 * 3 / 12) and scores["sentence_error_rate"] == 75


def test_nothing_is_scored_whose_truth_is_unknown():
    assert score([prediction("sil", phones="")], CONFIG) == {}
    assert "frame_accuracy" not in score([prediction("sil")], CONFIG)


def test_utterances_count_by_their_frames():
    predictions = [prediction("sil", frames=10, correct=10), prediction("sil", frames=30, correct=0)]
    assert score(predictions, CONFIG)["frame_accuracy"] == 25


def test_characters_are_scored_as_characters_and_words():
    config = SpeechConfig(model=ModelConfig(head="ctc", labels="characters"))
    scores = score([{"text": "one two", "phones": "", "output": "one tw", "segments": []}], config)
    assert scores["character_error_rate"] == pytest.approx(100 / 7) and scores["word_error_rate"] == 50


def test_timit_has_39_phones():
    kept = set(KEPT.split())
    assert len(kept | {"sil"}) == 39
    assert set(TIMIT_39.values()) <= kept | {"sil", ""} and not set(TIMIT_39) & kept
    assert len(kept) + len(TIMIT_39) == 61


def test_folding_drops_what_counts_as_none_and_joins_silences_alone():
    said = "h# pau bcl b q ix ih tcl t t h#"
    assert folded(said.split(), TIMIT_39) == ["sil", "b", "ih", "ih", "sil", "t", "t", "sil"]
    config = SpeechConfig(decoding=DecodingConfig(fold="timit39"))
    assert score([prediction("h# ao t", phones="pau aa t")], config)["phone_error_rate"] == 0


def test_a_folding_file_is_read(tmp_path):
    path = tmp_path / "fold.tsv"
    path.write_text("ix\tih\nq\t\n\n", encoding="utf-8")
    assert read_folding(str(path)) == {"ix": "ih", "q": ""}
    path.write_text("ix\tih\nax ah\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2"):
        read_folding(str(path))


@pytest.mark.parametrize(
    ("true", "found", "hits"),
    [
        ([], [0.1], 0),
        ([0.1], [0.12], 1),
        ([0.1], [0.1201], 0),
        ([0.1, 0.11], [0.105], 1),
        ([0.1, 0.13], [0.115, 0.14], 2),
    ],
)
def test_a_boundary_is_matched_once_within_20_milliseconds(true, found, hits):
    assert matches(true, found) == matches(found, true) == hits


def test_boundaries_of_all_utterances_count_together():
    scores = boundary_scores([([0.1, 0.2], [0.1]), ([0.5], [0.5, 0.7, 0.9])])
    assert scores["boundary_precision"] == 50 and scores["boundary_recall"] == pytest.approx(200 / 3)
    assert scores["boundary_f1"] == pytest.approx(2 / (1 / 50 + 3 / 200), rel=1e-6)

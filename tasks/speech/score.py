"""How good what was heard is: predictions flow in, rates in per cent flow out."""

from pathlib import Path

import jiwer

from shared.config import UserError
from tasks.speech.config import SpeechConfig

TOLERANCE = 0.020  # seconds that a boundary may be off
SILENCE = "sil"

# The 61 phones of TIMIT that are not among the 39 of Lee & Hon 1989, table II, and what each counts as; "" for none.
TIMIT_39 = {
    **dict.fromkeys(("bcl", "pcl", "dcl", "tcl", "gcl", "kcl", "h#", "pau", "epi"), "sil"),
    **{"ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "el": "l", "em": "m"},
    **{"en": "n", "nx": "n", "eng": "ng", "zh": "sh", "ux": "uw", "q": ""},
}


def score(predictions: list[dict], config: SpeechConfig) -> dict[str, float | str]:
    """Rates over all utterances that `decode.decode` has recognised and whose truth is known.

    Returns
      frame_accuracy: share of steps within a phone that were given it, phones being told apart as the model does;
      phone_error_rate: edits that turn the phones heard into those said, per phone said, folded by `decoding.fold`;
      boundary_precision, boundary_recall, boundary_f1: boundaries between phones within 20 ms of each other;
      aligned_within_20_ms: boundaries that `align` puts so near to the truth, the phones being known;
      character_error_rate, word_error_rate: the same edits of characters and words, where the model writes those;
      sentence_error_rate: share of utterances in which anything is wrong.
    """
    scores = {}
    if frames := sum(prediction.get("frames", 0) for prediction in predictions):
        scores["frame_accuracy"] = 100 * sum(prediction.get("correct", 0) for prediction in predictions) / frames
    if config.writes_characters:
        pairs = [(prediction["text"], prediction["output"]) for prediction in predictions if prediction["text"].strip()]
        if pairs:
            said, heard = map(list, zip(*pairs, strict=True))
            scores["character_error_rate"] = 100 * jiwer.cer(said, heard)
            scores["word_error_rate"] = 100 * jiwer.wer(said, heard)
    else:
        folding = read_folding(config.decoding.fold)
        pairs = [
            (folded(prediction["phones"].split(), folding), folded(prediction["output"].split(), folding))
            for prediction in predictions
        ]
        pairs = [(" ".join(said), " ".join(heard)) for said, heard in pairs if said]
        if pairs:
            scores["phone_error_rate"] = 100 * jiwer.wer(*map(list, zip(*pairs, strict=True)))
    if pairs:
        scores["sentence_error_rate"] = 100 * sum(said != heard for said, heard in pairs) / len(pairs)
    timed = [prediction for prediction in predictions if "reference" in prediction]
    if timed and not config.writes_characters:
        scores |= boundary_scores([(boundaries(p["reference"]), boundaries(p["segments"])) for p in timed])
    aligned = [zip(boundaries(p["reference"]), boundaries(p["aligned"]), strict=True) for p in timed if "aligned" in p]
    if near := [abs(true - found) <= TOLERANCE + 1e-9 for pairs in aligned for true, found in pairs]:
        scores["aligned_within_20_ms"] = 100 * sum(near) / len(near)
    return scores


def read_folding(name: str) -> dict[str, str]:
    """Phone -> what it counts as. UserError naming the line of the file that is not `phone TAB folded phone`."""
    if name in ("", "timit39"):
        return TIMIT_39 if name else {}
    folding = {}
    for number, line in enumerate(Path(name).read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            phone, tab, other = line.partition("\t")
            if not tab or not phone.strip() or " " in other.strip():
                raise UserError(f"decoding.fold: {name}: line {number} is not `phone TAB folded phone`")
            folding[phone.strip()] = other.strip()
    return folding


def folded(phones: list[str], folding: dict[str, str]) -> list[str]:
    """Phones under their common names, without those that count as none; silences in a row are one."""
    names = [name for name in (folding.get(phone, phone) for phone in phones) if name]
    return [name for i, name in enumerate(names) if not (i and name == names[i - 1] == SILENCE)]


def boundaries(segments: list[list]) -> list[float]:
    """Where one phone ends and the next begins, in seconds, without the recording's own ends."""
    return [segment[1] for segment in segments[1:]]


def boundary_scores(pairs: list[tuple[list[float], list[float]]]) -> dict[str, float]:
    """Precision, recall and F1 of (true, found) boundaries; each may be matched once, within TOLERANCE."""
    hits = sum(matches(true, found) for true, found in pairs)
    num_true, num_found = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    precision, recall = 100 * hits / max(num_found, 1), 100 * hits / max(num_true, 1)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return {"boundary_precision": precision, "boundary_recall": recall, "boundary_f1": f1}


def matches(true: list[float], found: list[float]) -> int:
    """The most pairs of boundaries within TOLERANCE of each other; taking them in order of time is optimal."""
    hits, i, j = 0, 0, 0
    while i < len(true) and j < len(found):
        gap = found[j] - true[i]
        if abs(gap) <= TOLERANCE + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif gap < 0:
            j += 1
        else:
            i += 1
    return hits

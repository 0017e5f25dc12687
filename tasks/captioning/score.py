"""How good captions are: predictions beside their references flow in, named scores flow out."""

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from subprocess import CalledProcessError
from typing import Self

from sacrebleu.metrics import BLEU

from shared.config import one_line
from shared.tiny_world import grammar, pictures
from tasks.captioning.config import CaptioningConfig

logger = logging.getLogger(__name__)

# Where the Penn Treebank's rules cut within a string of letters: do n't, dog 's, can not, gon na.
CUT = re.compile(r"(?<=\w)(?=n't\b|'(?:s|m|d|ll|re|ve)\b)|(?<=\b(?:can|gon|wan|got))(?=(?:not|na|ta)\b)", re.IGNORECASE)
TOKEN = re.compile(
    r"""
    (?<!\w)(?: (?:[^\W\d_]\.){2,} | (?-i:[A-Z])\.(?!\w) | (?:mr|mrs|ms|dr|jr|sr|st|mt|vs|etc|dept)\. )  # U.S., J., Mr.
    | n't\b | '(?:s|m|d|ll|re|ve|em)\b | 'n'      # what was cut off; rock 'n' roll
    | (?-i:[A-Z]+&[A-Z]+)                         # AT&T
    | \w+ (?: [-/.']\w+ | (?<=\d)[,:]\d+ )*       # dog, t-shirt, and/or, o'clock, 10,000
    | [!?]{2,}                                    # which COCO's list of punctuation does not have
    | \S
    """,
    re.IGNORECASE | re.VERBOSE,
)
PUNCTUATION = frozenset("'\"`“”‘.?!,:;-–—…")

ORDERS = range(1, 5)  # of the n-grams that BLEU and CIDEr count
CIDER_SIGMA = 6.0  # words by which lengths may differ
ROUGE_BETA = 1.2  # weight of recall against precision


def score(predictions: list[dict], config: CaptioningConfig) -> dict[str, float | str]:
    """Scores of predictions {"output": str, "captions": references, ...}, as `decode.decode` returns them.

    All that compare words do so as the evaluation of COCO's captions does (Chen et al. 2015), on `tokenized` text:
      bleu1, bleu2, bleu3, bleu4: corpus BLEU against all references (Papineni et al. 2002), the closest one's length
        counting, in per cent; zero where nothing matches;
      rouge_l: mean over pictures of ROUGE-L's F measure (Lin 2004), of the best precision and the best recall that any
        reference gives, in per cent;
      cider: CIDEr-D times 100, see `Cider`; the references of these pictures say how telling an n-gram is. At most
        1000, where every caption is its only reference;
      meteor, spice: METEOR 1.5 and SPICE in per cent, if `decoding.meteor` asks for them.
    Of tiny world's pictures, in per cent,
      true_captions: captions that name all objects and no others, with their colours and in relations that hold;
      true_sizes: those of them whose sizes are right, too;
      attention_on_object: nouns of objects that are there, at which the region looked at most shows such an object.
    Of all,
      distinct_captions: different captions per picture, in per cent;
      novel_captions: captions that no picture has in training, in per cent;
      perplexity: of the references under teacher forcing, for each token of the run's own vocabulary with <eos>;
      bleu_signature: sacreBLEU's, which computes BLEU.
    Predictions without references are left out; without any, the result is empty.
    """
    predictions = [prediction for prediction in predictions if prediction.get("captions")]
    if not predictions:
        logger.warning("no reference captions, so no scores")
        return {}
    outputs = [tokenized(prediction["output"]) for prediction in predictions]
    references = [[tokenized(caption) for caption in prediction["captions"]] for prediction in predictions]
    cider = Cider.fit(references)
    scores, signature = bleu_scores(outputs, references)
    scores["rouge_l"] = 100 * _mean(map(rouge_l, outputs, references))
    scores["cider"] = 100 * _mean(map(cider.score, outputs, references))
    if config.decoding.meteor:
        scores |= meteor_and_spice(outputs, references)
    scores |= scene_scores([prediction for prediction in predictions if prediction["scene"]], config.data.language)
    scores["distinct_captions"] = 100 * len({prediction["output"] for prediction in predictions}) / len(predictions)
    scores["novel_captions"] = 100 * _mean(prediction["novel"] for prediction in predictions)
    scores["perplexity"] = _perplexity(predictions)
    return {**scores, "bleu_signature": signature}


def tokenized(caption: str) -> list[str]:
    """The lower-cased words of a caption as the Penn Treebank cuts them, without punctuation.

    Stands in for CoreNLP's PTBTokenizer and the list of punctuation of COCO's evaluation, which keeps brackets; these
    stay what they are here, where CoreNLP writes -lrb-.
    """
    text = CUT.sub(" ", caption.replace("’", "'").replace("&amp;", "&"))
    return [token.lower() for token in TOKEN.findall(text) if token not in PUNCTUATION]


def bleu_scores(outputs: list[list[str]], references: list[list[list[str]]]) -> tuple[dict[str, float], str]:
    """({"bleu1": ..., "bleu4": ...} in per cent, sacreBLEU's signature) of words."""
    bleu = BLEU(tokenize="none", smooth_method="none", lowercase=True, force=True)
    lines = list(map(" ".join, outputs))
    columns = list(zip_longest(*(map(" ".join, captions) for captions in references)))
    found = bleu.corpus_score(lines, columns)
    scores = {
        f"bleu{n}": bleu.compute_bleu(
            found.counts[:n], found.totals[:n], found.sys_len, found.ref_len, max_ngram_order=n
        ).score
        for n in ORDERS
    }
    return scores, str(bleu.get_signature())


def rouge_l(output: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> float:
    """ROUGE-L of one output: F of its best precision and its best recall over the references; 0 to 1."""
    lengths = [(common_subsequence(output, reference), len(reference)) for reference in references]
    precision = max(common for common, _ in lengths) / max(len(output), 1)
    recall = max(common / max(length, 1) for common, length in lengths)
    if not precision:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def common_subsequence(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)  # of the part of `one` seen so far with every beginning of `other`
    for item in one:
        before, row = row, [0]
        for i, candidate in enumerate(other):
            row.append(before[i] + 1 if item == candidate else max(before[i + 1], row[i]))
    return row[-1]


class Cider:
    """CIDEr-D (Vedantam et al. 2015, section 4, as COCO's evaluation computes it) of sequences of words or of ids.

    A caption is a vector of its n-grams, each counted and weighted by how few pictures have it in a reference. Two
    captions are as alike as the mean cosine over n = 1..4, where the candidate's weights are clipped to the reference's
    and a difference of d words costs the factor exp(-d^2 / (2 sigma^2)).

    Args:
        weights: n-gram -> logarithm of how many times more pictures there are than pictures with it.
        unseen: the weight of an n-gram that no reference has.
    """

    def __init__(self, weights: dict[tuple, float], unseen: float):
        self.weights, self.unseen = weights, unseen

    @classmethod
    def fit(cls, references: Iterable[Sequence[Sequence[Hashable]]]) -> Self:
        """From the references of many pictures. Of a single picture all weights are 0, and so are all scores."""
        pictures, pictures_with = 0, Counter()
        for captions in references:
            pictures += 1
            pictures_with.update({gram for caption in captions for gram in _grams(caption)})
        unseen = math.log(pictures)
        return cls({gram: unseen - math.log(count) for gram, count in pictures_with.items()}, unseen)

    def score(self, candidate: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> float:
        """10 times the mean likeness to the references: 0 to 10."""
        vector, norms = self._vector(candidate)
        total = 0.0
        for reference in references:
            other, other_norms = self._vector(reference)
            products = [0.0 for _ in ORDERS]
            for gram, weight in vector.items():
                if gram in other:
                    products[len(gram) - 1] += min(weight, other[gram]) * other[gram]
            cosines = (p / (a * b) for p, a, b in zip(products, norms, other_norms, strict=True) if p)
            # The evaluation counts lengths in pairs of words: captions of no word and of one are equally long.
            difference = max(len(candidate), 1) - max(len(reference), 1)
            total += sum(cosines) * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
        return 10 * total / len(ORDERS) / len(references)

    def _vector(self, caption: Sequence[Hashable]) -> tuple[dict[tuple, float], list[float]]:
        """(n-gram -> weight, norm of the weights for each n)."""
        counts = Counter(_grams(caption))
        vector = {gram: count * self.weights.get(gram, self.unseen) for gram, count in counts.items()}
        squares = [0.0 for _ in ORDERS]
        for gram, weight in vector.items():
            squares[len(gram) - 1] += weight**2
        return vector, list(map(math.sqrt, squares))


def meteor_and_spice(outputs: list[list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    """METEOR (Denkowski & Lavie 2014) and, where its models are, SPICE (Anderson et al. 2016) of words, in per cent.

    Both are programs in Java that the package pycocoevalcap brings along; for English.
    """
    candidates = {number: [" ".join(output)] for number, output in enumerate(outputs)}
    captions = {number: list(map(" ".join, lines)) for number, lines in enumerate(references)}
    scores = {}
    for name in ("meteor", "spice"):
        scorer = import_module(f"pycocoevalcap.{name}.{name}")
        folder = Path(scorer.__file__).parent
        if name == "spice" and not any(folder.glob("lib/stanford-corenlp-*[0-9].jar")):
            logger.warning("no SPICE, as it lacks its models; python %s gets them", folder / "get_stanford_models.py")
            continue
        try:
            scores[name] = 100 * float(getattr(scorer, name.title())().compute_score(captions, candidates)[0])
        except (OSError, ValueError, CalledProcessError) as error:
            logger.warning("no %s, as its program failed: %s", name.upper(), one_line(error))
    return scores


def scene_scores(predictions: list[dict], language: str) -> dict[str, float]:
    """true_captions, true_sizes and attention_on_object of pictures whose scene is known, as far as they exist."""
    if not predictions:
        return {}
    verdicts = [
        pictures.judge(prediction["output"], pictures.LANGUAGES[language], json.loads(prediction["scene"]))
        for prediction in predictions
    ]
    scores = {
        "true_captions": 100 * _mean(verdict.true for verdict in verdicts),
        "true_sizes": 100 * _mean(verdict.sizes for verdict in verdicts),
    }
    seen = []
    for prediction, verdict in zip(predictions, verdicts, strict=True):
        regions = prediction.get("regions", [])
        if len(regions) == len(grammar.words(prediction["output"])):  # the tokens are words
            seen += [any(_overlap(regions[i][1], box) for box in boxes) for i, boxes in verdict.nouns if boxes]
    return scores | ({"attention_on_object": 100 * _mean(seen)} if seen else {})


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes [left, top, right, bottom] share more than an edge."""
    return all(max(one[i], other[i]) < min(one[i + 2], other[i + 2]) for i in (0, 1))


def _grams(caption: Sequence[Hashable]) -> list[tuple]:
    return [tuple(caption[i : i + n]) for n in ORDERS for i in range(len(caption) - n + 1)]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def _perplexity(predictions: list[dict]) -> float:
    nats = -sum(prediction["caption_log_prob"] for prediction in predictions)
    per_token = nats / sum(prediction["caption_tokens"] for prediction in predictions)
    return math.exp(per_token) if per_token < 700 else math.inf  # of a model that has diverged; exp would raise

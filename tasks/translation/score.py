"""How good translations are: predictions beside their references flow in, named scores in per cent flow out."""

import logging
import math
import unicodedata

from sacrebleu.metrics import BLEU, CHRF
from sacremoses import MosesPunctNormalizer, MosesTokenizer

from tasks.translation.config import TranslationConfig

logger = logging.getLogger(__name__)

UNSPACED = {"zh": "zh", "ja": "char"}  # languages written without blanks -> sacreBLEU's tokeniser; 13a for all others


def score(predictions: list[dict], config: TranslationConfig) -> dict[str, float | str]:
    """BLEU, chrF and exact matches of predictions {"output": str, "target": str or None, ...} in natural text.

    Returns, in per cent,
      bleu: sacreBLEU's corpus BLEU of the text as it is, cased and detokenised (Papineni et al. 2002, Post 2018);
      chrf: sacreBLEU's chrF2 (Popović 2015);
      bleu_tok_lc: the tokenised, lower-cased BLEU of older work, as `tokenized_lowercased` makes both sides;
      exact_match: outputs that equal their reference, up to Unicode NFC and runs of blanks;
    beside them
      perplexity: of the references under teacher forcing, for each token of the run's own vocabulary with <eos>;
    and the signatures that say how they were computed. Predictions without a reference are left out; without any, the
    result is empty. An empty reference counts as one: nothing that is output for it can be right.
    """
    referenced = [prediction for prediction in predictions if prediction.get("target") is not None]
    if not referenced:
        logger.warning("no reference translations, so no BLEU, chrF and exact matches")
        return {}
    outputs = [prediction["output"] for prediction in referenced]
    references = [prediction["target"] for prediction in referenced]
    language = config.data.target
    bleu = BLEU(tokenize=UNSPACED.get(_code(language), "13a"))
    # `force` only silences the advice against tokenised text, which this score is about.
    bleu_tok_lc = BLEU(tokenize="none", force=True)
    chrf = CHRF()
    tokenized = tokenized_lowercased(outputs, language), tokenized_lowercased(references, language)
    return {
        "bleu": bleu.corpus_score(outputs, [references]).score,
        "chrf": chrf.corpus_score(outputs, [references]).score,
        "bleu_tok_lc": bleu_tok_lc.corpus_score(tokenized[0], [tokenized[1]]).score,
        "exact_match": 100.0 * sum(map(_equal, outputs, references)) / len(outputs),
        "perplexity": _perplexity(referenced),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }


def tokenized_lowercased(lines: list[str], language: str) -> list[str]:
    """Lines lower-cased, then punctuation-normalised, then tokenised as the Moses scripts do for a language.

    This is lowercase, normalize-punctuation.perl -l LANGUAGE, tokenizer.perl -l LANGUAGE -no-escape: words with hyphens
    stay whole (no -a), and no character is written as an HTML entity, which changes no count. Languages that Moses does
    not know are treated by its common rules.
    """
    normalizer, tokenizer = MosesPunctNormalizer(_code(language), perl_parity=True), MosesTokenizer(_code(language))
    # The Perl script sees the line's end, too, and one of its rules on quotation marks depends on it.
    normalized = (normalizer.normalize(f"{line.lower()}\n") for line in lines)
    return [tokenizer.tokenize(line, escape=False, return_str=True) for line in normalized]


def _code(language: str) -> str:
    return language.replace("-", "_").partition("_")[0].lower()


def _perplexity(predictions: list[dict]) -> float:
    nats = -sum(prediction["target_log_prob"] for prediction in predictions)
    per_token = nats / sum(prediction["target_tokens"] for prediction in predictions)
    return math.exp(per_token) if per_token < 700 else math.inf  # of a model that has diverged; exp would raise


def _equal(output: str, reference: str) -> bool:
    return _plain(output) == _plain(reference)


def _plain(line: str) -> str:
    return " ".join(unicodedata.normalize("NFC", line).split())

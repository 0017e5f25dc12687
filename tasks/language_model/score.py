"""How good probabilities are: scored texts flow in, perplexities and counts flow out."""

import math

from tasks.language_model.config import LanguageModelConfig
from tasks.language_model.decode import perplexity

PERPLEXITIES = {
    "log_prob": "perplexity_sentence",
    "stream_log_prob": "perplexity_stream",
    "cache_log_prob": "perplexity_cache",
    "dynamic_log_prob": "perplexity_dynamic",
}


def score(predictions: list[dict], config: LanguageModelConfig) -> dict[str, float | str]:
    """Perplexities of texts that `decode.decode` has scored, each per token of the run's vocabulary, ends counted.

    Returns
      perplexity_stream: with the state carried from text to text, to where a document begins;
      perplexity_sentence: of each text on its own;
      perplexity_cache, perplexity_dynamic: of the stream with a continuous cache and under dynamic evaluation, where
        asked for;
      bits_per_character: of the stream, runs of blanks and ends of lines being one character each;
      perplexity_fill: of a bidirectional model, in place of all these: of each token given all others of its text;
      tokens, characters: how many these are means over;
      unknown_rate: share of tokens that the vocabulary does not know, in per cent. They are predicted as <unk>, all
        together, so two runs compare only where their vocabularies know the same words.
    """
    tokens = sum(prediction["tokens"] for prediction in predictions)
    characters = sum(prediction["characters"] for prediction in predictions)
    unknown = sum(prediction["unknown"] for prediction in predictions)
    nats = {
        name: -sum(prediction[name] for prediction in predictions)
        for name in PERPLEXITIES
        if predictions and name in predictions[0]
    }
    if config.model.bidirectional:
        scores = {"perplexity_fill": perplexity(nats["log_prob"], tokens)}
    else:
        scores = {PERPLEXITIES[name]: perplexity(value, tokens) for name, value in nats.items()}
        scores["bits_per_character"] = nats["stream_log_prob"] / math.log(2) / characters
    return {**scores, "unknown_rate": 100 * unknown / tokens, "tokens": tokens, "characters": characters}

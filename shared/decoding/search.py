"""The search that a configuration asks for: its section `decoding` and a model's step go in, hypotheses come out."""

from shared.decoding.beam import beam_search
from shared.decoding.sampling import greedy, sample


def search(decoding, step, state, batch_size, max_lengths, max_steps, seed, source_mask=None):
    """`greedy`, `sample` or `beam_search`, as `decoding.method` says, with the section's settings.

    Args:
        decoding: a shared.config.DecodingConfig.
        seed: of what is drawn. All else is as in those functions; `step` is called with `decoding.beams` rows for each
            of `batch_size`.
    """
    sizes = batch_size, max_lengths, max_steps
    if decoding.method == "greedy":
        return greedy(step, state, *sizes)
    if decoding.method == "sample":
        return sample(step, state, *sizes, decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p, seed)
    penalties = decoding.length_penalty, decoding.coverage_penalty, decoding.no_repeat_ngram
    return beam_search(step, state, *sizes, decoding.beam_size, *penalties, source_mask)

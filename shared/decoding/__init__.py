"""Decoding: a model's step function goes in, the token sequences that it finds probable come out. A step is
`step(tokens (N,) int32, state) -> (log_probs (N, V) float32, state)`, where the state is any nest of tensors whose
first axis is the row. Everything here is graph code: call it inside one `tf.function`, whose trace serves every batch
size, source length and number of steps, and which has nothing to convert (`autograph=False` saves a second). Only the
search in a given matrix of log probabilities over time, in `ctc` and `alignment`, is plain NumPy."""

from shared.decoding import alignment, ctc
from shared.decoding.beam import beam_search
from shared.decoding.fusion import fuse
from shared.decoding.protocol import VOID, Hypotheses, tile_beams
from shared.decoding.sampling import chooser, greedy, sample
from shared.decoding.search import search

__all__ = ["VOID", "Hypotheses", "alignment", "beam_search", "chooser", "ctc", "fuse", "greedy", "sample"]
__all__ += ["search", "tile_beams"]

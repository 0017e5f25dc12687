"""Decoding: a model's step function goes in, the token sequences that it finds probable come out. A step is
`step(tokens (N,) int32, state) -> (log_probs (N, V) float32, state)`, where the state is any nest of tensors whose
first axis is the row. Everything here is graph code: call it inside one `tf.function`, whose trace serves every batch
size, source length and number of steps."""

from shared.decoding.beam import beam_search
from shared.decoding.fusion import fuse
from shared.decoding.protocol import VOID, Hypotheses, tile_beams
from shared.decoding.sampling import chooser, greedy, sample

__all__ = ["VOID", "Hypotheses", "beam_search", "chooser", "fuse", "greedy", "sample", "tile_beams"]

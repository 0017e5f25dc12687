"""The recurrent core of all four tasks: cells, stacks, attention, the attention decoder and the writer.

A recurrent network computes s_t = f(U x_t + W s_{t-1}) with s_{-1} = 0 and reads its output from s_t, with the same U
and W at every step. Here the state is always an argument and a result, never hidden in a layer: the same code encodes a
whole sequence, carries its state from window to window, and makes one step of a search.
"""

from shared.recurrent.attention import Attention
from shared.recurrent.decoder import AttentionDecoder
from shared.recurrent.layers import CELLS, STATE_PARTS, kernel_of, recurrent_layer
from shared.recurrent.stack import RecurrentStack
from shared.recurrent.writer import Writer, word_embedding, word_scores

__all__ = ["CELLS", "STATE_PARTS", "Attention", "AttentionDecoder", "RecurrentStack", "Writer", "kernel_of"]
__all__ += ["recurrent_layer", "word_embedding", "word_scores"]

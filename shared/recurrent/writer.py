"""The writer: an attention decoder with words around it, which writes a text while it looks into a memory.

    state = bridge(summary)                              what is known before the first word
    output_t = decoder(embedding(y_{t-1}), state, memory)
    p(y_t | y_<t, memory) = softmax(E output_t + b)      E: the embedding where tied (Press & Wolf 2017)

where the decoder can also be fed embedding(y_{t-1}) + W summary.

`read` scores whole texts under teacher forcing; `start` begins a search, which writes new ones step by step.
"""

import keras
from keras import layers, ops

from shared.cpu import affine
from shared.recurrent.decoder import AttentionDecoder
from shared.recurrent.layers import STATE_PARTS


def word_embedding(size, units, **arguments) -> layers.Embedding:
    """An embedding whose vectors are of length 1 on average.

    Looked up in float32: in mixed precision the gradients of a frequent word would be added up in 16 bits.
    """
    initializer = keras.initializers.RandomNormal(stddev=units**-0.5)
    return layers.Embedding(size, units, initializer, dtype="float32", **arguments)


def word_scores(outputs, embeddings, bias):
    """Scores (..., words) of all words, float32, for outputs (..., units), embeddings (words, units), bias (words,)."""
    return affine(outputs, ops.cast(embeddings, outputs.dtype), bias, transposed=True)


class Writer(layers.Layer):
    """Writes words with attention over a memory.

    Args:
        size: number of words.
        embedding_units: size of their vectors.
        tie_embeddings: whether one matrix reads and writes words.
        dropout_embedding, dropout_output: of the words read, and of what the scores are computed from.
        feed_summary: whether the summary is also read with every word, not only told to the first state (Mao et al.
            2015; Lu et al. 2017, section 2.2): a short way for what the whole memory says of each word. Its projection,
            formed once, is added to the word's vector, which costs the decoder nothing.
        **decoder: arguments of AttentionDecoder but output_units; `cell`, `units` and `num_layers` among them.
    """

    def __init__(
        self, size, embedding_units, tie_embeddings, dropout_embedding, dropout_output, *, name, feed_summary=False,
        **decoder,
    ):  # fmt: skip
        super().__init__(name=name)
        self.size, self.embedding_units = size, embedding_units
        self.embedding = word_embedding(size, embedding_units, name="embedding")
        self.embedding_dropout = layers.Dropout(dropout_embedding)
        self.decoder = AttentionDecoder(**decoder, output_units=embedding_units, name="decoder")
        # h, which the cell leaves in the range of tanh, and c, which has no bounds.
        activations = ("tanh", None)[: STATE_PARTS[decoder["cell"]]]
        self.bridge = [
            [layers.Dense(decoder["units"], activation) for activation in activations]
            for _ in range(decoder["num_layers"])
        ]
        self.summary_projection = layers.Dense(embedding_units, name="summary") if feed_summary else None
        self.output_dropout = layers.Dropout(dropout_output)
        self.output_kernel = (
            self.embedding if tie_embeddings else word_embedding(size, embedding_units, name="output_kernel")
        )

    def build(self, summary_units, memory_units):
        """Creates all weights, for summaries (batch, summary_units) and a memory (batch, positions, memory_units)."""
        self.embedding.build((None, None))
        if not self.output_kernel.built:
            self.output_kernel.build((None, None))
        if self.summary_projection:
            self.summary_projection.build((None, summary_units))
        self.decoder.build((None, None, self.embedding_units), (None, None, memory_units))
        for dense in (dense for layer in self.bridge for dense in layer):
            dense.build((None, summary_units))
        self.output_bias = self.add_weight(shape=(self.size,), initializer="zeros", autocast=False, name="output_bias")
        self.built = True

    def begin(self, summaries, memory):
        """What is known before the first word: {"recurrent": the decoder's first state} and, if fed, the "summary".

        Args:
            summaries: what is known of the memory as a whole, (batch, summary units) for each tensor of a layer's
                state, see STATE_PARTS. With `feed_summary` the first is fed.
        """
        state = [[dense(each) for dense, each in zip(layer, summaries, strict=True)] for layer in self.bridge]
        state = {"recurrent": self.decoder.begin(state, memory)}
        return {**state, "summary": self.summary_projection(summaries[0])} if self.summary_projection else state

    def embed(self, tokens, summary, training=False):
        """What the decoder reads at each word: its vector and, where it is fed, the projected summary.

        Args:
            tokens: (batch,) or (batch, time) ids. summary: (batch, embedding units) or None.
        """
        embedded = ops.cast(self.embedding(tokens), self.compute_dtype)
        embedded = self.embedding_dropout(embedded, training=training)
        if summary is None:
            return embedded
        return embedded + (summary[:, None] if len(tokens.shape) == 2 else summary)

    def logits(self, outputs):
        """Scores (..., size) of all words, float32, for decoder outputs (..., embedding units)."""
        return word_scores(outputs, self.output_kernel.embeddings, self.output_bias)

    def read(self, tokens, state, memory, mask, training=None):
        """Reads whole texts, of which each word is predicted from its true predecessors (teacher forcing).

        Args:
            tokens: (batch, time) ids begun by bos. state: see `begin`.
            memory: (batch, positions, memory units). mask: boolean (batch, positions).

        Returns:
            logits (batch, time, size) of every next word, and attention weights (batch, time, positions) or None.
        """
        inputs = self.embed(tokens, state.get("summary"), training)
        outputs, _, weights = self.decoder(inputs, state["recurrent"], memory, mask, training=training)
        return self.logits(self.output_dropout(outputs, training=training)), weights

    def start(self, state, memory, mask, copies=1):
        """The beginning of a search.

        Args:
            state, memory, mask: as in `read`.
            copies: hypotheses for each row (the beam), which lie next to each other in the search's batch.

        Returns:
            state, batch-first, and step of the search protocol: step(tokens (batch * copies,), state) -> (log
            probabilities (batch * copies, size), state). The search repeats and reorders the state; memory and
            summary, which are the same for all hypotheses of a row, are repeated here once and held by step.
        """
        keys = self.decoder.attention.keys(memory) if self.decoder.attention else None
        summary, state = state.get("summary"), {"recurrent": state["recurrent"]}
        if keys is not None:
            state["attention"] = ops.zeros(ops.shape(mask), "float32")
        memory, mask, keys, summary = (
            None if tensor is None else ops.repeat(tensor, copies, axis=0) for tensor in (memory, mask, keys, summary)
        )

        def step(tokens, state):
            inputs = self.embed(tokens, summary)
            outputs, recurrent, weights = self.decoder.step(inputs, state["recurrent"], keys, memory, mask)
            state = {"recurrent": recurrent}
            if weights is not None:
                state["attention"] = weights
            return ops.log_softmax(self.logits(outputs)), state

        return state, step

"""The translator: an encoder reads the whole source sentence, a decoder writes the target word by word.

    memory, state = encoder(source)                      every position read from both sides
    output_t = decoder(y_{t-1}, state, memory)           attention looks up what matters now
    p(y_t | y_<t, source) = softmax(E output_t + b)      E: the target's embedding where tied

One call scores whole sentences under teacher forcing; `start` and `step` write new ones under a search.
"""

import functools

import keras
from keras import layers, ops

from shared.recurrent import AttentionDecoder, RecurrentStack


class Translator(keras.Model):
    """Encoder, bridge and decoder on the shared recurrent core.

    Args:
        config: a tasks.translation.config.ModelConfig.
        source_size, target_size: numbers of entries in the vocabularies.
        joint: whether both languages share one vocabulary, and so one embedding where embeddings are tied.
    """

    def __init__(self, config, source_size, target_size, joint):
        super().__init__(name="translator")
        initializer = keras.initializers.RandomNormal(stddev=config.embedding_units**-0.5)
        # Looked up in float32: in mixed precision the gradients of a frequent word would be added up in 16 bits.
        embedding = functools.partial(
            layers.Embedding, output_dim=config.embedding_units, embeddings_initializer=initializer, dtype="float32"
        )
        self.target_embedding = embedding(target_size, name="target_embedding")
        self.source_embedding = (
            self.target_embedding
            if joint and config.tie_embeddings
            else embedding(source_size, name="source_embedding")
        )
        self.embedding_dropout = layers.Dropout(config.dropout_embedding)
        self.encoder = RecurrentStack(
            config.cell, config.encoder_units, config.encoder_layers, config.bidirectional,
            config.residual, config.dropout_layers, name="encoder",
        )  # fmt: skip
        self.memory_dropout = layers.Dropout(config.dropout_memory)
        self.decoder = AttentionDecoder(
            config.cell, config.decoder_units, config.decoder_layers, config.embedding_units,
            config.attention, config.attention_units, config.residual, config.dropout_layers, config.input_feeding,
            name="decoder",
        )  # fmt: skip
        # LSTM carries two tensors a layer: h, which the cell leaves in the range of tanh, and c, which has no bounds.
        activations = ("tanh", None) if config.cell == "lstm" else ("tanh",)
        self.bridge = [
            [layers.Dense(config.decoder_units, activation) for activation in activations]
            for _ in range(config.decoder_layers)
        ]
        self.output_dropout = layers.Dropout(config.dropout_output)
        self.output_kernel = self.target_embedding if config.tie_embeddings else embedding(target_size)
        self.target_size = target_size
        self.embedding_units = config.embedding_units

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        embedded, memory = (None, None, self.embedding_units), (None, None, self.encoder.output_units)
        for embedding in (self.target_embedding, self.source_embedding, self.output_kernel):
            if not embedding.built:
                embedding.build((None, None))
        self.encoder.build(embedded)
        self.decoder.build(embedded, memory)
        for dense in (dense for layer in self.bridge for dense in layer):
            dense.build((None, self.encoder.output_units))
        self.output_bias = self.add_weight(
            shape=(self.target_size,), initializer="zeros", autocast=False, name="output_bias"
        )
        self.built = True

    def encode(self, source, training=None):
        """Reads source sentences.

        Args:
            source: (batch, positions) ids, each row ended by eos and right-padded with 0.

        Returns:
            memory (batch, positions, encoder units), memory mask (batch, positions), the decoder's first state.
        """
        mask = ops.not_equal(source, 0)
        embedded = self.embedding_dropout(self.source_embedding(source), training=training)
        memory, final_state = self.encoder(embedded, mask=mask, training=training)
        memory = self.memory_dropout(memory, training=training)
        # final_state[-1]: [h] or [h, c] of one direction, then of the other: pair h with h and c with c
        top, parts = final_state[-1], len(self.bridge[0])
        ends = [ops.concatenate(top[part::parts], axis=-1) for part in range(parts)]
        state = [[dense(end) for dense, end in zip(layer, ends, strict=True)] for layer in self.bridge]
        return memory, mask, self.decoder.begin(state, memory)

    def logits(self, outputs):
        """Scores of all words, float32, for decoder outputs (..., embedding units)."""
        kernel = ops.cast(self.output_kernel.embeddings, self.compute_dtype)
        # One flat product: a batched one would broadcast the kernel.
        flat = ops.matmul(ops.reshape(outputs, (-1, self.embedding_units)), ops.transpose(kernel))
        flat = ops.cast(flat, "float32") + self.output_bias
        return ops.reshape(flat, (*ops.shape(outputs)[:-1], self.target_size))

    def call(self, inputs, training=None):
        """Logits (batch, time, target_size) in float32 of every next word, given its true predecessors.

        Args:
            inputs: {"source": (batch, positions) ids ended by eos, "target": (batch, time) ids begun by bos}.
        """
        memory, memory_mask, state = self.encode(inputs["source"], training=training)
        embedded = self.embedding_dropout(self.target_embedding(inputs["target"]), training=training)
        outputs, _, _ = self.decoder(embedded, state, memory, memory_mask, training=training)
        return self.logits(self.output_dropout(outputs, training=training))

    def start(self, source, copies=1):
        """The beginning of a search over translations of `source` (batch, positions).

        Args:
            copies: hypotheses for each sentence (the beam), which lie next to each other in the search's batch.

        Returns:
            state, batch-first, and step of the search protocol: step(tokens (batch * copies,), state) ->
            (log probabilities (batch * copies, target_size), state). The search repeats and reorders the state; the
            memory, which is the same for all hypotheses of a sentence, is repeated here once and held by step.
        """
        memory, mask, recurrent = self.encode(source)
        keys = self.decoder.attention.keys(memory) if self.decoder.attention else None

        state = {"recurrent": recurrent}
        if keys is not None:
            state["attention"] = ops.zeros(ops.shape(mask), "float32")
        memory, mask, keys = (
            None if tensor is None else ops.repeat(tensor, copies, axis=0) for tensor in (memory, mask, keys)
        )

        def step(tokens, state):
            embedded = ops.cast(self.target_embedding(tokens), self.compute_dtype)
            outputs, recurrent, weights = self.decoder.step(embedded, state["recurrent"], keys, memory, mask)
            state = {"recurrent": recurrent}
            if weights is not None:
                state["attention"] = weights
            return ops.log_softmax(self.logits(outputs)), state

        return state, step

"""The translator: an encoder reads the whole source sentence, a writer writes the target word by word.

    memory, state = encoder(source)                      every position read from both sides
    p(y_t | y_<t, source) = writer(y_<t, state, memory)  attention looks up what matters now

One call scores whole sentences under teacher forcing; `start` begins the search for new ones.
"""

import keras
from keras import layers, ops

from shared.recurrent import STATE_PARTS, RecurrentStack, Writer, word_embedding


class Translator(keras.Model):
    """Encoder and writer on the shared recurrent core.

    Args:
        config: a tasks.translation.config.ModelConfig.
        source_size, target_size: numbers of entries in the vocabularies.
        joint: whether both languages share one vocabulary, and so one embedding where embeddings are tied.
    """

    def __init__(self, config, source_size, target_size, joint):
        super().__init__(name="translator")
        self.config = config
        self.writer = Writer(
            target_size, config.embedding_units, config.tie_embeddings,
            config.dropout_embedding, config.dropout_output, name="writer",
            cell=config.cell, units=config.decoder_units, num_layers=config.decoder_layers,
            attention=config.attention, attention_units=config.attention_units, residual=config.residual,
            dropout=config.dropout_layers, input_feeding=config.input_feeding,
        )  # fmt: skip
        self.source_embedding = (
            self.writer.embedding
            if joint and config.tie_embeddings
            else word_embedding(source_size, config.embedding_units, name="source_embedding")
        )
        self.embedding_dropout = layers.Dropout(config.dropout_embedding)
        self.encoder = RecurrentStack(
            config.cell, config.encoder_units, config.encoder_layers, config.bidirectional,
            config.residual, config.dropout_layers, name="encoder",
        )  # fmt: skip
        self.memory_dropout = layers.Dropout(config.dropout_memory)

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        self.encoder.build((None, None, self.config.embedding_units))
        self.writer.build(self.encoder.output_units, self.encoder.output_units)
        if not self.source_embedding.built:
            self.source_embedding.build((None, None))
        self.built = True

    def encode(self, source, training=None):
        """Reads source sentences.

        Args:
            source: (batch, positions) ids, each row ended by eos and right-padded with 0.

        Returns:
            the writer's first state, memory (batch, positions, encoder units), memory mask (batch, positions).
        """
        mask = ops.not_equal(source, 0)
        embedded = self.embedding_dropout(self.source_embedding(source), training=training)
        memory, final_state = self.encoder(embedded, mask=mask, training=training)
        memory = self.memory_dropout(memory, training=training)
        # final_state[-1]: [h] or [h, c] of one direction, then of the other: pair h with h and c with c
        top, parts = final_state[-1], STATE_PARTS[self.config.cell]
        ends = [ops.concatenate(top[part::parts], axis=-1) for part in range(parts)]
        return self.writer.begin(ends, memory), memory, mask

    def call(self, inputs, training=None):
        """Logits (batch, time, target_size) in float32 of every next word, given its true predecessors.

        Args:
            inputs: {"source": (batch, positions) ids ended by eos, "target": (batch, time) ids begun by bos}.
        """
        logits, _ = self.writer.read(inputs["target"], *self.encode(inputs["source"], training), training)
        return logits

    def start(self, source, copies=1):
        """The beginning of a search over translations of `source` (batch, positions), see `Writer.start`."""
        return self.writer.start(*self.encode(source), copies)

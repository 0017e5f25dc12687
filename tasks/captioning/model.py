"""The captioner: a convolutional network sees a picture as a grid of regions, a recurrent network says what it sees.

    regions = encoder(picture)                           see tasks.captioning.features
    memory = relu(W [regions, where they are])           the decoder's memory
    state = tanh(V mean(memory))                         where the decoder begins; without attention all that it knows
    output_t = decoder(y_{t-1}, state, memory)           attention looks where the next word is to be seen
    p(y_t | y_<t, picture) = softmax(E output_t + b)     E: the words' embedding where tied

As Vinyals et al. 2015 (attention "none") and Xu et al. 2015, on the shared decoder. One call scores whole captions
under teacher forcing; `start` and `step` write new ones under a search.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from shared.decoding import greedy, sample, tile_beams
from shared.losses import token_cross_entropy
from shared.recurrent import AttentionDecoder
from shared.text import BOS
from tasks.captioning.features import Encoder


class Captioner(keras.Model):
    """Encoder, where it is trained, and decoder on the shared recurrent core. It computes its own losses.

    Args:
        config: a tasks.captioning.config.ModelConfig.
        size: number of entries in the vocabulary.
        regions: (rows, columns, channels) of what the encoder makes of a picture.
        label_smoothing: see `shared.losses`.
        reward: None to train on cross-entropy; else the model is trained on captions that it draws itself, and this is
            (captions (n, time) int32 ended by eos, references (n, references, time) int32, the same for all pictures)
            -> (n,) float32, how good each caption is. Called with NumPy's arrays.
        longest: tokens of the longest caption that is drawn.
    """

    def __init__(self, config, size, regions, label_smoothing=0.0, reward=None, longest=40):
        super().__init__(name="captioner")
        self.config, self.size, self.label_smoothing, self.reward, self.longest = (
            config, size, label_smoothing, reward, longest,
        )  # fmt: skip
        self.rows, self.columns, self.channels = regions
        self.encoder = Encoder(config) if config.train_encoder else None
        self.projection = layers.Dense(config.memory_units, activation="relu", name="projection")
        self.memory_dropout = layers.Dropout(config.dropout_memory)
        # Looked up in float32: in mixed precision the gradients of a frequent word would be added up in 16 bits.
        initializer = keras.initializers.RandomNormal(stddev=config.embedding_units**-0.5)
        self.embedding = layers.Embedding(size, config.embedding_units, initializer, dtype="float32", name="embedding")
        self.embedding_dropout = layers.Dropout(config.dropout_embedding)
        self.decoder = AttentionDecoder(
            config.cell, config.units, config.layers, config.embedding_units, config.attention,
            config.attention_units, dropout=config.dropout_layers, gate=config.gate, name="decoder",
        )  # fmt: skip
        # LSTM carries two tensors a layer: h, which the cell leaves in the range of tanh, and c, which has no bounds.
        activations = ("tanh", None) if config.cell == "lstm" else ("tanh",)
        self.bridge = [
            [layers.Dense(config.units, activation) for activation in activations] for _ in range(config.layers)
        ]
        self.output_dropout = layers.Dropout(config.dropout_output)
        self.output_kernel = (
            self.embedding
            if config.tie_embeddings
            else layers.Embedding(size, config.embedding_units, initializer, dtype="float32", name="output_kernel")
        )
        self.draws = keras.random.SeedGenerator() if reward or config.scheduled_sampling else None

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        memory = (None, None, self.config.memory_units)
        for variable in self.encoder.trainable_variables if self.encoder else []:
            variable.learning_rate_share = self.config.encoder_rate
        self.projection.build((None, None, self.channels + 2))
        self.embedding.build((None, None))
        if not self.config.tie_embeddings:
            self.output_kernel.build((None, None))
        self.decoder.build((None, None, self.config.embedding_units), memory)
        for dense in (dense for layer in self.bridge for dense in layer):
            dense.build((None, self.config.memory_units))
        self.output_bias = self.add_weight(shape=(self.size,), initializer="zeros", autocast=False, name="output_bias")
        self.built = True

    def see(self, seen, copies=1, training=None):
        """Looks at pictures.

        Args:
            seen: (batch, size, size, 3) uint8 pictures where the encoder is trained, else its regions (batch, regions,
                channels).
            copies: captions that are read or written for each picture; their rows lie next to each other.

        Returns:
            memory (batch * copies, regions, memory units), its mask, True everywhere, the decoder's first state.
        """
        regions = self.encoder(seen, training=training) if self.encoder else seen
        memory = self.memory_dropout(self.projection(self._placed(regions)), training=training)
        middle = ops.mean(memory, axis=1)
        state = [[dense(middle) for dense in layer] for layer in self.bridge]
        memory, state = keras.tree.map_structure(lambda part: ops.repeat(part, copies, axis=0), (memory, state))
        return memory, ops.ones(ops.shape(memory)[:2], "bool"), self.decoder.begin(state, memory)

    def _placed(self, regions):
        """Regions with two numbers more, where in the picture they are, from -1 to 1 across and down."""
        down, across = np.meshgrid(np.linspace(-1, 1, self.rows), np.linspace(-1, 1, self.columns), indexing="ij")
        places = ops.convert_to_tensor(np.stack([across, down], axis=-1).reshape(1, -1, 2), self.compute_dtype)
        places = ops.broadcast_to(places, (ops.shape(regions)[0], *places.shape[1:]))
        return ops.concatenate([ops.cast(regions, self.compute_dtype), places], axis=-1)

    def logits(self, outputs):
        """Scores of all words, float32, for decoder outputs (..., embedding units)."""
        kernel = ops.cast(self.output_kernel.embeddings, self.compute_dtype)
        # One flat product: a batched one would broadcast the kernel.
        flat = ops.matmul(ops.reshape(outputs, (-1, self.config.embedding_units)), ops.transpose(kernel))
        flat = ops.cast(flat, "float32") + self.output_bias
        return ops.reshape(flat, (*ops.shape(outputs)[:-1], self.size))

    def call(self, inputs, training=None):
        """Loss (captions, time) in nats, float32, whose mean over real tokens is the loss of the batch.

        Args:
            inputs: {"seen": see `see`, "tokens": (captions, time) ids begun by bos, "targets": the ids after each of
                them, 0 on padding}; as many captions for every picture, next to each other. Where a reward is given,
                also {"references": (pictures, references, time)}.
        """
        tokens, targets = inputs["tokens"], inputs["targets"]
        copies = ops.shape(tokens)[0] // ops.shape(inputs["seen"])[0]
        if training and self.reward:
            return self._rewarded(inputs, targets, copies)
        memory, mask, state = self.see(inputs["seen"], copies, training)
        if training and self.config.scheduled_sampling:
            tokens = self._with_own_words(tokens, state, memory, mask)
        logits, weights = self.read(tokens, state, memory, mask, training)
        if training and self.config.attention_penalty:
            self.add_loss(self.config.attention_penalty * unevenness(weights, targets))
        return token_cross_entropy(targets, logits, self.label_smoothing if training else 0.0)

    def read(self, tokens, state, memory, mask, training=None):
        """Logits (captions, time, size) of every next word, given its true predecessors, and the attention."""
        embedded = self.embedding_dropout(ops.cast(self.embedding(tokens), self.compute_dtype), training=training)
        outputs, _, weights = self.decoder(embedded, state, memory, mask, training=training)
        return self.logits(self.output_dropout(outputs, training=training)), weights

    def _with_own_words(self, tokens, state, memory, mask):
        """Tokens of which some are drawn from what the model itself would have written there.

        Scheduled sampling (Bengio et al. 2015) in two passes over the whole caption in place of one step by step
        (Mihaylova & Martins 2019): the first reads the true words, the second some of the first one's.
        """
        logits, _ = self.read(tokens, state, memory, mask, training=False)
        drawn = keras.random.categorical(ops.reshape(logits, (-1, self.size)), 1, dtype="int32", seed=self.draws)
        drawn = ops.reshape(drawn, ops.shape(tokens))[:, :-1]
        own = keras.random.uniform(ops.shape(drawn), seed=self.draws) < self.config.scheduled_sampling
        mixed = ops.where(own, ops.stop_gradient(drawn), tokens[:, 1:])
        return ops.concatenate([tokens[:, :1], mixed], axis=1)

    def _rewarded(self, inputs, targets, copies):
        """Self-critical training (Rennie et al. 2017, equation 8): what is drawn becomes more probable by as much as it
        is better than what greedy search finds.

        The loss of a caption is spread evenly over the targets of its row, which are not read otherwise.
        """
        rows = ops.shape(targets)[0]
        state, step = self.start(inputs["seen"], copies)
        state = tile_beams(state, copies)
        longest = tf.fill([rows], self.longest)
        seed = tf.cast(self.draws.next()[0], tf.int64)
        drawn = sample(step, state, rows, longest, self.longest, seed=seed).tokens[:, 0]
        usual = greedy(step, state, rows, longest, self.longest).tokens[:, 0]
        references = ops.repeat(inputs["references"], copies, axis=0)
        rewards = [
            tf.ensure_shape(tf.numpy_function(self.reward, (tokens, references), tf.float32), [None])
            for tokens in (drawn, usual)
        ]
        drawn = ops.stop_gradient(drawn)
        begun = ops.pad(drawn[:, :-1], [[0, 0], [1, 0]], constant_values=BOS)
        memory, mask, state = self.see(inputs["seen"], copies, training=True)
        logits, _ = self.read(begun, state, memory, mask, training=True)
        losses = token_cross_entropy(drawn, logits) * ops.cast(ops.not_equal(drawn, 0), "float32")
        losses = (rewards[0] - rewards[1]) * ops.sum(losses, axis=1)
        real = ops.cast(ops.not_equal(targets, 0), "float32")
        return losses[:, None] / ops.sum(real, axis=1, keepdims=True) * real

    def start(self, seen, copies=1):
        """The beginning of a search over captions of pictures, see `see`.

        Returns:
            state, batch-first, and step of the search protocol: step(tokens (batch * copies,), state) -> (log
            probabilities (batch * copies, size), state). The state is that of single pictures, and the search repeats
            and reorders it; the memory, which is the same for all hypotheses, is repeated once and held by step.
        """
        memory, mask, recurrent = self.see(seen, training=False)
        keys = self.decoder.attention.keys(memory) if self.decoder.attention else None
        state = {"recurrent": recurrent}
        if keys is not None:
            state["attention"] = ops.zeros(ops.shape(mask), "float32")
        memory, mask, keys = (
            None if tensor is None else ops.repeat(tensor, copies, axis=0) for tensor in (memory, mask, keys)
        )

        def step(tokens, state):
            embedded = ops.cast(self.embedding(tokens), self.compute_dtype)
            outputs, recurrent, weights = self.decoder.step(embedded, state["recurrent"], keys, memory, mask)
            state = {"recurrent": recurrent}
            if weights is not None:
                state["attention"] = weights
            return ops.log_softmax(self.logits(outputs)), state

        return state, step


def unevenness(weights, targets):
    """Doubly stochastic regularisation (Xu et al. 2015, equation 14): sum_i (1 - sum_t a_ti)^2, its mean over captions.

    Args:
        weights: attention (captions, time, regions) a_ti. targets: (captions, time) ids, 0 on padding.
    """
    real = ops.cast(ops.not_equal(targets, 0), "float32")[:, :, None]
    return ops.mean(ops.sum(ops.square(1.0 - ops.sum(weights * real, axis=1)), axis=-1))

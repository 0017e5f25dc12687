"""The language model: reads a text word by word and says at each one how probable every next word is.

    h_t, state_t = layers(embedding(x_t), state_{t-1})
    p(x_{t+1} | x_1 .. x_t) = softmax(V h_t + b)                         V: the embedding where tied

With `bidirectional` a second stack reads from the other end, and a word is predicted from all the others,

    p(x_t | all but x_t) = softmax(V (A [h_{t-1}, g_{t+1}] + a) + b)     g: what was read from the right

so that no layer sees the word it predicts (as every layer above the first would in a bidirectional stack).
"""

import keras
from keras import layers, ops

from shared.losses import OwnLoss, word_losses
from shared.recurrent import RecurrentStack, word_scores
from shared.text import BOS, EOS


class LanguageModel(keras.Model):
    """A recurrent language model whose training carries its state from window to window.

    Args:
        config: a tasks.language_model.config.ModelConfig.
        size: number of entries in the vocabulary.
        streams: rows of every training batch.
        label_smoothing: see `shared.losses`.
    """

    def __init__(self, config, size, streams, label_smoothing=0.0):
        super().__init__(name="language_model")
        self.config, self.size, self.streams, self.label_smoothing = config, size, streams, label_smoothing
        initializer = keras.initializers.RandomUniform(-0.1, 0.1)
        # Looked up in float32: in mixed precision the gradients of a frequent word would be added up in 16 bits.
        self.embedding = layers.Embedding(size, config.embedding_units, initializer, dtype="float32", name="embedding")
        self.word_dropout = layers.Dropout(config.dropout_words)
        self.sample_seed = keras.random.SeedGenerator() if config.samples else None
        self.embedding_dropout = locked_dropout(config.dropout_embedding)
        self.stack = self._stack("stack")
        self.backward = self._stack("backward") if config.bidirectional else None
        self.readout = layers.Dense(config.embedding_units, name="readout") if config.bidirectional else None
        self.output_dropout = locked_dropout(config.dropout_output)
        self.output_units = config.embedding_units if config.bidirectional else self.stack.output_units
        self.output_kernel = (
            self.embedding
            if config.tie_embeddings
            else layers.Embedding(size, self.output_units, initializer, dtype="float32")
        )

    def _stack(self, name):
        config = self.config
        return RecurrentStack(
            config.cell, config.layer_units, residual=config.residual, dropout=config.dropout_layers,
            weight_drop=config.weight_drop, truncate=config.truncate, zoneout=config.zoneout,
            unit_forget_bias=config.unit_forget_bias, name=name,
        )  # fmt: skip

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        embedded = (None, None, self.config.embedding_units)
        self.embedding.build((None, None))
        self.stack.build(embedded)
        if self.backward:
            self.backward.build(embedded)
            self.readout.build((None, None, 2 * self.stack.output_units))
        if not self.config.tie_embeddings:
            self.output_kernel.build((None, None))
        self.output_bias = self.add_weight(shape=(self.size,), initializer="zeros", autocast=False, name="output_bias")
        # What training remembers of the windows before, in the checkpoint because it decides what comes next.
        self.carried = [
            self.add_weight(
                shape=tuple(part.shape), initializer="zeros", trainable=False, autocast=False, name="carried"
            )
            for layer in self.stack.zero_state(self.streams)
            for part in layer
        ]
        self.built = True

    def call(self, inputs, training=None):
        """Cross-entropy (streams, time) of every target in nats, float32, on from where the last call stopped.

        Args:
            inputs: {"tokens": (streams, time) ids, "targets": the ids after each of them, 0 on padding, "begins":
                boolean (streams,), whether the state starts anew}.
        """
        keep = ops.cast(ops.logical_not(inputs["begins"]), self.compute_dtype)[:, None]
        state = keras.tree.pack_sequence_as(
            self.stack.zero_state(self.streams),
            [ops.cast(part, self.compute_dtype) * keep for part in self.carried],
        )
        outputs, state = self.read(inputs["tokens"], inputs["targets"], state, training, masked=True)
        for variable, part in zip(self.carried, keras.tree.flatten(state), strict=True):
            variable.assign(ops.cast(ops.stop_gradient(part), variable.dtype))
        if training and self.config.samples:
            return self.sampled_cross_entropy(outputs, inputs["targets"])
        smoothing = self.label_smoothing if training else 0.0
        return self.cross_entropy(inputs["targets"], outputs, smoothing)

    def read(self, tokens, targets, state=None, training=None, masked=False):
        """What every target is predicted from.

        Args:
            tokens: (batch, time) ids, right-padded.
            targets: the ids after each of them, of which a bidirectional model reads those to the right of each place.
            state: as RecurrentStack's; None for zeros.
            masked: whether the final state is that before a row's padding. Outputs are right in any case.

        Returns:
            outputs (batch, time, output units) and the final state of the stack that reads from the left.
        """
        mask = steps(targets) if masked else None
        outputs, state = self.stack(self.embed(tokens, training), initial_state=state, mask=mask, training=training)
        if self.backward:
            outputs = self.readout(ops.concatenate([outputs, self._from_the_right(targets, training)], axis=-1))
        dropped = self.output_dropout(outputs, training=training)
        if training:
            real = ops.not_equal(targets, 0)
            self._penalise(self.config.activation_penalty, dropped, real)
            self._penalise(self.config.change_penalty, outputs[:, 1:] - outputs[:, :-1], real[:, 1:])
        return dropped, state

    def _penalise(self, weight, values, real):
        """Adds the weighted mean of the squares of values (batch, time, units), at real steps, to the loss."""
        if weight:
            squares = ops.mean(ops.square(ops.cast(values, "float32")), axis=-1)
            real = ops.cast(real, "float32")
            self.add_loss(weight * ops.sum(squares * real) / ops.maximum(ops.sum(real), 1.0))

    def embed(self, tokens, training=None):
        """Embeddings (batch, time, embedding units), whole words dropped, and places in them."""
        embedded = ops.cast(self.embedding(tokens), self.compute_dtype)
        if training and self.config.dropout_words:
            kept = self.word_dropout(ops.ones((self.size, 1), self.compute_dtype), training=True)
            embedded = embedded * ops.take(kept, tokens, axis=0)
        return self.embedding_dropout(embedded, training=training)

    def _from_the_right(self, targets, training):
        """States (batch, time, units) that have read the targets after each place, the last one first."""
        real = ops.not_equal(targets, 0)
        length, place = ops.sum(ops.cast(real, "int32"), axis=1, keepdims=True), ops.arange(ops.shape(targets)[1])
        mirrored = ops.where(real, length - 1 - place, place)  # padding stays on the right
        embedded = self.embed(ops.take_along_axis(targets, mirrored, axis=1), training)
        outputs, _ = self.backward(embedded, mask=steps(targets), training=training)
        outputs = ops.take_along_axis(outputs, mirrored[:, :, None], axis=1)
        return ops.concatenate([outputs[:, 1:], ops.zeros_like(outputs[:, :1])], axis=1)

    def cross_entropy(self, targets, outputs, smoothing=0.0):
        """Cross-entropy (...) of all words, float32, for outputs (..., output units)."""
        return word_losses(targets, outputs, self.output_kernel.embeddings, self.output_bias, smoothing)

    def logits(self, outputs):
        """Scores (..., size) of all words, float32, for outputs (..., output units)."""
        return word_scores(outputs, self.output_kernel.embeddings, self.output_bias)

    def sampled_cross_entropy(self, outputs, targets):
        """Cross-entropy (batch, time) against `samples` random words in place of all, for training alone.

        The divisor of the softmax is estimated by importance sampling (Bengio & Senécal 2008; Jean et al. 2015): to the
        target's own exp(score) are added those of the samples, each divided by how often it is expected among them.
        The words are drawn once for the batch, with replacement and p(i) = log((i + 2) / (i + 1)) / log(size + 1): ids
        are in the order of frequency, and frequencies fall like that. A sample that is the target is struck out.
        """
        spread, samples = float(self.size + 1), self.config.samples
        uniform = keras.random.uniform((samples,), seed=self.sample_seed)
        drawn = ops.cast(ops.minimum(ops.floor(spread**uniform) - 1, self.size - 1), "int32")
        place = ops.cast(drawn, "float32")
        log_expected = ops.log(samples * ops.log((place + 2) / (place + 1)) / ops.log(spread))
        flat, right = ops.reshape(outputs, (-1, self.output_units)), ops.reshape(targets, (-1,))
        kernel = ops.cast(self.output_kernel(drawn), self.compute_dtype)
        others = ops.cast(ops.matmul(flat, ops.transpose(kernel)), "float32")
        others += ops.take(self.output_bias, drawn) - log_expected
        others = ops.where(right[:, None] == drawn[None], -1e9, others)
        true = ops.sum(ops.cast(flat, "float32") * self.output_kernel(right), axis=-1)
        true += ops.take(self.output_bias, right)
        scores = ops.concatenate([true[:, None], others], axis=1)
        return ops.reshape(ops.logsumexp(scores, axis=1) - true, ops.shape(targets))

    def start(self, prompts):
        """The beginning of a search over continuations of `prompts` (batch, time), ids begun by eos, right-padded.

        Returns:
            state, batch-first, and step of the search protocol: step(tokens (batch,), state) -> (log probabilities
            (batch, size), state). Where the search hands it bos, it goes on from the prompt's last token.
        """
        real = ops.not_equal(prompts, 0)
        length = ops.sum(ops.cast(real, "int32"), axis=1, keepdims=True)
        before_last = ops.arange(ops.shape(prompts)[1]) < length - 1
        # A prompt of one token leaves nothing to read. It is read and forgotten, for cuDNN takes no row without a step.
        _, recurrent = self.stack(self.embed(prompts), mask=before_last | (length == 1))
        read = ops.cast(length > 1, self.compute_dtype)
        recurrent = keras.tree.map_structure(lambda part: part * read, recurrent)
        state = {"recurrent": recurrent, "last": ops.take_along_axis(prompts, length - 1, axis=1)[:, 0]}

        return state, self.step

    def step(self, tokens, state):
        """See `start`."""
        tokens = ops.where(tokens == BOS, state["last"], tokens)
        outputs, recurrent = self.stack.step(self.embed(tokens), state["recurrent"])
        return ops.log_softmax(self.logits(outputs)), {"recurrent": recurrent, "last": state["last"]}

    def start_of_text(self, rows):
        """`start` for a number of texts of which nothing is written yet."""
        return self.start(ops.full((rows, 1), EOS, "int32"))


class WindowLoss(OwnLoss):
    """The loss over windows of random lengths: the mean, times what they hold of the usual length.

    Half a window moves the weights half as far (Merity et al. 2018, section 4.1, scale the learning rate to that end,
    and so behind the clipping).

    Args:
        window: the usual length.
    """

    def __init__(self, window):
        super().__init__()
        self.window = window

    def call(self, y_true, y_pred):
        """Losses (streams, time) to be averaged."""
        lengths = ops.sum(ops.cast(ops.not_equal(y_true, 0), "float32"), axis=1)
        return y_pred * (ops.mean(lengths) / self.window)


def loss(config):
    """The loss for a LanguageModelConfig."""
    return WindowLoss(config.data.window) if config.data.random_windows else OwnLoss()


def steps(targets):
    """Mask (batch, time) of the steps of which the targets (batch, time) are not padding.

    Of a row of padding alone all are steps: nobody reads it, and cuDNN takes no row without any.
    """
    real = ops.not_equal(targets, 0)
    return ops.logical_or(real, ops.logical_not(ops.any(real, axis=1, keepdims=True)))


def locked_dropout(rate):
    """Dropout with one mask for all steps of a sequence (Gal & Ghahramani 2016)."""
    return layers.Dropout(rate, noise_shape=(None, 1, None))

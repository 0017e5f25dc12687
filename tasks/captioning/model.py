"""The captioner: a convolutional network sees a picture as a grid of regions, a recurrent network says what it sees.

    regions = encoder(picture)                           see tasks.captioning.features
    found = relu(W [regions, where they are])            then, with `model.look_alikes`, what LookAlikes makes of it
    summary = [mean(found), max(found)]                  and how many kinds of things; without attention all there is
    memory = [found, s x, s y]                           with s = `model.coordinates`, and x, y from -1 to 1
    p(y_t | y_<t, picture) = writer(y_<t, summary, memory)   attention looks where the next word is to be seen

As Vinyals et al. 2015 (attention "none") and Xu et al. 2015. One call scores whole captions under teacher forcing;
`start` begins the search for new ones.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from shared.cpu import batch_product, in_numpy
from shared.decoding import greedy, sample, tile_beams
from shared.losses import token_cross_entropy
from shared.recurrent import STATE_PARTS, Writer
from shared.text import BOS
from tasks.captioning.features import Encoder


class Captioner(keras.Model):
    """Encoder, where it is trained, and writer on the shared recurrent core. It computes its own losses.

    Args:
        config: a tasks.captioning.config.ModelConfig.
        size: number of entries in the vocabulary.
        regions: (rows, columns, channels) of what was made of a picture, where the encoder is not trained.
        label_smoothing: see `shared.losses`.
        reward: None to train on cross-entropy; else the model is trained on captions that it draws itself, and this is
            (captions (n, time) int32 ended by eos, references (n, references, time) int32, the same for all pictures)
            -> (n,) float32, how good each caption is. Called with NumPy's arrays.
        longest: tokens of the longest caption that is drawn.
    """

    def __init__(self, config, size, regions=None, label_smoothing=0.0, reward=None, longest=40):
        super().__init__(name="captioner")
        self.config, self.size, self.label_smoothing, self.reward, self.longest = (
            config, size, label_smoothing, reward, longest,
        )  # fmt: skip
        self.encoder = Encoder(config) if config.train_encoder else None
        self.rows, self.columns, self.channels = self.encoder.regions if self.encoder else regions
        self.projection = layers.Dense(config.memory_units, activation="relu", name="projection")
        self.look_alikes = LookAlikes(config.memory_units, self._centres()) if config.look_alikes else None
        self.naming = layers.Dense(size, name="naming") if config.attention_supervision else None
        self.memory_dropout = layers.Dropout(config.dropout_memory)
        self.writer = Writer(
            size, config.embedding_units, config.tie_embeddings,
            config.dropout_embedding, config.dropout_output, name="writer",
            cell=config.cell, units=config.units, num_layers=config.layers,
            attention=config.attention, attention_units=config.attention_units,
            dropout=config.dropout_layers, gate=config.gate, feed_summary=config.feed_summary,
        )  # fmt: skip
        self.draws = keras.random.SeedGenerator() if reward or config.scheduled_sampling else None

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        for variable in self.encoder.trainable_variables if self.encoder else []:
            variable.learning_rate_share = self.config.encoder_rate
        self.projection.build((None, None, self.channels + self.rows + self.columns))
        if self.look_alikes:
            self.look_alikes.build((None, None, self.channels))
        if self.naming:
            self.naming.build((None, None, self.config.memory_units))
        units, kinds, across = self.config.memory_units, int(self.config.look_alikes), 2 * bool(self.config.coordinates)
        self.writer.build(2 * units + kinds, units + across)
        self.built = True

    def see(self, seen, copies=1, training=None):
        """Looks at pictures.

        Args:
            seen: (batch, size, size, 3) uint8 pictures where the encoder is trained, else its regions (batch, regions,
                channels).
            copies: captions that are read or written for each picture; their rows lie next to each other.

        Returns:
            the writer's first state, memory (batch * copies, regions, memory units and coordinates), its mask, True
            everywhere.
        """
        regions = self.encoder(seen, training=training) if self.encoder else seen
        memory = self.projection(self._beside(regions, self._one_hot()))
        further = []
        if self.look_alikes:
            memory, *further = self.look_alikes(memory, regions)
        memory = self.memory_dropout(memory, training=training)
        summary = ops.concatenate([ops.mean(memory, axis=1), ops.max(memory, axis=1), *further], axis=-1)
        if self.config.coordinates:
            memory = self._beside(memory, self.config.coordinates * (2 * self._centres() - 1))
        state = self.writer.begin([summary] * STATE_PARTS[self.config.cell], memory)
        state, memory = keras.tree.map_structure(lambda part: ops.repeat(part, copies, axis=0), (state, memory))
        return state, memory, ops.ones(ops.shape(memory)[:2], "bool")

    def _one_hot(self):
        """The row and the column of each region, one-hot, (regions, rows + columns)."""
        return np.concatenate(
            [np.repeat(np.eye(self.rows), self.columns, axis=0), np.tile(np.eye(self.columns), (self.rows, 1))], axis=1
        )

    def _centres(self):
        """x and y of the centre of each region, in shares of the picture, (regions, 2)."""
        y, x = np.divmod(np.arange(self.rows * self.columns), self.columns)
        return np.stack([(x + 0.5) / self.columns, (y + 0.5) / self.rows], axis=1)

    def _beside(self, regions, places):
        """Regions (batch, regions, n) with what is the same in all pictures, (regions, m), behind what they show."""
        places = ops.convert_to_tensor(places[np.newaxis], self.compute_dtype)
        places = ops.broadcast_to(places, (ops.shape(regions)[0], *places.shape[1:]))
        return ops.concatenate([ops.cast(regions, self.compute_dtype), places], axis=-1)

    def call(self, inputs, training=None):
        """Loss (captions, time) in nats, float32, whose mean over real tokens is the loss of the batch.

        Args:
            inputs: {"seen": see `see`, "tokens": (captions, time) ids begun by bos, "targets": the ids after each of
                them, 0 on padding}; as many captions for every picture, next to each other. Where a reward is given,
                also {"references": (pictures, references, time)}, where the attention is supervised {"places":
                (captions, time, boxes, 4)}.
        """
        tokens, targets = inputs["tokens"], inputs["targets"]
        copies = ops.shape(tokens)[0] // ops.shape(inputs["seen"])[0]
        if training and self.reward:
            return self._rewarded(inputs, targets, copies)
        view = self.see(inputs["seen"], copies, training)
        if training and self.config.scheduled_sampling:
            tokens = self._with_own_words(tokens, view)
        logits, weights = self.writer.read(tokens, *view, training)
        if training and self.config.attention_penalty:
            self.add_loss(self.config.attention_penalty * unevenness(weights, targets))
        if training and self.naming:
            inside = ops.cast(regions_inside(inputs["places"], self._centres()), "float32")
            misnaming = self._misnaming(view[1], inside, targets)
            self.add_loss(self.config.attention_supervision * (straying(weights, inside) + misnaming))
        return token_cross_entropy(targets, logits, self.label_smoothing if training else 0.0)

    def _misnaming(self, memory, inside, targets):
        """Cross-entropy of the words given the mean of the regions where they are to be seen, and nothing else.

        It is a short way to the encoder: what is said of a region is learned from it before the attention finds it.

        Args:
            memory: (captions, regions, units ...). inside: see `straying`. targets: (captions, time) ids.
        """
        inside = inside / ops.maximum(ops.sum(inside, axis=-1, keepdims=True), 1.0)
        seen = batch_product(inside, ops.cast(memory, "float32"))[..., : self.config.memory_units]
        return mean_where(ops.any(inside > 0, axis=-1), token_cross_entropy(targets, self.naming(seen)))

    def _with_own_words(self, tokens, view):
        """Tokens of which some are drawn from what the model itself would have written there.

        Scheduled sampling (Bengio et al. 2015) in two passes over the whole caption in place of one step by step
        (Mihaylova & Martins 2019): the first reads the true words, the second some of the first one's.
        """
        logits, _ = self.writer.read(tokens, *view, training=False)
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
        seed = tf.reduce_sum(tf.cast(self.draws.next(), tf.int64))  # of the training's seed and the number of the call
        drawn = sample(step, state, rows, longest, self.longest, seed=seed).tokens[:, 0]
        usual = greedy(step, state, rows, longest, self.longest).tokens[:, 0]
        references = ops.repeat(inputs["references"], copies, axis=0)
        rewards = [in_numpy(self.reward, [tokens, references], [[None]], tf.float32)[0] for tokens in (drawn, usual)]
        drawn = ops.stop_gradient(drawn)
        begun = ops.pad(drawn[:, :-1], [[0, 0], [1, 0]], constant_values=BOS)
        logits, _ = self.writer.read(begun, *self.see(inputs["seen"], copies, training=True), training=True)
        losses = token_cross_entropy(drawn, logits) * ops.cast(ops.not_equal(drawn, 0), "float32")
        losses = (rewards[0] - rewards[1]) * ops.sum(losses, axis=1)
        real = ops.cast(ops.not_equal(targets, 0), "float32")
        return losses[:, None] / ops.sum(real, axis=1, keepdims=True) * real

    def start(self, seen, copies=1):
        """The beginning of a search over captions of pictures, see `see` and `Writer.start`."""
        return self.writer.start(*self.see(seen, training=False), copies)


class LookAlikes(layers.Layer):
    """Tells each region of a memory how much of the picture looks like it, and where that is.

    The attention alone cannot count. What it finds is a mean, the same for two equal things as for one (Zhang, Hare &
    Prügel-Bennett 2018); and how many there are is said before anything else of them, when there is nothing yet to look
    for all of them by. Where a region knows of all that are like it, to look at one will do.

    Regions are alike whose projections point the same way: by exp(SHARPNESS (cosine - 1)), from 1 down to almost 0.
    Since each adds 1 / (how many are like it), the sum over all regions is the number of kinds. Where they are is told
    by their mean and by how far they reach to all sides, for relations are of the box around a group. Compare Wang et
    al. 2018, "Non-local neural networks".

    Args:
        units: of the memory, before and after.
        centres: (regions, 2), x and y in shares of the picture.
    """

    PROJECTED = 32
    SHARPNESS = 12.0
    TOLD = 10

    def __init__(self, units, centres, **arguments):
        super().__init__(**arguments)
        self.units, self.centres = units, centres
        self.look = layers.Dense(self.PROJECTED, use_bias=False, name="look")
        self.out = layers.Dense(units, activation="relu", name="out")

    def build(self, regions_shape):
        """Creates the weights, for regions (batch, regions, channels)."""
        self.look.build(regions_shape)
        self.out.build((*regions_shape[:-1], self.units + self.TOLD))
        self.built = True

    def call(self, memory, regions):
        """The memory (batch, regions, units) that knows more, of one and the regions (batch, regions, channels); and
        (batch, 1) how many kinds of things the picture shows, the ground among them."""
        amount, off, reach = self.alike(ops.cast(self.look(regions), "float32"))
        kinds = ops.sum(1.0 / amount, axis=1)
        told = [amount / 10.0, ops.log(amount), 8.0 * off, 8.0 * ops.abs(off), 4.0 * reach]
        told = ops.concatenate(told, axis=-1)
        memory = self.out(ops.concatenate([memory, ops.cast(told, memory.dtype)], axis=-1))
        return memory, ops.cast(kinds, memory.dtype)

    def alike(self, looks):
        """What there is like each region, itself included; places in shares of the picture.

        Args:
            looks: (batch, regions, any), float32.

        Returns:
            how many there are, (batch, regions, 1); how far off the region's centre is the centre of them all, (batch,
            regions, 2); and how far the last of them is from the left, the top, the right and the bottom of the
            picture, (batch, regions, 4).
        """
        looks = looks * ops.rsqrt(ops.sum(ops.square(looks), axis=-1, keepdims=True) + 1e-6)
        shares = ops.exp(self.SHARPNESS * (ops.matmul(looks, ops.transpose(looks, (0, 2, 1))) - 1.0))
        amount = ops.sum(shares, axis=-1, keepdims=True)
        centres = ops.convert_to_tensor(self.centres, "float32")
        from_sides = tf.unstack(ops.concatenate([centres, 1.0 - centres], axis=1), axis=1)
        reach = ops.stack([ops.max(shares * distance, axis=-1) for distance in from_sides], axis=-1)
        off = ops.matmul(shares, ops.repeat(centres[None], ops.shape(shares)[0], axis=0)) / amount - centres
        return amount, off, reach


def unevenness(weights, targets):
    """Doubly stochastic regularisation (Xu et al. 2015, equation 14): sum_i (1 - sum_t a_ti)^2, its mean over captions.

    Args:
        weights: attention (captions, time, regions) a_ti. targets: (captions, time) ids, 0 on padding.
    """
    real = ops.cast(ops.not_equal(targets, 0), "float32")[:, :, None]
    return ops.mean(ops.sum(ops.square(1.0 - ops.sum(weights * real, axis=1)), axis=-1))


def regions_inside(places, centres):
    """Which regions have their centre in a box: boolean (captions, time, regions).

    Args:
        places: boxes (captions, time, boxes, 4) of each word, left, top, right, bottom. centres: (regions, 2), x and y.
    """
    x, y = (ops.convert_to_tensor(each, "float32") for each in centres.T)
    left, top, right, bottom = ops.split(ops.cast(places, "float32"), 4, axis=-1)
    return ops.any((left <= x) & (x < right) & (top <= y) & (y < bottom), axis=2)


def straying(weights, inside):
    """How little the attention looks at where it is told to, after Liu et al. 2017 ("Attention correctness").

    They ask for one distribution over the regions; here it is free which regions of an object are looked at: the loss
    is -log of the weight on all of them, its mean over the words that have such regions.

    Args:
        weights: attention (captions, time, regions). inside: as many, 1 for the regions where to look, else 0.
    """
    there = ops.sum(ops.cast(weights, "float32") * inside, axis=-1)
    return mean_where(ops.any(inside > 0, axis=-1), -ops.log(there + 1e-6))


def mean_where(chosen, values):
    """The mean of the values where `chosen`, boolean, of the same shape; 0 where nothing is."""
    chosen = ops.cast(chosen, values.dtype)
    return ops.sum(values * chosen) / ops.maximum(ops.sum(chosen), 1.0)

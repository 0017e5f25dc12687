"""The recogniser: a deep recurrent network reads frames of sound and says at every step which phone it hears.

    h_1 .. h_T = layers(frames)                                      read in both directions, or in one
    p(phone at t | frames) = softmax(V h_t + b)                      the frames' head, for aligned phones
    p(label or blank at t | frames) = softmax(V' h_t + b')           the CTC head, for label strings without times

The CTC loss sums over all ways to spread the labels over the steps, with blanks between them (Graves et al. 2006). Read
in one direction, the network may answer `look_ahead` steps late, so that it has heard a little of what comes.
"""

import keras
import tensorflow as tf
from keras import layers, ops

from shared.losses import token_cross_entropy
from shared.recurrent import RecurrentStack


class Recogniser(keras.Model):
    """A recurrent stack over frames with one head or two, which computes its own losses.

    Args:
        config: a tasks.speech.config.ModelConfig.
        columns: numbers in one frame.
        num_phones, num_labels: entries of the vocabularies of the frames' and of the CTC head; id 0 is the CTC blank.
    """

    def __init__(self, config, columns, num_phones, num_labels):
        super().__init__(name="recogniser")
        self.config, self.columns = config, columns
        self.input_dropout = layers.Dropout(config.dropout_input, noise_shape=(None, 1, None))
        self.stack = RecurrentStack(
            config.cell, config.units, config.layers, config.bidirectional,
            config.residual, config.dropout_layers, name="stack",
        )  # fmt: skip
        self.output_dropout = layers.Dropout(config.dropout_output)
        # Logits and CTC stay in float32, whatever the precision: log-sums over hundreds of steps need it.
        sizes = {"frames": num_phones, "ctc": num_labels}
        self.heads = {
            head: layers.Dense(size, dtype="float32", name=head)
            for head, size in sizes.items()
            if config.head in (head, "both")
        }

    def build(self, inputs_shape=None):
        """Creates every weight, so that a checkpoint can be loaded before any batch was seen."""
        self.stack.build((None, None, self.columns))
        for head in self.heads.values():
            head.build((None, None, self.stack.output_units))
        self.built = True

    def call(self, inputs, training=None):
        """Loss (batch, steps) in nats, float32, whose mean over real steps is the loss of the batch.

        The CTC loss of an utterance is spread evenly over its steps; with both heads the two are weighted.

        Args:
            inputs: {"features": (batch, steps, columns), "lengths": (batch,) steps of each row, "frame_phones": (batch,
                steps) ids, 0 where unknown, "labels": (batch, labels) ids padded with 0}.
        """
        logits = self.logits(inputs["features"], inputs["lengths"], training)
        losses = {}
        if "frames" in logits:
            known = ops.cast(ops.not_equal(inputs["frame_phones"], 0), "float32")
            losses["frames"] = token_cross_entropy(inputs["frame_phones"], logits["frames"]) * known
        if "ctc" in logits:
            utterance = ctc_loss(inputs["labels"], logits["ctc"], inputs["lengths"])
            steps = ops.cast(inputs["lengths"], "float32")[:, None]
            losses["ctc"] = utterance[:, None] / steps * ops.ones_like(logits["ctc"][..., 0])
        if len(losses) == 1:
            return next(iter(losses.values()))
        return (1 - self.config.ctc_weight) * losses["frames"] + self.config.ctc_weight * losses["ctc"]

    def logits(self, features, lengths, training=None):
        """Head -> scores (batch, steps, entries) in float32, for features (batch, steps, columns) padded with 0."""
        steps, late = ops.shape(features)[1], self.config.look_ahead
        mask = None
        if self.config.bidirectional:  # else padding on the right cannot reach the steps before it
            mask = ops.arange(steps)[None] < lengths[:, None]
        if late:
            features = ops.pad(features, [[0, 0], [0, late], [0, 0]])
        read = self.input_dropout(ops.cast(features, self.compute_dtype), training=training)
        outputs, _ = self.stack(read, mask=mask, training=training)
        outputs = self.output_dropout(outputs[:, late:], training=training)
        return {name: head(outputs) for name, head in self.heads.items()}


def ctc_loss(labels, logits, lengths):
    """Minus the log probability of label strings, summed over all ways to spread them (Graves et al. 2006, eq. 8).

    Keras' operation passes from every state to every state at each step; TensorFlow's kernel, which wants the labels
    sparse, passes to the three that can follow, and takes a ninth of the time at 40 labels. It runs on the CPU always.

    Args:
        labels: (batch, labels) int32, padded with 0, the blank. logits: (batch, steps, entries) float32.
        lengths: (batch,) int32, steps of each row; the loss is infinite where they are too few for the labels.

    Returns:
        (batch,) in nats.
    """
    sparse = tf.sparse.from_dense(labels)
    return tf.compat.v1.nn.ctc_loss_v2(sparse, logits, None, lengths, logits_time_major=False, blank_index=0)

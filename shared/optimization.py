"""The optimiser of a configuration: Keras' own, with its schedule, clipping, averaging and accumulation.

The one thing added is that it remembers the norm of the last gradient, which is worth watching in a recurrent network.
"""

import keras
import tensorflow as tf
from keras import ops

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
}


def build_optimizer(config, total_steps: int) -> keras.optimizers.Optimizer:
    """The optimiser for a TrainingConfig and the number of batches that training will see.

    `gradient_norm`, a variable of the result, holds the global norm of the last gradient before it was clipped (of the
    mean over `accumulate_steps` batches where gradients are accumulated).
    """
    return _with_gradient_norm(OPTIMIZERS[config.optimizer])(
        learning_rate=learning_rate(config, total_steps),
        # AdamW insists on a number.
        weight_decay=config.weight_decay or (0.0 if config.optimizer == "adamw" else None),
        global_clipnorm=config.clip_norm or None,
        use_ema=config.average > 0,
        ema_momentum=config.average or 0.99,
        gradient_accumulation_steps=config.accumulate_steps if config.accumulate_steps > 1 else None,
    )


def learning_rate(config, total_steps: int):
    """The learning rate over `total_steps` batches: a number where constant or following a plateau, else a schedule.

    Keras asks a schedule for the rate of a batch, not of an update, also where gradients are accumulated.

    cosine: linear warm-up, then half a cosine down to final_learning_rate (Loshchilov & Hutter 2017, without restarts).
    constant: linear warm-up, then constant. plateau: the callback that watches the score lowers it.
    """
    if config.schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0 if config.warmup_steps else config.learning_rate,
            decay_steps=max(total_steps - config.warmup_steps, 1),
            alpha=config.final_learning_rate / config.learning_rate,
            warmup_target=config.learning_rate if config.warmup_steps else None,
            warmup_steps=config.warmup_steps,
        )
    if config.schedule == "constant" and config.warmup_steps:
        return keras.optimizers.schedules.PolynomialDecay(0.0, config.warmup_steps, config.learning_rate)
    return config.learning_rate


def _with_gradient_norm(optimizer_class):
    """The optimiser's class, with the gradient's norm kept as a variable."""

    class Measured(optimizer_class):
        """Clips by the global norm as Keras does, and keeps the norm."""

        def build(self, variables):
            super().build(variables)
            self.gradient_norm = self.add_variable((), initializer="zeros", dtype="float32", name="gradient_norm")

        def _clip_gradients(self, gradients):
            # An embedding's are indexed slices, several for an id that occurs several times: add them up first.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
            self.gradient_norm.assign(norm)
            if not self.global_clipnorm:
                return gradients
            scale = self.global_clipnorm / ops.maximum(norm, self.global_clipnorm)
            return [gradient * scale for gradient in gradients]

    Measured.__name__ = optimizer_class.__name__
    return Measured

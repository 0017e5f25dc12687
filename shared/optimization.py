"""The optimiser of a configuration: Keras' own, with its schedule, clipping, averaging and accumulation.

Three things are added: it remembers the norm of the last gradient, which is worth watching in a recurrent network, it
knows the plain average of the weights beside the exponential one, and it moves some variables slower than others.
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

    With `average_patience` the averages kept beside the weights are the weights themselves while `averaged`, another
    variable, is 0; set to 1 it counts, and they become the mean of all weights from then on (Polyak & Juditsky 1992;
    when to begin: Merity, Keskar & Socher 2018, algorithm 1).

    A variable with an attribute `learning_rate_share` is moved by that share of the learning rate.
    """
    return _extended(OPTIMIZERS[config.optimizer], plain_average=config.average_patience > 0)(
        learning_rate=learning_rate(config, total_steps),
        # AdamW insists on a number.
        weight_decay=config.weight_decay or (0.0 if config.optimizer == "adamw" else None),
        global_clipnorm=config.clip_norm or None,
        use_ema=config.average > 0 or config.average_patience > 0,
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


def _extended(optimizer_class, plain_average):
    """The optimiser's class, with the gradient's norm as a variable, and the plain average where wanted."""

    class Extended(optimizer_class):
        """Clips by the global norm as Keras does, and keeps the norm."""

        def build(self, variables):
            super().build(variables)
            self.shares = [getattr(variable, "learning_rate_share", 1.0) for variable in variables]
            self.gradient_norm = self.add_variable((), initializer="zeros", dtype="float32", name="gradient_norm")
            if plain_average:
                self.averaged = self.add_variable((), initializer="zeros", dtype="float32", name="averaged")

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate * self.shares[self._get_variable_index(variable)])

        def _update_model_variables_moving_average(self, trainable_variables):
            if not plain_average:
                super()._update_model_variables_moving_average(trainable_variables)
                return
            self.averaged.assign_add(ops.minimum(self.averaged, 1.0))
            share = 1 / ops.maximum(self.averaged, 1.0)
            for variable, average in zip(trainable_variables, self._model_variables_moving_average, strict=True):
                average.assign_add((variable - average) * share)

        def _clip_gradients(self, gradients):
            # An embedding's are indexed slices, several for an id that occurs several times: add them up first.
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
            self.gradient_norm.assign(norm)
            if not self.global_clipnorm:
                return gradients
            scale = self.global_clipnorm / ops.maximum(norm, self.global_clipnorm)
            return [gradient * scale for gradient in gradients]

    Extended.__name__ = optimizer_class.__name__
    return Extended

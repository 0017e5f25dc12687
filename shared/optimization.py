"""The optimiser of a configuration: Keras' own, with its schedule, clipping, averaging and accumulation.

Three things are added: it remembers the norm of the last gradient, which is worth watching in a recurrent network, it
knows the plain average of the weights beside the exponential one, and it moves some variables slower than others. Adam
moves a variable by one operation in place of twenty, which were more than all others in a step of a small model.
"""

import keras
import tensorflow as tf
from keras import ops


class FusedAdam:
    """Before `keras.optimizers.Adam` or AdamW among a class's bases: the same updates, by TensorFlow's own kernel."""

    def _backend_update_step(self, gradients, variables, learning_rate):
        super()._backend_update_step(gradients, variables, learning_rate * self.correction())

    def correction(self):
        """What makes up for moments that began as zeros, the same for all variables; the rate is multiplied by it."""
        step = ops.cast(self.iterations + 1, "float32")
        return ops.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)

    def update_step(self, gradient, variable, learning_rate):
        """As Keras', with a learning rate that is corrected already."""
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[index].value.handle, v=self._velocities[index].value.handle,
            lr=learning_rate, beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, grad=gradient,
            beta1_power=0.0, beta2_power=0.0,
        )  # fmt: skip


class Muon(FusedAdam, keras.optimizers.Adam):
    """Momentum whose every direction is made equally long, for matrices; Adam for embeddings and vectors.

        M_t = m M_{t-1} + G_t;  O_t = the orthogonal matrix nearest to G_t + m M_t
        W_t = W_{t-1} - 0.2 sqrt(n) rate O_t

    with m = 0.95 and n the greater side of W (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), which the
    factor makes as large as updates of Adam: rates found for the one go for the other (Liu et al. 2025,
    arXiv:2502.16982, section 2.2). `keras.optimizers.Muon` leaves the kernels of convolutions to Adam and takes the
    gates of a recurrent layer, which are matrices in their own right, for one.

    A variable that holds several matrices next to each other says how many in an attribute `matrices`.
    """

    MOMENTUM = 0.95
    SIZE = 0.2  # of an entry of an update, about what it is in Adam
    COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the authors: x -> a x + b x^3 + c x^5 takes most of (0, 1] near to 1
    ROUNDS = 5

    def build(self, variables):
        """As Keras'."""
        super().build(variables)
        self.matrices = [getattr(variable, "matrices", 1) if _is_matrix(variable) else 0 for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        """As Keras', with a learning rate that is corrected for Adam already."""
        index = self._get_variable_index(variable)
        if not self.matrices[index]:
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self._momentums[index]
        momentum.assign(self.MOMENTUM * momentum + gradient)
        steepest = gradient + self.MOMENTUM * momentum
        columns = variable.shape[-1] // self.matrices[index]
        each = ops.transpose(ops.reshape(steepest, (-1, self.matrices[index], columns)), (1, 0, 2))
        update = ops.transpose(self.SIZE * max(each.shape[1:]) ** 0.5 * self.orthogonal(each), (1, 0, 2))
        variable.assign_sub(learning_rate / self.correction() * ops.reshape(update, variable.shape))

    def orthogonal(self, matrices):
        """About the nearest matrix to each (n, rows, columns) whose singular values are all 1; they are 0.7 to 1.2."""
        a, b, c = self.COEFFICIENTS
        tall = matrices.shape[1] > matrices.shape[2]
        x = ops.transpose(matrices, (0, 2, 1)) if tall else matrices
        x /= ops.sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True)) + 1e-7
        for _ in range(self.ROUNDS):
            square = tf.matmul(x, x, transpose_b=True)
            x = a * x + ops.matmul(b * square + c * ops.matmul(square, square), x)
        return ops.transpose(x, (0, 2, 1)) if tall else x


def _is_matrix(variable) -> bool:
    """Whether it multiplies vectors of features: what Keras calls a kernel, of more than one column."""
    return variable.name.endswith("kernel") and variable.shape[-1] > 1


OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
    "rmsprop": keras.optimizers.RMSprop,
    "muon": Muon,
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
    adam = issubclass(optimizer_class, keras.optimizers.Adam) and not issubclass(optimizer_class, FusedAdam)
    bases = (FusedAdam, optimizer_class) if adam else (optimizer_class,)

    class Extended(*bases):
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

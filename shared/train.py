"""Training, in one straight line: corpus -> features -> batches -> fit.

Training is a sequence of rounds. What a round does depends only on the checkpoint before it, the configuration and the
round's number, so a training that was killed and started again ends with the same weights, bit for bit (on a CPU).
"""

import gc
import logging
import math
import os
import shlex
import sys

import keras
import tensorflow as tf

from shared import checkpoints
from shared.callbacks import EndOfRound, StopCleanly
from shared.metrics import TokenCount
from shared.optimization import build_optimizer
from shared.recurrent import kernel_of
from shared.tensorboard import write_projector

log = logging.getLogger(__name__)


def train(task, config, run) -> None:
    """Trains to the end of the last round, from the start or from the run's last checkpoint.

    Raises RunError when it was stopped or the loss is no number; the run can then be resumed.
    """
    corpus = task.prepare(config)
    features = fitted_features(task, config, run, corpus)
    # Only now, since building a corpus draws random numbers, and finding it built does not.
    prepare_process(config.training)
    model = task.build_model(config, features)
    round_steps = config.training.round_steps or task.steps_per_pass(config, corpus, features)
    total_steps = round_steps * config.training.rounds
    model.compile(
        optimizer=build_optimizer(config.training, total_steps),
        loss=task.loss(config),
        weighted_metrics=[TokenCount()],
        # cuDNN's layers cannot be compiled by XLA, and other lengths would be compiled anew.
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    progress = checkpoints.restore_round(run.checkpoints, model)
    if not progress.round:
        task.start(config, model, features)
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    run.write_environment(config.training.seed, recurrent_kernels(model), parameters)
    log.info(
        "%s: %s parameters, %d rounds of %d steps",
        corpus.name,
        f"{parameters:,}",
        config.training.rounds,
        round_steps,
    )
    fit(task, config, run, corpus, features, model, progress, round_steps)
    for name, (matrix, tokens) in task.embeddings(model, features).items():
        write_projector(run.tensorboard, name, matrix, tokens)


def fit(task, config, run, corpus, features, model, progress, round_steps) -> None:
    """Keras' loop over the rounds that are left."""
    if progress.round:
        log.info("resuming after round %d", progress.round)
    if finished(config.training, progress):
        return
    stop = StopCleanly(
        run,
        progress,
        round_steps,
        shlex.join(["python", "-m", f"tasks.{task.name}", "train", "--run", str(run.directory)]),
    )
    with stop.handling_signals():
        model.fit(
            task.training_batches(config, corpus, features, progress.round * round_steps),
            steps_per_epoch=round_steps,
            initial_epoch=progress.round,
            epochs=config.training.rounds,
            callbacks=[stop, EndOfRound(task, config, run, features, corpus, progress, round_steps)],
            shuffle=False,
            verbose=1 if sys.stdout.isatty() else 0,
        )
    # An iterator of the batches that is left in a reference cycle reads on in threads, and Python may hang at its end.
    gc.collect()


def finished(training, progress) -> bool:
    """Whether all rounds were done, or the patience had run out."""
    out_of_patience = training.patience and progress.round - progress.best_round >= training.patience
    return progress.round >= training.rounds or bool(progress.round and out_of_patience)


def prepare_process(training) -> None:
    """Seeds every generator, makes kernels deterministic where asked, and sets the precision."""
    keras.utils.set_random_seed(training.seed)
    if training.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(training.precision)


def fitted_features(task, config, run, corpus):
    """The run's features, fitted on the training split the first time."""
    if not run.features.exists():
        # Into a folder of another name first, so that a half-written one is never taken for whole.
        unfinished = run.features.with_name("features.unfinished")
        unfinished.mkdir(exist_ok=True)
        task.fit_features(config, corpus).save(unfinished)
        os.replace(unfinished, run.features)
    return task.load_features(config, run.features)


def recurrent_kernels(model) -> dict[str, str]:
    """Recurrent layer -> which code runs it on this machine."""
    # A bidirectional wrapper also holds the layer it was made from, which never runs and is never built.
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.RNN) and layer.built]
    return {layer.path: kernel_of(layer) for layer in found}

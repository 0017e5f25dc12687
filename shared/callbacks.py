"""What happens around Keras' loop: a clean stop while it runs, and the end of a round: validate, keep, log, save."""

import contextlib
import dataclasses
import json
import logging
import math
import signal
import time

import keras

from shared import checkpoints, tensorboard
from shared.config import RunError
from shared.recurrent import horizon
from shared.run import append_line, write_picture
from shared.task import rank

log = logging.getLogger(__name__)


class StopCleanly(keras.callbacks.Callback):
    """Ends a training within one step of Ctrl-C, SIGTERM or a loss that is no number, with a RunError that says so."""

    def __init__(self, run, progress, round_steps, resume_command):
        super().__init__()
        self.run, self.progress, self.round_steps, self.resume_command = run, progress, round_steps, resume_command
        self.received = None

    @contextlib.contextmanager
    def handling_signals(self):
        """Notes the signals instead of dying from them."""

        def note(number, frame):
            self.received = signal.Signals(number).name

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        for handler in before.values():
            self.received = self.received or getattr(handler, "received", None)  # one that a library has swallowed
        try:
            yield
            self.stop_if_asked()  # a signal that came after the last step
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_batch_end(self, batch, logs=None):
        """Called by Keras with the running means of the round."""
        self.stop_if_asked()
        loss, step = float(logs["loss"]), self.progress.round * self.round_steps + batch + 1
        if not math.isfinite(loss):
            raise not_finite("loss", loss, step, self.model, self.run, self.progress)

    def stop_if_asked(self):
        """Raises RunError once a signal has come."""
        if self.received:
            saved = last_saved(self.run, self.progress)
            raise RunError(f"stopped by {self.received}; {saved}; resume with: {self.resume_command}")


class EndOfRound(keras.callbacks.Callback):
    """After each round, in this order: validates by decoding, keeps the best weights, logs, and saves.

    Saving comes last, so that a checkpoint always knows of its own round's score, patience and plateau.
    """

    def __init__(self, task, config, run, features, corpus, progress, round_steps):
        super().__init__()
        self.events = tensorboard.EventWriter(run.tensorboard)
        self.events.hyperparameters(config)
        # Greedy search, whatever the configuration's: it takes about half the time of a beam of 5.
        greedy = dataclasses.replace(config.decoding, method="greedy")
        self.task, self.config, self.run = task, dataclasses.replace(config, decoding=greedy), run
        self.features, self.corpus, self.progress, self.round_steps = features, corpus, progress, round_steps
        self.monitor = task.monitor(config)
        self.first_inputs = None
        if config.training.horizon:  # on the same batch after every round
            self.first_inputs = next(iter(task.training_batches(config, corpus, features, 0)))[0]

    def on_train_end(self, logs=None):
        """No event comes after this."""
        self.events.close()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """The end of a round; Keras counts them from 0."""
        seconds = time.perf_counter() - self.started
        progress, step = self.progress, (epoch + 1) * self.round_steps
        optimizer = inner_optimizer(self.model)
        values = {
            "loss": logs["loss"],
            "learning_rate": float(optimizer.learning_rate),
            "gradient_norm": float(optimizer.gradient_norm),
            "tokens_per_second": logs["tokens"] / seconds,
            "seconds": seconds,
        }
        with averaged_weights(self.model):
            predictions, scores = self._validate()
            values |= {f"valid_{name}": value for name, value in scores.items() if not isinstance(value, str)}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise not_finite(name, value, step, self.model, self.run, progress)
            progress.round = epoch + 1
            self._keep_if_best(values)
            self._show(step, values, predictions)
        self._follow_plateau(optimizer)
        self._follow_patience(optimizer)
        append_line(self.run.metrics, json.dumps({"round": progress.round, "step": step, **values}))
        checkpoints.save_round(self.run.checkpoints, self.model, progress)
        log.info(self._line(values))
        patience = self.config.training.patience
        if patience and progress.round - progress.best_round >= patience:
            log.info("no better %s for %d rounds: training ends", self.monitor, patience)
            self.model.stop_training = True

    def _validate(self):
        limit = self.config.training.validation_examples
        predictions = self.task.decode(self.config, self.model, self.features, self.corpus, "valid", limit)
        scores = self.task.score(predictions, self.config)
        if "valid" in self.corpus.optimum:
            scores["optimum_perplexity"] = self.corpus.optimum["valid"]
        return predictions, scores

    def _keep_if_best(self, values):
        progress, found = self.progress, rank(self.monitor, values)
        if progress.best is None or found > progress.best:
            progress.best, progress.best_round, progress.plateau_round = found, progress.round, progress.round
            checkpoints.save_best(self.run.checkpoints, self.model, progress)

    def _follow_plateau(self, optimizer):
        training, progress = self.config.training, self.progress
        if training.schedule == "plateau" and progress.round - progress.plateau_round >= training.plateau_patience:
            optimizer.learning_rate = float(optimizer.learning_rate) * training.plateau_factor
            progress.plateau_round = progress.round
            log.info("no better %s: learning rate lowered to %.3g", self.monitor, float(optimizer.learning_rate))

    def _follow_patience(self, optimizer):
        patience, waited = self.config.training.average_patience, self.progress.round - self.progress.best_round
        if patience and waited >= patience and not float(optimizer.averaged):
            optimizer.averaged.assign(1.0)
            log.info("no better %s for %d rounds: the weights are averaged from here on", self.monitor, patience)

    def _show(self, step, values, predictions):
        shown = predictions[: self.config.training.sample_examples]
        pictures = self.task.illustrate(self.config, self.model, self.features, self.corpus, predictions)
        self.events.scalars(step, values)
        if self.first_inputs is not None:
            curves = horizon.horizons(self.model, self.first_inputs)
            pictures["horizon"] = horizon.draw(curves)
            self.events.scalars(step, {f"horizon/{name}": horizon.reach(curve) for name, curve in curves.items()})
        self.events.images(step, pictures)
        self.events.texts(step, {"samples": samples_table(shown)})
        if self.progress.round == 1:
            self.events.sounds(step, self.task.sounds(self.config, self.corpus, predictions))
        for name, picture in pictures.items():
            write_picture(self.run.pictures / f"{name}.png", picture)

    def _line(self, values):
        done, rounds = self.progress.round, self.config.training.rounds
        left = (rounds - done) * (time.perf_counter() - self.started) / 60
        scores = ", ".join(f"{name[6:]} {value:.4g}" for name, value in values.items() if name.startswith("valid_"))
        speed = f"{values['tokens_per_second']:,.0f} tokens/s"
        return f"round {done}/{rounds}: loss {values['loss']:.3f}, validation {scores}, {speed}, {left:.0f} min left"


def last_saved(run, progress) -> str:
    """What a training that ends now can go on from."""
    return f"round {progress.round} is saved in {run.checkpoints}" if progress.round else "no round was finished yet"


def not_finite(name: str, value: float, step: int, model, run, progress) -> RunError:
    """The error for a training that has left the finite numbers."""
    rate = float(inner_optimizer(model).learning_rate)
    return RunError(
        f"{name} is {value} at step {step} with learning rate {rate:.3g}; {last_saved(run, progress)}; "
        "a lower training.learning_rate or training.clip_norm may help"
    )


def inner_optimizer(model):
    """The optimiser itself, without Keras' wrapper that scales the loss under float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


@contextlib.contextmanager
def averaged_weights(model):
    """The model with its optimiser's weight averages in place, where it keeps any; afterwards the raw weights again."""
    optimizer = inner_optimizer(model)
    if not optimizer.use_ema:
        yield
        return
    raw = [weight.numpy() for weight in model.trainable_weights]
    optimizer.finalize_variable_values(model.trainable_weights)
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_weights, raw, strict=True):
            weight.assign(value)


def samples_table(predictions) -> str:
    """Predictions as a Markdown table of the texts in them."""
    names = [name for name, value in predictions[0].items() if isinstance(value, str)] if predictions else []
    rows = [
        names,
        ["---"] * len(names),
        *([prediction[name].replace("|", "\\|") for name in names] for prediction in predictions),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)

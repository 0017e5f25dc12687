"""What a plain PyTorch network of the same sizes learns from the very batches that a recogniser learned from.

    python bench/speech_reference.py --run RUN [--split test]

Takes the run's features, batches, layers, units, dropouts, rates and number of steps to a torch.nn.LSTM that reads in
both directions, under a linear layer with the loss of the head that is decoded; keeps the round that is best on the
validation split; and gives its posteriors to the run's own search and scoring. Where the run has another cell, residual
layers, one direction, a second head or a start from another run, the reference has none of that. Prints the scores, and
the minutes that the training steps took. Needs `pip install torch`.
"""

import argparse
import copy
import dataclasses
import logging
import os
import sys
import time
from itertools import islice
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import tensorflow as tf

from shared.config import RunError, UserError, load_config
from shared.optimization import learning_rate
from shared.run import Run
from shared.task import rank
from shared.train import prepare_process
from tasks.speech.config import SpeechConfig
from tasks.speech.corpus import prepare
from tasks.speech.data import steps_per_pass, training_batches
from tasks.speech.decode import decode, head_of
from tasks.speech.features import load, num_columns
from tasks.speech.score import score
from tasks.speech.task import monitor

# PyTorch's optimisers look for its compiler, which nothing here uses; loading it beside TensorFlow was a crash.
sys.modules["triton"] = None

try:
    import torch
except ImportError:
    sys.exit("error: the reference needs PyTorch: .venv/bin/python -m pip install torch")

log = logging.getLogger("reference")


class Reference(torch.nn.Module):
    """The network; `logits` is what `tasks.speech.decode` asks of a model."""

    def __init__(self, config, columns: int, head: str, entries: int):
        super().__init__()
        sizes = config.model
        self.head, self.columns, self.entries = head, columns, entries
        self.input_dropout = torch.nn.Dropout(sizes.dropout_input)
        self.recurrence = torch.nn.LSTM(
            columns, sizes.units, sizes.layers, batch_first=True, bidirectional=True,
            dropout=sizes.dropout_layers if sizes.layers > 1 else 0.0,
        )  # fmt: skip
        self.output_dropout = torch.nn.Dropout(sizes.dropout_output)
        self.output = torch.nn.Linear(2 * sizes.units, entries)

    def forward(self, features, lengths):
        """(batch, steps, columns), (batch,) -> scores (batch, steps, entries)."""
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            self.input_dropout(features), lengths, batch_first=True, enforce_sorted=False
        )
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
            self.recurrence(packed)[0], batch_first=True, total_length=features.shape[1]
        )
        return self.output(self.output_dropout(outputs))

    def logits(self, features, lengths) -> dict:
        """As tasks.speech.model.Recogniser.logits, within a graph of TensorFlow."""
        scores = tf.numpy_function(self._scores, (features, lengths), tf.float32, stateful=True)
        return {self.head: tf.ensure_shape(scores, (None, None, self.entries))}

    def _scores(self, features, lengths) -> np.ndarray:
        with torch.inference_mode():
            return self.eval()(torch.from_numpy(features), torch.from_numpy(lengths).long()).numpy()


def loss_of(scores, batch: dict, head: str):
    """The run's loss of scores (batch, steps, entries): its sum over the batch, for each step that is no padding."""
    steps = batch["lengths"].sum()
    if head == "frames":
        known = batch["frame_phones"].long().reshape(-1)
        flat = scores.reshape(len(known), -1)
        return torch.nn.functional.cross_entropy(flat, known, ignore_index=0, reduction="sum") / steps
    log_probs = torch.log_softmax(scores, dim=-1).transpose(0, 1)
    labels = batch["labels"].long()
    sizes = batch["lengths"].long(), (labels != 0).sum(1)
    return torch.nn.functional.ctc_loss(log_probs, labels, *sizes, blank=0, reduction="sum") / steps


def train(config, corpus, features, rounds: int) -> tuple[Reference, float]:
    """The network with the weights of its best round, and the seconds that its training steps took."""
    training, head = config.training, head_of(config)
    round_steps = training.round_steps or steps_per_pass(config, corpus, features)
    columns = num_columns(config.features) * config.features.stack
    torch.manual_seed(training.seed)
    model = Reference(config, columns, head, len(features.phones if head == "frames" else features.labels))
    # Keras' Adam and AdamW, which are one where no weights decay.
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-7, weight_decay=training.weight_decay)
    rate_at = learning_rate(training, round_steps * training.rounds)
    batches = training_batches(config, corpus, features, 0).as_numpy_iterator()
    quick = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, method="greedy"))
    step, seconds, best, best_state = 0, 0.0, None, None
    for number in range(1, rounds + 1):
        started, losses = time.perf_counter(), []
        model.train()
        for inputs, _, _ in islice(batches, round_steps):
            batch = {name: torch.tensor(array) for name, array in inputs.items()}
            optimizer.param_groups[0]["lr"] = float(rate_at(step)) if callable(rate_at) else rate_at
            optimizer.zero_grad()
            loss = loss_of(model(batch["features"], batch["lengths"].long()), batch, head)
            loss.backward()
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            losses.append(loss.item())
            step += 1
        seconds += time.perf_counter() - started
        scores = score(decode(quick, model, features, corpus, "valid", training.validation_examples), config)
        found = rank(monitor(config), {f"valid_{name}": value for name, value in scores.items()})
        if best is None or found > best:
            best, best_state = found, copy.deepcopy(model.state_dict())
        shown = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
        log.info("round %d/%d: loss %.3f, validation %s", number, rounds, np.mean(losses), shown)
    model.load_state_dict(best_state)
    return model, seconds


def check(run: Run, config) -> int:
    """Rounds that the run was trained for. UserError if there is none, or if this file cannot update as the run did."""
    rounds = len(run.metrics.read_text(encoding="utf-8").splitlines()) if run.metrics.exists() else 0
    if not rounds:
        raise UserError(f"{run.directory}: was never trained; train it first")
    training = config.training
    for key, known in (
        ("optimizer", ("adam", "adamw")),
        ("schedule", ("constant", "cosine")),
        ("average", (0,)),
        ("average_patience", (0,)),
        ("accumulate_steps", (1,)),
    ):
        if (value := getattr(training, key)) not in known:
            raise UserError(f"{run.config}: training.{key}: {value} is none of what the reference can do: {known}")
    return rounds


def main():
    """Prints the scores of a split, then `minutes`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, metavar="DIR", help="finished run of the speech task")
    parser.add_argument("--split", default="test", help="split that is scored; default: test")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    log.setLevel(logging.INFO)
    run = Run.open(arguments.run, SpeechConfig)
    config = load_config(SpeechConfig, run.config)
    rounds = check(run, config)
    corpus = prepare(config)
    if arguments.split not in corpus.splits:
        raise UserError(f"--split {arguments.split}: {corpus.name} has only {', '.join(corpus.splits)}")
    features = load(config, run.features)
    prepare_process(config.training)
    model, seconds = train(config, corpus, features, rounds)
    scores = score(decode(config, model, features, corpus, arguments.split, 0), config)
    for name, value in {**scores, "minutes": seconds / 60}.items():
        sys.stdout.write(f"{name:20} {value:.5g}\n")


if __name__ == "__main__":
    try:
        main()
    except (UserError, RunError) as error:
        sys.exit(f"error: {error}")

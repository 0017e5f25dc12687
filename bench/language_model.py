"""Words per second of a language model: a training step and scoring, beside PyTorch's layers at the same sizes.

    python bench/language_model.py [--pairs 7]

The rival is the architecture of PyTorch's word_language_model example, written anew here: embedding, dropout,
torch.nn.LSTM, dropout, a linear layer tied to the embedding; cross-entropy over all words, plain gradient descent with
clipping. Ours is tasks.language_model with the same sizes, dropouts and updates. Both are measured in turn, pair by
pair, in one process, and the medians compared. Needs `pip install torch`.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf
from alternation import measure

from shared.config import TrainingConfig
from shared.losses import OwnLoss
from shared.optimization import build_optimizer
from tasks.language_model.config import ModelConfig
from tasks.language_model.model import LanguageModel

try:
    import torch
except ImportError:
    sys.exit("error: the bench needs PyTorch: .venv/bin/python -m pip install torch")

WORDS = 10_000
SIZES = [
    {"streams": 20, "window": 35, "units": 200, "layers": 2, "dropout": 0.2},
    {"streams": 20, "window": 35, "units": 650, "layers": 2, "dropout": 0.5},
]


def ours(streams, window, units, layers, dropout):
    """(training step, scoring) of this project's model: functions of ids (streams, window) and their targets."""
    config = ModelConfig(
        units=units, embedding_units=units, layers=layers, dropout_embedding=dropout, dropout_layers=dropout,
        dropout_output=dropout,
    )  # fmt: skip
    model = LanguageModel(config, WORDS, streams)
    model.build()
    training = TrainingConfig(optimizer="sgd", learning_rate=1.0, schedule="constant", clip_norm=0.25)
    model.compile(build_optimizer(training, 1000), OwnLoss(), jit_compile=False)
    begins, weights = np.zeros(streams, bool), np.ones((streams, window), np.float32)

    def batch(tokens, targets):
        return {"tokens": tokens, "targets": targets, "begins": begins}

    def train(tokens, targets):
        model.train_on_batch(batch(tokens, targets), targets, weights)

    score = tf.function(lambda tokens, targets: model(batch(tokens, targets), training=False))
    return train, lambda tokens, targets: score(tokens, targets).numpy()


class Torch(torch.nn.Module):
    """PyTorch's layers in the order of its word_language_model example."""

    def __init__(self, units, layers, dropout):
        super().__init__()
        self.dropout = torch.nn.Dropout(dropout)
        self.embedding = torch.nn.Embedding(WORDS, units)
        self.recurrence = torch.nn.LSTM(units, units, layers, dropout=dropout)
        self.output = torch.nn.Linear(units, WORDS)
        self.output.weight = self.embedding.weight
        torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens, state):
        outputs, state = self.recurrence(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(outputs)), state


def theirs(streams, window, units, layers, dropout):
    """As `ours`."""
    del window
    model, zeros = Torch(units, layers, dropout), torch.zeros(layers, streams, units)
    carried = [(zeros, zeros)]

    def losses(tokens, targets, reduction):
        scores, carried[0] = model(torch.from_numpy(tokens.T.copy()).long(), [part.detach() for part in carried[0]])
        targets = torch.from_numpy(targets.T.copy()).long().reshape(-1)
        return torch.nn.functional.cross_entropy(scores.reshape(-1, WORDS), targets, reduction=reduction)

    def train(tokens, targets):
        model.train()
        model.zero_grad()
        losses(tokens, targets, "mean").backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= weight.grad

    def score(tokens, targets):
        model.eval()
        with torch.no_grad():
            return losses(tokens, targets, "none").numpy()

    return train, score


def main():
    """Prints a Markdown table and writes bench/language_model.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="measurements of each; default: 7")
    pairs = parser.parse_args().pairs
    keras.utils.set_random_seed(1)
    rows = []
    for sizes in SIZES:
        tokens, targets = np.random.default_rng(1).integers(4, WORDS, (2, sizes["streams"], sizes["window"]), np.int32)
        words = tokens.size
        for name, pair in zip(
            ("training step", "scoring"), zip(ours(**sizes), theirs(**sizes), strict=True), strict=True
        ):
            own, rival = measure([functools.partial(each, tokens, targets) for each in pair], pairs)
            label = f"{sizes['streams']}x{sizes['window']}x{sizes['units']}x{sizes['layers']}x{WORDS}"
            rows.append({
                "name": name, "size": label, "words_per_second": words / own,
                "words_per_second_pytorch": words / rival, "speed_vs_pytorch": rival / own,
            })  # fmt: skip
    header = ["", "streams x window x units x layers x words", "words/s", "PyTorch", "ratio"]
    sys.stdout.write(f"| {' | '.join(header)} |\n| --- | --- | ---: | ---: | ---: |\n")
    for row in rows:
        sys.stdout.write(
            f"| {row['name']} | {row['size']} | {row['words_per_second']:,.0f} | "
            f"{row['words_per_second_pytorch']:,.0f} | {row['speed_vs_pytorch']:.2f} |\n"
        )
    Path(__file__).with_suffix(".json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

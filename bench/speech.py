"""Speed of the recogniser: a training step and recognition, beside PyTorch's layers at the same sizes.

    python bench/speech.py [--pairs 7]

The rival is torch.nn.LSTM in both directions under a linear layer, with the same loss, Adam and clipping. Ours is
tasks.speech with the same sizes: as TensorFlow likes best, and with the deterministic kernels that training asks for.
Recognition goes all the way from samples to phones, through Viterbi's search, which takes an untrained network as long
as a trained one; PyTorch's forward pass over the same frames stands beside ours. All are measured in turn, in one
process, and the medians compared. Needs `pip install torch`.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from alternation import measure

from shared.config import TrainingConfig
from shared.losses import OwnLoss
from shared.optimization import build_optimizer
from shared.text import Vocabulary
from shared.train import prepare_process
from tasks.speech.config import DecodingConfig, ModelConfig, SpeechConfig
from tasks.speech.decode import log_posteriors, recognise
from tasks.speech.features import Features, compute, num_columns
from tasks.speech.model import Recogniser

# PyTorch's optimisers look for its compiler, which nothing here uses; loading it beside TensorFlow was a crash.
sys.modules["triton"] = None

try:
    import torch
except ImportError:
    sys.exit("error: the bench needs PyTorch: .venv/bin/python -m pip install torch")

BATCH, STEPS, UNITS, LAYERS, CLASSES = 32, 300, 128, 2, 64
LABELS = 40  # of CTC in an utterance, about as many as 3 seconds of speech have phones
BATCHES = (1, 8, 32)  # recordings recognised side by side
COLUMNS = num_columns(SpeechConfig().features)
TRAINING = TrainingConfig()


class Torch(torch.nn.Module):
    """Frames (batch, steps, COLUMNS) -> log probabilities (batch, steps, CLASSES)."""

    def __init__(self):
        super().__init__()
        self.recurrence = torch.nn.LSTM(COLUMNS, UNITS, LAYERS, batch_first=True, bidirectional=True)
        self.output = torch.nn.Linear(2 * UNITS, CLASSES)

    def forward(self, features):
        return torch.log_softmax(self.output(self.recurrence(features)[0]), dim=-1)


def our_model(head: str) -> Recogniser:
    """A fresh recogniser of the sizes above."""
    model = Recogniser(ModelConfig(units=UNITS, layers=LAYERS, head=head), COLUMNS, CLASSES, CLASSES)
    model.build()
    return model


def our_step(head: str, inputs: dict) -> Callable:
    """A training step of this project's model, as a function without arguments."""
    model = our_model(head)
    model.compile(build_optimizer(TRAINING, 1000), OwnLoss(), jit_compile=False)
    zeros, weights = np.zeros((BATCH, STEPS), np.int32), np.ones((BATCH, STEPS), np.float32)
    return lambda: model.train_on_batch(inputs, zeros, weights)


def their_step(head: str, inputs: dict) -> Callable:
    """The same of PyTorch."""
    model = Torch()
    optimizer = torch.optim.Adam(model.parameters(), TRAINING.learning_rate)

    def step():
        batch = {name: torch.from_numpy(array) for name, array in inputs.items()}
        log_probs = model(batch["features"])
        if head == "frames":
            wanted = batch["frame_phones"].long().reshape(-1)
            loss = torch.nn.functional.nll_loss(log_probs.reshape(-1, CLASSES), wanted)
        else:
            sizes = batch["lengths"].long(), (batch["labels"] != 0).sum(1)
            labels = batch["labels"].long()
            loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), labels, *sizes, reduction="sum")
            loss = loss / (BATCH * STEPS)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAINING.clip_norm)
        optimizer.step()

    return step


def training_rows(pairs: int, deterministic: bool) -> list[dict]:
    """Frames per second of a training step with either head, of a batch without padding."""
    draw = np.random.default_rng(1)
    inputs = {
        "features": draw.standard_normal((BATCH, STEPS, COLUMNS), np.float32),
        "lengths": np.full(BATCH, STEPS, np.int32),
        "frame_phones": draw.integers(4, CLASSES, (BATCH, STEPS), np.int32),
        "labels": draw.integers(4, CLASSES, (BATCH, LABELS), np.int32),
    }
    rows = []
    for head in ("frames", "ctc"):
        own, rival = measure((our_step(head, inputs), their_step(head, inputs)), pairs)
        frames = BATCH * STEPS
        rows.append({
            "head": head, "deterministic": deterministic, "frames_per_second": frames / own,
            "frames_per_second_pytorch": frames / rival, "speed_vs_pytorch": rival / own,
        })  # fmt: skip
    return rows


def recognition_row(pairs: int, batch: int) -> dict:
    """Seconds of computing per second of sound for recordings that are recognised side by side."""
    config = dataclasses.replace(SpeechConfig(), decoding=DecodingConfig(batch_size=batch))
    settings = config.features
    rate, vocabulary = settings.sample_rate, Vocabulary.train([" ".join(map(str, range(CLASSES - 4)))], "whitespace", 0)
    features = Features(
        vocabulary, vocabulary, np.zeros(COLUMNS, np.float32), np.ones(COLUMNS, np.float32), {},
        np.full((CLASSES, CLASSES), -np.log(CLASSES), np.float32), num_utterances=0,
    )  # fmt: skip
    seconds = ((STEPS - 1) * settings.hop + settings.window) / 1000
    sounds = 0.1 * np.random.default_rng(1).standard_normal((batch, round(seconds * rate)), np.float32)
    model, rival = our_model("frames"), Torch().eval()

    def frames():
        return [features.normalized(compute(sound, rate, settings), "") for sound in sounds]

    rows = frames()
    stacked = torch.from_numpy(np.stack(rows))

    def their_posteriors():
        with torch.inference_mode():
            rival(stacked)

    functions = (
        lambda: list(recognise(config, model, features, [(row, seconds) for row in frames()])),
        frames,
        lambda: log_posteriors(config, model, "frames", rows),
        their_posteriors,
    )
    names = ("real_time_factor", "features", "posteriors", "posteriors_pytorch")
    found = [each / (batch * seconds) for each in measure(functions, pairs)]
    return {"batch": batch, **dict(zip(names, found, strict=True))}


def main():
    """Prints two Markdown tables and writes bench/speech.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="measurements of each; default: 7")
    pairs = parser.parse_args().pairs
    training = training_rows(pairs, deterministic=False)
    recognition = [recognition_row(pairs, batch) for batch in BATCHES]
    prepare_process(TRAINING)  # last, since what it switches on stays on
    training += training_rows(pairs, deterministic=True)
    size = f"{BATCH}x{STEPS}x{COLUMNS}x{UNITS}x{LAYERS}x{CLASSES}"
    header = ["training step", "batch x steps x columns x units x layers x classes", "frames/s", "PyTorch", "ratio"]
    sys.stdout.write(f"| {' | '.join(header)} |\n| --- | --- | ---: | ---: | ---: |\n")
    for row in training:
        name = row["head"] + (", deterministic as training is" if row["deterministic"] else "")
        sys.stdout.write(
            f"| {name} | {size} | {row['frames_per_second']:,.0f} | "
            f"{row['frames_per_second_pytorch']:,.0f} | {row['speed_vs_pytorch']:.2f} |\n"
        )
    header = ["recognition, real-time factor", "samples to phones", "of it features", "of it posteriors", "PyTorch's"]
    sys.stdout.write(f"\n| {' | '.join(header)} |\n| --- | ---: | ---: | ---: | ---: |\n")
    for row in recognition:
        batch, *factors = row.values()
        cells = " | ".join(f"{factor:.5f}" for factor in factors)
        sys.stdout.write(f"| batch of {batch} | {cells} |\n")
    content = {"size": size, "training": training, "recognition": recognition}
    Path(__file__).with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

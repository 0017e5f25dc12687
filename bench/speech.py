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
import sys
from pathlib import Path

import numpy as np
import own
import rival
from alternation import measure
from sizes import BATCH, HEADS, RECOGNISER, STEPS, recogniser_batch, recogniser_name

from shared.text import Vocabulary
from shared.train import prepare_process
from tasks.speech.config import DecodingConfig, SpeechConfig
from tasks.speech.decode import log_posteriors, recognise
from tasks.speech.features import Features, compute

BATCHES = (1, 8, 32)  # recordings recognised side by side


def training_rows(pairs: int, deterministic: bool) -> list[dict]:
    """Frames per second of a training step with either head, of a batch without padding."""
    rows, batch, frames = [], recogniser_batch(), BATCH * STEPS
    for head in HEADS:
        ours, theirs = measure((own.recogniser_step(head, batch), rival.recogniser_step(head, batch)), pairs)
        rows.append({
            "head": head, "deterministic": deterministic, "frames_per_second": frames / ours,
            "frames_per_second_pytorch": frames / theirs, "speed_vs_pytorch": theirs / ours,
        })  # fmt: skip
    return rows


def recognition_row(pairs: int, batch: int) -> dict:
    """Seconds of computing per second of sound for recordings that are recognised side by side."""
    config = dataclasses.replace(SpeechConfig(), decoding=DecodingConfig(batch_size=batch))
    settings = config.features
    columns, classes = RECOGNISER["columns"], RECOGNISER["classes"]
    rate, vocabulary = settings.sample_rate, Vocabulary.train([" ".join(map(str, range(classes - 4)))], "whitespace", 0)
    features = Features(
        vocabulary, vocabulary, np.zeros(columns, np.float32), np.ones(columns, np.float32), {},
        np.full((classes, classes), -np.log(classes), np.float32), num_utterances=0,
    )  # fmt: skip
    seconds = ((STEPS - 1) * settings.hop + settings.window) / 1000
    sounds = 0.1 * np.random.default_rng(1).standard_normal((batch, round(seconds * rate)), np.float32)
    model, theirs = own.recogniser("frames"), rival.Recogniser().eval()

    def frames():
        return [features.normalized(compute(sound, rate, settings), "") for sound in sounds]

    rows = frames()
    stacked = rival.torch.from_numpy(np.stack(rows))

    def their_posteriors():
        with rival.torch.inference_mode():
            theirs(stacked)

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
    prepare_process(own.TRAINING)  # last, since what it switches on stays on
    training += training_rows(pairs, deterministic=True)
    size = recogniser_name()
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

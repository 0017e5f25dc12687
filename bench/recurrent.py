"""Recurrent layers: whole training steps and single steps, beside Keras' own layers and PyTorch's.

    python bench/recurrent.py [--pairs 5] [--cells lstm gru]

A training step is forward, backward and a plain gradient step, with the cost of its vocabulary: embedding, layers, a
score for every word, cross-entropy. The last two, which take most of the time where there are many words, are
`shared.cpu`'s in our step, in PyTorch's and Keras' what their users take; of TensorFlow's graph and XLA, Keras has the
faster one. All are measured in turn, pair by pair, in one process, and the medians compared. The limit is what the
matrix products of a step take by themselves, formed by PyTorch. The memory is what a fresh process that has taken a
tiny step already, and so has all code loaded, grows by at its greatest in three steps, ours beside Keras' (graph).
Prints a Markdown table and writes bench/recurrent.json. Needs `pip install torch`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import tensorflow as tf
from alternation import measure

from shared.losses import word_losses
from shared.recurrent import CELLS, RecurrentStack, word_scores

try:
    import torch
except ImportError:
    sys.exit("error: the bench needs PyTorch: .venv/bin/python -m pip install torch")

KERAS = {"simple": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
TORCH = {"simple": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
GATES = {"simple": 1, "lstm": 4, "gru": 3}
SIZES = [
    {"batch": 20, "time": 20, "units": 200, "layers": 2, "words": 10_000},
    {"batch": 20, "time": 35, "units": 650, "layers": 2, "words": 10_000},
    {"batch": 64, "time": 25, "units": 512, "layers": 1, "words": 8_000},
    {"batch": 32, "time": 300, "units": 128, "layers": 2, "words": 64, "bidirectional": True},
    {"batch": 1, "time": 100, "units": 256, "layers": 1, "words": 0},
]
STEPS = [
    {"batch": 1, "units": 650, "words": 10_000},
    *({"batch": batch, "units": 512, "words": 8_000} for batch in (20, 320)),  # beams of 5, for 4 and for 64 sentences
]
LENGTH = 50  # words that the rows of single steps write
RATE = 0.01


def keras_losses(targets, outputs, kernel, bias):
    """As `word_losses`; flat, for a batched product would broadcast the matrix."""
    flat = keras.ops.matmul(keras.ops.reshape(outputs, (-1, kernel.shape[1])), keras.ops.transpose(kernel)) + bias
    scores = keras.ops.reshape(flat, (*keras.ops.shape(outputs)[:-1], kernel.shape[0]))
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(targets, scores)


def recurrences(kinds, cell, units, layers, bidirectional):
    """Built layers, lowest first, of one of the dictionaries above."""
    found, width = [], units
    for _ in range(layers):
        layer = kinds[cell](units, return_sequences=True)
        layer = keras.layers.Bidirectional(layer) if bidirectional else layer
        layer.build((None, None, width))
        found, width = [*found, layer], units * (2 if bidirectional else 1)
    return found


def tensorflow_step(kinds, cell, batch, time, units, layers, words, bidirectional=False, xla=False):
    """A function of nothing that trains one step, or without words computes the outputs."""
    stack = recurrences(kinds, cell, units, layers, bidirectional)
    width = units * (2 if bidirectional else 1)
    tokens = tf.constant(np.random.default_rng(1).integers(0, max(words, 1), (batch, time + 1)), tf.int32)
    vectors = tf.Variable(tf.random.uniform((words, units), -0.1, 0.1))
    kernel, bias = tf.Variable(tf.random.uniform((words, width), -0.1, 0.1)), tf.Variable(tf.zeros(words))
    signals = tf.random.normal((batch, time, units))
    weights = [vectors, kernel, bias, *(weight.value for layer in stack for weight in layer.trainable_weights)]

    def outputs(inputs):
        for layer in stack:
            inputs = layer(inputs, training=True)
        return inputs

    def train():
        with tf.GradientTape() as tape:
            losses = word_losses if kinds is CELLS else keras_losses
            loss = tf.reduce_mean(losses(tokens[:, 1:], outputs(tf.gather(vectors, tokens[:, :-1])), kernel, bias))
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            if isinstance(gradient, tf.IndexedSlices):
                weight.scatter_sub(tf.IndexedSlices(RATE * gradient.values, gradient.indices))
            else:
                weight.assign_sub(RATE * gradient)
        return loss

    step = tf.function(train if words else lambda: outputs(signals), autograph=False, jit_compile=xla)
    return lambda: step().numpy()


def torch_step(cell, batch, time, units, layers, words, bidirectional=False):
    """As `tensorflow_step`."""
    stack = TORCH[cell](units, units, layers, batch_first=True, bidirectional=bidirectional)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(0, max(words, 1), (batch, time + 1)))
    vectors = torch.nn.Embedding(max(words, 1), units)
    head = torch.nn.Linear(units * (2 if bidirectional else 1), max(words, 1))
    signals = torch.randn(batch, time, units)
    weights = [*vectors.parameters(), *stack.parameters(), *head.parameters()]

    def train():
        for weight in weights:
            weight.grad = None
        scores = head(stack(vectors(tokens[:, :-1]))[0])
        torch.nn.functional.cross_entropy(scores.reshape(-1, words), tokens[:, 1:].reshape(-1)).backward()
        with torch.no_grad():
            for weight in weights:
                weight -= RATE * weight.grad

    def infer():
        with torch.no_grad():
            stack(signals)

    return train if words else infer


def products(cell, batch, time, units, layers, words, bidirectional=False):
    """A function of nothing that forms the matrix products of a step, and does nothing else."""
    directions, gates = (2 if bidirectional else 1), GATES[cell] * units
    h, W, da = torch.randn(batch, units), torch.randn(units, gates), torch.randn(batch, gates)
    rows, das = torch.randn(batch * time, units), torch.randn(batch * time, gates)
    wide = torch.randn(batch * time, units * directions)
    U, head = torch.randn(units * directions, gates), torch.randn(units * directions, words)
    scores = torch.randn(batch * time, words)

    def run():
        with torch.no_grad():
            for layer in range(layers):
                inputs, kernel = (rows, W) if layer == 0 else (wide, U)
                for _ in range(directions):
                    torch.mm(inputs, kernel)
                    for _ in range(time):
                        torch.mm(h, W)
                    if words:
                        for _ in range(time):
                            torch.mm(da, W.T)
                        torch.mm(rows.T, das)
                        torch.mm(inputs.T, das)
                        torch.mm(das, kernel.T)
            if words:
                torch.mm(wide, head)
                torch.mm(scores, head.T)
                torch.mm(wide.T, scores)

    return run


def peak_memory(kinds, cell, sizes):
    """Megabytes that a fresh process grows by, at most, when it makes a step and takes it three times; see above."""

    def used():
        # Linux; getrusage would count what the process that started this one had used.
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    tensorflow_step(kinds, cell, **{**sizes, "batch": 1, "time": 2, "units": 8, "words": 10})()
    before = used()
    step = tensorflow_step(kinds, cell, **sizes)
    for _ in range(3):
        step()
    return used() - before


def our_writer(cell, batch, units, words):
    """A function of nothing that writes LENGTH words greedily, one step of the stack after the other."""
    stack = RecurrentStack(cell, units)
    stack.build((None, None, units))
    vectors, bias = tf.Variable(tf.random.uniform((words, units), -0.1, 0.1)), tf.zeros(words)

    @tf.function(autograph=False)
    def write():
        table = tf.convert_to_tensor(vectors)  # TensorFlow copies a variable, once gathered from, at each further look

        def body(t, tokens, state):
            outputs, state = stack.step(tf.gather(table, tokens), state)
            return t + 1, tf.argmax(word_scores(outputs, table, bias), -1, tf.int32), state

        loop = (0, tf.zeros(batch, tf.int32), stack.zero_state(batch))
        return tf.while_loop(lambda t, *_: t < LENGTH, body, loop)[1]

    return lambda: write().numpy()


def torch_writer(cell, batch, units, words):
    """As `our_writer`."""
    stack, vectors = TORCH[cell](units, units, batch_first=True), torch.nn.Embedding(words, units)

    def write():
        tokens, state = torch.zeros(batch, dtype=torch.long), None
        with torch.no_grad():
            for _ in range(LENGTH):
                outputs, state = stack(vectors(tokens)[:, None], state)
                tokens = (outputs[:, 0] @ vectors.weight.T).argmax(-1)

    return write


def label(sizes):
    """How a row is called: batch x steps x units x layers x words."""
    name = "x".join(str(sizes[key]) for key in ("batch", "time", "units", "layers"))
    name += f"x{sizes['words']}" if sizes["words"] else ", inference"
    return name + (", both ways" if sizes.get("bidirectional") else "")


def main():
    """Prints a Markdown table and writes bench/recurrent.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="measurements of each; default: 5")
    parser.add_argument("--cells", nargs="+", default=list(KERAS), choices=list(KERAS), help="default: all")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(1)
    fresh, rows = multiprocessing.get_context("spawn"), []
    sys.stdout.write("| batch x steps x units x layers x words | cell | milliseconds | PyTorch | Keras | of the limit ")
    sys.stdout.write("| MB | MB, Keras |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
    for sizes in SIZES:
        for cell in arguments.cells:
            functions = [
                tensorflow_step(CELLS, cell, **sizes), torch_step(cell, **sizes), products(cell, **sizes),
                *(tensorflow_step(KERAS, cell, **sizes, xla=xla) for xla in (False, True)),
            ]  # fmt: skip
            own, rival, limit, *theirs = measure(functions, arguments.pairs)
            with fresh.Pool(1, maxtasksperchild=1) as pool:
                megabytes = [pool.apply(peak_memory, (kinds, cell, sizes)) for kinds in (CELLS, KERAS)]
            rows.append({
                "name": label(sizes), "cell": cell, "milliseconds": 1000 * own, "speed_vs_pytorch": rival / own,
                "speed_vs_keras": min(theirs) / own, "share_of_limit": limit / own, "megabytes": megabytes[0],
                "megabytes_keras": megabytes[1],
            })  # fmt: skip
            show(rows[-1])
    for sizes in STEPS:
        for cell in arguments.cells:
            own, rival = measure([our_writer(cell, **sizes), torch_writer(cell, **sizes)], arguments.pairs)
            name = f"steps, {sizes['batch']} rows, {sizes['units']} units, {sizes['words']} words"
            rows.append({
                "name": name, "cell": cell, "milliseconds": 1000 * own / LENGTH, "speed_vs_pytorch": rival / own,
                "tokens_per_second": sizes["batch"] * LENGTH / own,
            })  # fmt: skip
            show(rows[-1])
    for name in ("speed_vs_pytorch", "speed_vs_keras"):
        found = [row[name] for row in rows if "share_of_limit" in row]
        sys.stdout.write(f"geometric mean of {name}: {statistics.geometric_mean(found):.2f}\n")
    Path(__file__).with_suffix(".json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


def show(row):
    """A row of the table, as soon as it is known."""
    ratios = [f"{row[name]:.2f}" if name in row else "" for name in ("speed_vs_pytorch", "speed_vs_keras")]
    limit = f"{100 * row['share_of_limit']:.0f} %" if "share_of_limit" in row else ""
    megabytes = [f"{row[name]:.0f}" if name in row else "" for name in ("megabytes", "megabytes_keras")]
    found = [row["name"], row["cell"], f"{row['milliseconds']:.2f}", *ratios, limit, *megabytes]
    sys.stdout.write(f"| {' | '.join(found)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The horizon of a recurrent network, how far back it remembers: a stack and a batch go in, a norm per lag comes out.

The horizon at lag k is the size of the Jacobian of an output with respect to the input k steps before it,

    horizon_k = sqrt(mean over sequences of |d h_t / d x_{t-k}|_F^2)

where d h_t / d x_{t-k} holds a product of k factors d h_i / d h_{i-1}: it shrinks or grows geometrically with k, and
what training can learn about an input so far back does, too (Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio
2013). Gates keep the factors near 1 (Hochreiter & Schmidhuber 1997), and so does a matrix that starts as the identity
under ReLU (Le, Jaitly & Hinton 2015).

    python -m shared.recurrent.horizon --train copy      the cells side by side, and what they can recall
"""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from shared.config import UserError
from shared.recurrent.layers import CELLS
from shared.recurrent.stack import RecurrentStack

log = logging.getLogger(__name__)

ROWS = 16  # of a model's batch, which is enough for a mean
FORGOTTEN = 0.01  # of the largest norm
LAGS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # in a table
SYMBOLS = 8
BATCH = 64
TESTS = 200  # sequences for the accuracy at each delay
LEARNING_RATE = 3e-3


def horizon(stack, inputs, initial_state=None, mask=None, steps=None, projections=16, seed=0) -> np.ndarray:
    """How much the output at the last real step of each sequence depends on the inputs before it.

    The Frobenius norm of J is estimated from products with random orthonormal vectors v_1 .. v_n,

        |J|_F^2 = units / n * E[sum_i |J^T v_i|^2]

    (Hutchinson 1990, with orthogonal vectors), one backward pass each; with as many as there are units it is exact.
    The readings of a bidirectional stack cannot be told apart above its first layer: its horizon is all that its output
    knows of the inputs before it, by whichever way.

    Args:
        stack: a built RecurrentStack.
        inputs, initial_state, mask: what the stack reads, (batch, time, features), see RecurrentStack.call.
        steps: the longest lag; None for time - 1.
        projections: random vectors for each sequence.
        seed: of those.

    Returns:
        (steps + 1,) float64, the root mean square over the sequences for k = 0 .. steps; NaN where none is so long.
    """
    inputs = tf.convert_to_tensor(inputs)
    rows, time, _ = inputs.shape
    units, last = stack.output_units, np.full(rows, time) - 1 if mask is None else np.sum(mask, axis=1) - 1

    @tf.function(autograph=False)
    def squares_of(vectors):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs, _ = stack(inputs, initial_state=initial_state, mask=mask, training=False)
        products = tape.gradient(outputs, inputs, tf.cast(vectors, outputs.dtype))
        return tf.reduce_sum(tf.square(tf.cast(products, tf.float64)), axis=-1)

    shape = (rows, units, min(projections, units))
    directions, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=shape))
    at_last = np.arange(time)[:, None] == last[:, None, None]
    squares = sum(squares_of(tf.constant(at_last * v[:, None])).numpy() for v in np.moveaxis(directions, 2, 0))
    places = last[:, None] - np.arange(time if steps is None else steps + 1)
    found = np.where(places >= 0, np.take_along_axis(squares, np.maximum(places, 0), axis=1), 0)
    with np.errstate(invalid="ignore"):
        return np.sqrt(units / shape[-1] * found.sum(axis=0) / (places >= 0).sum(axis=0))


def horizons(model, inputs) -> dict[str, np.ndarray]:
    """The horizon of every recurrent stack of a model on what the stack reads when the model is given `inputs`.

    The model is afterwards as it was, what it carries from call to call and its random states included. A stack that is
    run step by step, as under input feeding, is left out; one that is given no mask is looked at in the last step,
    padding or not.

    Returns:
        Name of the stack -> see `horizon`.
    """
    kept = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    try:
        with recorded(layer for layer in model._flatten_layers() if isinstance(layer, RecurrentStack)) as read:
            model(inputs, training=False)
    finally:
        for variable, value in kept:
            variable.assign(value)
    return {stack.name: horizon(stack, *some_rows) for stack, some_rows in read.items()}


@contextlib.contextmanager
def recorded(stacks: Iterable):
    """Yields a dictionary that fills with stack -> the first rows of (inputs, initial_state, mask) of its last call."""
    stacks, read = list(stacks), {}

    def recorder(stack, call):
        def record(inputs, initial_state=None, mask=None, training=None):
            read[stack] = keras.tree.map_structure(
                lambda tensor: None if tensor is None else tensor[:ROWS], (inputs, initial_state, mask)
            )
            return call(inputs, initial_state=initial_state, mask=mask, training=training)

        return record

    for stack in stacks:
        vars(stack)["call"] = recorder(stack, stack.call)
    try:
        yield read
    finally:
        for stack in stacks:
            del vars(stack)["call"]


def reach(curve: np.ndarray) -> int:
    """The lag at which a horizon has fallen to 1 % of its largest value; the first unknown lag where it has not yet."""
    curve = np.nan_to_num(curve)
    fallen = curve <= FORGOTTEN * curve.max()
    fallen[: curve.argmax()] = False
    return int(fallen.argmax()) if fallen.any() else len(curve)


def draw(curves: Mapping[str, np.ndarray]) -> np.ndarray:
    """Horizons by name as curves over the lag on a logarithmic scale, as a picture, uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    for name, curve in curves.items():
        fallen = f"at {reach(curve)}" if reach(curve) < len(curve) else f"beyond {len(curve) - 1}"
        axes.semilogy(curve, nonpositive="mask", label=f"{name}: {FORGOTTEN:.0%} {fallen}")
    peaks = [peak for curve in curves.values() if (peak := curve[np.isfinite(curve)].max(initial=0)) > 0]
    if peaks:  # a curve that vanishes would leave the others no room
        axes.set_ylim(1e-6 * min(peaks), 2 * max(peaks))
    axes.set(xlabel="lag k (steps)", ylabel="|d output(t) / d input(t - k)|")
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def recall_batch(random, delays: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of random symbols of which one is marked, and which that was: delayed recall among distractors.

    Args:
        random: a NumPy generator.
        delays: (batch,), how many steps before the last one the marked symbol stands; at most `steps`.

    Returns:
        inputs (batch, steps + 1, SYMBOLS + 1) float32, one-hot symbols and the mark; targets (batch,), the symbol.
    """
    symbols = random.integers(SYMBOLS, size=(len(delays), steps + 1))
    marked = np.arange(steps + 1) == steps - delays[:, None]
    inputs = np.concatenate([np.eye(SYMBOLS)[symbols], marked[..., None]], axis=-1)
    return inputs.astype("float32"), symbols[marked]


def recall_model(cell: str, units: int, steps: int, seed: int) -> tuple[RecurrentStack, keras.Model]:
    """A fresh stack of one layer, and a model around it: recall_batch's inputs -> logits (batch, SYMBOLS)."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((steps + 1, SYMBOLS + 1))
    stack = RecurrentStack(cell, units, name=cell)
    outputs, _ = stack(inputs)
    return stack, keras.Model(inputs, keras.layers.Dense(SYMBOLS)(outputs[:, -1]))


def train_recall(model, steps: int, updates: int, seed: int) -> None:
    """Trains a model on delays of 0 to `steps`, all equally often."""
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    random, losses = np.random.default_rng(seed), []
    for update in range(1, updates + 1):
        delays = random.integers(steps + 1, size=BATCH)
        losses.append(float(model.train_on_batch(*recall_batch(random, delays, steps))))
        if update % 200 == 0 or update == updates:
            log.info("%d/%d updates, loss %.3f", update, updates, losses[-1])


def recall_accuracy(model, steps: int, delay: int) -> float:
    """Share, in per cent, of marked symbols that a model gives back after a delay; by chance it is 100 / SYMBOLS."""
    inputs, targets = recall_batch(np.random.default_rng(delay), np.full(TESTS, delay), steps)
    return 100 * float(np.mean(np.argmax(model(inputs), axis=-1) == targets))


def table(title: str, columns: Mapping[str, Sequence], form: str) -> str:
    """Columns of numbers under their names; the first one, whole numbers, names the rows."""
    first, *others = columns.values()
    lines = [title, "".join(f"{name:>10}" for name in columns)]
    for row, values in zip(first, zip(*others, strict=True), strict=True):
        lines.append(f"{row:>10}" + "".join(f"{value:>10{form}}" for value in values))
    return "\n".join(lines) + "\n"


def compare(cells: Sequence[str], units: int, steps: int, updates: int, seed: int) -> tuple[dict, dict]:
    """(cell -> horizon, cell -> accuracy at each of LAGS) of fresh cells, or after training on delayed recall."""
    curves, accuracies = {}, {}
    # Every delay once, as far as there is room, so that no lag is favoured.
    delays = np.linspace(0, steps, min(steps + 1, TESTS)).astype(int)
    inputs, _ = recall_batch(np.random.default_rng(seed), delays, steps)
    for cell in cells:
        log.info("%s", cell)
        stack, model = recall_model(cell, units, steps, seed)
        if updates:
            train_recall(model, steps, updates, seed)
            accuracies[cell] = [recall_accuracy(model, steps, delay) for delay in LAGS if delay <= steps]
        curves[cell] = horizon(stack, inputs)
    return curves, accuracies


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m shared.recurrent.horizon`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.recurrent.horizon",
        description="Prints and draws how far back each recurrent cell remembers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which cells")
    parser.add_argument("--units", type=int, default=64, help="size of their state")
    parser.add_argument("--steps", type=int, default=50, help="longest lag, and longest delay in training")
    parser.add_argument(
        "--train", choices=("none", "copy"), default="none", help="what they learn before: to recall a marked symbol"
    )
    parser.add_argument("--updates", type=int, default=1000, help="batches to train on")
    parser.add_argument("--output", type=Path, default="horizon.png", help="the picture")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        report(chosen)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def report(chosen: argparse.Namespace) -> None:
    """Writes tables to stdout, and the picture. Raises UserError for what cannot work, before anything is trained."""
    from PIL import Image

    for name, low in (("units", 1), ("steps", 1), ("updates", 1), ("seed", 0)):
        if getattr(chosen, name) < low:
            raise UserError(f"--{name}: {getattr(chosen, name)} is below {low}")
    if not chosen.output.parent.is_dir():
        raise UserError(f"--output: there is no folder {chosen.output.parent}")
    updates = chosen.updates if chosen.train == "copy" else 0
    curves, accuracies = compare(chosen.cells, chosen.units, chosen.steps, updates, chosen.seed)
    lags = [lag for lag in LAGS if lag <= chosen.steps]
    norms = {name: curve[lags] for name, curve in curves.items()}
    sys.stdout.write(table("|d output(t) / d input(t - k)|", {"k": lags, **norms}, ".3g"))
    if accuracies:
        title = f"\nsymbols recalled after a delay, in per cent (by chance {100 / SYMBOLS})"
        sys.stdout.write(table(title, {"delay": lags, **accuracies}, ".1f"))
    Image.fromarray(draw(curves)).save(chosen.output, format="PNG")


if __name__ == "__main__":
    sys.exit(main())

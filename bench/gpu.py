"""A training step of the language model on a GPU, this project's or PyTorch's.

    python bench/gpu.py ours
    python bench/gpu.py pytorch

Sizes, dropouts and updates are those of bench/language_model.py. One library in a process: with TensorFlow's CUDA 12
and PyTorch's CUDA 13 in the same one, PyTorch's LSTM ended it. Products of float32 are rounded to TF32 in both.
"""

import argparse
import sys

from alternation import measure

WORDS, STREAMS, WINDOW, LAYERS = 10_000, 20, 35, 2
UNITS_AND_DROPOUT = ((200, 0.2), (650, 0.5))
TIMES = 5  # that the steps are measured


def our_step(units: int, dropout: float):
    """A function of nothing that trains one step and waits for the device."""
    import numpy as np
    from language_model import ours

    tokens, targets = np.random.default_rng(1).integers(4, WORDS, (2, STREAMS, WINDOW), np.int32)
    train, _ = ours(STREAMS, WINDOW, units, LAYERS, dropout)
    return lambda: train(tokens, targets)


def pytorch_step(units: int, dropout: float):
    """As `our_step`."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    embedding, drop = torch.nn.Embedding(WORDS, units).cuda(), torch.nn.Dropout(dropout)
    recurrence = torch.nn.LSTM(units, units, LAYERS, dropout=dropout).cuda()
    bias = torch.zeros(WORDS, device="cuda", requires_grad=True)
    weights = [embedding.weight, bias, *recurrence.parameters()]
    tokens, targets = torch.randint(4, WORDS, (2, WINDOW, STREAMS)).numpy()

    def step():
        read, wanted = (torch.from_numpy(array).cuda() for array in (tokens, targets))
        outputs, _ = recurrence(drop(embedding(read)))
        scores = torch.nn.functional.linear(drop(outputs), embedding.weight, bias)
        for weight in weights:
            weight.grad = None
        torch.nn.functional.cross_entropy(scores.reshape(-1, WORDS), wanted.reshape(-1)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.25)
        with torch.no_grad():
            for weight in weights:
                weight -= weight.grad
        torch.cuda.synchronize()

    return step


def main():
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=("ours", "pytorch"))
    library = parser.parse_args().library
    sys.stdout.write("| streams x window x units x layers x words | milliseconds | words/s |\n| --- | ---: | ---: |\n")
    for units, dropout in UNITS_AND_DROPOUT:
        [seconds] = measure([(our_step if library == "ours" else pytorch_step)(units, dropout)], TIMES)
        sizes = f"{STREAMS}x{WINDOW}x{units}x{LAYERS}x{WORDS}"
        sys.stdout.write(f"| {sizes} | {1000 * seconds:.2f} | {STREAMS * WINDOW / seconds:,.0f} |\n")


if __name__ == "__main__":
    main()

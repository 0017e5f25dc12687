"""Products of a few rows with one matrix: the panels of the recurrent core beside NumPy's OpenBLAS, on one core.

    python bench/panels.py

Prints a Markdown table: billions of operations in a second of the processor, and what packing the matrix takes.
"""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl

from shared.recurrent.panels import WIDTH, multiply, pack

SIZES = [(1, 256, 1024), (10, 200, 800), (10, 650, 2600), (16, 128, 512), (32, 512, 2048)]
LEAST = 2e8  # operations in a measurement
PAIRS = 7


def seconds(function, times):
    """Processor time of a call, all threads together."""
    start = time.process_time()
    for _ in range(times):
        function()
    return (time.process_time() - start) / times


def row(rows, depth, columns):
    """Operations a second with panels and with NumPy, and the seconds of packing, medians over PAIRS."""
    rng = np.random.default_rng(1)
    x, W = (rng.normal(size=shape).astype("float32") for shape in ((rows, depth), (depth, columns)))
    packed, out = pack(W), np.empty((rows, columns), "float32")
    padded, operations = np.empty((rows, len(packed) * WIDTH), "float32"), 2 * rows * depth * columns
    times = int(LEAST / operations) + 1
    found = [
        (
            seconds(lambda: multiply(x, packed, columns, padded), times),
            seconds(lambda: np.dot(x, W, out=out), times),
            seconds(lambda: pack(W), 1),
        )
        for _ in range(PAIRS)
    ]
    own, numpy, packing = map(statistics.median, zip(*found, strict=True))
    return operations / own, operations / numpy, packing


def main():
    """Prints the table."""
    threadpoolctl.threadpool_limits(1)
    sys.stdout.write("| rows x depth x columns | panels | OpenBLAS | packing, us |\n| --- | ---: | ---: | ---: |\n")
    for sizes in SIZES:
        own, numpy, packing = row(*sizes)
        name = "x".join(map(str, sizes))
        sys.stdout.write(f"| {name} | {own / 1e9:.0f} | {numpy / 1e9:.0f} | {1e6 * packing:.0f} |\n")


if __name__ == "__main__":
    main()

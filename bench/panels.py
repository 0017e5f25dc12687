"""Products of a few rows with one matrix: the panels of the recurrent core beside NumPy's OpenBLAS.

    taskset -c 0 python bench/panels.py

Prints a Markdown table: billions of operations a second, and what packing the matrix takes. To be run on one core, as
packing takes all that there are.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import threadpoolctl
from alternation import measure

from shared.recurrent.panels import WIDTH, multiply, pack

SIZES = [(1, 256, 1024), (10, 200, 800), (10, 650, 2600), (16, 128, 512), (32, 512, 2048)]
LEAST = 5e7  # operations in a call that is timed
PAIRS = 5


def row(rows, depth, columns):
    """Operations a second with panels and with NumPy, and the seconds of packing."""
    rng = np.random.default_rng(1)
    x, W = (rng.normal(size=shape).astype("float32") for shape in ((rows, depth), (depth, columns)))
    packed, out = pack(W), np.empty((rows, columns), "float32")
    padded = np.empty((rows, len(packed) * WIDTH), "float32")
    operations = 2 * rows * depth * columns
    times = int(LEAST / operations) + 1

    def with_panels():
        for _ in range(times):
            multiply(x, packed, 0, len(packed), padded)

    def with_numpy():
        for _ in range(times):
            np.dot(x, W, out=out)

    own, numpy, packing = measure([with_panels, with_numpy, lambda: pack(W)], PAIRS)
    return times * operations / own, times * operations / numpy, packing


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

"""Functions go in, the seconds that each takes come out; measured in turn, so that the machine treats all alike."""

import statistics
import time
from collections.abc import Callable, Sequence

CALLS = 5  # in each measurement
PAUSE = 0.3  # seconds, after which the threads of the library before have stopped to wait for more work


def measure(functions: Sequence[Callable], pairs: int) -> list[float]:
    """Median seconds of one call of each function, measured in turn."""
    for function in functions:
        function()
        function()
    seconds = [[] for _ in functions]
    for _ in range(pairs):
        for function, found in zip(functions, seconds, strict=True):
            time.sleep(PAUSE)
            function()
            started = time.perf_counter()
            for _ in range(CALLS):
                function()
            found.append((time.perf_counter() - started) / CALLS)
    return [statistics.median(found) for found in seconds]

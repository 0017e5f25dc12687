"""Memory for arrays that go from NumPy to TensorFlow and are as large at every step of a training."""

import ctypes
import math
import weakref

import numpy as np

ALIGNMENT = 64  # bytes; TensorFlow copies arrays that begin elsewhere
LEAST_KEPT = 1 << 20  # bytes
_UNUSED = {}  # memory that `empty` gave out and has back, longest unused first; of a dict one step is never interrupted


def empty(shape, dtype) -> np.ndarray:
    """As np.empty, of memory that TensorFlow takes over as it is.

    If it is much, it is kept once nobody uses it any more, and given out again: new memory is fetched from the system
    page by page, which takes longer than to fill it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = _unused(size) if size >= LEAST_KEPT else None
    memory = np.empty(size + ALIGNMENT, np.uint8) if memory is None else memory
    start = -memory.ctypes.data % ALIGNMENT
    if size < LEAST_KEPT:
        return memory[start : start + size].view(dtype).reshape(shape)
    lent = (ctypes.c_char * size).from_buffer(memory, start)  # lives as long as any array of it
    weakref.finalize(lent, _UNUSED.__setitem__, id(memory), memory).atexit = False
    return np.frombuffer(lent, dtype).reshape(shape)


def _unused(size):
    """The smallest memory that will do and is not much too large; if there is none, the longest unused is freed."""
    for key, memory in sorted(list(_UNUSED.items()), key=lambda item: len(item[1])):
        if size <= len(memory) - ALIGNMENT <= 1.5 * size and _UNUSED.pop(key, None) is not None:
            return memory
    for key in list(_UNUSED)[:1]:
        _UNUSED.pop(key, None)
    return None

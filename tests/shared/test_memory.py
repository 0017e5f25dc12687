"""Arrays for TensorFlow: taken over without a copy, and their memory is nobody else's."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import memory


@pytest.mark.parametrize("size", [3, 300], ids=["small", "large"])
def test_tensorflow_takes_arrays_over_without_a_copy(size):
    array = memory.empty((size, 100, 100), np.float32)
    assert array.ctypes.data % 64 == 0 and array.shape == (size, 100, 100) and array.flags["C_CONTIGUOUS"]
    taken = tf.function(lambda: tf.numpy_function(lambda: array, [], tf.float32))()
    array[:] = 7
    np.testing.assert_array_equal(taken, 7)


def test_memory_is_given_out_again_once_no_array_is_of_it():
    memory._UNUSED.clear()
    shape = (memory.LEAST_KEPT,)
    first = memory.empty(shape, np.float32)
    address, part = first.ctypes.data, first.reshape(4, -1)[1]
    del first
    assert memory.empty(shape, np.float32).ctypes.data != address  # `part` is
    del part
    assert memory.empty(shape, np.float64).ctypes.data != address  # too small
    assert memory.empty((8,), np.float32).ctypes.data != address
    found = [memory.empty((memory.LEAST_KEPT - 5, 1), np.float32) for _ in range(3)]
    assert address in [each.ctypes.data for each in found]
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(found, 2))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 3])), max_size=40))
def test_nobody_else_has_the_memory_of_an_array(takes):
    held = [None] * 5
    for place, megabytes in takes:
        held[place] = None
        held[place] = memory.empty((megabytes, memory.LEAST_KEPT), np.uint8)
    arrays = [each for each in held if each is not None]
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))
    assert len(memory._UNUSED) <= 5

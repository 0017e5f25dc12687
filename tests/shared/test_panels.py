"""A product with a packed matrix is the product, whatever the shapes and wherever the matrix comes from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.recurrent.panels import WIDTH, multiply, pack

TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 20), st.integers(1, 40), st.integers(1, 150), st.booleans(), st.booleans(),
    st.sampled_from(sorted(TOLERANCE)),
)  # fmt: skip
def test_multiply(rows, depth, columns, transposed, part, dtype):
    rng = np.random.default_rng(rows + depth + columns)
    W = rng.normal(size=(columns, depth) if transposed else (depth, columns)).astype(dtype)
    W = W.T if transposed else W
    x = rng.normal(size=(rows, 2 * depth if part else depth)).astype(dtype)[:, :depth]  # rows may lie apart
    panels = pack(W)
    out = np.empty((rows, len(panels) * WIDTH), dtype)
    multiply(x, panels, 0, -(-columns // WIDTH), out)
    exact = x.astype(np.float64) @ W.astype(np.float64)
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(out[:, :columns], exact, atol=TOLERANCE[dtype] * scale, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("columns", [1, WIDTH, WIDTH + 1])
def test_nothing_but_zeros_behind_the_last_column(columns):
    panels = pack(np.ones((3, columns)))
    assert panels.sum() == 3 * columns


def test_what_is_no_number_stays_so():
    """It tells of a training that diverged."""
    panels, out = pack(np.eye(4)), np.empty((1, 4 * WIDTH))
    multiply(np.array([[0.0, np.nan, 0.0, 0.0]]), panels, 0, 1, out)
    assert np.isnan(out[0, :4]).all()


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 20])
def test_a_row_is_the_same_whatever_rows_stand_beside_it(rows):
    rng = np.random.default_rng(rows)
    panels = pack(rng.normal(size=(33, 70)).astype("float32"))
    x = rng.normal(size=(rows, 33)).astype("float32")
    together, alone = np.empty((rows, len(panels) * WIDTH), "float32"), np.empty((1, len(panels) * WIDTH), "float32")
    multiply(x, panels, 0, len(panels), together)
    for row in range(rows):
        multiply(x[row : row + 1], panels, 0, len(panels), alone)
        np.testing.assert_array_equal(alone[0, :70], together[row, :70])

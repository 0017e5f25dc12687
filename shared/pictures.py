"""Figures of matplotlib go in, pictures come out."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(figure: "Figure") -> np.ndarray:
    """A figure as a picture, uint8 (height, width, 3), without any window or state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

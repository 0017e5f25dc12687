"""Shapes as silhouettes: the name of a shape and an extent flow in, masks flow out."""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

OUTLINE = 3  # pixels of a mask

_INK, _MARK, _HOLE = 255, 128, 0  # filled, drawn in the colour of the outline, nothing at all


@dataclass(frozen=True)
class Silhouette:
    """What a shape covers, cut to its box."""

    mask: np.ndarray  # bool (height, width)
    fill: np.ndarray  # bool (height, width), what has the object's colour; the rest of the mask is outline
    edges: tuple[tuple[np.ndarray, np.ndarray], ...]  # (first, last) column of each row, then row of each column

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.mask.shape[1], self.mask.shape[0]


@functools.cache
def silhouette(shape: str, extent: int, mirrored: bool = False) -> Silhouette:
    """The silhouette of one of `grammar.SHAPES`, about `extent` pixels in its greater direction."""
    parts = [(ink, np.array(points, np.float64)) for ink, points in _PARTS[shape]]
    drawn = np.concatenate([points for ink, points in parts if ink != _HOLE])
    scale, corner = (extent - 1) / np.ptp(drawn, axis=0).max(), drawn.min(0)
    picture = Image.new("L", (extent + 1, extent + 1))
    pencil = ImageDraw.Draw(picture)
    for ink, points in parts:
        pencil.polygon([tuple(point) for point in (points - corner) * scale], fill=ink)
    levels = np.asarray(picture.crop(picture.getbbox()))
    if mirrored:
        levels = levels[:, ::-1]
    mask = levels > 0
    return Silhouette(mask, _eroded(mask) & (levels == _INK), (_edges(mask), _edges(mask.T)))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without an outline of `OUTLINE` pixels along its inner side."""
    height, width = mask.shape
    padded, inside = np.pad(mask, OUTLINE), mask.copy()
    for y, x in {(round(y), round(x)) for x, y in _disc(OUTLINE, OUTLINE, OUTLINE)}:
        inside &= padded[y : y + height, x : x + width]
    return inside


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mask.argmax(1), mask.shape[1] - 1 - mask[:, ::-1].argmax(1)


def _disc(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return [*zip(x + radius * np.cos(angles), y + radius * np.sin(angles), strict=True)]


def _star() -> list[tuple[float, float]]:
    angles, radii = np.pi * (np.arange(10) / 5 - 0.5), np.where(np.arange(10) % 2, 0.42, 1)
    return [*zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)]


def _drop() -> list[tuple[float, float]]:
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return [*zip(0.9 * np.sin(turn) * np.sin(turn / 2) ** 1.5, -np.cos(turn), strict=True)]


def _heart() -> list[tuple[float, float]]:
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    height = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return [*zip(16 * np.sin(turn) ** 3, -height, strict=True)]


def _petals() -> list[tuple[int, list[tuple[float, float]]]]:
    angles = np.pi * (np.arange(5) * 2 / 5 - 0.5)
    return [(_INK, _disc(0.6 * np.cos(angle), 0.6 * np.sin(angle), 0.38)) for angle in angles]


# What each shape is drawn of, one part over the other: polygons in any unit, y downwards.
_PARTS = {
    "circle": [(_INK, _disc(0, 0, 1))],
    "star": [(_INK, _star())],
    "ring": [(_INK, _disc(0, 0, 1)), (_HOLE, _disc(0, 0, 0.55))],
    "arrow": [(_INK, [(0, 0.34), (0.48, 0.34), (0.48, 0.08), (1, 0.5), (0.48, 0.92), (0.48, 0.66), (0, 0.66)])],
    "moon": [(_INK, _disc(0, 0, 1)), (_HOLE, _disc(0.55, -0.15, 0.8))],
    "drop": [(_INK, _drop())],
    "square": [(_INK, [(0, 0), (1, 0), (1, 1), (0, 1)])],
    "triangle": [(_INK, [(0, 0.9), (0.5, 0), (1, 0.9)])],
    "heart": [(_INK, _heart())],
    "cross": [(_INK, [(0, 1), (3, 1), (3, 2), (0, 2)]), (_INK, [(1, 0), (2, 0), (2, 3), (1, 3)])],
    "flower": [*_petals(), (_INK, _disc(0, 0, 0.5)), (_MARK, _disc(0, 0, 0.3))],
    "cloud": [
        *((_INK, _disc(x, y, radius)) for x, y, radius in ((-0.58, 0.1, 0.38), (0, -0.15, 0.48), (0.6, 0.14, 0.34))),
        (_INK, [(-0.58, 0), (0.6, 0), (0.6, 0.48), (-0.58, 0.48)]),
    ],
    "diamond": [(_INK, [(0.65, 0), (1.3, 1), (0.65, 2), (0, 1)])],
}

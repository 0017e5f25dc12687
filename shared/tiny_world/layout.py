"""Where the objects of a scene stand: scenes flow in, placed silhouettes flow out, and relations are read off boxes.

A box is (left, top, right, bottom), y downwards. Along an axis, 0 for x and 1 for y, it reaches from `box[axis]` to
`box[axis + 2]`. Placing is done in fine pixels, `FINE` of which are a pixel of the picture.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .grammar import PLACES, Scene
from .shapes import Silhouette, silhouette

SIZE = 80  # pixels of a picture, in width and height
FINE = 4
EXTENTS = {"tiny": 18, "small": 23, "big": 29}  # pixels, in the greater direction
MAX_OBJECTS = 4

TOLERANCE = 0.02  # of the picture's width: boxes nearer to each other than this are in contact
COVERED = (0.3, 0.5)  # least and greatest share of an object that those which cover it hide

# Of what is drawn, in fine pixels; all keep well clear of the tolerance, which is 6 of them.
_APART, _BESIDE, _TOUCHING = 12, 16, 4  # objects; groups, one of which is told to be beside the other; overlap of boxes
_MARGIN = 2 * FINE  # to the edge of the picture
_ATTEMPTS = 30  # to lay out a scene, and to bring two objects into contact

Box = tuple[float, float, float, float]


def holds(relation: str, boxes: Sequence[Box], others: Sequence[Box]) -> bool:
    """Whether the objects in the first boxes stand in a relation of `grammar.RELATIONS` to those in the others.

    Places: the box around all of the one lies wholly on that side of the box around all of the other, more than
    `TOLERANCE` away, and they overlap along the other axis. Contacts: each object of either group is in contact with
    one of the other. Objects touch if their boxes are at most `TOLERANCE` apart and overlap by no more than that, and
    overlap if they overlap by more; which of two lies before the other, boxes do not tell. So of all relations, one
    holds at most.

    Args:
        relation: of the first objects to the others.
        boxes: in shares of the picture's width and height.
        others: likewise.
    """
    if relation in PLACES:
        one, other = around(boxes), around(others)
        axis = int(relation in ("above", "below"))
        before, behind = (one, other) if relation in ("above", "left of") else (other, one)
        return behind[axis] - before[axis + 2] > TOLERANCE and _distance(one, other, 1 - axis) < 0
    contacts = np.array([[_in_contact(relation, box, other) for other in others] for box in boxes])
    return bool(contacts.any(0).all() and contacts.any(1).all())


def around(boxes: Iterable[Box]) -> Box:
    """The smallest box around all of these."""
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _in_contact(contact: str, box: Box, other: Box) -> bool:
    distance = _separation(box, other)
    return abs(distance) <= TOLERANCE if contact == "touches" else distance < -TOLERANCE


def _separation(box: Box, other: Box) -> float:
    """How far two boxes are apart; below 0 if they overlap."""
    return max(_distance(box, other, 0), _distance(box, other, 1))


def _distance(box: Box, other: Box, axis: int) -> float:
    return max(box[axis], other[axis]) - min(box[axis + 2], other[axis + 2])


@dataclass
class Item:
    """An object somewhere: the place is that of its upper left corner, in fine pixels."""

    silhouette: Silhouette
    place: list[int]

    @property
    def box(self) -> Box:
        """In fine pixels."""
        (x, y), (width, height) = self.place, self.silhouette.size
        return x, y, x + width, y + height

    @property
    def share(self) -> Box:
        """The box in shares of the picture's width and height."""
        return tuple(edge / (SIZE * FINE) for edge in self.box)


def lay_out(scene: Scene, rng: np.random.Generator) -> list[list[Item]] | None:
    """The objects of each group of a scene, all its relations clearly true; None if no way is found.

    Objects are at least 3.5 pixels apart, and groups 5 if one is told to be beside the other, but for objects that are
    told to be in contact: if they touch, their silhouettes do, and the boxes overlap by 1.5 pixels at most; if they
    cover, `COVERED` holds.
    """
    for _ in range(_ATTEMPTS):
        groups = [[_item(group.shape, EXTENTS[group.size], rng) for _ in range(group.number)] for group in scene.groups]
        placed = _place(scene.relations, groups, rng) and _move_inside(list(itertools.chain(*groups)), rng)
        if placed and _is_clear(scene.relations, groups):
            return groups
    return None


def _is_clear(relations: Sequence[str], groups: Sequence[Sequence[Item]]) -> bool:
    """Whether all relations hold, and only those objects are near to each other that are told to be in contact."""
    first, *others = groups
    steps = list(zip(relations, others, strict=True))
    linked = {
        frozenset(map(id, pair))
        for relation, other in steps
        if relation not in PLACES
        for pair in zip(*_paired(first, other), strict=False)
    }
    pairs = itertools.combinations(itertools.chain(*groups), 2)
    return all(
        frozenset(map(id, pair)) in linked or _separation(pair[0].box, pair[1].box) >= _APART for pair in pairs
    ) and all(
        holds(relation, [item.share for item in first], [item.share for item in other]) for relation, other in steps
    )


def _paired(one: Sequence[Item], other: Sequence[Item]) -> tuple[Sequence[Item], Iterable[Item]]:
    """The objects of the larger group, and a partner among the others for each."""
    items, anchors = (one, other) if len(one) > len(other) else (other, one)
    return items, itertools.cycle(anchors)


def _item(shape: str, pixels: int, rng: np.random.Generator) -> Item:
    extent = 2 * round(pixels * FINE / 2 * rng.uniform(0.93, 1.07))  # even, which halves the silhouettes to be made
    return Item(silhouette(shape, extent, mirrored=bool(rng.integers(2))), [0, 0])


def _place(relations: Sequence[str], groups: Sequence[list[Item]], rng: np.random.Generator) -> bool:
    """Places all objects relative to each other; False if some do not get into contact."""
    first, *others = groups
    # Contacts leave least choice, and the larger group gathers around the smaller.
    steps = sorted(zip(relations, others, strict=True), key=lambda step: step[0] in PLACES)
    crowded = bool(steps) and steps[0][0] not in PLACES and len(first) > len(steps[0][1])
    _gather(steps[0][1] if crowded else first, rng)
    for relation, other in steps:
        if relation in PLACES:
            _gather(other, rng)
            _put_beside(relation, other, first, rng)
        elif not _attach(relation, first, other, rng):
            return False
    return True


def _gather(items: list[Item], rng: np.random.Generator) -> None:
    """Places the objects of a group beside each other: in a row, a column or, if there are three, a corner."""
    axis = int(rng.integers(2))
    for count in range(1, len(items)):
        if count == 2 and rng.integers(2):
            axis = 1 - axis
        crowd, item = around(each.box for each in items[:count]), items[count]
        slack = 0.4 * item.silhouette.size[1 - axis]
        _put([item], crowd, axis, 1, rng.integers(_APART, 2 * _APART), rng.uniform(-slack, slack))


def _put_beside(relation: str, items: list[Item], anchors: list[Item], rng: np.random.Generator) -> None:
    """Places objects so that the anchors stand in this relation to them."""
    axis = int(relation in ("above", "below"))
    box, crowd = around(item.box for item in items), around(anchor.box for anchor in anchors)
    lengths = [[each[side + 2] - each[side] for each in (box, crowd)] for side in (0, 1)]
    room = max(SIZE * FINE - 2 * _MARGIN - sum(lengths[axis]), _BESIDE + 1)
    slack = 0.45 * max(lengths[1 - axis])
    side = 1 if relation in ("above", "left of") else -1
    _put(items, crowd, axis, side, rng.integers(_BESIDE, room), rng.uniform(-slack, slack))


def _put(items: list[Item], crowd: Box, axis: int, side: int, gap: int, slip: float) -> None:
    """Moves objects behind (side 1) or before (side -1) a box, their middle `slip` beside its middle."""
    box, across = around(item.box for item in items), 1 - axis
    along = crowd[axis + 2] + gap - box[axis] if side > 0 else crowd[axis] - gap - box[axis + 2]
    aside = (crowd[across] + crowd[across + 2] - box[across] - box[across + 2]) / 2 + slip
    for item in items:
        item.place[axis] += round(along)
        item.place[across] += round(aside)


def _attach(contact: str, first: list[Item], other: list[Item], rng: np.random.Generator) -> bool:
    """Brings each object of the larger group into contact with one of the other; False if that fails."""
    # Those of the first group share what they cover, as they do not overlap each other.
    shares = max(1, len(first) // len(other))
    for item, anchor in zip(*_paired(first, other), strict=False):
        if contact == "touches":
            done = any(_touch(item, anchor, rng) for _ in range(_ATTEMPTS))
        else:
            front, hidden = (item, anchor) if len(first) > len(other) else (anchor, item)
            bounds = [share / shares * np.count_nonzero(hidden.silhouette.mask) for share in COVERED]
            can_hide = np.count_nonzero(front.silhouette.mask) >= bounds[0]
            done = can_hide and _overlap(item, anchor, bounds, rng)
        if not done:
            return False
    return True


def _touch(item: Item, anchor: Item, rng: np.random.Generator) -> bool:
    """Pushes an object against an anchor from a random side; False if they meet far inside of their boxes."""
    axis, side = int(rng.integers(2)), int(rng.integers(2))
    across = 1 - axis
    length, own = anchor.silhouette.size[across], item.silhouette.size[across]
    slip = int(rng.integers(round(-0.7 * own), round(length - 0.3 * own)))
    start, stop = max(0, slip), min(length, slip + own)
    near, far = (edge[start - slip : stop - slip] for edge in item.silhouette.edges[axis])
    anchor_near, anchor_far = (edge[start:stop] for edge in anchor.silhouette.edges[axis])
    along = 1 + np.max(anchor_far - near) if side else -1 - np.max(far - anchor_near)
    item.place[axis], item.place[across] = anchor.place[axis] + int(along), anchor.place[across] + slip
    return _separation(item.box, anchor.box) >= -_TOUCHING


def _overlap(item: Item, anchor: Item, bounds: Sequence[float], rng: np.random.Generator) -> bool:
    """Moves an object to where its box overlaps the anchor's, and as many fine pixels as the bounds say belong to both
    objects; False if no such place is found."""
    own, length = np.array(item.silhouette.size), np.array(anchor.silhouette.size)
    slips = rng.integers(1 - own, length, (_ATTEMPTS, 2))
    starts, stops = np.maximum(slips, 0), np.minimum(slips + own, length)
    for attempt in np.flatnonzero(np.prod(stops - starts, axis=1) >= bounds[0]):  # or the boxes share too little
        (x, y), (left, top), (right, bottom) = slips[attempt], starts[attempt], stops[attempt]
        shared = item.silhouette.mask[top - y : bottom - y, left - x : right - x]
        if bounds[0] <= np.count_nonzero(shared & anchor.silhouette.mask[top:bottom, left:right]) <= bounds[1]:
            item.place[:] = anchor.place[0] + int(x), anchor.place[1] + int(y)
            return True
    return False


def _move_inside(items: list[Item], rng: np.random.Generator) -> bool:
    """Moves all objects together to a random place within the picture; False if they do not fit."""
    box = around(item.box for item in items)
    room = [SIZE * FINE - 2 * _MARGIN - (box[axis + 2] - box[axis]) for axis in (0, 1)]
    if min(room) < 0:
        return False
    for axis in (0, 1):
        shift = _MARGIN + int(rng.integers(room[axis] + 1)) - box[axis]
        for item in items:
            item.place[axis] += shift
    return True

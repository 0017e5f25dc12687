"""How the tiny world is drawn: every relation clearly holds and no other does, and boxes are where objects are."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shared.tiny_world.grammar import GROUPS, PLACES, RELATIONS, SHAPES, SIZES, Group, Scene
from shared.tiny_world.layout import (
    COVERED,
    EXTENTS,
    FINE,
    MAX_OBJECTS,
    SIZE,
    TOLERANCE,
    Item,
    around,
    holds,
    lay_out,
)
from shared.tiny_world.pictures import COLOURS, background, draw, is_drawable, paint
from shared.tiny_world.shapes import silhouette

PIXEL = 1 / SIZE
OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


@pytest.fixture(scope="module")
def drawn():
    """(scene, boxes of each group, picture) of the training split."""
    return [draw("train", 2, position) for position in range(150)]


def separation(one, other):
    """How far two boxes are apart along the axis on which they are more; below 0 if they overlap."""
    return max(max(one[axis], other[axis]) - min(one[axis + 2], other[axis + 2]) for axis in (0, 1))


@pytest.mark.parametrize(
    ("relation", "box"),
    [
        ("above", (0.4, 0.7, 0.6, 0.9)),
        ("below", (0.4, 0.1, 0.6, 0.3)),
        ("left of", (0.7, 0.4, 0.9, 0.6)),
        ("right of", (0.1, 0.4, 0.3, 0.6)),
        ("touches", (0.6, 0.4, 0.8, 0.6)),
        ("covers", (0.5, 0.5, 0.7, 0.7)),
        (None, (0.7, 0.7, 0.9, 0.9)),  # neither above nor left of it
    ],
)
def test_at_most_one_relation_holds(relation, box):
    middle = (0.4, 0.4, 0.6, 0.6)
    assert [each for each in RELATIONS if holds(each, [middle], [box])] == ([relation] if relation else [])
    converse = OPPOSITES.get(relation, relation)
    assert [each for each in RELATIONS if holds(each, [box], [middle])] == ([converse] if relation else [])


def test_contacts_are_of_every_object():
    anchor, beside, far = (0.4, 0.4, 0.6, 0.6), (0.6, 0.4, 0.8, 0.6), (0.1, 0.1, 0.2, 0.2)
    assert holds("touches", [anchor], [beside]) and not holds("touches", [anchor], [beside, far])
    assert not holds("touches", [beside, far], [anchor])


def test_places_are_of_all_objects_together():
    left, middle, right = (0.1, 0.1, 0.2, 0.2), (0.4, 0.4, 0.5, 0.5), (0.8, 0.1, 0.9, 0.2)
    assert holds("above", [left, right], [middle]) and not holds("above", [left], [middle])
    assert not holds("left of", [left, right], [middle])


def test_places_are_clear(drawn):
    for scene, boxes, _ in drawn:
        for relation, other in zip(scene.relations, boxes[1:], strict=True):
            if relation in PLACES:
                assert separation(around(boxes[0]), around(other)) > TOLERANCE + PIXEL


def test_what_touches_is_in_contact_and_nothing_else_is_near(drawn):
    for scene, boxes, _ in drawn:
        linked = {relation for relation in scene.relations if relation not in PLACES}
        found = [separation(*pair) / PIXEL for pair in itertools.combinations(itertools.chain(*boxes), 2)]
        near, overlapping = ([low <= each <= high for each in found] for low, high in ((-1.6, 1.6), (-SIZE, -2)))
        assert all(
            each >= 2.5 or touching or over for each, touching, over in zip(found, near, overlapping, strict=True)
        )
        assert any(near) == ("touches" in linked) and any(overlapping) == ("covers" in linked)


def laid_out(contact, numbers, seed=5, count=10):
    """Scenes of two groups in contact, of these numbers, and their layouts."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        groups = [replace(GROUPS[rng.integers(len(GROUPS))], number=number) for number in numbers]
        scene = Scene(tuple(groups), (contact,), "statement")
        layout = lay_out(scene, rng) if is_drawable(scene) else None
        if layout is not None:
            found.append((scene, layout))
    return found


def whole(item):
    """The mask of an object on the whole canvas."""
    canvas = np.zeros((SIZE * FINE, SIZE * FINE), bool)
    left, top, right, bottom = item.box
    canvas[top:bottom, left:right] = item.silhouette.mask
    return canvas


@pytest.mark.parametrize("numbers", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])
def test_silhouettes_that_touch_meet_and_do_not_overlap(numbers):
    for _, (first, other) in laid_out("touches", numbers):
        masks = [[whole(item) for item in items] for items in (first, other)]
        grown = [sum(np.roll(mask, step, axis) for step in (-1, 1) for axis in (0, 1)) > 0 for mask in masks[0]]
        assert not any(np.any(one & two) for one in masks[0] for two in masks[1])
        meets = np.array([[np.any(one & two) for two in masks[1]] for one in grown])
        assert meets.any(0).all() and meets.any(1).all()


@pytest.mark.parametrize("numbers", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_what_is_covered_is_seen_in_part(numbers):
    for _, (first, other) in laid_out("covers", numbers, count=6):
        front = np.any([whole(item) for item in first], axis=0)
        for item in other:
            mask = whole(item)
            assert COVERED[0] <= np.sum(mask & front) / np.sum(mask) <= COVERED[1]


def test_the_first_group_lies_before_what_it_covers():
    plain = Image.new("RGB", (SIZE * FINE, SIZE * FINE), (200, 180, 200))
    for scene, layout in laid_out("covers", (1, 1), count=10):
        (first,), _ = layout
        left, top, right, bottom = first.box
        inner = np.zeros((SIZE * FINE, SIZE * FINE), bool)
        inner[top:bottom, left:right] = first.silhouette.fill
        inner = np.asarray(Image.fromarray(inner.astype(np.uint8) * 255).reduce(FINE)) == 255
        picture = np.asarray(paint(scene, layout, plain.copy(), np.random.default_rng(1)))
        assert inner.any() and len(np.unique(picture[inner], axis=0)) == 1


# ------------------------------------------------------------------------------------------------------------- drawing


def test_boxes_are_tight_around_what_is_drawn():
    rng = np.random.default_rng(2)
    for group in GROUPS:
        if group.number == 1:
            scene, ground = Scene((group,), (), "existence"), background(rng)
            ((item,),) = layout = lay_out(scene, rng)
            empty = np.asarray(ground.reduce(FINE)).astype(int)
            picture = np.asarray(paint(scene, layout, ground, rng)).astype(int)
            ys, xs = np.nonzero(np.abs(picture - empty).max(2) > 4)
            seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / SIZE
            assert np.abs(seen - item.share).max() <= 1.01 * PIXEL


def test_pictures_hold_few_objects_wholly_inside(drawn):
    counts = set()
    for scene, boxes, picture in drawn:
        assert picture.size == (SIZE, SIZE) and picture.mode == "RGB"
        counts.add(sum(map(len, boxes)))
        assert [len(each) for each in boxes] == [group.number for group in scene.groups]
        assert all(0 < edge < 1 for edge in itertools.chain(*itertools.chain(*boxes)))
    assert counts == set(range(1, MAX_OBJECTS + 1))


def test_sizes_do_not_run_into_each_other(drawn):
    extents = {size: [] for size in SIZES}
    for scene, boxes, _ in drawn:
        for group, each in zip(scene.groups, boxes, strict=True):
            extents[group.size] += [max(box[2] - box[0], box[3] - box[1]) * SIZE for box in each]
    for size, values in extents.items():
        assert np.ptp(values) > 1 and abs(np.mean(values) - EXTENTS[size]) < 1
    assert max(extents["tiny"]) + 1.5 < min(extents["small"]) and max(extents["small"]) + 1.5 < min(extents["big"])


@pytest.mark.parametrize("size", SIZES)
def test_every_shape_is_another(size):
    looks = []
    for shape in SHAPES:
        canvas = Image.new("L", (40 * FINE, 40 * FINE))
        outline = silhouette(shape, EXTENTS[size] * FINE)
        place = [(40 * FINE - length) // 2 for length in outline.size]
        canvas.paste(200, tuple(place), Image.fromarray(outline.mask))
        canvas.paste(255, tuple(place), Image.fromarray(outline.fill))
        looks.append(np.asarray(canvas.reduce(FINE)) / 255)
    for one, other in itertools.combinations(looks, 2):
        assert np.minimum(one, other).sum() < 0.9 * np.maximum(one, other).sum()


def test_no_ground_has_the_colour_of_an_object():
    rng = np.random.default_rng(4)
    grounds = [np.asarray(background(rng).reduce(16)).reshape(-1, 3).astype(float) for _ in range(100)]
    for tone in COLOURS.values():
        assert min(np.linalg.norm(ground - tone, axis=1).min() for ground in grounds) > 45
    assert np.std([ground.mean(0) for ground in grounds], axis=0).min() > 5


def test_the_place_of_an_object_varies_over_the_picture():
    rng = np.random.default_rng(6)
    scene = Scene((Group(1, "tiny", "red", "ring"),), (), "existence")
    boxes = np.array([lay_out(scene, rng)[0][0].share for _ in range(100)])
    assert np.all(boxes[:, :2].min(0) < 0.15) and np.all(boxes[:, 2:].max(0) > 0.85)


def test_a_mirrored_silhouette_is_the_other_way_round():
    plain, mirrored = (silhouette("arrow", 60, turned) for turned in (False, True))
    assert np.array_equal(plain.mask, mirrored.mask[:, ::-1]) and not np.array_equal(plain.mask, mirrored.mask)
    assert Item(plain, [3, 4]).box == (3, 4, 3 + plain.mask.shape[1], 4 + plain.mask.shape[0])

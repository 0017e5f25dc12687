"""Pictures of scenes: a seed flows in; a scene, its objects' boxes, the picture and all true captions flow out.

`judge` says whether any caption is true of what is seen in a picture.
"""

import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import english, german
from .grammar import CONVERSES, SPLITS, Grammar, Scene, as_told, can_tell, split_of, words
from .layout import FINE, MAX_OBJECTS, SIZE, Box, Item, holds, lay_out

# Weights before scenes with too many objects or no layout are left out: shares of 0.37, 0.39 and 0.24 are what is left.
# Training shows what is harder more often, see `share_shown`.
GRAMMAR = Grammar({"existence": 0.45, "statement": 1.0, "chain": 3.0})
LANGUAGES = {"en": english, "de": german}
CAPTIONS = {"existence": ("existence",), "statement": ("statement",), "chain": ("chain", "relative", "nested")}

COLOURS = {
    **{"red": (214, 40, 40), "blue": (40, 84, 214), "green": (36, 148, 62), "yellow": (246, 208, 34)},
    **{"black": (26, 26, 30), "white": (252, 252, 252), "grey": (122, 124, 128), "brown": (124, 72, 32)},
}

# ------------------------------------------------------------------------------------------------------------- drawing


def draw(split: str, seed: int, position: int) -> tuple[Scene, list[list[Box]], Image.Image]:
    """A scene of a split, the boxes of its objects in shares of the picture, and the picture; for each position one."""
    rng = np.random.default_rng([seed, SPLITS.index(split), position])
    while True:
        scene = GRAMMAR.sample(rng)
        if split == "train" and rng.random() >= share_shown(scene):
            continue
        if is_drawable(scene) and split_of(min(same_scenes(scene), key=repr)) == split:
            layout = lay_out(scene, rng)
            if layout is not None:
                boxes = [[item.share for item in items] for items in layout]
                return scene, boxes, paint(scene, layout, background(rng), rng)


def is_drawable(scene: Scene) -> bool:
    """Whether a scene has few enough objects, and no two groups that only number and size tell apart."""
    looks = {(group.colour, group.shape) for group in scene.groups}
    return sum(group.number for group in scene.groups) <= MAX_OBJECTS and len(looks) == len(scene.groups)


def share_shown(scene: Scene) -> float:
    """How many such scenes, of those that are drawn for training, are shown there: all in which something is hidden,
    which takes longest to learn, and least of a single group, which is learned at once."""
    if "covers" in scene.relations:
        return 1.0
    return 0.35 if len(scene.groups) == 1 else 0.5


def background(rng: np.random.Generator) -> Image.Image:
    """Soft clouds of two pale tints, `SIZE` times `FINE` square: darker than white, paler than all other colours."""
    tints = np.stack([_tint(rng), _tint(rng)])
    cells = rng.integers(2, 6, size=2)
    blend = rng.random((*cells, 1))
    levels = blend * tints[0] + (1 - blend) * tints[1]
    ground = Image.fromarray(levels.round().astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return ground.resize((SIZE * FINE, SIZE * FINE), Image.Resampling.NEAREST)


def _tint(rng: np.random.Generator) -> np.ndarray:
    """float (3,), some hue with little of it."""
    hue, saturation, value = rng.uniform((0, 0.1, 180), (6, 0.28, 214))
    return value * (1 - saturation * np.clip(2 - np.abs((hue - np.array([0, 2, 4]) + 3) % 6 - 3), 0, 1))


def paint(scene: Scene, layout: Sequence[Sequence[Item]], canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draws the objects on a canvas of fine pixels, the first group before all others, and makes a picture of it."""
    for group, items in reversed(list(zip(scene.groups, layout, strict=True))):
        for item in items:
            colour = np.clip(COLOURS[group.colour] + rng.uniform(-12, 12, 3), 0, 255)
            outline = 90 - colour / 4 if group.colour == "black" else colour * 0.6
            for tone, mask in ((outline, item.silhouette.mask), (colour, item.silhouette.fill)):
                canvas.paste(tuple(tone.round().astype(int).tolist()), tuple(item.place), Image.fromarray(mask))
    return canvas.reduce(FINE)


# ------------------------------------------------------------------------------------------------------------ captions


def same_scenes(scene: Scene) -> list[Scene]:
    """All scenes that look the same: the groups told in another order, by the converse relation."""
    if scene.telling == "statement" and scene.relations[0] in CONVERSES:
        return [scene, Scene(scene.groups[::-1], (CONVERSES[scene.relations[0]],), scene.telling)]
    if scene.telling == "chain":
        first, second, third = scene.groups
        return [scene, Scene((first, third, second), scene.relations[::-1], scene.telling)]
    return [scene]


def captions(scene: Scene, language: ModuleType) -> list[str]:
    """All statements of the module `english` or `german` that tell a scene of `GRAMMAR`."""
    return [
        language.tell(dataclasses.replace(same, telling=telling))
        for telling in CAPTIONS[scene.telling]
        for same in same_scenes(scene)
        if can_tell(telling, same.relations)
    ]


def described(scene: Scene, boxes: Sequence[Sequence[Box]]) -> list[dict]:
    """What is to be seen, as `judge` takes it: a group of equal objects each, and what lies before others first."""
    return [
        {**dataclasses.asdict(group), "boxes": [[round(edge, 4) for edge in box] for box in each]}
        for group, each in zip(scene.groups, boxes, strict=True)
    ]


class Verdict(NamedTuple):
    """What is to be said of a caption."""

    true: bool  # it names all that is there and nothing else, and every relation that it states holds
    sizes: bool  # it is true, and the sizes that it names are right
    nouns: list[tuple[int, list[list[float]]]]  # positions among `words`; boxes of all of this shape and colour


def judge(caption: str, language: ModuleType, scene: Sequence[dict]) -> Verdict:
    """Compares a caption with what is to be seen.

    Args:
        caption: any text. What is no statement of the language is not true.
        language: the module `english` or `german`.
        scene: for each group of equal objects {"number", "size", "colour", "shape", "boxes"}, as `described` returns.
    """
    try:
        told = language.parse(caption)
    except ValueError:
        return Verdict(False, False, [])
    readings = []
    if told.telling != "question" and len(told.groups) == len(scene):
        readings = [order for order in itertools.permutations(range(len(scene))) if _reads(told, scene, order)]
    return Verdict(
        bool(readings),
        any(
            all(group.size == scene[index]["size"] for group, index in zip(told.groups, order, strict=True))
            for order in readings
        ),
        _nouns(caption, told, language, scene),
    )


def places(caption: str, language: ModuleType, scene: Sequence[dict]) -> list[list[list[float]]]:
    """For each of the `words` of a caption where to look for it: the boxes of what it, or the next noun, names.

    No boxes for what comes after the last noun. See `judge` for the arguments.
    """
    nouns = judge(caption, language, scene).nouns
    return [next((boxes for noun, boxes in nouns if position <= noun), []) for position in range(len(words(caption)))]


def _reads(told: Scene, scene: Sequence[dict], order: Sequence[int]) -> bool:
    """Whether a scene is truly told, sizes apart, if its groups are mentioned in this order."""
    seen = [scene[index] for index in order]
    named = all(
        (group.number, group.colour, group.shape) == (each["number"], each["colour"], each["shape"])
        for group, each in zip(told.groups, seen, strict=True)
    )
    return named and all(
        holds(relation, seen[0]["boxes"], other["boxes"]) and (relation != "covers" or order[0] < index)
        for relation, other, index in zip(told.relations, seen[1:], order[1:], strict=True)
    )


def _nouns(
    caption: str, told: Scene, language: ModuleType, scene: Sequence[dict]
) -> list[tuple[int, list[list[float]]]]:
    nouns = {noun for forms in language.NOUNS.values() for noun in forms}
    positions = [position for position, word in enumerate(words(caption)) if word in nouns]
    mentioned, _ = as_told(told.telling, told.groups, told.relations)
    return [
        (
            position,
            [
                box
                for each in scene
                if (each["colour"], each["shape"]) == (group.colour, group.shape)
                for box in each["boxes"]
            ],
        )
        for position, group in zip(positions, mentioned, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------- examples


def example(split: str, seed: int, position: int) -> dict:
    """What the corpus has of a picture, see `picture_corpus.TinyWorldPictures`."""
    scene, boxes, picture = draw(split, seed, position)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return {
        "id": position,
        "name": f"picture-{position:05d}.png",
        "picture": file.getvalue(),
        "english": captions(scene, english),
        "german": captions(scene, german),
        "scene": json.dumps(described(scene, boxes)),
    }

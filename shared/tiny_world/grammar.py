"""Scenes and the grammar that draws them: a random generator flows in, scenes with their exact probabilities flow out.

A scene is one to three groups of equal objects, the relations of the first group to each of the others, and the
telling, which is the form of sentence chosen for it. As the telling belongs to the scene, scenes and sentences are one
to one in each language (`english.tell`, `german.tell`): the entropy of the scenes is the entropy of the sentences, and
the best perplexity that any language model can reach on them is known exactly.
"""

import bisect
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType

import numpy as np

NUMBERS = (1, 2, 3)
SIZES = ("tiny", "small", "big")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "grey", "brown")
SHAPES = (
    *("circle", "star", "ring", "arrow", "moon", "drop"),
    *("square", "triangle", "heart", "cross"),
    *("flower", "cloud", "diamond"),
)
PLACES = ("above", "below", "left of", "right of")
CONTACTS = ("touches", "covers")
RELATIONS = PLACES + CONTACTS
# What the others are to the one if the one is this to them: not so for "covers".
CONVERSES = {
    **{"above": "below", "below": "above", "left of": "right of", "right of": "left of"},
    "touches": "touches",
}

SPLITS = ("train", "valid", "test")

# Telling -> what each of its relations may be. A telling with n relations needs n + 1 groups.
TELLINGS = {
    "existence": (),
    "statement": (RELATIONS,),
    "fronted": (PLACES,),
    "reported": (RELATIONS,),
    "question": (RELATIONS,),
    "chain": (RELATIONS, RELATIONS),
    "relative": (RELATIONS, RELATIONS),
    "nested": (tuple(CONVERSES), RELATIONS),
}


@dataclass(frozen=True)
class Group:
    """One to three equal objects."""

    number: int
    size: str
    colour: str
    shape: str


GROUPS = tuple(itertools.starmap(Group, itertools.product(NUMBERS, SIZES, COLOURS, SHAPES)))


@dataclass(frozen=True)
class Scene:
    """What there is to see, and how to tell it: `groups[0]` stands in `relations[i]` to `groups[i + 1]`.

    Raises:
        ValueError: a telling that does not exist, or one that cannot tell these relations.
    """

    groups: tuple[Group, ...]
    relations: tuple[str, ...]
    telling: str

    def __post_init__(self):
        if not can_tell(self.telling, self.relations) or len(self.groups) != len(self.relations) + 1:
            raise ValueError(f"{self.telling!r} cannot tell {len(self.groups)} groups in relations {self.relations}")


def can_tell(telling: str, relations: tuple[str, ...]) -> bool:
    """Whether sentences of this form can express these relations."""
    choices = TELLINGS.get(telling)
    return choices is not None and len(choices) == len(relations) and all(map(tuple.__contains__, choices, relations))


def as_told(
    telling: str, groups: Sequence[Group], relations: Sequence[str]
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """The groups and relations of a scene as sentences of this form mention them; or the way back, which is the same.

    Most begin with the first group. "fronted" ends with it, and "nested" begins with the second, which is the converse
    of the first relation to the first group; None for a relation that has none.
    """
    groups, relations = tuple(groups), tuple(relations)
    if telling == "fronted":
        return groups[::-1], relations
    if telling == "nested":
        return (groups[1], groups[0], *groups[2:]), (CONVERSES.get(relations[0]), *relations[1:])
    return groups, relations


def statements(scene: Scene) -> list[tuple[Group, str, Group]]:
    """What a sentence states: a group, its relation to another one, and that other one; for each relation in order."""
    if scene.telling != "nested":
        return [(scene.groups[0], *each) for each in zip(scene.relations, scene.groups[1:], strict=True)]
    groups, relations = as_told(scene.telling, scene.groups, scene.relations)
    return list(zip(groups[:-1], relations, groups[1:], strict=True))


def split_of(scene: Scene) -> str:
    """The split, "train" (80 %), "valid" or "test" (10 % each), that this scene belongs to, always and everywhere.

    Only what there is to see decides, not the telling: a scene of the test split is not in the training split under
    another telling either.
    """
    # A cryptographic digest is the same in every process, unlike `hash`, and unrelated to the content. It takes scenes
    # out of each split, but no model can learn which: to all who do not compute it, a split is a sample of the grammar.
    groups = (f"{group.number} {group.size} {group.colour} {group.shape}" for group in scene.groups)
    content = ", ".join((*scene.relations, *groups))
    digit = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") % 10
    return {0: "valid", 1: "test"}.get(digit, "train")


def words(sentence: str) -> list[str]:
    """The words of a sentence; each punctuation mark is a word of its own."""
    return re.findall(r"\w+|[^\w\s]", sentence)


def only_reading(
    sentence: str, groups: Iterable[Group], relations: Iterable[str], tell: Callable[[Scene], str]
) -> Scene:
    """The scene that is told by exactly this sentence, given the groups and relations in the order they are mentioned.

    Whoever parses may thus find groups and relations by their stems alone: a wrong ending or word order anywhere makes
    a sentence that no scene is told by.

    Raises:
        ValueError: there is no such scene.
    """
    groups, relations = tuple(groups), tuple(relations)
    for telling, choices in TELLINGS.items():
        if len(groups) - 1 == len(relations) == len(choices):
            seen, stated = as_told(telling, groups, relations)
            if can_tell(telling, stated) and tell(scene := Scene(seen, stated, telling)) == sentence:
                return scene
    raise ValueError(f"not a sentence of the tiny world: {sentence!r}")


@dataclass(frozen=True)
class Structure:
    """All that a scene is apart from its groups, with its probability."""

    telling: str
    relations: tuple[str, ...]
    probability: float

    @property
    def num_groups(self) -> int:
        return len(self.relations) + 1


DEFAULT_TELLINGS = {
    "existence": 0.1,
    **{"statement": 0.2, "fronted": 0.1, "reported": 0.1, "question": 0.1},
    **{"chain": 0.2, "relative": 0.2},
}


@dataclass(frozen=True)
class Grammar:
    """A distribution over scenes: the telling by weight, then relations and groups independently and uniformly.

    Args:
        tellings: weight (above 0) of each telling; those not named are never used. Weights are divided by their sum.
            As a telling fixes the number of groups, this also is the distribution of that number; by default one group
            has probability 0.1, two 0.5 and three 0.4.

    Raises:
        ValueError: no telling, one that does not exist, or a weight that is not a positive number.
    """

    tellings: Mapping[str, float] = field(default_factory=DEFAULT_TELLINGS.copy)

    def __post_init__(self):
        if not self.tellings or not self.tellings.keys() <= TELLINGS.keys():
            raise ValueError(f"tellings {list(self.tellings)} must be some of {list(TELLINGS)}")
        if not all(0 < weight < math.inf for weight in self.tellings.values()):
            raise ValueError(f"weights of tellings must be positive numbers: {dict(self.tellings)}")

    def count(self) -> int:
        """Number of distinct scenes, hence of distinct sentences in each language."""
        return sum(len(GROUPS) ** structure.num_groups for structure in self.structures)

    @cached_property
    def structures(self) -> tuple[Structure, ...]:
        """Every telling with every combination of its relations; the probabilities sum to 1."""
        total = sum(self.tellings.values())
        return tuple(
            Structure(telling, relations, weight / total / math.prod(map(len, TELLINGS[telling])))
            for telling, weight in self.tellings.items()
            for relations in itertools.product(*TELLINGS[telling])
        )

    @cached_property
    def _cumulative(self) -> list[float]:
        return list(itertools.accumulate(structure.probability for structure in self.structures))

    def sample(self, rng: np.random.Generator) -> Scene:
        """Draws one scene."""
        drawn = bisect.bisect(self._cumulative, rng.random(), hi=len(self.structures) - 1)
        structure = self.structures[drawn]
        indices = rng.integers(len(GROUPS), size=structure.num_groups)
        return Scene(tuple(GROUPS[index] for index in indices), structure.relations, structure.telling)

    def scenes(self, split: str, seed: int) -> Iterator[Scene]:
        """An endless stream of scenes of one split ("train", "valid" or "test").

        Scenes are drawn independently, so they may repeat within a split (those of one group often do, there being
        few); `split_of` keeps them from ever appearing in two.
        """
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        while True:
            scene = self.sample(rng)
            if split_of(scene) == split:
                yield scene

    def log_prob(self, scene: Scene) -> float:
        """Natural logarithm of the probability of a scene, in nats; -inf if its telling is not used."""
        if scene.telling not in self.tellings:
            return -math.inf
        choices = [*map(len, TELLINGS[scene.telling]), *(len(GROUPS) for _ in scene.groups)]
        return math.log(self.tellings[scene.telling] / sum(self.tellings.values())) - sum(map(math.log, choices))

    def entropy(self) -> float:
        """Entropy of a scene, and so of a sentence, in nats; exact: that of the structure plus that of its groups."""
        return sum(
            structure.probability * (structure.num_groups * math.log(len(GROUPS)) - math.log(structure.probability))
            for structure in self.structures
        )

    def expected_words(self, language: ModuleType) -> float:
        """Expected number of words (see `words`) in a sentence of the module `english` or `german`; exact.

        In both languages every group takes the same number of words, so one scene stands for all of its structure.
        """
        return sum(
            structure.probability
            * len(words(language.tell(Scene(GROUPS[: structure.num_groups], structure.relations, structure.telling))))
            for structure in self.structures
        )

    def entropy_per_word(self, language: ModuleType) -> float:
        """Entropy in nats per word of the module `english` or `german`: `entropy() / (expected_words(language) + 1)`.

        Words are separated by blanks; a comma or question mark counts as a word, and so does the end of a sentence.
        This is the least that the negative log-probabilities of many new sentences, divided by the number of their
        words, can come to under any model. (On the training split a model that memorises may come below.)
        """
        return self.entropy() / (self.expected_words(language) + 1)

    def optimum_perplexity(self, language: ModuleType) -> float:
        """The best perplexity per word that any model can reach: exp of `entropy_per_word`, which defines words."""
        return math.exp(self.entropy_per_word(language))

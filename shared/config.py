"""Configuration: typed defaults, one YAML file and dotted overrides go in; a checked, frozen dataclass comes out.

A task's configuration is a frozen dataclass whose fields are sections, frozen dataclasses themselves. Whatever the
user got wrong is one `UserError` of one line that names the key, the value and what would have been right.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

Config = TypeVar("Config")

TYPE_NAMES = {
    str: "text (in quotes where YAML would read it as something else)",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
}


class UserError(Exception):
    """Something the user can mend: one line, exit 2."""


class RunError(Exception):
    """Failed while running: one line, exit 1."""


@dataclass(frozen=True)
class VocabularyConfig:
    """What a token is; the section `vocabulary`, to which tasks add what is theirs."""

    unit: str = "word"  # bpe | unigram | word | whitespace | character
    size: int = 0  # upper bound, the four special tokens included; 0: all words or characters
    lowercase: bool = False
    min_count: int = 1

    def check(self) -> None:
        """Raises UserError for an unknown unit or a size that leaves no room beside the special tokens."""
        check_choices("vocabulary", self, unit=("bpe", "unigram", "word", "whitespace", "character"))
        subwords = self.unit in ("bpe", "unigram")
        if self.size < 8 and (self.size != 0 or subwords):
            everything = "" if subwords else ", or 0 for all there are"
            raise UserError(f"vocabulary.size: {self.size} is out of range; it must be at least 8{everything}")
        check_bounds("vocabulary", self, low=1, names=("min_count",))


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights are found; the section `training` of every task."""

    seed: int = 1
    precision: str = "float32"  # float32 | mixed_bfloat16 | mixed_float16
    deterministic: bool = True
    rounds: int = 10
    round_steps: int = 0  # optimizer steps per round; 0: one pass over the training split
    patience: int = 0  # rounds without a better monitored score before stopping; 0: never
    optimizer: str = "adam"  # adam | adamw | sgd | rmsprop | muon
    learning_rate: float = 1e-3
    schedule: str = "cosine"  # constant | cosine | plateau
    warmup_steps: int = 0  # batches over which the rate rises from 0; not with plateau
    final_learning_rate: float = 0.0
    plateau_factor: float = 0.5
    plateau_patience: int = 2
    clip_norm: float = 1.0  # global gradient norm; 0: off
    weight_decay: float = 0.0
    average: float = 0.0  # momentum of the exponential average of the weights; 0: off
    average_patience: int = 0  # rounds without a better score before a plain average of the weights starts; 0: never
    accumulate_steps: int = 1
    label_smoothing: float = 0.0
    validation_examples: int = 500  # decoded per round; 0: all
    sample_examples: int = 4  # shown in TensorBoard
    horizon: bool = False  # draws after each round how far back every recurrent stack looks

    def check(self) -> None:
        """Raises UserError for a value outside its range or a combination that cannot be trained."""
        check_choices("training", self, precision=("float32", "mixed_bfloat16", "mixed_float16"))
        check_choices("training", self, optimizer=("adam", "adamw", "sgd", "rmsprop", "muon"))
        check_choices("training", self, schedule=("constant", "cosine", "plateau"))
        check_bounds("training", self, low=1, names=("rounds", "accumulate_steps", "plateau_patience"))
        at_least_zero = ("seed", "round_steps", "patience", "warmup_steps", "final_learning_rate", "clip_norm")
        at_least_zero += ("weight_decay", "average_patience", "validation_examples", "sample_examples")
        check_bounds("training", self, low=0, names=at_least_zero)
        check_bounds("training", self, low=0, below=1, names=("average", "label_smoothing"))
        check_bounds("training", self, above=0, names=("learning_rate",))
        check_bounds("training", self, above=0, below=1, names=("plateau_factor",))
        if self.final_learning_rate > self.learning_rate:
            raise UserError(
                f"training.final_learning_rate: {self.final_learning_rate} is above "
                f"training.learning_rate={self.learning_rate}; choose at most that"
            )
        if self.average and self.average_patience:
            raise UserError(
                f"training.average_patience: {self.average_patience} cannot be combined with "
                f"training.average={self.average}; choose 0 for one of them"
            )
        if self.schedule == "plateau" and self.warmup_steps:
            raise UserError(
                f"training.warmup_steps: {self.warmup_steps} cannot be combined with training.schedule=plateau, which "
                "starts at training.learning_rate; choose 0"
            )
        steps = self.rounds * self.round_steps
        if 0 < steps <= self.warmup_steps:
            raise UserError(
                f"training.warmup_steps: {self.warmup_steps} leaves no step after the warm-up, since "
                f"training.rounds * training.round_steps = {steps}; choose fewer"
            )


@dataclass(frozen=True)
class DecodingConfig:
    """How an output is searched for; the section `decoding`. Changing it does not change the model."""

    method: str = "beam"  # greedy | beam | sample
    beam_size: int = 5
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    no_repeat_ngram: int = 0  # no n-gram of this order twice in one output; 0: off
    max_length_ratio: float = 2.0  # longest output = ratio * source length + extra
    max_length_extra: int = 10
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    seed: int = 1
    replace_unknown: bool = True
    language_model: str = ""  # run of tasks/language_model with the same vocabulary, which is mixed into every step
    language_model_weight: float = 0.2
    batch_size: int = 64

    def check(self) -> None:
        """Raises UserError for a value outside its range."""
        check_choices("decoding", self, method=("greedy", "beam", "sample"))
        check_bounds("decoding", self, low=1, names=("beam_size", "batch_size", "max_length_extra"))
        at_least_zero = ("length_penalty", "coverage_penalty", "no_repeat_ngram", "max_length_ratio", "top_k", "seed")
        at_least_zero += ("temperature", "language_model_weight")
        check_bounds("decoding", self, low=0, names=at_least_zero)
        check_bounds("decoding", self, above=0, high=1, names=("top_p",))
        check_bounds("decoding", self, low=0, below=1, names=("min_p",))

    @property
    def beams(self) -> int:
        """Hypotheses that the search follows for each output."""
        return self.beam_size if self.method == "beam" else 1

    def check_n_best(self, count: int) -> None:
        """Raises UserError unless the search has that many hypotheses, which --n-best asks for."""
        if not 1 <= count <= self.beams:
            raise UserError(
                f"--n-best: {count} is out of range; decoding.method={self.method} with "
                f"decoding.beam_size={self.beam_size} gives 1 to {self.beams}"
            )

    def check_attention(self, attention: str) -> None:
        """Raises UserError for what cannot be had of a model without attention (`model.attention` none)."""
        if self.coverage_penalty and attention == "none":
            raise UserError("decoding.coverage_penalty: is about attention, of which the model has none; choose 0")


def check_choices(section: str, config: object, **choices: Sequence[str]) -> None:
    """Raises UserError unless each named field of `config` holds one of its choices."""
    for name, allowed in choices.items():
        value = getattr(config, name)
        if value not in allowed:
            raise UserError(f"{section}.{name}: {value!r} is not one of {', '.join(allowed)}{_nearest(value, allowed)}")


def check_bounds(
    section: str,
    config: object,
    names: Sequence[str],
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raises UserError unless low <= value <= high and above < value < below for each named field of `config`."""
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    expected = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
    for name in names:
        value = getattr(config, name)
        if not (low <= value <= high and above < value < below):
            raise UserError(f"{section}.{name}: {value} is out of range; it must be {expected}")


def load_config(config_class: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a file, with `key.name=value` overrides on top; every `check` has passed.

    Raises UserError, naming the key and the value, when anything is unknown, mistyped, out of range or impossible.
    """
    types = leaf_types(config_class)
    sections = [field.name for field in fields(config_class) if is_dataclass(field.type)]
    tree = OmegaConf.structured(config_class)
    for node in (tree, *(tree[section] for section in sections)):
        OmegaConf.set_readonly(node, False)  # frozen classes make read-only nodes
    values = {**_read(path), **_parse(overrides, types)}
    try:
        for key, value in values.items():
            if value is None and key in sections:
                continue  # a section whose lines are all commented out
            if key not in types:
                raise _unknown_key(key, list(types))
            _check_type(key, value, types[key])
            OmegaConf.update(tree, key, value)
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or path}: {one_line(error)}") from error
    for part in (*(getattr(config, section) for section in sections), config):
        if hasattr(part, "check"):
            part.check()
    return config


def to_yaml(config: object) -> str:
    """Every key of the configuration, defaults included, as YAML that `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def save_config(config: object, path: str | Path) -> None:
    """Writes `to_yaml(config)` to a file."""
    Path(path).write_text(to_yaml(config), encoding="utf-8")


def flatten(config: object) -> dict[str, Any]:
    """Dotted key -> value."""
    return dict(_leaves(asdict(config)))


def differences(a: object, b: object) -> list[str]:
    """Dotted keys, in the order of the fields, at which two configurations of one class differ."""
    flat_a, flat_b = flatten(a), flatten(b)
    return [key for key in flat_a if flat_a[key] != flat_b[key]]


def leaf_types(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> declared type, for every value that a configuration can set."""
    types: dict[str, Any] = {}
    for field in fields(config_class):
        if is_dataclass(field.type):
            types.update(leaf_types(field.type, f"{prefix}{field.name}."))
        else:
            types[prefix + field.name] = field.type
    return types


def missing_path(path: str | Path, kind: str) -> UserError:
    """The error for a path that does not exist, with the nearest names that do."""
    missing = Path(path)
    while not missing.parent.is_dir() and missing.parent != missing.parent.parent:
        missing = missing.parent
    try:
        names = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(missing.name, names, n=3)
    hint = f"; did you mean {' or '.join(str(missing.parent / name) for name in close)}?" if close else ""
    return UserError(f"{path}: no such {kind}{hint}")


def _read(path: str | Path) -> dict[str, Any]:
    """Dotted key -> value of a YAML file; sections may be nested or written with dots."""
    path = Path(path)
    if not path.exists():
        raise missing_path(path, "configuration file")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or one_line(error)}"
        ) from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `section:` lines with `key: value` lines under them, found a list")
    return dict(_leaves(content))


def _parse(overrides: Sequence[str], types: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{override!r}: malformed override; expected key=value, like training.rounds=5")
        key = key.strip()
        # Text stays as typed: YAML would turn `no` into false and `007` into 7.
        values[key] = text if types.get(key) is str else _parse_value(key, text)
    return values


def _parse_value(key: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "problem", None) or one_line(error)
        raise UserError(f"{key}: {text!r} is not a valid value: {reason}") from error


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_type(key: str, value: Any, expected: Any) -> None:
    """Stricter than omegaconf's conversions: 1.5 is no whole number, true no number, 3 no text."""
    if isinstance(value, str) and "${" in value:
        return  # an interpolation, such as ${oc.env:HOME}, is checked when it is resolved
    item_types = get_args(expected)
    if item_types:
        suitable = isinstance(value, list) and all(_suits(item, item_types[0]) for item in value)
        description = f"a list, like [a, b], of {TYPE_NAMES[item_types[0]]}"
    else:
        suitable = _suits(value, expected)
        description = TYPE_NAMES[expected]
    if not suitable:
        raise UserError(f"{key}: {value!r} is the wrong type; expected {description}")


def _suits(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is expected and value != "???"


def _unknown_key(key: str, valid: Sequence[str]) -> UserError:
    inside = [name for name in valid if name.startswith(f"{key}.")]
    if inside:
        return UserError(f"{key}: is a section, not a value; set one of its keys, like {inside[0]}")
    near = _nearest(key, valid)
    if not near:
        near = f"; the sections are {', '.join(dict.fromkeys(name.split('.')[0] for name in valid))}"
    return UserError(f"{key}: unknown key{near}")


def _nearest(value: str, valid: Sequence[str]) -> str:
    # A key without its section (`learning_rate`) is nearest to the one that ends with it.
    close = [name for name in valid if name.endswith(f".{value}")] or difflib.get_close_matches(value, valid, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def one_line(error: BaseException) -> str:
    """An exception's text with its line breaks and omegaconf's trailer of internals removed."""
    lines = [line.strip() for line in str(error).split("\n    full_key")[0].splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__

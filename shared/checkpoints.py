"""Checkpoints: a model, its optimiser and a training's progress go in, and come back as they were, bit for bit.

    checkpoints/round-00012.weights.h5     weights and optimiser, Keras' own format
    checkpoints/round-00012.json           written last: progress, states of random generators, the weights' SHA-256
    checkpoints/best.weights.h5 + .json    the weights with the best validation score (averaged ones, where averaged)

A checkpoint counts when its JSON is there and the sum fits. The last two rounds are kept, so that there is always a
good one behind a damaged one.
"""

import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import keras

from shared.config import RunError
from shared.run import to_json, write_atomically

log = logging.getLogger(__name__)

KEPT = 2


@dataclass
class Progress:
    """What a training knows about itself between two rounds, beside weights, optimiser and random states."""

    round: int = 0  # rounds done; with the seed it is also the position in the data
    best: list[float] | None = None  # how the best round ranks, see task.rank
    best_round: int = 0
    plateau_round: int = 0  # the last round in which the score was better, or the learning rate was lowered


class Buffer(io.BytesIO):
    """A file in memory that bears the name Keras asks of weight files."""

    def __str__(self):
        return "memory.weights.h5"


def save_round(directory: Path, model: keras.Model, progress: Progress) -> None:
    """Saves the state after a round, then removes all but the last two. RunError if the disk does not take it."""
    _save(directory / f"round-{progress.round:05d}", model, asdict(progress))
    for old in sorted(directory.glob("round-*.json"))[:-KEPT]:
        old.unlink()  # the JSON first: weights without it do not count
        _weights_of(old).unlink(missing_ok=True)


def save_best(directory: Path, model: keras.Model, progress: Progress) -> None:
    """Saves the present weights as the best."""
    _save(directory / "best", model, asdict(progress))


def restore_round(directory: Path, model: keras.Model) -> Progress:
    """Puts a compiled model back to where its last good round ended; fresh progress if there is none.

    A damaged checkpoint is named in the log and the one before it taken. Raises RunError if all are damaged.
    """
    found = sorted(directory.glob("round-*.json"), reverse=True)
    for path in found:
        if state := _load(path, model):
            return _progress(path, state)
        log.warning("%s is damaged; going back to the checkpoint before it", _weights_of(path))
    if found:
        raise RunError(f"{directory}: every checkpoint is damaged; remove the folder to train again from the start")
    return Progress()


def restore_best(directory: Path, model: keras.Model) -> Progress:
    """Loads the best weights, or if those are damaged the last round's, and says so. RunError if there are none."""
    best = directory / "best.json"
    if best.exists():
        if state := _load(best, model):
            return _progress(best, state)
        log.warning("%s is damaged; taking the last round's weights", _weights_of(best))
    progress = restore_round(directory, model)
    if progress.round == 0:
        raise RunError(f"{directory}: holds no checkpoint yet; the first one is written after the first round")
    return progress


def _save(stem: Path, model, progress: dict) -> None:
    # Into memory first: when the disk is full, HDF5 does not raise but crashes the process.
    content = Buffer()
    model.save_weights(content, overwrite=True)
    write_atomically(stem.with_name(f"{stem.name}.weights.h5"), content.getvalue())
    state = {
        "progress": progress,
        "sha256": hashlib.sha256(content.getbuffer()).hexdigest(),
        # Keras leaves the states of dropout's random generators out of its weight files.
        "random": [variable.numpy().tolist() for variable in _random_states(model)],
    }
    write_atomically(stem.with_name(f"{stem.name}.json"), to_json(state))


def _load(path: Path, model) -> dict | None:
    """The progress of a checkpoint whose weights were loaded, None if it is damaged."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["sha256"] != _sum(_weights_of(path)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    model.load_weights(_weights_of(path))
    for variable, value in zip(_random_states(model), state["random"], strict=True):
        variable.assign(value)
    return state["progress"]


def _progress(path: Path, values: dict) -> Progress:
    try:
        return Progress(**values)
    except TypeError as error:
        raise RunError(
            f"{path}: was written by another version of this program; use that one, or train again"
        ) from error


def _weights_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.weights.h5")


def _sum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _random_states(model) -> list:
    known = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in known and "seed" in variable.path]

"""Settings that must stand before any test imports TensorFlow, and one trained run of each task for all tests."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"


@dataclass(frozen=True)
class Trained:
    """A run that the command line made."""

    task: str
    directory: Path
    words: list[str]
    """The command that made it."""
    out: str
    """What the command wrote to stdout."""


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Task -> a run of its quickstart, made tiny; the command runs once. Tests that change a run copy it first."""
    from tests.commands import TINY, run

    @functools.cache
    def train(task):
        folder = tmp_path_factory.mktemp(task)
        words = ["train", "--config", f"configs/{task}/quickstart.yaml", "--run", str(folder / "run")]
        words += [f"data.cache={folder / 'cache'}", *TINY[task]]
        done = run(task, *words)
        assert done.code == 0 and "Traceback" not in done.err, done
        return Trained(task, folder / "run", words, done.out)

    return train

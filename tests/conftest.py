"""Settings that must stand before any test imports TensorFlow, and one trained run of each task for all tests."""

import fcntl
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"


LONGEST = ("test_resume", "test_bad_days", "test_every_task", "test_captioning_verbs")


def pytest_collection_modifyitems(items):
    """Begins with the modules whose single tests take longest, so that no process is left with one at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


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
    """Task -> a run of its quickstart, made tiny. The command runs once, whichever process of pytest needs it first.

    Tests that change a run copy it first.
    """
    from tests.commands import TINY, run

    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent

    @functools.cache
    def train(task):
        folder = together / f"trained_{task}"
        folder.mkdir(exist_ok=True)
        words = ["train", "--config", f"configs/{task}/quickstart.yaml", "--run", str(folder / "run")]
        words += [f"data.cache={folder / 'cache'}", *TINY[task]]
        with open(folder / "stdout", "a+") as out:
            fcntl.flock(out, fcntl.LOCK_EX)
            if out.seek(0, os.SEEK_END) == 0:
                done = run(task, *words)
                assert done.code == 0 and "Traceback" not in done.err, done
                out.write(done.out)
            out.seek(0)
            return Trained(task, folder / "run", words, out.read())

    return train

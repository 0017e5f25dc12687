"""Command lines of the tasks for tests: words go in; an exit code, stdout and stderr come out.

`run` is what a user types. `start` and `finish` do the same in children of a process that has TensorFlow loaded,
which spares each of them the seconds that this takes.
"""

import importlib
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared import cli

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "captioning": [
        *("data.size=24", "data.batch_size=8", "data.captions_per_picture=2", "model.image_size=32"),
        *("model.channels=2", "model.memory_units=8", "model.embedding_units=8", "model.units=8"),
        *("model.attention_units=8", "model.dropout_output=0.1", "training.rounds=2", "training.round_steps=4"),
        *("training.warmup_steps=2", "training.validation_examples=8", "training.sample_examples=1"),
        *("decoding.beam_size=3", "decoding.max_length=12"),
    ],
    "language_model": [
        *("data.size=200", "data.batch_size=4", "data.window=10", "model.embedding_units=8", "model.units=8"),
        *("training.rounds=2", "training.round_steps=4", "training.warmup_steps=2", "training.validation_examples=8"),
    ],
    "speech": [
        *("data.size=24", "data.batch_size=8", "model.units=8", "model.layers=1", "training.rounds=2"),
        *("training.round_steps=4", "training.warmup_steps=2", "training.validation_examples=8"),
        "training.sample_examples=1",
    ],
    "translation": [
        *("data.size=200", "data.batch_size=16", "model.embedding_units=8", "model.encoder_units=8"),
        *("model.decoder_units=8", "model.attention_units=8", "training.rounds=2", "training.round_steps=4"),
        *("training.warmup_steps=2", "training.validation_examples=8", "decoding.beam_size=3"),
    ],
}
"""Task -> what makes its quickstart a matter of seconds."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["tensorflow", "keras", "tensorflow_datasets", "sacrebleu", "sacremoses", "h5py", "librosa.filters", "jiwer"]
)


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def one_error(self) -> str:
        """The only line on stderr, which says what is wrong; nothing is on stdout."""
        assert self.out == "" and self.err.startswith("error: ") and self.err.count("\n") == 1, self
        return self.err

    def last_error(self) -> str:
        """The same of a command that has logged its progress before: the last line, and no traceback anywhere."""
        assert self.out == "" and "Traceback" not in self.err and "Logging error" not in self.err, self
        *before, last = self.err.splitlines()
        assert last.startswith("error: ") and not any(line.startswith("error: ") for line in before), self
        return last


def run(task: str, *words, stdin: bytes = b"") -> Done:
    """Runs `python -m tasks.TASK WORDS`."""
    command = [sys.executable, "-m", f"tasks.{task}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True)
    return Done(done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8"))


class Started:
    """A command that is running."""

    def __init__(self, task: str, words, stdin: bytes):
        self._folder = tempfile.TemporaryDirectory()
        self.files = [Path(self._folder.name, name) for name in ("stdin", "stdout", "stderr")]
        for file, content in zip(self.files, (stdin, b"", b""), strict=True):
            file.write_bytes(content)
        self.process = _forks.Process(
            target=_command, args=(task, [str(word) for word in words], self.files), daemon=True
        )
        self.process.start()

    def wait_until(self, condition, seconds: float = 600) -> bool:
        """Whether the condition came true before the command ended; fails if neither happens."""
        end = time.monotonic() + seconds
        while not condition():
            if not self.process.is_alive():
                return False
            assert time.monotonic() < end, self.files[2].read_text(encoding="utf-8")
            time.sleep(0.001)
        return True

    def finish(self, seconds: float = 600) -> Done:
        """Waits for the end; a negative code is the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
        code = self.process.exitcode
        done = Done(code, *(file.read_text(encoding="utf-8") for file in self.files[1:]))
        self._folder.cleanup()
        assert code is not None, done
        return done


def start(task: str, *words, stdin: bytes = b"") -> Started:
    """Starts a command in the background."""
    return Started(task, words, stdin)


def finish(task: str, *words, stdin: bytes = b"") -> Done:
    """Runs a command to its end."""
    return start(task, *words, stdin=stdin).finish()


def _command(task, words, files):
    for descriptor, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(ROOT)
    sys.exit(cli.main(importlib.import_module(f"tasks.{task}.__main__").PROGRAM, words))


def without_loading(program, capsys):
    """For a fixture: yields what runs words in this process, where loading the task is an error."""

    def main(*words):
        code = cli.main(program, [str(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    def refuse(program):
        raise AssertionError("this should have been found before anything is loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_load", refuse)
        yield main


def write_pairs(folder: Path, sizes=(64, 8, 8), longest: int = 6) -> Path:
    """A folder of train, valid and test files .x and .y, where a sentence of y is one of x in other words."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for stem, size in zip(("train", "valid", "test"), sizes, strict=True):
        lines = [draw.choices(range(9), k=draw.randint(1, longest)) for _ in range(size)]
        for language, word in (("x", "red{}"), ("y", "blau{}")):
            text = "".join(" ".join(word.format(number) for number in line) + "\n" for line in lines)
            (folder / f"{stem}.{language}").write_text(text, encoding="utf-8")
    return folder


def pairs_words(folder: Path) -> list[str]:
    """Overrides for a tiny translator of the pairs in a folder, whose shards are kept beside it."""
    return [
        *("data.corpus=files", f"data.dir={folder}", f"data.cache={folder.parent / 'cache'}", "data.source=x"),
        *("data.target=y", "vocabulary.unit=word", "model.embedding_units=8", "model.encoder_units=8"),
        *("model.decoder_units=8", "model.attention_units=8", "data.batch_size=8", "training.sample_examples=1"),
        "decoding.method=greedy",
    ]

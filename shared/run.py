"""A run directory: a configuration and a command go in; paths, a lock, and files that are replaced whole come out.

No other file knows where a run's files lie. Whatever is killed or runs out of disk, none of them is ever half there.
"""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import RunError, UserError, differences, flatten, load_config, missing_path, one_line, to_yaml

if TYPE_CHECKING:
    import numpy as np

LIBRARIES = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "tokenizers", "sacrebleu")


@dataclass(frozen=True)
class Run:
    """A directory that holds everything about one training run."""

    directory: Path

    @classmethod
    def create(cls, directory: str | Path, config: Any, command: Sequence[str]) -> "Run":
        """A new run with its `config.yaml`, or the run that is there already if its configuration is equal.

        Raises UserError if the directory holds another configuration, something that is no run, or a training process.
        """
        run = cls(Path(directory))
        try:
            run.directory.mkdir(parents=True, exist_ok=True)
            names = [entry.name for entry in run.directory.iterdir()]
        except OSError as error:
            raise UserError(f"{directory}: cannot hold a run: {error.strerror}") from error
        strangers = [name for name in names if name != ".lock" and not name.endswith(".config.yaml")]
        if strangers and not run.config.exists():
            raise UserError(
                f"{directory}: holds {min(strangers)} but no config.yaml, so it is no run; choose a new one"
            )
        with run.lock():
            for unfinished in run.checkpoints.glob(".*"):
                unfinished.unlink()  # of a process that was killed while it wrote, as the lock proves
            if run.config.exists():
                run._refuse_other(config)
            else:
                write_atomically(run.config, to_yaml(config))
            append_line(run.command, shlex.join(command))
        return run

    @classmethod
    def open(cls, directory: str | Path, config_class: type) -> "Run":
        """The run in a directory. Raises UserError if there is none, or one of another task."""
        run = cls(Path(directory))
        if not run.directory.exists():
            raise missing_path(directory, "run directory")
        if not run.config.is_file():
            raise UserError(f"{directory}: not a run, since it has no config.yaml")
        try:
            load_config(config_class, run.config)
        except UserError as error:
            raise UserError(f"{run.config}: not a configuration of this task: {error}") from error
        return run

    def discard(self) -> None:
        """Removes a run that has no checkpoint yet, so that a corrected command can start afresh in its place."""
        if not self.checkpoints.exists():
            shutil.rmtree(self.directory)

    @property
    def config(self) -> Path:
        """The resolved configuration, every key written out."""
        return self.directory / "config.yaml"

    @property
    def command(self) -> Path:
        """The command lines that started and resumed the run, one per line."""
        return self.directory / "command.txt"

    @property
    def environment(self) -> Path:
        """Commit, versions, device, seed and recurrent kernels."""
        return self.directory / "environment.json"

    @property
    def features(self) -> Path:
        """Folder of what was fitted on the training split."""
        return self.directory / "features"

    @property
    def checkpoints(self) -> Path:
        """Folder of weights and training state."""
        return self.directory / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.directory / "tensorboard"

    @property
    def metrics(self) -> Path:
        """One JSON object per round."""
        return self.directory / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the run logged, and the tracebacks of what failed."""
        return self.directory / "train.log"

    @property
    def scores(self) -> Path:
        """Split -> score name -> value."""
        return self.directory / "scores.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.directory / "report.html"

    @property
    def pictures(self) -> Path:
        """Folder of the pictures that the report shows."""
        return self.directory / "pictures"

    def predictions(self, split: str) -> Path:
        """One JSON object per example of the split, in the split's order."""
        return self.directory / "predictions" / f"{split}.jsonl"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for one training process; raises UserError at once if another one has it."""
        with _locked(self.directory / ".lock", wait=False):
            yield

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Copies what is logged meanwhile to the end of `train.log`."""
        handler = logging.FileHandler(self.log, encoding="utf-8")
        handler.handleError = lambda record: None  # a full disk is reported by what needs it, not by the log
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

    def merge_scores(self, split: str, scores: Mapping[str, Any]) -> None:
        """Replaces the scores of one split and leaves those of the others."""
        with _locked(self.directory / ".scores.lock", wait=True):
            write_atomically(self.scores, to_json({**self.read_scores(), split: dict(scores)}))

    def read_scores(self) -> dict[str, dict[str, Any]]:
        """Split -> score name -> value; empty before the first evaluation. Raises UserError for a damaged file."""
        if not self.scores.exists():
            return {}
        try:
            return json.loads(self.scores.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.scores}: not valid JSON; remove it and evaluate again") from error

    def write_environment(self, seed: int, recurrent_kernels: Mapping[str, str], parameters: int) -> None:
        """Records what the run depends on beside its configuration; loads TensorFlow to ask for the device.

        `recurrent_kernels`: layer name -> the kernel it takes; `parameters`: trainable weights of the model.
        """
        environment = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "python": platform.python_version(),
            **{name: _version(name) for name in LIBRARIES},
            "platform": platform.platform(),
            "processor_cores": os.cpu_count(),
            "device": _device(),
            "seed": seed,
            "recurrent_kernels": dict(recurrent_kernels),
            "parameters": parameters,
        }
        write_atomically(self.environment, to_json(environment))

    def _refuse_other(self, config: Any) -> None:
        try:
            existing = load_config(type(config), self.config)
        except UserError as error:
            raise UserError(f"{self.config}: not a configuration of this task: {error}") from error
        mine, theirs = flatten(config), flatten(existing)
        changes = [f"{key}={theirs[key]} there, {mine[key]} here" for key in differences(existing, config)]
        if changes:
            raise UserError(
                f"{self.directory}: holds a run with another configuration ({'; '.join(changes)}); "
                "choose another folder with --run, or remove that one"
            )


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, ending as `path` does, that replaces `path` once the body succeeds.

    When the body or the disk fails, the old file stays whole. Raises RunError, one line naming the path, for OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Replaces a file as a whole; text is written as UTF-8. Raises RunError and leaves the old one if it cannot."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a small text file, which is never left with half of it; RunError as `write_atomically` does."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, f"{before}{line}\n")


def write_picture(path: str | Path, picture: "np.ndarray") -> None:
    """Writes a uint8 array (height, width, 3 or 4) as PNG, as a whole. Raises RunError as `write_atomically` does."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    write_atomically(path, content.getvalue())


def to_json(content: Any) -> str:
    """Indented JSON with a final newline; NumPy scalars become numbers."""
    return json.dumps(content, indent=2, ensure_ascii=False, default=lambda scalar: scalar.item()) + "\n"


@contextlib.contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    try:
        file = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: cannot be locked: {error.strerror}") from error
    with file:  # closing releases the lock, and so does the end of the process, however it comes
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path.parent}: another process is training in this folder") from error
        yield


def _commit() -> str | None:
    """The commit of the code, with "-dirty" if it was changed since; None outside a repository."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return ", ".join(names) or f"CPU ({platform.processor() or platform.machine()})"

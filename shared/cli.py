"""The command line of every task: words go in, one verb runs, and an exit code comes out.

Exit 0: done; 1: failed while running; 2: unusable arguments, configuration or input. What the user got wrong is found,
as far as it can be, before TensorFlow is loaded, which takes seconds: this module and what it imports do not load it.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.config import RunError, UserError, load_config, one_line
from shared.run import Run
from shared.task import Context, Task

logger = logging.getLogger(__name__)

# Lines that say nothing on a machine that is well: information, and the absence of a GPU's driver (CUDA error 303).
GREETING = re.compile(r"I\d{4} |WARNING: All log messages before absl|E\d{4} .*cuInit: .*\(303\)")
DECODING_OVERRIDE = re.compile(r"decoding\.\w+=")


@dataclass(frozen=True)
class Verb:
    """A verb of one task beside those that all have."""

    help: str
    """One line for `--help`."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Declares the verb's options; its positional arguments arrive as `inputs`."""


@dataclass(frozen=True)
class Program:
    """What the command line needs to know about a task without loading its model."""

    task: str
    """The task's folder under tasks/."""
    description: str
    """One line for `--help`."""
    config_class: type
    """The dataclass of the task's configuration."""
    load_task: Callable[[], Task]
    """Imports the task's heavy half."""
    predict_arguments: Callable[[argparse.ArgumentParser], None]
    """Declares the options of `predict`; its positional arguments arrive as `inputs`."""
    check_arguments: Callable[[argparse.Namespace, Any], None]
    """(arguments, config) of `predict` or an own verb -> UserError for what is wrong with them."""
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    """The task's own verbs by name."""


class Interrupt:
    """Handles Ctrl-C and SIGTERM alike, and remembers them: here and there a library swallows the exception."""

    def __init__(self):
        self.received = None

    def __call__(self, number, frame):
        """Raises KeyboardInterrupt."""
        self.received = signal.Signals(number).name
        raise KeyboardInterrupt


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; `--help` and a usage error end in argparse's SystemExit."""
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # text is UTF-8 whatever the locale says
    arguments = _parse(program, argv)
    arguments.command = ["python", "-m", f"tasks.{program.task}", *argv]
    run_verb = VERBS.get(arguments.verb, _apply)
    with _logging_to_stderr(logging.WARNING if run_verb is _apply else logging.INFO):
        try:
            run_verb(program, arguments)
            sys.stdout.flush()
            return 0
        except BaseException as error:
            if os.environ.get("UNROLL_DEBUG") == "1":
                traceback.print_exc()
            return _exit_code(program, arguments, error)


def _parse(program: Program, argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.{program.task}",
        description=program.description,
        epilog="exit status: 0 done; 1 failed while running; 2 unusable arguments, configuration or input",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def add(name: str, summary: str, positional: str, positional_help: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        verb.add_argument("inputs", nargs="*", metavar=positional, help=positional_help)
        return verb

    any_key = ("KEY=VALUE", "changes a key of the configuration, like training.rounds=5")
    decoding_key = ("KEY=VALUE", "changes how outputs are searched for, like decoding.beam_size=1")
    own = ("INPUT", "what to work on; decoding.KEY=VALUE changes how outputs are searched for")

    prepare = add("prepare", "build the corpus, once", *any_key)
    prepare.add_argument("--config", required=True, metavar="FILE", help="YAML configuration")
    train = add("train", "train a model, or go on with a run; then evaluate and report", *any_key)
    train.add_argument("--config", metavar="FILE", help="YAML configuration; not needed to go on with a run")
    train.add_argument("--run", metavar="DIR", help=f"run directory; default: runs/{program.task}/<name of FILE>")
    evaluate = add("evaluate", "decode and score a split of the corpus", *decoding_key)
    evaluate.add_argument("--split", choices=("train", "valid", "test"), default="test", help="default: test")
    predict = add("predict", "apply a trained model to new input", *own)
    program.predict_arguments(predict)
    add("report", "write the run's page, report.html", *decoding_key)
    for name, own_verb in program.verbs.items():
        own_verb.add_arguments(add(name, own_verb.help, *own))
    for name in ("evaluate", "predict", "report", *program.verbs):
        verbs.choices[name].add_argument("--run", required=True, metavar="DIR", help="run directory")

    # Positionals after an option come back as unknown, since argparse has filled `inputs` with those before it.
    arguments, rest = parser.parse_known_args(argv)
    for word in rest:
        if word.startswith("-") and word != "-":
            verbs.choices[arguments.verb].error(f"unrecognized argument: {word}")
    words = [*arguments.inputs, *rest]
    takes_inputs = arguments.verb == "predict" or arguments.verb in program.verbs
    arguments.overrides = [word for word in words if not takes_inputs or DECODING_OVERRIDE.match(word)]
    arguments.inputs = [word for word in words if takes_inputs and not DECODING_OVERRIDE.match(word)]
    # An option may stand for a key: one declared with dest="decoding.KEY".
    options = {name: value for name, value in vars(arguments).items() if name.startswith("decoding.")}
    arguments.overrides += [f"{name}={value}" for name, value in options.items() if value is not None]
    return arguments


def _prepare(program: Program, arguments: argparse.Namespace) -> None:
    config = load_config(program.config_class, arguments.config, arguments.overrides)
    corpus = _load(program).prepare(config)
    for split, size in corpus.sizes.items():
        sys.stdout.write(f"{split} {size}\n")


def _train(program: Program, arguments: argparse.Namespace) -> None:
    interrupt = Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if not arguments.config and not arguments.run:
        raise UserError("train: needs --config FILE to start a run, or --run DIR to go on with one")
    source = arguments.config or Run.open(arguments.run, program.config_class).config
    config = load_config(program.config_class, source, arguments.overrides)
    arguments.run = arguments.run or str(Path("runs", program.task, Path(arguments.config).stem))
    run = Run.create(arguments.run, config, arguments.command)
    with run.lock(), run.logged():
        logger.info("run directory: %s", run.directory)
        task = _load(program)
        from shared import evaluate, report, train

        try:
            train.train(task, config, run)
        except UserError:
            run.discard()  # the corrected command must not meet the configuration of one that could not start
            raise
        _write_scores(evaluate.evaluate(task, run, config))
        report.write(task, run, config)
        logger.info("report: %s", run.report)


def _evaluate(program: Program, arguments: argparse.Namespace) -> None:
    run, config = _open(program, arguments)
    task = _load(program)
    from shared import evaluate

    _write_scores(evaluate.evaluate(task, run, config, arguments.split))


def _report(program: Program, arguments: argparse.Namespace) -> None:
    run, config = _open(program, arguments)
    task = _load(program)
    from shared import report

    report.write(task, run, config)
    sys.stdout.write(f"{run.report}\n")


def _apply(program: Program, arguments: argparse.Namespace) -> None:
    """`predict` and the task's own verbs."""
    run, config = _open(program, arguments)
    program.check_arguments(arguments, config)
    task = _load(program)
    from shared import evaluate

    context: Context = evaluate.restore(task, run, config)
    function = task.predict if arguments.verb == "predict" else task.verbs[arguments.verb]
    function(context, arguments)


VERBS = {"prepare": _prepare, "train": _train, "evaluate": _evaluate, "report": _report}


def _open(program: Program, arguments: argparse.Namespace) -> tuple[Run, Any]:
    """The run and its configuration, of which only the decoding can still be changed."""
    run = Run.open(arguments.run, program.config_class)
    for override in arguments.overrides:
        key, equals, _ = override.partition("=")
        if equals and not key.startswith("decoding."):
            raise UserError(f"{key}: cannot be changed in a trained run; {arguments.verb} takes decoding.* keys only")
    return run, load_config(program.config_class, run.config, arguments.overrides)


def _load(program: Program) -> Task:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what fails raises an exception, too
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
    with _without_greetings():
        task = program.load_task()
        import tensorflow as tf

        tf.config.list_physical_devices()
    return task


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Holds stderr back while TensorFlow is loaded and shows afterwards what is more than a greeting.

    TensorFlow 2.21 writes some lines before it reads TF_CPP_MIN_LOG_LEVEL, so no variable silences them.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            lines = held.read().decode("utf-8", "replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not GREETING.match(line))


def _write_scores(scores: Mapping[str, float | str]) -> None:
    for name, value in scores.items():
        sys.stdout.write(f"{name:20} {value if isinstance(value, str) else format(value, '.5g')}\n")
    sys.stdout.flush()


class _ShortFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)


@contextlib.contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    """This project's messages from `level` on, and other libraries' warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ShortFormatter())
    root, ours = logging.getLogger(), [logging.getLogger(package) for package in ("shared", "tasks")]
    levels = [logger.level for logger in ours]
    root.addHandler(handler)
    for logger in ours:
        logger.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for logger, before in zip(ours, levels, strict=True):
            logger.setLevel(before)


def _exit_code(program: Program, arguments: argparse.Namespace, error: BaseException) -> int:
    """Says in one line what ended the command."""
    if isinstance(error, BrokenPipeError):
        # The reader has gone: nothing to say, and nowhere to say it when Python flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, KeyboardInterrupt):
        hint = "; the same command goes on where it stopped" if arguments.verb == "train" else ""
        sys.stderr.write(f"interrupted{hint}\n")
        return 1
    if isinstance(error, UserError | RunError):
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 2 if isinstance(error, UserError) else 1
    if isinstance(error, SystemExit):
        raise error
    log = _write_traceback(program, arguments, error)
    sys.stderr.write(f"error: {type(error).__name__}: {_shortened(one_line(error))}; details in {log}\n")
    return 1


def _write_traceback(program: Program, arguments: argparse.Namespace, error: BaseException) -> Path:
    """Appends the traceback to the run's log, or to a temporary file where there is no run that can be written."""
    text = "".join(traceback.format_exception(error))
    run = Run(Path(getattr(arguments, "run", None) or os.devnull))
    if run.config.is_file():
        with contextlib.suppress(OSError), open(run.log, "a", encoding="utf-8") as file:
            file.write(text)
            return run.log
    with tempfile.NamedTemporaryFile("w", prefix=f"{program.task}-", suffix=".log", delete=False) as file:
        file.write(text)
        return Path(file.name)


def _shortened(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}..."

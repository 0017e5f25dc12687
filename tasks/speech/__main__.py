"""The speech task's command line: `python -m tasks.speech VERB ...` goes in, an exit code comes out."""

import argparse
import sys
from pathlib import Path

from shared.cli import Program, Verb, main
from shared.config import UserError, missing_path
from shared.task import Task
from tasks.speech.config import SpeechConfig

FORMATS = ("text", "json", "ctm", "textgrid")


def load_task() -> Task:
    """Imports TensorFlow and the recogniser."""
    from tasks.speech.task import TASK

    return TASK


def output_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """How segments are written."""
    parser.add_argument("--format", choices=FORMATS, default=default, help=f"default: {default}")
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("--output", metavar="DIR", help="one file per recording in DIR, not everything on stdout")


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is sound: the files and folders named as INPUT, else those that --input lists."""
    parser.add_argument("--input", default="-", metavar="FILE", help="list of sound files, one per line; -: stdin")
    output_arguments(parser, "text")
    parser.add_argument("--lm", dest="decoding.language_model", metavar="RUN", help="language model for CTC's beam")
    parser.add_argument("--lm-weight", dest="decoding.language_model_weight", metavar="W", help="its weight")
    parser.add_argument("--plot", metavar="FILE.png", help="draw spectrogram, posteriors and segments of the first one")
    parser.add_argument("--posteriors", metavar="FILE.npz", help="write the probabilities at every step, too")


def align_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is one sound file with --phones, else lines `sound file TAB phones` from INPUT or stdin."""
    parser.add_argument("--phones", metavar="STRING", help="what is said in INPUT: phones with blanks between, or text")
    output_arguments(parser, "textgrid")


def check_arguments(arguments: argparse.Namespace, config: SpeechConfig) -> None:
    """Raises UserError for files that are missing and for options that do not go together."""
    files = list(arguments.inputs)
    if arguments.verb == "predict":
        if arguments.inputs and arguments.input != "-":
            raise UserError("predict: name sound files as INPUT or list them in a file with --input, not both")
        files += [arguments.input]
        for option, path, suffix in (("plot", arguments.plot, ".png"), ("posteriors", arguments.posteriors, ".npz")):
            if path and Path(path).suffix != suffix:
                raise UserError(f"--{option}: {path} must end in {suffix}")
            if path and not Path(path).parent.is_dir():
                raise missing_path(Path(path).parent, "folder")
    elif arguments.phones is not None and len(arguments.inputs) != 1:
        raise UserError(f"--phones: is what one recording says, but {len(arguments.inputs)} are named")
    for file in files:
        if file != "-" and not Path(file).exists():
            raise missing_path(file, "input file")
    if arguments.format == "textgrid" and not arguments.output and len(arguments.inputs) > 1:
        raise UserError("--format textgrid: writes one file per recording; name a folder for them with --output DIR")
    if arguments.output and not Path(arguments.output).is_dir():
        raise missing_path(arguments.output, "folder")


PROGRAM = Program(
    task="speech",
    description="Recognise phones in recordings, frame by frame, with a deep recurrent network.",
    config_class=SpeechConfig,
    load_task=load_task,
    predict_arguments=predict_arguments,
    check_arguments=check_arguments,
    verbs={"align": Verb("when each phone of a known string is said", align_arguments)},
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM))

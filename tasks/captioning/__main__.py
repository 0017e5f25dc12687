"""The captioning task's command line: `python -m tasks.captioning VERB ...` goes in, an exit code comes out."""

import argparse
import sys
from pathlib import Path

from shared.cli import Program, Verb, main
from shared.config import UserError, missing_path
from shared.task import Task
from tasks.captioning.config import CaptioningConfig


def load_task() -> Task:
    """Imports TensorFlow and the captioner."""
    from tasks.captioning.task import TASK

    return TASK


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is pictures: the files and folders named as INPUT, else those that --input lists."""
    parser.add_argument("--input", default="-", metavar="FILE", help="list of pictures, one per line; -: stdin")
    parser.add_argument("--n-best", type=int, default=1, metavar="N", help="captions per picture, best first")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture, with everything known")
    parser.add_argument("--lm", dest="decoding.language_model", metavar="RUN", help="language model to mix in")
    parser.add_argument("--lm-weight", dest="decoding.language_model_weight", metavar="W", help="its weight")
    parser.add_argument("--plot", metavar="DIR", help="draw there where each word of a caption was seen")


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is pictures (with --text) or files of sentences, one per line (with --picture)."""
    parser.add_argument(
        "--text", metavar="SENTENCE", help="rank the pictures INPUT, files or folders, by this sentence"
    )
    parser.add_argument("--picture", metavar="FILE", help="rank the sentences in INPUT by this picture")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="show the N best only")


def check_arguments(arguments: argparse.Namespace, config: CaptioningConfig) -> None:
    """Raises UserError for files that are missing and for options that do not go together."""
    files = [name for name in arguments.inputs if "://" not in name]  # an address is refused where it is read
    if arguments.verb == "predict":
        files.append(arguments.input)
        config.decoding.check_n_best(arguments.n_best)
        if arguments.inputs and arguments.input != "-":
            raise UserError("predict: name pictures as INPUT or list them in a file with --input, not both")
        if arguments.plot and config.model.attention == "none":
            raise UserError("--plot: this run's model has no attention (model.attention=none)")
        if arguments.plot and not Path(arguments.plot).is_dir():
            raise missing_path(arguments.plot, "folder")
    else:
        if (arguments.text is None) == (arguments.picture is None):
            raise UserError("search: give either --text and pictures, or --picture and sentences")
        if arguments.text is not None and not arguments.text.strip():
            raise UserError("--text: is empty")
        if arguments.top < 0:
            raise UserError(f"--top: {arguments.top} is out of range; it must be at least 1")
        files += [arguments.picture] if arguments.picture else []
    for file in files:
        if file != "-" and not Path(file).exists():
            raise missing_path(file, "input file")


PROGRAM = Program(
    task="captioning",
    description="Describe pictures with a convolutional encoder and a recurrent attention decoder.",
    config_class=CaptioningConfig,
    load_task=load_task,
    predict_arguments=predict_arguments,
    check_arguments=check_arguments,
    verbs={"search": Verb("which pictures a sentence describes, or which sentences a picture", search_arguments)},
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM))

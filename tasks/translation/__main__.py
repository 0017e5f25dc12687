"""The translation task's command line: `python -m tasks.translation VERB ...` goes in, an exit code comes out."""

import argparse
import sys
from pathlib import Path

from shared.cli import Program, Verb, main
from shared.config import UserError, missing_path
from shared.task import Task
from tasks.translation.config import TranslationConfig


def load_task() -> Task:
    """Imports TensorFlow and the translator."""
    from tasks.translation.task import TASK

    return TASK


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is text, one sentence per line: the files named as INPUT, else --input."""
    parser.add_argument("--input", default="-", metavar="FILE", help="sentences, one per line; -: stdin (the default)")
    parser.add_argument("--n-best", type=int, default=1, metavar="N", help="translations per sentence, best first")
    parser.add_argument("--json", action="store_true", help="one JSON object per sentence, with everything known")
    parser.add_argument("--lm", dest="decoding.language_model", metavar="RUN", help="language model to mix in")
    parser.add_argument("--lm-weight", dest="decoding.language_model_weight", metavar="W", help="its weight")
    parser.add_argument("--attention", metavar="FILE.png", help="draw which source word each output word looked at")


def score_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is sentence pairs: --source and --target side by side, else `source TAB target` from INPUT or stdin."""
    parser.add_argument("--source", metavar="FILE", help="sentences, one per line")
    parser.add_argument("--target", metavar="FILE", help="their translations, one per line")
    parser.add_argument("--json", action="store_true", help="one JSON object per pair, with everything known")


def check_arguments(arguments: argparse.Namespace, config: TranslationConfig) -> None:
    """Raises UserError for files that are missing and for options that do not go together."""
    files = list(arguments.inputs)
    if arguments.verb == "predict":
        files.append(arguments.input)
        config.decoding.check_n_best(arguments.n_best)
        if arguments.inputs and arguments.input != "-":
            raise UserError("predict: name files as INPUT or with --input, not both")
        if arguments.attention:
            _check_picture(arguments.attention, config)
    if arguments.verb == "score":
        pair = [file for file in (arguments.source, arguments.target) if file is not None]
        if len(pair) == 1 or (pair and arguments.inputs):
            raise UserError("score: give --source and --target, or INPUT with a tab in each line")
        files += pair
    for file in files:
        if file != "-" and not Path(file).exists():
            raise missing_path(file, "input file")


def _check_picture(path: str, config: TranslationConfig) -> None:
    if config.model.attention == "none":
        raise UserError("--attention: this run's model has none (model.attention=none)")
    if Path(path).suffix != ".png":
        raise UserError(f"--attention: {path} must end in .png")
    if not Path(path).parent.is_dir():
        raise missing_path(Path(path).parent, "folder")


PROGRAM = Program(
    task="translation",
    description="Translate sentences with a recurrent encoder and an attention decoder.",
    config_class=TranslationConfig,
    load_task=load_task,
    predict_arguments=predict_arguments,
    check_arguments=check_arguments,
    verbs={"score": Verb("how probable given translations are", score_arguments)},
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM))

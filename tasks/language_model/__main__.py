"""The language model's command line: `python -m tasks.language_model VERB ...` goes in, an exit code comes out."""

import argparse
import dataclasses
import math
import os.path
import shlex
import sys

from shared.cli import Program, Verb, main
from shared.config import UserError, missing_path
from shared.task import Task
from tasks.language_model.config import GAP, LanguageModelConfig, check_gap

SAMPLING = {f"decoding.{key}": f"--{key.replace('_', '-')}" for key in ("temperature", "top_k", "top_p", "min_p")}
"""Key -> the option that sets it and so asks for `sample`."""


def load_task() -> Task:
    """Imports TensorFlow and the language model."""
    from tasks.language_model.task import TASK

    return TASK


def number(text: str) -> float:
    """A finite number, for argparse, which names this function when it complains."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is text, one per line: the files named as INPUT, else --input."""
    parser.description = "Write `log10 probability TAB tokens TAB unknowns TAB perplexity` of each line."
    parser.add_argument("--input", default="-", metavar="FILE", help="texts, one per line; -: stdin (the default)")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per line, with everything known (log_prob in nats)"
    )


def score_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is text as for `predict`, or with --rerank an n-best list."""
    predict_arguments(parser)
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="write `line number TAB token TAB log10 probability` of each token "
        "instead; ▁ stands for the blank before a word",
    )
    parser.add_argument(
        "--rerank",
        type=number,
        metavar="WEIGHT",
        help="input is `id TAB score TAB text` as `translation predict --n-best` writes it: "
        "add WEIGHT * ln p(text) to each score and sort the lines of each id, best first",
    )


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    """There is no input; the options set the decoding.* keys of the same meaning."""
    parser.description = (
        "Write new text, one text as it comes, several one per line. Takes no INPUT but decoding.KEY=VALUE; options "
        "that are keys of the decoding win over them."
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help="how the text begins; default: nothing")
    parser.add_argument("--count", type=int, default=1, metavar="N", help="texts, one line each; default: 1")
    for option, metavar, summary in (
        ("temperature", "T", "below 1: likelier words; 0: greedy"),
        ("top_k", "K", "draw from the K most probable words; 0: off"),
        ("top_p", "P", "draw from the words that make up this share; 1: off"),
        ("min_p", "P", "draw no word below P * that of the best; 0: off"),
        ("seed", "N", "the same seed writes the same texts"),
        ("max_tokens", "N", "longest text, in tokens"),
    ):
        name = f"--{option.replace('_', '-')}"
        parser.add_argument(name, dest=f"decoding.{option}", metavar=metavar, help=summary)
    parser.add_argument("--beam", dest="decoding.beam_size", metavar="N", help="search for the N most probable texts")
    parser.add_argument("--json", action="store_true", help="one JSON object per text (log_prob in nats)")


def fill_arguments(parser: argparse.ArgumentParser) -> None:
    """Input is text with one gap per line: an INPUT that has a gap itself, else the file of that name, else stdin."""
    parser.description = (
        f"Write `number TAB probability TAB word` of the best words for the gap {GAP} in each text. "
        f"An INPUT with a {GAP} is the text itself, any other one a file of them; without INPUT they come from stdin."
    )
    parser.add_argument("--count", type=int, default=5, metavar="K", help="words for each gap, best first; default: 5")
    parser.add_argument("--json", action="store_true", help="one JSON object per text")


def check_arguments(arguments: argparse.Namespace, config: LanguageModelConfig) -> None:
    """Raises UserError for what the model cannot do, files that are missing, and options that do not go together.

    Settles `arguments.decoding`, with which `generate` writes.
    """
    if arguments.verb == "generate":
        _check_generate(arguments, config)
    elif arguments.verb == "fill":
        _check_fill(arguments, config)
    else:
        _check_score(arguments)


def _check_score(arguments: argparse.Namespace) -> None:
    if arguments.inputs and arguments.input != "-":
        raise UserError(f"{arguments.verb}: name files as INPUT or with --input, not both")
    if arguments.verb == "score":
        forms = {"--json": arguments.json, "--tokens": arguments.tokens, "--rerank": arguments.rerank is not None}
        given = [option for option, is_given in forms.items() if is_given]
        if len(given) > 1:
            raise UserError(f"score: {' and '.join(given)} are different outputs; choose one")
    for file in (*arguments.inputs, arguments.input):
        if file != "-" and not os.path.exists(file):
            raise missing_path(file, "input file")


def _check_generate(arguments: argparse.Namespace, config: LanguageModelConfig) -> None:
    if config.model.bidirectional:
        raise UserError(
            "generate: this run's model reads from both sides (model.bidirectional=true), but a text is written from "
            f"the left alone; {_train_with(arguments.run, 'model.bidirectional=false', 'forward')}"
        )
    if arguments.inputs:
        raise UserError(f"generate: reads no files, found {arguments.inputs[0]!r}; begin the text with --prompt TEXT")
    drawn = [option for key, option in SAMPLING.items() if getattr(arguments, key) is not None]
    searched = getattr(arguments, "decoding.beam_size") is not None
    if drawn and searched:
        raise UserError(f"generate: --beam searches and {drawn[0]} draws; choose one")
    method = "sample" if drawn else "beam" if searched else config.decoding.method
    decoding = arguments.decoding = dataclasses.replace(config.decoding, method=method)
    if decoding.method == "beam":
        limit, why = decoding.beam_size, f"decoding.beam_size={decoding.beam_size} finds 1 to {decoding.beam_size}"
    elif decoding.method == "greedy" or decoding.temperature == 0:
        limit, why = 1, "without sampling there is only 1; give a temperature above 0, or --beam"
    else:
        limit, why = math.inf, "it must be at least 1"
    if not 1 <= arguments.count <= limit:
        raise UserError(f"--count: {arguments.count} is out of range; {why}")


def _check_fill(arguments: argparse.Namespace, config: LanguageModelConfig) -> None:
    if not config.model.bidirectional:
        raise UserError(
            "fill: this run's model reads from the left alone (model.bidirectional=false), but a gap has two sides; "
            f"{_train_with(arguments.run, 'model.bidirectional=true', 'bidirectional')}"
        )
    if arguments.count < 1:
        raise UserError(f"--count: {arguments.count} is out of range; it must be at least 1")
    for text in arguments.inputs:
        if GAP in text:
            check_gap(text, repr(text))
        elif text != "-" and not os.path.exists(text):
            raise UserError(f"{text}: no such input file, nor a text with a gap, which is written {GAP}")


def _train_with(run: str, override: str, name: str) -> str:
    """How to get a run that differs from this one in one key."""
    words = ["--config", os.path.join(run, "config.yaml"), "--run", f"{run.rstrip('/')}_{name}", override]
    return f"train one that can with: python -m tasks.language_model train {shlex.join(words)}"


PROGRAM = Program(
    task="language_model",
    description="Score, write and complete texts with a recurrent language model.",
    config_class=LanguageModelConfig,
    load_task=load_task,
    predict_arguments=predict_arguments,
    check_arguments=check_arguments,
    verbs={
        "score": Verb("how probable texts and their tokens are; ranks n-best lists", score_arguments),
        "generate": Verb("write new text", generate_arguments),
        "fill": Verb("the most probable words for gaps, from a bidirectional model", fill_arguments),
    },
)

if __name__ == "__main__":
    sys.exit(main(PROGRAM))

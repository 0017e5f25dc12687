"""The language model task: names its functions for the shared straight line, and answers its own verbs."""

import dataclasses
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter

import numpy as np

from shared.config import UserError
from shared.lines import read_lines
from shared.pictures import rendered
from shared.task import Task
from shared.text import UNK
from tasks.language_model.config import GAP, check_gap
from tasks.language_model.corpus import prepare
from tasks.language_model.data import steps_per_pass, training_batches
from tasks.language_model.decode import decode, fill, generate, output_line, perplexity, score_texts, stream
from tasks.language_model.features import fit, load
from tasks.language_model.model import LanguageModel, loss
from tasks.language_model.score import score

logger = logging.getLogger(__name__)

BATCHES_TOGETHER = 20  # of input lines, sorted by length together; their results come out together
PICTURE_TOKENS = 300  # of a text, from its beginning
PICTURE_WIDTH = 100  # characters in a row of the picture
MOST_BITS = 10  # of surprise that the colours tell apart


def monitor(config) -> str:
    """The perplexity that the model is for."""
    return "perplexity_fill" if config.model.bidirectional else "perplexity_stream"


def build_model(config, features) -> LanguageModel:
    """A built language model with fresh weights."""
    size, streams = len(features.vocabulary), config.data.batch_size
    model = LanguageModel(config.model, size, streams, config.training.label_smoothing)
    model.build()
    return model


def illustrate(config, model, features, corpus, predictions) -> dict:
    """Where the probability went: the surprise of each token of the first predictions' texts, by name."""
    texts = [prediction["text"] for prediction in predictions[: config.training.sample_examples]]
    results = score_texts(config, model, features, texts)
    return {
        f"surprise-{number}": draw_surprise(result["pieces"][:PICTURE_TOKENS], result["log_probs"][:PICTURE_TOKENS])
        for number, result in enumerate(results, 1)
    }


def embeddings(model, features) -> dict:
    """The embedding with its words."""
    return {"words": (model.embedding.embeddings.numpy(), features.vocabulary.tokens())}


def predict(context, arguments) -> None:
    """Writes how probable each line is; an empty line is a text, too, of which only the end is to be guessed."""
    for (number, text), result in scored(context, enumerate(input_lines(arguments), 1)):
        if arguments.json:
            worth = {"perplexity": perplexity(-result["log_prob"], result["tokens"])}
            sys.stdout.write(f"{json.dumps({'id': number, 'text': text, **worth, **result}, ensure_ascii=False)}\n")
        else:
            sys.stdout.write(f"{output_line(result)}\n")


def score_verb(context, arguments) -> None:
    """As `predict`; or each token of each line with --tokens; or an n-best list in a new order with --rerank."""
    if arguments.rerank is not None:
        rerank(context, arguments)
    elif arguments.tokens:
        for (number, _), result in scored(context, enumerate(input_lines(arguments), 1)):
            for piece, log_prob in zip(result["pieces"], result["log_probs"], strict=True):
                sys.stdout.write(f"{number}\t{piece}\t{log_prob / math.log(10):.4f}\n")
    else:
        predict(context, arguments)


def input_lines(arguments) -> Iterator[str]:
    """The lines of the files that `predict` and `score` were given."""
    return read_lines(arguments.inputs or [arguments.input])


def scored(context, rows: Iterable[tuple]) -> Iterator[tuple[tuple, dict]]:
    """Rows, of which the last item is a text, each with what `score_texts` says of it."""
    rows = iter(rows)
    while some := list(islice(rows, context.config.decoding.batch_size * BATCHES_TOGETHER)):
        results = score_texts(context.config, context.model, context.features, [row[-1] for row in some])
        yield from zip(some, results, strict=True)


def rerank(context, arguments) -> None:
    """Adds the weighted log probability (nats) to each score of an n-best list and sorts the lines of each id."""
    groups = {}
    for (name, own, text), result in scored(context, read_n_best(input_lines(arguments))):
        groups.setdefault(name, []).append((own + arguments.rerank * result["log_prob"], text))
    for name, hypotheses in groups.items():
        for total, text in sorted(hypotheses, key=itemgetter(0), reverse=True):
            sys.stdout.write(f"{name}\t{total:.4f}\t{text}\n" if math.isfinite(total) else f"{name}\t\t{text}\n")


def read_n_best(lines: Iterable[str]) -> Iterator[tuple[str, float, str]]:
    """(id, score, text) of lines `id TAB score TAB text`; the score of an input without any output is -infinity.

    Raises UserError naming the line that is none.
    """
    for number, line in enumerate(lines, 1):
        name, *rest = line.split("\t", 2)
        if len(rest) < 2:
            raise UserError(f"line {number}: is not `id TAB score TAB text`")
        yield name, -math.inf if rest == ["", ""] else _score_of(rest[0], number), rest[1]


def _score_of(text: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"line {number}: the score {text!r} is not a finite number")
    return value


def generate_verb(context, arguments) -> None:
    """Writes text: a single one piece by piece as it comes, several (or the best of a beam) one per line."""
    warn_of_unknown_words(context.features, arguments.prompt)
    config = dataclasses.replace(context.config, decoding=arguments.decoding)
    beam = config.decoding.method == "beam"
    if arguments.count == 1 and not beam and not arguments.json:
        for piece in stream(config, context.model, context.features, arguments.prompt):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        return
    texts = generate(config, context.model, context.features, [arguments.prompt] * (1 if beam else arguments.count))
    for number, text in enumerate(texts[0]["n_best"][: arguments.count] if beam else texts, 1):
        known = {"id": number, "prompt": arguments.prompt, **text}
        sys.stdout.write(f"{json.dumps(known, ensure_ascii=False) if arguments.json else text['output']}\n")


def warn_of_unknown_words(features, prompt: str) -> None:
    """Names the words of a prompt that the model never saw. Raises UserError if it saw none of them."""
    pieces = features.vocabulary.pieces(prompt)
    unknown = ", ".join(dict.fromkeys(text for index, _, text in pieces if index == UNK))
    if pieces and all(index == UNK for index, _, _ in pieces):
        raise UserError(f"--prompt: the vocabulary of this run has nothing of it: {unknown}")
    if unknown:
        logger.warning("--prompt: the vocabulary of this run lacks %s", unknown)


def fill_verb(context, arguments) -> None:
    """Writes the most probable words for the gap in each text."""
    texts = enumerate(texts_with_gaps(arguments.inputs or ["-"]), 1)
    while some := list(islice(texts, context.config.decoding.batch_size * BATCHES_TOGETHER)):
        found = fill(context.config, context.model, context.features, [text for _, text in some], arguments.count)
        for (number, text), words in zip(some, found, strict=True):
            if arguments.json:
                known = [{"word": word, "probability": probability} for word, probability in words]
                sys.stdout.write(f"{json.dumps({'id': number, 'text': text, 'words': known}, ensure_ascii=False)}\n")
            else:
                sys.stdout.writelines(f"{number}\t{probability:.6f}\t{word}\n" for word, probability in words)


def texts_with_gaps(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs that have a gap, and the lines of the files that the others name. UserError for a line without one."""
    for name in inputs:
        if GAP in name:
            yield name
            continue
        for number, line in enumerate(read_lines([name]), 1):
            check_gap(line, f"{'stdin' if name == '-' else name}: line {number}")
            yield line


def draw_surprise(pieces: Sequence[str], log_probs: Sequence[float]) -> np.ndarray:
    """A text as a strip of tokens coloured by their surprise, as a picture, uint8 (height, width, 3).

    Args:
        pieces: tokens as they are displayed, "▁" standing for a blank.
        log_probs: of each, in nats; the surprise of a token is -log2 of its probability.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    texts = [piece.replace("▁", " ")[:PICTURE_WIDTH] for piece in pieces]
    rows, columns = _places(texts)
    bits = -np.asarray(log_probs) / math.log(2)
    height = max(rows) + 1
    figure = Figure(figsize=(0.08 * PICTURE_WIDTH, 0.25 * height + 0.7), dpi=100, layout="constrained")
    axes, scale = figure.subplots(2, height_ratios=[2 * height, 1])
    colours = ScalarMappable(Normalize(0, MOST_BITS), "YlOrRd")
    axes.barh(rows, [len(text) for text in texts], height=0.9, left=columns, color=colours.to_rgba(bits))
    for text, row, column, surprise in zip(texts, rows, columns, bits, strict=True):
        ink = "white" if surprise > 0.6 * MOST_BITS else "black"
        axes.text(column, row, text, color=ink, family="monospace", size=9, va="center", parse_math=False)
    axes.set(xlim=(0, PICTURE_WIDTH), ylim=(height - 0.5, -0.5))
    axes.set_axis_off()
    figure.colorbar(colours, cax=scale, orientation="horizontal", extend="max", label="surprise (bits)")
    return rendered(figure)


def _places(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """The row and the column of each text in rows of at most PICTURE_WIDTH characters."""
    places, row, column = [], 0, 0
    for text in texts:
        if column + len(text) > PICTURE_WIDTH:
            row, column = row + 1, 0
        places.append((row, column))
        column += len(text)
    rows, columns = zip(*places, strict=True)
    return list(rows), list(columns)


TASK = Task(
    name="language_model",
    monitor=monitor,
    prepare=prepare,
    fit_features=fit,
    load_features=load,
    training_batches=training_batches,
    steps_per_pass=steps_per_pass,
    build_model=build_model,
    loss=loss,
    decode=decode,
    score=score,
    illustrate=illustrate,
    embeddings=embeddings,
    predict=predict,
    verbs={"score": score_verb, "generate": generate_verb, "fill": fill_verb},
)

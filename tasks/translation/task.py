"""The translation task: names its functions for the shared straight line, and answers its own verbs."""

import json
import logging
import sys
from collections.abc import Iterator
from itertools import islice, zip_longest

from shared.config import UserError
from shared.lines import read_lines
from shared.losses import TokenCrossEntropy
from shared.run import write_picture
from shared.task import Task
from tasks.translation.corpus import prepare
from tasks.translation.data import steps_per_pass, training_batches
from tasks.translation.decode import decode, draw_attention, score_pairs, translate
from tasks.translation.features import fit, load
from tasks.translation.model import Translator
from tasks.translation.score import score

log = logging.getLogger(__name__)

BATCHES_TOGETHER = 20  # of input lines, sorted by length together; their results come out together


def build_model(config, features) -> Translator:
    """A built translator with fresh weights."""
    model = Translator(config.model, len(features.source), len(features.target), config.vocabulary.joint)
    model.build()
    return model


def illustrate(config, model, features, corpus, predictions) -> dict:
    """Attention maps of the first predictions' sources, by name; none for a model without attention."""
    sources = [prediction["source"] for prediction in predictions[: config.training.sample_examples]]
    translations = translate(config, model, features, sources, attention=True)
    return {
        f"attention-{number}": draw_attention(translation["attention"], *translation["pieces"])
        for number, translation in enumerate(translations, 1)
        if "attention" in translation
    }


def embeddings(model, features) -> dict:
    """The embeddings of both languages with their tokens; one where they are shared."""
    found = {"target": (model.writer.embedding.embeddings.numpy(), features.target.tokens())}
    if model.source_embedding is not model.writer.embedding:
        found["source"] = model.source_embedding.embeddings.numpy(), features.source.tokens()
    return found


def predict(context, arguments) -> None:
    """Translates lines to stdout, in their order; an empty line stays empty.

    With --n-best N each line gives N lines `line number TAB score TAB translation`; with --json one object per line.
    """
    lines = enumerate(read_lines(arguments.inputs or [arguments.input]), 1)
    drawn = None
    while some := list(islice(lines, context.config.decoding.batch_size * BATCHES_TOGETHER)):
        sources = [line for _, line in some]
        translations = translate(
            context.config, context.model, context.features, sources, attention=bool(arguments.attention)
        )
        for (number, source), translation in zip(some, translations, strict=True):
            warn_of_long_line(context.config.data.max_length, number, translation["source_tokens"])
            sys.stdout.writelines(f"{line}\n" for line in output_lines(number, source, translation, arguments))
        sys.stdout.flush()
        drawn = drawn or next((translation for translation in translations if "attention" in translation), None)
    if arguments.attention and drawn:
        write_picture(arguments.attention, draw_attention(drawn["attention"], *drawn["pieces"]))


def output_lines(number: int, source: str, translation: dict, arguments) -> list[str]:
    """What one input line gives on stdout."""
    n_best = translation["n_best"][: arguments.n_best]
    if arguments.json:
        known = {"output": translation["output"], "score": translation["score"], "log_prob": translation["log_prob"]}
        return [json.dumps({"id": number, "source": source, **known, "n_best": n_best}, ensure_ascii=False)]
    if arguments.n_best == 1:
        return [translation["output"]]
    return [f"{number}\t{hypothesis['score']:.4f}\t{hypothesis['output']}" for hypothesis in n_best] or [
        f"{number}\t\t"
    ]


def warn_of_long_line(longest: int, number: int, tokens: int) -> None:
    """Names a line of which only the beginning was translated: the model never saw sentences as long as it."""
    if tokens > longest:
        log.warning(
            "line %d has %d tokens: only the first %d (data.max_length) are translated", number, tokens, longest
        )


def score_verb(context, arguments) -> None:
    """Writes log p(target | source) of each pair, in nats; with --json also the pair and its number of tokens."""
    pairs = enumerate(read_pairs(arguments), 1)
    while some := list(islice(pairs, context.config.decoding.batch_size * BATCHES_TOGETHER)):
        sources, targets = zip(*(pair for _, pair in some), strict=True)
        results = score_pairs(context.config, context.model, context.features, sources, targets)
        for (number, (source, target)), (log_prob, tokens) in zip(some, results, strict=True):
            known = {"id": number, "source": source, "target": target, "log_prob": log_prob, "tokens": tokens}
            sys.stdout.write(
                f"{json.dumps(known, ensure_ascii=False) if arguments.json else format(log_prob, '.4f')}\n"
            )
        sys.stdout.flush()


def read_pairs(arguments) -> Iterator[tuple[str, str]]:
    """The pairs that `score` was given: two line-aligned files, or lines with a tab. UserError if they do not match."""
    if arguments.source:
        lines = [read_lines([arguments.source]), read_lines([arguments.target])]
        for number, pair in enumerate(zip_longest(*lines), 1):
            if None in pair:
                shorter, longer = (arguments.source, arguments.target)[:: 1 if pair[0] is None else -1]
                raise UserError(
                    f"{shorter}: ends before line {number}, which {longer} has; the files must have equally many lines"
                )
            yield pair
        return
    for number, line in enumerate(read_lines(arguments.inputs or ["-"]), 1):
        source, tab, target = line.partition("\t")
        if not tab:
            raise UserError(f"line {number}: has no tab between source and target")
        yield source, target


TASK = Task(
    name="translation",
    monitor=lambda config: "bleu",
    prepare=prepare,
    fit_features=fit,
    load_features=load,
    training_batches=training_batches,
    steps_per_pass=steps_per_pass,
    build_model=build_model,
    loss=lambda config: TokenCrossEntropy(config.training.label_smoothing),
    decode=decode,
    score=score,
    illustrate=illustrate,
    embeddings=embeddings,
    predict=predict,
    verbs={"score": score_verb},
)

"""The captioning task: names its functions for the shared straight line, and answers its own verbs."""

import functools
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from shared import evaluate
from shared.config import UserError, load_config
from shared.files import check_stems, expanded
from shared.lines import read_lines
from shared.losses import OwnLoss
from shared.pictures import ENDINGS, decode_picture, encode_picture, read_picture
from shared.run import Run, write_picture
from shared.task import Task
from shared.text import EOS
from tasks.captioning.config import CaptioningConfig
from tasks.captioning.corpus import prepare
from tasks.captioning.data import steps_per_pass, training_batches
from tasks.captioning.decode import decode, describe, draw_attention, draw_captions, score_captions
from tasks.captioning.features import Encoder, fit, load, load_encoder
from tasks.captioning.model import Captioner
from tasks.captioning.score import Cider, score

logger = logging.getLogger(__name__)

GRID = 12  # validation pictures shown with their captions


def build_model(config, features) -> Captioner:
    """A built captioner with fresh weights."""
    regions = features.encoder.regions if features.encoder else None
    reward = functools.partial(rewards, Cider.fit(_ended(features.references))) if features.references else None
    model = Captioner(
        config.model, len(features.vocabulary), regions, config.training.label_smoothing, reward,
        config.decoding.max_length,
    )  # fmt: skip
    model.build()
    return model


def rewards(cider: Cider, captions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """CIDEr-D of each caption, see `Captioner`. The end counts as a word: a caption that has none is worth less."""

    def words(row):
        return tuple(row[row != 0].tolist())

    pairs = zip(captions, references, strict=True)
    found = [cider.score(words(caption), [words(row) for row in rows if row.any()]) for caption, rows in pairs]
    return np.array(found, np.float32)


def _ended(references):
    return [[(*caption, EOS) for caption in captions] for captions in references]


def start(config, model, features) -> None:
    """Takes the weights of the run that `model.start_from` names, or those of an encoder that comes trained."""
    name = config.model.start_from
    if not name:
        if model.encoder and config.model.weights:
            model.encoder.network.set_weights(Encoder(config.model, config.model.weights).network.get_weights())
        return
    run = Run.open(name, CaptioningConfig)
    found = evaluate.restore(TASK, run, load_config(CaptioningConfig, run.config))
    if found.features.vocabulary.digest() != features.vocabulary.digest():
        raise UserError(f"model.start_from: {name} has another vocabulary; train both on the same captions")
    other = found.model
    parts = [[part for part in each.layers if part.name not in ("encoder", "naming")] for each in (model, other)]
    shapes = [[tuple(weight.shape) for part in each for weight in part.weights] for each in parts]
    if shapes[0] != shapes[1]:
        raise UserError(f"model.start_from: {name} has other layers; train both with equal ones")
    for mine, theirs in zip(*parts, strict=True):
        mine.set_weights(theirs.get_weights())
    if model.naming and other.naming:
        model.naming.set_weights(other.naming.get_weights())
    if model.encoder and other.encoder:
        model.encoder.network.set_weights(other.encoder.network.get_weights())
    elif model.encoder:
        load_encoder(model.encoder, run.features)
    logger.info("starting from the weights of %s", name)


def monitor(config) -> str:
    """On the embedded corpus what is true can be told, elsewhere how near captions are to people's."""
    return "true_captions" if config.data.corpus == "tiny_world" else "cider"


def illustrate(config, model, features, corpus, predictions) -> dict:
    """The first validation pictures with their captions, and where each word of some of them was seen."""
    pictures = first_pictures(config, corpus, min(GRID, len(predictions)))
    if not pictures:
        return {}
    found = {"captions": draw_captions(pictures, predictions)}
    shown = pictures[: config.training.sample_examples]
    if config.model.attention != "none" and shown:
        described = describe(config, model, features, features.read(np.stack(shown)), attention=True)
        for number, (picture, each) in enumerate(zip(shown, described, strict=True), 1):
            found[f"attention-{number}"] = draw_attention(picture, each["regions"], each["attention"])
    return found


def first_pictures(config, corpus, count: int) -> list[np.ndarray]:
    """The first pictures of the validation split."""
    examples = islice(corpus.splits["valid"]().as_numpy_iterator(), count)
    return [decode_picture(example["picture"], config.model.image_size) for example in examples]


def embeddings(model, features) -> dict:
    """The embedding of the words."""
    return {"words": (model.writer.embedding.embeddings.numpy(), features.vocabulary.tokens())}


# --------------------------------------------------------------------------------------------------------------- verbs


def predict(context, arguments) -> None:
    """Describes pictures, in their order: a line for each; with --n-best N, N lines `number TAB score TAB caption`.

    What comes before one that is none is written, too.
    """
    number, files = 0, expanded(arguments.inputs or read_lines([arguments.input]), ENDINGS, "picture")
    if arguments.plot:
        files = list(files)
        check_stems("--plot", files)
    for names, pictures in batches_of(context, files):
        arrays = context.features.read(np.stack(pictures))
        found = describe(context.config, context.model, context.features, arrays, attention=bool(arguments.plot))
        for name, picture, result in zip(names, pictures, found, strict=True):
            number += 1
            if arguments.plot and "attention" in result:
                drawn = draw_attention(picture, result["regions"], result.pop("attention"))
                write_picture(Path(arguments.plot, f"{Path(name).stem}.png"), drawn)
            sys.stdout.writelines(f"{line}\n" for line in output_lines(number, name, result, arguments))
        sys.stdout.flush()


def output_lines(number: int, name: str, result: dict, arguments) -> list[str]:
    """What one picture gives on stdout."""
    n_best = result["n_best"][: arguments.n_best]
    if arguments.json:
        return [json.dumps({"id": number, "name": name, **result, "n_best": n_best}, ensure_ascii=False)]
    if arguments.n_best == 1:
        return [result["output"]]
    return [f"{number}\t{hypothesis['score']:.4f}\t{hypothesis['output']}" for hypothesis in n_best]


def search_verb(context, arguments) -> None:
    """Ranks pictures by how probable a sentence is for them, or sentences by how probable they are for a picture.

    Writes lines `score TAB picture or sentence`, best first. The score is the log probability of the sentence in nats;
    of sentences, which differ in length, its mean over their tokens.
    """
    if arguments.text is not None:
        ranked = []
        files = expanded(arguments.inputs or read_lines(["-"]), ENDINGS, "picture")
        for names, pictures in batches_of(context, files):
            arrays = context.features.read(np.stack(pictures))
            captions = [[arguments.text]] * len(names)
            scores = score_captions(context.config, context.model, context.features, arrays, captions)
            ranked += [(log_prob, name) for name, [(log_prob, _)] in zip(names, scores, strict=True)]
    else:
        texts = [line for line in read_lines(arguments.inputs or ["-"]) if line.strip()]
        picture = load_picture(context, arguments.picture)
        arrays = context.features.read(picture[np.newaxis])
        [scores] = score_captions(context.config, context.model, context.features, arrays, [texts]) if texts else [[]]
        ranked = [(log_prob / tokens, text) for text, (log_prob, tokens) in zip(texts, scores, strict=True)]
    ranked.sort(key=lambda pair: -pair[0])  # stable: equals stay in their order
    sys.stdout.writelines(f"{each:.4f}\t{what}\n" for each, what in ranked[: arguments.top or None])


def batches_of(context, names: Iterable[str]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Names and pictures (size, size, 3), as many at a time as are described together.

    UserError for what is no picture, once those before it were given out.
    """
    some, pictures = [], []
    for name in names:
        try:
            pictures.append(load_picture(context, name))
        except UserError:
            if some:
                yield some, pictures
            raise
        some.append(name)
        if len(some) == context.config.decoding.batch_size:
            yield some, pictures
            some, pictures = [], []
    if some:
        yield some, pictures


def load_picture(context, name: str) -> np.ndarray:
    """A file as the model sees it, uint8 (size, size, 3), by the way that training pictures went. UserError if it is
    none."""
    if "://" in name:
        raise UserError(f"{name}: an address; download the picture and name the file")
    config = context.config
    return decode_picture(encode_picture(read_picture(name, name, config.data.max_pixels)), config.model.image_size)


TASK = Task(
    name="captioning",
    monitor=monitor,
    prepare=prepare,
    fit_features=fit,
    load_features=load,
    training_batches=training_batches,
    steps_per_pass=steps_per_pass,
    build_model=build_model,
    loss=lambda config: OwnLoss(),
    decode=decode,
    score=score,
    illustrate=illustrate,
    embeddings=embeddings,
    predict=predict,
    verbs={"search": search_verb},
    start=start,
)

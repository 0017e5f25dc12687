"""The speech task: names its functions for the shared straight line, and answers its own verbs."""

import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from shared import evaluate
from shared.config import UserError, load_config
from shared.files import check_stems, expanded
from shared.lines import read_lines
from shared.losses import OwnLoss
from shared.pictures import rendered
from shared.recordings import SOUND, decode_sound, sound_blocks
from shared.run import Run, write_atomically, write_picture
from shared.task import Task
from tasks.speech.config import SpeechConfig
from tasks.speech.corpus import prepare
from tasks.speech.data import steps_per_pass, training_batches, utterances
from tasks.speech.decode import align, decode, head_of, log_posteriors, names_of, recognise, vocabulary_of
from tasks.speech.features import Stream, fit, frame_time, load, num_columns, thin
from tasks.speech.model import Recogniser
from tasks.speech.score import score

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 30.0  # of a recording that are in memory at once
SUFFIXES = {"text": ".txt", "json": ".json", "ctm": ".ctm", "textgrid": ".TextGrid"}
ARRAYS = ("labels", "first", "step", "file")  # names that no recording can have beside those in `write_posteriors`
PICTURE_SECONDS = 10.0  # of a recording, from its beginning
PICTURE_PHONES = 25  # the most probable ones


def monitor(config) -> str:
    """The error rate of what is decoded."""
    return "character_error_rate" if config.writes_characters else "phone_error_rate"


def build_model(config, features) -> Recogniser:
    """A built recogniser with fresh weights."""
    columns = num_columns(config.features) * config.features.stack
    sizes = (len(vocabulary) if vocabulary else 0 for vocabulary in (features.phones, features.labels))
    model = Recogniser(config.model, columns, *sizes)
    model.build()
    return model


def start(config, model, features) -> None:
    """Takes the recurrent layers of the run that `model.start_from` names."""
    del features  # other heads, and so other phones, can be trained on the same layers
    if not config.model.start_from:
        return
    run = Run.open(config.model.start_from, SpeechConfig)
    other = evaluate.restore(TASK, run, load_config(SpeechConfig, run.config)).model
    shapes = [[tuple(weight.shape) for weight in each.stack.weights] for each in (model, other)]
    if shapes[0] != shapes[1]:
        raise UserError(f"model.start_from: {run.directory} has other layers or frames; train both with equal ones")
    model.stack.set_weights(other.stack.get_weights())
    logger.info("starting from the recurrent layers of %s", run.directory)


def illustrate(config, model, features, corpus, predictions) -> dict:
    """Spectrogram, posteriors and segments of the first utterances, and which phone was taken for which."""
    rows = utterances(config, corpus, features, "valid", config.decoding.noise)
    shown = predictions[: config.training.sample_examples]
    frames = [rows.frames(prediction["id"]) for prediction in shown]
    found = log_posteriors(config, model, head_of(config), frames) if shown else []
    names = names_of(vocabulary_of(config, features))
    pictures = {
        f"posteriors-{number}": draw_posteriors(
            config, row, log_probs, names, prediction["segments"], prediction.get("reference", [])
        )
        for number, (row, log_probs, prediction) in enumerate(zip(frames, found, shown, strict=True), 1)
    }
    timed = [prediction for prediction in predictions if "reference" in prediction]
    if timed and head_of(config) == "frames":
        pictures["confusion"] = draw_confusion(timed)
    return pictures


def sounds(config, corpus, predictions) -> dict:
    """The recordings of the first utterances of the validation split."""
    wanted = {prediction["name"] for prediction in predictions[: config.training.sample_examples]}
    found = {}
    for example in corpus.splits["valid"]().as_numpy_iterator():
        name = example["name"].decode("utf-8")
        if name in wanted:
            found[f"sound/{name}"] = decode_sound(example["sound"])
        if len(found) == len(wanted):
            break
    return found


def embeddings(model, features) -> dict:
    """What each head compares a state with, phone by phone."""
    vocabularies = {"frames": features.phones, "ctc": features.labels}
    return {head: (layer.kernel.numpy().T, names_of(vocabularies[head])) for head, layer in model.heads.items()}


# --------------------------------------------------------------------------------------------------------------- verbs


def predict(context, arguments) -> None:
    """Writes what is said in each sound file, in their order; what comes before one that is none is written, too."""
    files = list(expanded(arguments.inputs or read_lines([arguments.input]), SOUND, "sound file"))
    check_outputs(arguments, files)
    if arguments.posteriors and (taken := next((name for name in files if name in ARRAYS), "")):
        raise UserError(f"--posteriors: {taken!r} is what something else in that file is called; write ./{taken}")
    posteriors = {}
    found = recognise(context.config, context.model, context.features, (hear(context, name) for name in files))
    try:
        for number, (name, (result, _, log_probs)) in enumerate(zip(files, found, strict=True), 1):
            emit(arguments, number, name, result)
            if arguments.plot and number == 1:
                labels = names_of(vocabulary_of(context.config, context.features))
                frames, _ = hear(context, name)
                picture = draw_posteriors(context.config, frames, log_probs, labels, result["segments"], [])
                write_picture(arguments.plot, picture)
            if arguments.posteriors:
                posteriors[name] = np.exp(log_probs)
    finally:
        if arguments.posteriors:
            write_posteriors(context, arguments.posteriors, posteriors)


def align_verb(context, arguments) -> None:
    """Writes when each phone of a known string is said."""
    if arguments.phones is not None:
        pairs = [(arguments.inputs[0], arguments.phones)]
    else:
        pairs = list(read_pairs(arguments.inputs or ["-"]))
    check_outputs(arguments, [name for name, _ in pairs])
    recordings = ((*hear(context, name), string, name) for name, string in pairs)
    found = align(context.config, context.model, context.features, recordings)
    for number, ((name, _), result) in enumerate(zip(pairs, found, strict=True), 1):
        emit(arguments, number, name, result)


def check_outputs(arguments, names: Sequence[str]) -> None:
    """Raises UserError for recordings whose results would run into each other."""
    if arguments.format == "textgrid" and not arguments.output and len(names) > 1:
        raise UserError("--format textgrid: writes one file per recording; name a folder for them with --output DIR")
    if arguments.output:
        check_stems("--output", names)


def read_pairs(inputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(sound file, phones) of lines with a tab between. UserError for a line without one."""
    for number, line in enumerate(read_lines(inputs), 1):
        name, tab, string = line.partition("\t")
        if tab:
            yield name, string
        elif line.strip():
            raise UserError(f"line {number}: has no tab between sound file and phones")


def hear(context, path: str) -> tuple[np.ndarray, float]:
    """(frames as the model reads them, seconds) of a sound file, read in blocks. UserError if it is none."""
    settings, seconds, parts = context.config.features, 0.0, []
    rate, blocks = sound_blocks(path, BLOCK_SECONDS)
    stream = Stream(settings, rate)
    for block in blocks:
        seconds += len(block) / rate
        parts.append(stream.push(block))
    parts.append(stream.finish())
    frames = context.features.normalized(np.concatenate(parts), "")
    return thin(frames, settings), seconds


def emit(arguments, number: int, name: str, result: dict) -> None:
    """Writes one recording's result to stdout, or to a file in --output that is named as the recording is."""
    text = FORMATS[arguments.format](Path(name).stem, {"id": number, "name": name, **result})
    if arguments.output:
        write_atomically(Path(arguments.output, Path(name).stem + SUFFIXES[arguments.format]), text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def as_text(name: str, result: dict) -> str:
    """The phones, or the text."""
    return f"{result['output']}\n"


def as_json(name: str, result: dict) -> str:
    """Everything known, in one line."""
    return f"{json.dumps(result, ensure_ascii=False)}\n"


def as_ctm(name: str, result: dict) -> str:
    """NIST's time-marked conversation format: recording, channel, start, duration, label, confidence."""
    name = "_".join(name.split())
    return "".join(
        f"{name} 1 {start:.3f} {end - start:.3f} {label} {probability:.3f}\n"
        for label, start, end, probability in result["segments"]
    )


def as_textgrid(name: str, result: dict) -> str:
    """Praat's TextGrid with one tier, phones."""
    from praatio import textgrid

    grid, seconds = textgrid.Textgrid(), result["seconds"]
    entries = [(start, end, label) for label, start, end, _ in result["segments"] if end > start]
    grid.addTier(textgrid.IntervalTier("phones", entries, minT=0, maxT=seconds))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "grid")
        grid.save(str(path), format="long_textgrid", includeBlankSpaces=True, reportingMode="silence")
        return path.read_text(encoding="utf-8")


FORMATS = {"text": as_text, "json": as_json, "ctm": as_ctm, "textgrid": as_textgrid}


def write_posteriors(context, path: str, posteriors: dict) -> None:
    """Probabilities (steps, entries) of every recording under its name, `labels` of the entries, `step` in seconds."""
    settings = context.config.features
    names = names_of(vocabulary_of(context.config, context.features))
    times = {"first": frame_time(0, settings), "step": frame_time(1, settings) - frame_time(0, settings)}
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, labels=np.array(names), **times, **posteriors)
        file.seek(0)
        write_atomically(path, file.read())


# ------------------------------------------------------------------------------------------------------------ pictures


def draw_posteriors(config, frames, log_probs, names, segments, reference) -> np.ndarray:
    """Features, the probability of each likely phone at each step, and segments.

    Args:
        frames: (steps, columns). log_probs: (steps, entries), named by `names`.
        segments, reference: recognised and true [label, start, end, ...] in seconds.

    Returns:
        A picture of the first PICTURE_SECONDS, uint8 (height, width, 3).
    """
    from matplotlib.figure import Figure

    step = frame_time(1, config.features) - frame_time(0, config.features)
    steps = min(len(frames), int(PICTURE_SECONDS / step))
    probabilities = np.exp(log_probs[:steps])
    likely = np.sort(np.argsort(-probabilities.mean(axis=0), kind="stable")[:PICTURE_PHONES])
    rows = [("recognised", segments)] + ([("true", reference)] if reference else [])
    figure = Figure(figsize=(12, 5 + 0.15 * len(likely)), dpi=80, layout="constrained")
    heights = [3, max(1, 0.25 * len(likely)), *(0.4 for _ in rows)]
    axes = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    extent = (0, steps * step)
    axes[0].imshow(frames[:steps].T, origin="lower", aspect="auto", extent=(*extent, 0, frames.shape[1]), cmap="magma")
    axes[0].set_ylabel("feature")
    axes[1].imshow(
        probabilities[:, likely].T, aspect="auto", extent=(*extent, len(likely), 0), cmap="Blues", vmin=0, vmax=1
    )
    axes[1].set_yticks(np.arange(len(likely)) + 0.5, [names[i] for i in likely], size=7, parse_math=False)
    for axis, (title, spans) in zip(axes[2:], rows, strict=True):
        axis.set(ylim=(0, 1), yticks=[0.5], yticklabels=[title])
        for label, begin, end, *_ in spans:
            if begin < extent[1]:
                axis.axvline(begin, color="grey", linewidth=0.5)
                style = {"ha": "center", "va": "center", "size": 7, "clip_on": True, "parse_math": False}
                axis.text((begin + min(end, extent[1])) / 2, 0.5, label, **style)
    axes[-1].set(xlim=extent, xlabel="seconds")
    return rendered(figure)


def draw_confusion(predictions) -> np.ndarray:
    """Which share of each true phone's time was heard as which phone, as a picture, uint8 (height, width, 3)."""
    from matplotlib.figure import Figure

    names = sorted({each[0] for p in predictions for each in (*p["reference"], *p["segments"])})
    place = {name: i for i, name in enumerate(names)}
    times = np.zeros((len(names), len(names)))
    for prediction in predictions:
        for true, heard, seconds in overlaps(prediction["reference"], prediction["segments"]):
            times[place[true], place[heard]] += seconds
    shares = times / np.maximum(times.sum(axis=1, keepdims=True), 1e-9)
    figure = Figure(figsize=(1.5 + 0.19 * len(names),) * 2, dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, size=7, parse_math=False)
    axes.set_yticks(range(len(names)), names, size=7, parse_math=False)
    axes.set(xlabel="recognised", ylabel="true")
    return rendered(figure)


def overlaps(reference, segments) -> Iterator[tuple[str, str, float]]:
    """(true label, recognised label, seconds) of every stretch that has both; segments are in order of time."""
    i, j = 0, 0
    while i < len(reference) and j < len(segments):
        (true, start, end), (heard, begin, stop, *_) = reference[i], segments[j]
        if (seconds := min(end, stop) - max(start, begin)) > 0:
            yield true, heard, seconds
        i, j = (i + 1, j) if end <= stop else (i, j + 1)


TASK = Task(
    name="speech",
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
    verbs={"align": align_verb},
    sounds=sounds,
    start=start,
)

"""Where utterances come from: the configuration flows in, a `Corpus` of recordings with what is said in them flows out.

Four kinds of corpus: the embedded tiny world, folders in TIMIT's layout and manifests (both converted once to TFDS
shards), and the public speech sets of TFDS by name. An example is {"id": int64 (position in the split, from 0), "name":
string, unique in the split, "speaker": string, "sound": string (the recording as mono 16-bit FLAC at its own rate),
"seconds": float32, "phones": string (phones, one blank between two), "starts" and "ends": float64 (n,) (seconds of each
phone, as exact as float32; empty where there are no times), "text": string}; what is unknown is empty.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import soundfile
import tensorflow_datasets as tfds

from shared import corpora
from shared.config import UserError, missing_path, one_line
from shared.corpora import SPLITS
from shared.recordings import convert_sound, encode_sound, fit_alignment, text_lines
from shared.task import Corpus
from tasks.speech.config import DataConfig, SpeechConfig

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

TINY_WORLD_SEED = 1  # not the training's: runs that differ in their seed learn from one corpus
COLUMNS = ("audio", "phones", "text", "alignment", "speaker")


def prepare(config: SpeechConfig) -> Corpus:
    """The corpus that `config.data` names, built on the first call and found again on later ones.

    "test" is absent from the splits where the corpus has none. Raises UserError for what the user's files or names
    lack, RunError when a download or the disk fails. Whether the user's files are still those that were converted is
    told by the content of manifests, alignments and transcripts, but of recordings only by names and sizes.
    """
    with corpora.preparing():
        if config.data.corpus == "tiny_world":
            return _tiny_world(config.data)
        if config.data.corpus in ("timit", "manifest"):
            return _recordings(config.data)
        return _public(config.data)


def _tiny_world(data: DataConfig) -> Corpus:
    from shared.tiny_world import speech

    builder = corpora.built(lambda: speech.prepare_speech(data.cache, data.size, TINY_WORLD_SEED), data.cache)
    return _prepared(builder, "tiny world")


def _recordings(data: DataConfig) -> Corpus:
    if not Path(data.dir).is_dir():
        raise missing_path(data.dir, "folder for data.dir")
    recordings = manifest_recordings(data) if data.corpus == "manifest" else timit_recordings(data)
    config = RecordingsConfig(
        name=_folder_name(data, recordings), recordings=recordings, tier=data.tier, skip=data.on_error == "skip"
    )
    return _prepared(corpora.converted(Recordings, config, data.dir, data.cache), Path(data.dir).resolve().name)


def _prepared(builder: tfds.core.DatasetBuilder, name: str) -> Corpus:
    def opened(split: str) -> "tf.data.Dataset":
        return corpora.numbered(builder, split).map(lambda position, example: example)

    return Corpus(
        splits={split: functools.partial(opened, split) for split in SPLITS if split in builder.info.splits},
        sizes={split: found.num_examples for split, found in builder.info.splits.items()},
        name=name,
        identity=corpora.identity(builder),
    )


# --------------------------------------------------------------------------------------------------------- public sets


def _public(data: DataConfig) -> Corpus:
    name = data.corpus.removeprefix("tfds:")
    builder = corpora.public_builder(name, data.cache)
    fields = _public_fields(builder, name, data)
    with _soundfile_for_pydub():
        corpora.download(builder, name)
    splits = corpora.public_splits(builder, name, data)
    return Corpus(
        splits={
            split: functools.partial(_open_public, builder, instruction, split, fields)
            for split, (instruction, _) in splits.items()
        },
        sizes={split: size for split, (_, size) in splits.items()},
        name=name,
        identity=corpora.folder_name(corpora.identity(builder), fields, splits),
    )


def _public_fields(builder: tfds.core.DatasetBuilder, name: str, data: DataConfig) -> dict[str, str]:
    """What an example needs -> the set's feature for it, or ""; text is data.text, or else the name of the label."""
    features = builder.info.features
    sounds = [each for each, kind in features.items() if isinstance(kind, tfds.features.Audio) and kind.sample_rate]
    labels = [each for each, kind in features.items() if isinstance(kind, tfds.features.ClassLabel)]
    texts = [each for each, kind in features.items() if isinstance(kind, tfds.features.Text)]
    if not sounds:
        raise UserError(f"data.corpus: tfds:{name} has no sound of a known sample rate; it has {', '.join(features)}")
    if data.text not in (*texts, *labels, "", DataConfig.text):
        corpora.check_text(builder, name, "data.text", data.text)
    return {
        "sound": data.audio if data.audio in sounds else sounds[0],
        "text": data.text if data.text in texts or not data.text else next(iter(labels), ""),
        "name": next((each for each in ("id", "audio/filename") if each in features), ""),
        "speaker": next((each for each in (data.speaker, "speaker_id") if each in features), ""),
    }


def _open_public(
    builder: tfds.core.DatasetBuilder, instruction: str, split: str, fields: dict[str, str]
) -> "tf.data.Dataset":
    import tensorflow as tf

    def word(example: dict, field: str) -> str | bytes:
        name = fields[field]
        if not name or isinstance(example[name], bytes):
            return example.get(name, "")
        kind, number = builder.info.features[name], int(example[name])
        return kind.int2str(number) if isinstance(kind, tfds.features.ClassLabel) else str(number)

    def examples() -> Iterator[dict]:
        rate = builder.info.features[fields["sound"]].sample_rate
        for position, example in corpora.numbered(builder, instruction).as_numpy_iterator():
            samples = example[fields["sound"]]
            yield {
                "id": position,
                "name": word(example, "name") or f"{split}-{position:05d}",
                "speaker": word(example, "speaker"),
                "sound": encode_sound(samples / np.float32(32768 if samples.dtype.kind == "i" else 1), rate),
                "seconds": len(samples) / rate,
                "phones": "",
                "starts": [],
                "ends": [],
                "text": word(example, "text"),
            }

    return tf.data.Dataset.from_generator(examples, output_signature=_features().get_tensor_spec())


@contextlib.contextmanager
def _soundfile_for_pydub() -> Iterator[None]:
    """While it lasts, TFDS reads sound by soundfile where it asks for pydub, which needs a program beside Python."""

    def from_file(file, format=None):
        samples, _ = soundfile.read(io.BytesIO(file.read()), dtype="int16", always_2d=True)
        return SimpleNamespace(channels=1, get_array_of_samples=lambda: samples.mean(axis=1).astype(np.int16))

    pydub = SimpleNamespace(
        AudioSegment=SimpleNamespace(from_file=from_file),
        exceptions=SimpleNamespace(CouldntDecodeError=soundfile.SoundFileError),
    )
    with mock.patch.dict(sys.modules, pydub=pydub):
        yield


# ------------------------------------------------------------------------------------------------ the user's recordings


@dataclasses.dataclass(frozen=True)
class Recording:
    """One utterance before its files are read."""

    name: str
    sound: Path
    speaker: str = ""
    phones: str = ""
    text: str = ""
    alignment: Path | None = None
    transcript: Path | None = None  # TIMIT's .txt, which has the text behind two numbers
    line: str = ""  # of the manifest, for messages
    fault: str = ""  # what is wrong with that line


@dataclasses.dataclass
class RecordingsConfig(tfds.core.BuilderConfig):
    """What is converted; the name, which is the folder's, is made from the files' content."""

    recordings: dict[str, list[Recording]] = dataclasses.field(default_factory=dict)
    tier: str = ""
    skip: bool = False


class Recordings(tfds.core.GeneratorBasedBuilder):
    """The user's recordings as TFDS shards, in their order. Needs a `RecordingsConfig` as `config`."""

    VERSION = tfds.core.Version("1.0.0")  # part of the folder's name; raise it when the conversion changes

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description="Recorded utterances.", features=_features(), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in self.builder_config.recordings}

    def _generate_examples(self, split):
        config, names = self.builder_config, set()
        recordings = config.recordings[split]
        step = corpora.key_step(len(recordings))
        for recording in recordings:
            try:
                if recording.name in names:
                    raise UserError(f"{recording.name}: there twice")
                example = _example(recording, config.tier)
            except UserError as error:
                if not config.skip:
                    raise UserError(f"{recording.line}{error} (data.on_error=skip leaves it out)") from error
                logger.warning("left out: %s%s", recording.line, error)
                continue
            yield len(names) * step, {"id": len(names), **example}
            names.add(recording.name)
        if not names:
            raise UserError(f"data.{split}: none of its {len(recordings)} recordings can be used")
        if len(names) < len(recordings):
            left_out = len(recordings) - len(names)
            logger.warning("%s split: %d of %d recordings left out", split, left_out, len(recordings))


def _features() -> tfds.features.FeaturesDict:
    text, times = tfds.features.Text(), tfds.features.Tensor(shape=(None,), dtype=np.float64)
    features = dict.fromkeys(("name", "speaker", "sound", "phones", "text"), text) | {"starts": times, "ends": times}
    return tfds.features.FeaturesDict({"id": np.int64, "seconds": np.float32, **features})


def _example(recording: Recording, tier: str) -> dict:
    if recording.fault:
        raise UserError(recording.fault)
    sound, rate, seconds = convert_sound(recording.sound)
    segments = fit_alignment(recording.alignment, tier, rate, seconds) if recording.alignment else []
    text = recording.text
    if recording.transcript:
        text = re.sub(r"^\d+ \d+ ", "", " ".join(line for _, line in text_lines(recording.transcript)))
    return {
        "name": recording.name,
        "speaker": recording.speaker,
        "sound": sound,
        "seconds": seconds,
        "phones": " ".join([phone for phone, _, _ in segments] or recording.phones.split()),
        "starts": [start for _, start, _ in segments],
        "ends": [end for _, _, end in segments],
        "text": " ".join(text.split()),
    }


def _folder_name(data: DataConfig, recordings: dict[str, list[Recording]]) -> str:
    parts = [(data.corpus, data.tier, data.on_error)]
    for split, found in recordings.items():
        for each in found:
            size = each.sound.stat().st_size if each.sound.is_file() else None
            parts.append((split, each.name, size, each.speaker, each.phones, each.text, bool(each.fault)))
            parts += [path if path.is_file() else None for path in (each.alignment, each.transcript) if path]
    return corpora.folder_name(Path(data.dir).resolve().name, *parts)


def timit_recordings(data: DataConfig) -> dict[str, list[Recording]]:
    """Split -> its recordings, by folders and by data.valid_speakers and data.test_speakers; lower-case names."""
    folders = {split: _folder(Path(data.dir), getattr(data, split)) for split in SPLITS}
    if folders["train"] is None:
        raise missing_path(Path(data.dir) / data.train, "folder for data.train")
    around = {folders["train"], *folders["train"].parents}  # neither is a folder of validation or test alone
    found = {
        split: _scan(folder) if folder and (split == "train" or folder not in around) else []
        for split, folder in folders.items()
    }
    return _by_speakers(found, data)


def _by_speakers(found: dict[str, list[Recording]], data: DataConfig) -> dict[str, list[Recording]]:
    """The splits with the speakers that data.valid_speakers and data.test_speakers name in theirs, and in no other."""
    pool = [each for each in found["train"] if each not in {*found["valid"], *found["test"]}]
    for split in ("valid", "test"):
        if speakers := {speaker.lower() for speaker in getattr(data, f"{split}_speakers")}:
            source = found["test"] if split == "test" and found["test"] else pool
            known = {each.speaker.lower() for each in source}
            for speaker in sorted(speakers - known):
                near = corpora.nearest(speaker, known)
                raise UserError(f"data.{split}_speakers: {speaker!r} is nobody who can be in that split{near}")
            found[split] = [each for each in source if each.speaker.lower() in speakers]
    # Whoever splits by other things than speakers, as standard splits of digits do, names none.
    both = {each.speaker for each in found["valid"] if each.speaker} & {each.speaker for each in found["test"]}
    if both and (data.valid_speakers or data.test_speakers):
        raise UserError(f"data.test_speakers: {', '.join(sorted(both))} would be in the validation split, too")
    if not found["valid"]:
        raise UserError("data.valid_speakers: missing; name some of data.train, such as data.valid_speakers=[a,b]")
    found["train"] = [each for each in pool if each not in {*found["valid"], *found["test"]}]
    if not found["test"]:
        logger.info("%s: neither data.test nor data.test_speakers names any recording to test on", data.dir)
        del found["test"]
    return found


def _folder(parent: Path, name: str) -> Path | None:
    candidates = (parent / name, parent / name.upper(), parent / name.lower())
    return next((folder for folder in candidates if folder.is_dir()), None)


def _scan(folder: Path) -> list[Recording]:
    found = {}
    for path in sorted(folder.rglob("*")):
        stem = path.name.split(".")[0]
        if path.suffix.lower() != ".wav" or not stem:
            continue
        beside = {end: [path.with_name(stem + each) for each in (end, end.upper())] for end in (".phn", ".txt")}
        phones, text = (next((each for each in paths if each.is_file()), None) for paths in beside.values())
        name = f"{path.parent.name}/{stem}".lower()  # patterns of names hold for either case
        # Some copies have SA1.WAV.wav beside SA1.WAV.
        found.setdefault(
            (path.parent, stem),
            Recording(name, path, name.split("/")[0], alignment=phones or beside[".phn"][0], transcript=text),
        )
    if not found:
        raise UserError(f"{folder}: no .wav file in it or in its folders")
    return list(found.values())


def manifest_recordings(data: DataConfig) -> dict[str, list[Recording]]:
    found = {split: [] for split in SPLITS}
    for split in SPLITS:
        stem = Path(data.dir) / getattr(data, split)
        names = (f"{stem}.csv", f"{stem}.tsv", f"{stem}.jsonl", stem)
        path = next((path for name in names if (path := corpora.existing(Path(name)))), None)
        if path and getattr(data, split):
            found[split] = _manifest(path, data)
        elif split == "train" or (split == "valid" and not data.valid_speakers):
            near = corpora.nearest(f"{stem.name}.csv", (path.name for path in stem.parent.glob("*")))
            raise UserError(f"{stem}.csv: no such file, nor .tsv, nor .jsonl; data.dir and data.{split} name it{near}")
    return _by_speakers(found, data)


def _manifest(path: Path, data: DataConfig) -> list[Recording]:
    found, columns = [], {}
    for number, row in _rows(path):
        columns |= row
        audio, phones, text, alignment, speaker = (_cell(row.get(getattr(data, option))) for option in COLUMNS)
        fault = "" if audio else f"no sound file in {data.audio!r}"
        if None in row:
            fault = "more cells than columns; put what holds the separator into quotation marks"
        aligned = path.parent / alignment if alignment else None
        line = f"{path}: line {number}: "
        found.append(Recording(audio, path.parent / audio, speaker, phones, text, aligned, line=line, fault=fault))
    if not found:
        raise UserError(f"{path}: no recording in it; it needs a line for each (CSV, TSV: below the names of columns)")
    for option in COLUMNS:
        column = getattr(data, option)
        if column not in columns and (option == "audio" or column not in ("", getattr(DataConfig, option))):
            has = ", ".join(filter(None, columns))
            near = corpora.nearest(column, filter(None, columns))
            raise UserError(f"{path}: no column {column!r}, which data.{option} names; it has {has}{near}")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    kind, number = Path(path.name.removesuffix(".gz")).suffix, 0
    try:
        if kind == ".jsonl":
            for number, line in text_lines(path):
                if line.strip():
                    yield number, dict(json.loads(line))
            return
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if kind == ".tsv" else {"strict": True}
        reader = csv.DictReader((f"{line}\n" for _, line in text_lines(path)), **dialect)
        for row in reader:
            number = reader.line_num
            yield number, row
    except (csv.Error, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read at line {number}: {one_line(error)}") from error


def _cell(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "").strip()

"""What the speech task's verbs write: phones and their times in four formats, pictures, scores, and what is refused."""

import functools
import io
import itertools
import json
import logging
import math
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr
from praatio import textgrid

from shared import cli
from shared.config import UserError, load_config
from tasks.speech.__main__ import PROGRAM
from tasks.speech.config import FeaturesConfig, ModelConfig, SpeechConfig
from tests.commands import Done, without_loading

BEST = ("decoding.path=best", "decoding.min_frames=1")
LETTERS = ("decoding.head=ctc", "decoding.method=greedy")
NAMES = [f"voice-{number:05d}" for number in range(4)]


def untrained(program, directory, config, scale=1.0):
    """A run with weights as they were drawn, those of the heads `scale` times as large."""
    import keras

    from shared import checkpoints
    from shared.run import Run

    task, run = program.load_task(), Run.create(directory, config, ["test"])
    keras.utils.set_random_seed(5)
    features = task.fit_features(config, task.prepare(config))
    features.save(run.features)
    model = task.build_model(config, features)
    for head in getattr(model, "heads", {}).values():
        head.kernel.assign(scale * head.kernel)
    checkpoints.save_best(run.checkpoints, model, checkpoints.Progress(round=1))
    return run.directory


@pytest.fixture(scope="module")
def frames(trained):
    """A run whose frames are phones."""
    return trained("speech").directory


@pytest.fixture(scope="module")
def both(frames, tmp_path_factory):
    """A run with both heads, of which that of CTC writes characters."""
    config = load_config(SpeechConfig, frames / "config.yaml", ["model.head=both", "model.labels=characters"])
    return untrained(PROGRAM, tmp_path_factory.mktemp("both") / "run", config, scale=30)


@pytest.fixture(scope="module")
def listeners(both, tmp_path_factory):
    """Language models with the vocabulary of the characters, and with another one."""
    from tasks.language_model.__main__ import PROGRAM as PROGRAM_OF_TEXT
    from tests.commands import ROOT, TINY

    folder = tmp_path_factory.mktemp("listeners")
    words = [*TINY["language_model"], f"data.cache={folder}"]
    found = []
    for name, more in (("same", f"vocabulary.file={both / 'features/labels.json'}"), ("other", "model.units=4")):
        file = ROOT / "configs/language_model/quickstart.yaml"
        config = load_config(PROGRAM_OF_TEXT.config_class, file, [*words, more])
        found.append(untrained(PROGRAM_OF_TEXT, folder / name, config))
    return found


@pytest.fixture(scope="module")
def sounds(frames, tmp_path_factory):
    """The first recordings of the test split, as files."""
    from tasks.speech.corpus import prepare

    folder = tmp_path_factory.mktemp("sounds")
    corpus = prepare(load_config(SpeechConfig, frames / "config.yaml"))
    for example in corpus.splits["test"]().take(len(NAMES)):
        (folder / f"{example['name'].numpy().decode()}.flac").write_bytes(example["sound"].numpy())
    return [folder / f"{name}.flac" for name in NAMES]


@pytest.fixture(scope="module")
def voice(sounds):
    """The samples of the first recording, (n,) at 16,000 Hz."""
    return soundfile.read(sounds[0], dtype="float32")[0]


@pytest.fixture(scope="module")
def restored():
    """(task, run, configuration) -> features and model of a run, for all tests."""
    from shared import evaluate

    restore, known = evaluate.restore, {}

    def restored(task, run, config):
        if run.directory not in known:
            known[run.directory] = restore(task, run, config)
        context = known[run.directory]
        return type(context)(run=run, config=config, features=context.features, model=context.model)

    return restored


@pytest.fixture
def answer(frames, restored, monkeypatch, capsys):
    """(verb, words) -> what the command leaves behind; it runs in this process, which holds the models already."""
    from shared import evaluate

    monkeypatch.setattr(evaluate, "restore", restored)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # graphs that no single command would make are many

    def answer(verb, *words, lines=(), run=frames):
        stdin = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(PROGRAM, [verb, "--run", str(run), *map(str, words)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return answer


@pytest.fixture
def ask(answer):
    """(verb, words) -> stdout; stderr is empty."""

    def ask(verb, *words, **options):
        done = answer(verb, *words, **options)
        assert done.code == 0 and done.err == "", done
        return done.out

    return ask


@pytest.fixture
def objects(ask):
    """(verb, words) -> what it says in JSON."""
    return lambda *words, **options: [json.loads(line) for line in ask(*words, "--json", **options).splitlines()]


@pytest.fixture
def scores(answer, tmp_path):
    """(run, words) -> what `evaluate` prints of a copy of the run."""

    def scores(run, *words):
        copy = shutil.copytree(run, tmp_path / "evaluated", dirs_exist_ok=True)
        done = answer("evaluate", *words, run=copy)
        assert done.code == 0, done
        return {name: float(value) for name, value in map(str.split, done.out.splitlines())}

    return scores


@pytest.fixture
def at_once(capsys):
    """Runs words in this process, which must end before TensorFlow is loaded."""
    yield from without_loading(PROGRAM, capsys)


def read_grid(path):
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    assert grid.tierNames == ("phones",) and grid.minTimestamp == 0
    return [(label, start, end) for start, end, label in grid.getTier("phones").entries], grid.maxTimestamp


def without(found, *names):
    return {name: value for name, value in found.items() if name not in names}


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("words", [(), LETTERS])
def test_formats_say_the_same(objects, ask, both, sounds, tmp_path, words):
    found = objects("predict", *sounds, *words, run=both)
    assert [(one["id"], one["name"]) for one in found] == list(enumerate(map(str, sounds), 1))
    assert [len(one["segments"]) > 5 for one in found] == [True] * 4
    assert ask("predict", *sounds, *words, run=both).splitlines() == [one["output"] for one in found]
    assert ask("predict", *sounds, "--format", "json", *words, run=both).count("\n") == 4

    rows = [line.split(" ") for line in ask("predict", *sounds, "--format", "ctm", *words, run=both).splitlines()]
    segments = [(name, *segment) for name, one in zip(NAMES, found, strict=True) for segment in one["segments"]]
    for row, (name, label, start, end, probability) in zip(rows, segments, strict=True):
        assert (row[0], row[1], row[4]) == (name, "1", label)
        assert [float(row[2]), float(row[2]) + float(row[3])] == pytest.approx([start, end], abs=1.1e-3)
        assert float(row[5]) == pytest.approx(probability, abs=1e-3) and len(row) == 6

    assert ask("predict", *sounds, "--format", "textgrid", "--output", tmp_path, *words, run=both) == ""
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.TextGrid" for name in NAMES}
    for name, one in zip(NAMES, found, strict=True):
        entries, seconds = read_grid(tmp_path / f"{name}.TextGrid")
        assert seconds == one["seconds"]
        assert entries == [tuple(segment[:3]) for segment in one["segments"]]


@pytest.mark.parametrize(
    ("form", "suffix"), [("text", "txt"), ("json", "json"), ("ctm", "ctm"), ("textgrid", "TextGrid")]
)
def test_a_file_holds_what_stdout_would(ask, sounds, tmp_path, form, suffix):
    out = ask("predict", sounds[1], "--format", form)
    assert ask("predict", sounds[1], "--format", form, "--output", tmp_path) == ""
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAMES[1]}.{suffix}"]
    assert (tmp_path / f"{NAMES[1]}.{suffix}").read_text(encoding="utf-8") == out


def test_a_grid_of_a_recording_without_phones_opens(tmp_path):
    from tasks.speech.task import as_textgrid

    path = tmp_path / "nothing.TextGrid"
    path.write_text(as_textgrid("nothing", {"seconds": 1.5, "segments": []}), encoding="utf-8")
    assert read_grid(path) == ([], 1.5)
    path.write_text(as_textgrid("brief", {"seconds": 0.5, "segments": [["ɐ", 0.0, 0.5, 1.0], ['"', 0.5, 0.5, 1.0]]}))
    assert read_grid(path) == ([("ɐ", 0, 0.5)], 0.5)


def test_a_name_with_blanks_is_one_word_in_ctm(ask, sounds, tmp_path):
    path = shutil.copy(sounds[0], tmp_path / "my own  voice.flac")
    rows = {tuple(line.split()[:2]) for line in ask("predict", path, "--format", "ctm").splitlines()}
    assert rows == {("my_own_voice", "1")}


# -------------------------------------------------------------------------------------------------------------- inputs


def test_recordings_are_named_as_input_or_in_a_list(ask, sounds, tmp_path):
    out = ask("predict", *sounds)
    file = tmp_path / "list.txt"
    file.write_text("".join(f"{path}\n" for path in sounds) + "\n", encoding="utf-8")
    assert ask("predict", "--input", file) == ask("predict", lines=[sounds[0], "", *sounds[1:]]) == out
    assert ask("predict", lines=[]) == ask("predict", lines=["", " "]) == ""


def test_many_recordings_keep_their_order(objects, voice, tmp_path, monkeypatch):
    from tasks.speech import decode

    monkeypatch.setattr(decode, "STEPS_HELD", 500)
    paths = [tmp_path / f"{number}.wav" for number in range(5)]
    for number, path in enumerate(paths):
        soundfile.write(path, voice[: 4000 + 800 * number], 16000)
    found = objects("predict", lines=paths * 40)
    assert [one["name"] for one in found] == list(map(str, paths * 40))
    assert [one["id"] for one in found] == list(range(1, 201))
    assert [one["seconds"] for one in found] == [0.25, 0.3, 0.35, 0.4, 0.45] * 40


def test_the_same_sound_is_heard_in_any_file(objects, voice, tmp_path):
    expected, *others = (tmp_path / name for name in ("16.wav", "float.wav", "24.flac", "stereo.wav", "sides.wav"))
    quiet = voice / 2
    soundfile.write(expected, voice, 16000)
    soundfile.write(others[0], voice, 16000, subtype="FLOAT")
    soundfile.write(others[1], voice, 16000, subtype="PCM_24")
    soundfile.write(others[2], np.stack([voice, voice], axis=1), 16000)
    soundfile.write(others[3], np.stack([voice, np.zeros_like(voice)], axis=1), 16000, subtype="FLOAT")
    expected, *found, one_side = objects("predict", expected, *others, *BEST)
    assert expected["seconds"] == round(len(voice) / 16000, 4) and len(expected["segments"]) > 3
    for one in found:
        assert without(one, "id", "name") == without(expected, "id", "name")
    soundfile.write(expected_path := tmp_path / "quiet.wav", quiet, 16000, subtype="FLOAT")
    assert one_side["segments"] == objects("predict", expected_path, *BEST)[0]["segments"]


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000])
def test_the_rate_of_the_file_does_not_matter(ask, voice, tmp_path, rate):
    original, other, file = tmp_path / "original.wav", tmp_path / "other.wav", tmp_path / "posteriors.npz"
    low = min(rate, 16000) * 0.42
    spectrum = np.fft.rfft(voice)
    spectrum[int(low / 8000 * len(spectrum)) :] = 0  # what the lower of both rates cannot hold
    noise = 1e-3 * np.random.default_rng(1).standard_normal(len(voice))  # since both differ in the depth of silence
    sound = np.fft.irfft(spectrum, len(voice))
    resampled = soxr.resample(sound, 16000, rate)
    back = soxr.resample(resampled, rate, 16000)
    soundfile.write(original, back, 16000, subtype="FLOAT")
    soundfile.write(other, resampled, rate, subtype="FLOAT")
    ask("predict", original, other, "--posteriors", file)
    with np.load(file) as found:
        first, second = found[str(original)], found[str(other)]
    assert abs(len(first) - len(second)) <= 1
    steps = min(len(first), len(second)) - 3
    np.testing.assert_allclose(first[:steps], second[:steps], atol=0.01)
    assert first.std(axis=0).max() > 0.01

"""What the speech task's verbs write: phones and their times in four formats, pictures, scores, and what is refused."""

import io
import itertools
import json
import logging
import math
import shutil
import sys
import tracemalloc
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image
from praatio import textgrid

from shared import checkpoints, cli, evaluate
from shared.config import UserError, load_config
from shared.recordings import decode_sound, encode_sound
from shared.run import Run
from tasks.speech import decode, task
from tasks.speech.__main__ import PROGRAM
from tasks.speech.config import FeaturesConfig, SpeechConfig
from tasks.speech.corpus import prepare
from tasks.speech.features import compute, thin
from tasks.speech.task import TASK, as_textgrid, draw_confusion, draw_posteriors, overlaps
from tests.commands import ROOT, TINY, Done, without_loading

BEST = ("decoding.path=best", "decoding.min_frames=1")
LETTERS = ("decoding.head=ctc", "decoding.method=greedy")
NAMES = [f"voice-{number:05d}" for number in range(4)]


def untrained(program, directory, config, scale=1.0):
    """A run with weights as they were drawn, those of the heads `scale` times as large."""
    own, run = program.load_task(), Run.create(directory, config, ["test"])
    keras.utils.set_random_seed(5)
    features = own.fit_features(config, own.prepare(config))
    features.save(run.features)
    model = own.build_model(config, features)
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
def listener(both, tmp_path_factory):
    """A language model with the vocabulary of the characters."""
    from tasks.language_model.__main__ import PROGRAM as TEXT_PROGRAM

    folder, file = tmp_path_factory.mktemp("listener"), ROOT / "configs/language_model/quickstart.yaml"
    words = [*TINY["language_model"], f"data.cache={folder}", f"vocabulary.file={both / 'features/labels.json'}"]
    return untrained(TEXT_PROGRAM, folder / "run", load_config(TEXT_PROGRAM.config_class, file, words))


@pytest.fixture(scope="module")
def sounds(frames, tmp_path_factory):
    """The beginnings of the first recordings of the test split, as files."""
    folder = tmp_path_factory.mktemp("sounds")
    corpus = prepare(load_config(SpeechConfig, frames / "config.yaml"))
    for example in corpus.splits["test"]().take(len(NAMES)).as_numpy_iterator():
        samples, rate = decode_sound(example["sound"])
        (folder / f"{example['name'].decode()}.flac").write_bytes(encode_sound(samples[: int(1.4 * rate)], rate))
    return [folder / f"{name}.flac" for name in NAMES]


@pytest.fixture(scope="module")
def voice(sounds):
    """The samples of the first recording, (n,) at 16,000 Hz."""
    return soundfile.read(sounds[0], dtype="float32")[0]


@pytest.fixture(scope="module")
def restored():
    """(task, run, configuration) -> features and model of a run, for all tests."""
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


@pytest.mark.parametrize("rates", [(8000, 11025), (22050, 44100, 96000)])
def test_the_rate_of_the_file_does_not_matter(ask, both, voice, tmp_path, rates):
    spectrum = np.fft.rfft(voice)
    spectrum[int(0.42 * min(16000, *rates) / 8000 * len(spectrum)) :] = 0  # what files of such a rate cannot hold
    sound = np.fft.irfft(spectrum, len(voice))
    paths, file = [tmp_path / f"{rate}.wav" for rate in (16000, *rates)], tmp_path / "posteriors.npz"
    for path, rate in zip(paths, (16000, *rates), strict=True):
        soundfile.write(path, soxr.resample(sound, 16000, rate), rate, subtype="FLOAT")
    ask("predict", *paths, "--posteriors", file, run=both)
    with np.load(file) as found:
        expected, *others = (found[str(path)].argmax(axis=1) for path in paths)
    assert len(set(expected)) > 5
    for phones in others:
        assert abs(len(phones) - len(expected)) <= 1
        steps = min(len(phones), len(expected))
        assert np.mean(phones[:steps] == expected[:steps]) > 0.95


def test_silence_and_moments_are_heard(objects, both, tmp_path):
    for name, samples in (("silence", 16000), ("moment", 100), ("sample", 1)):
        soundfile.write(path := tmp_path / f"{name}.wav", np.zeros(samples), 16000)
        for words in ((), LETTERS):
            (found,) = objects("predict", path, *words, run=both)
            assert found["seconds"] == round(samples / 16000, 4)
            assert all(math.isfinite(number) for segment in found["segments"] for number in segment[1:])
            assert words or (found["segments"][0][1], found["segments"][-1][2]) == (0, found["seconds"])


def test_a_long_recording_is_never_in_memory(tmp_path):
    path, settings = tmp_path / "long.flac", FeaturesConfig(stack=2, subsample=2)
    noise = (1000 * np.random.default_rng(1).standard_normal(48000)).astype(np.int16)
    features = SimpleNamespace(normalized=lambda frames, speaker: frames)
    context = SimpleNamespace(config=SpeechConfig(features=settings), features=features)
    peaks = []
    for length in (60, 180):
        with soundfile.SoundFile(path, "w", 48000, 1) as file:
            for _ in range(length):
                file.write(noise)
        tracemalloc.start()
        try:
            frames, seconds = task.hear(context, path)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert seconds == length and frames.shape == (50 * length - 1, 82)
    assert peaks[1] - peaks[0] < 0.4 * 120 * 48000 * 4  # samples of four bytes


def test_a_recording_in_blocks_is_heard_as_a_whole(sounds, voice, monkeypatch):
    monkeypatch.setattr(task, "BLOCK_SECONDS", 0.07)
    settings = FeaturesConfig(stack=3, subsample=2, deltas=1)
    features = SimpleNamespace(normalized=lambda frames, speaker: frames - 1)
    context = SimpleNamespace(config=SpeechConfig(features=settings), features=features)
    frames, seconds = task.hear(context, str(sounds[0]))
    assert seconds == pytest.approx(len(voice) / 16000)
    np.testing.assert_allclose(frames, thin(compute(voice, 16000, settings) - 1, settings), atol=1e-3)


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is no sound\n" * 20)


def cut_off(path):
    soundfile.write(path, np.zeros(16000), 16000)
    path.write_bytes(path.read_bytes()[:9000])


def without_samples(path):
    soundfile.write(path, np.zeros(0), 16000)


@pytest.mark.parametrize("spoil", [missing, empty, text, cut_off, without_samples])
def test_what_is_no_sound_is_named_and_nothing_before_it_is_lost(ask, answer, sounds, tmp_path, spoil):
    path, file = tmp_path / "bad.wav", tmp_path / "posteriors.npz"
    spoil(path)
    done = answer("predict", "--posteriors", file, lines=[*sounds[:2], path, sounds[2]])
    assert done.code == 2 and done.out == ask("predict", *sounds[:2])
    assert done.err.startswith(f"error: {path}: ") and done.err.count("\n") == 1
    with np.load(file) as found:
        assert {str(sounds[0]), str(sounds[1])} < set(found) and str(sounds[2]) not in found
    done = answer("align", "--format", "text", lines=[f"{sounds[0]}\tsil", f"{path}\tsil"])
    assert (done.code, done.out) == (2, "sil\n") and done.err.startswith(f"error: {path}: ")


def test_a_folder_stands_for_the_sound_in_it(ask, answer, sounds, tmp_path):
    (tmp_path / "calls/b").mkdir(parents=True)
    for sound, name in zip(sounds, ("c.FLAC", "b/a.flac", "a.flac"), strict=False):
        (tmp_path / "calls" / name).write_bytes(sound.read_bytes())
    (tmp_path / "calls/notes.txt").touch()
    said = ask("predict", sounds[3], sounds[2], sounds[1], sounds[0])
    assert ask("predict", sounds[3], tmp_path / "calls") == said
    assert ask("predict", lines=[sounds[3], tmp_path / "calls"]) == said
    (tmp_path / "none").mkdir()
    done = answer("predict", tmp_path / "none")
    assert done.code == 2 and done.one_error().startswith(f"error: {tmp_path / 'none'}: no sound file in it")


# ------------------------------------------------------------------------------------------ pictures and probabilities


def test_the_first_recording_is_drawn(ask, both, sounds, tmp_path):
    picture = tmp_path / "posteriors.png"
    assert ask("predict", *sounds[:2], "--plot", picture) == ask("predict", *sounds[:2])
    with Image.open(picture) as image:
        first = np.asarray(image)
        assert image.format == "PNG" and min(image.size) > 300 and len(np.unique(first)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["posteriors.png"]
    ask("predict", sounds[0], "--plot", picture)
    assert np.array_equal(np.asarray(Image.open(picture)), first)
    ask("predict", *LETTERS, sounds[1], "--plot", picture, run=both)
    assert not np.array_equal(np.asarray(Image.open(picture)), first)


@pytest.mark.parametrize("name", ["labels", "first", "step", "file"])
def test_a_recording_called_as_another_array_is_refused(ask, answer, sounds, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(sounds[0].read_bytes())
    done = answer("predict", name, "--posteriors", "all.npz")
    assert done.code == 2 and f"'{name}'" in done.one_error() and f"./{name}" in done.err
    ask("predict", f"./{name}", "--posteriors", "all.npz")
    with np.load("all.npz") as found:
        assert sorted(found) == sorted([f"./{name}", "labels", "first", "step"])


@pytest.mark.parametrize("words", [BEST, LETTERS])
def test_probabilities_are_those_of_the_segments(objects, both, sounds, tmp_path, words):
    file = tmp_path / "posteriors.npz"
    found = objects("predict", *sounds, "--posteriors", file, *words, run=both)
    with np.load(file) as arrays:
        arrays = dict(arrays)
    labels, first, step = arrays.pop("labels").tolist(), arrays.pop("first"), arrays.pop("step")
    assert (float(first), float(step)) == pytest.approx((0.0125, 0.01)) and list(arrays) == list(map(str, sounds))
    for one, array in zip(found, arrays.values(), strict=True):
        assert array.shape == ((one["seconds"] - 0.025) // 0.01 + 1, len(labels)) and array.dtype == np.float32
        np.testing.assert_allclose(array.sum(axis=1), 1, atol=1e-5)
        runs = [(labels[index], list(steps)) for index, steps in itertools.groupby(array.argmax(axis=1))]
        assert [label for label, _ in runs if label != "<pad>"] == [segment[0] for segment in one["segments"]]


def test_pictures_take_any_labels_and_lengths():
    rng, names = np.random.default_rng(1), ["$^$", "a_{", "%", "\\x", "ɐː", "sil"]
    reference = [("$^$", 0.0, 0.01), ("sil", 0.01, 99.0)]
    for steps, said in ((1, []), (30, reference), (3000, reference)):
        log_probs = np.log(rng.dirichlet(np.ones(6), size=steps))
        segments = [["\\x", 0.0, 0.02, 0.5], ["$^$", 0.02, steps / 100, 0.5]]
        picture = draw_posteriors(SpeechConfig(), rng.normal(size=(steps, 4)), log_probs, names, segments, said)
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 5
    pair = {"reference": reference, "segments": segments}
    picture = draw_confusion([pair])
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 5


def test_the_time_of_a_phone_is_shared_out_to_what_was_heard():
    reference = [("sil", 0.0, 0.3), ("a", 0.3, 0.5), ("b", 0.6, 1.0)]
    heard = [["sil", 0.0, 0.2, 1.0], ["a", 0.2, 0.7, 1.0], ["b", 0.7, 0.9, 1.0]]
    found = [(true, other, round(seconds, 6)) for true, other, seconds in overlaps(reference, heard)]
    assert found == [("sil", "sil", 0.2), ("sil", "a", 0.1), ("a", "a", 0.2), ("b", "a", 0.1), ("b", "b", 0.2)]


def test_a_round_is_illustrated_and_can_be_listened_to(both, restored):
    run = Run(both)
    for head, names in (("frames", {"posteriors-1", "confusion"}), ("ctc", {"posteriors-1"})):
        config = load_config(SpeechConfig, run.config, [f"decoding.head={head}"])
        context, corpus = restored(TASK, run, config), TASK.prepare(config)
        predictions = TASK.decode(config, context.model, context.features, corpus, "valid", 3)
        pictures = TASK.illustrate(config, context.model, context.features, corpus, predictions)
        assert set(pictures) == names
        assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in pictures.values())
        ((name, (samples, rate)),) = TASK.sounds(config, corpus, predictions).items()
        assert (name, rate) == (f"sound/{predictions[0]['name']}", 16000) and np.abs(samples).max() <= 1
    for head, (matrix, labels) in TASK.embeddings(context.model, context.features).items():
        vocabulary = context.features.phones if head == "frames" else context.features.labels
        assert matrix.shape == (len(vocabulary), 16) and len(labels) == len(vocabulary)
        assert ("sil" in labels, "▁sil" in labels, "▁" in labels) == (head == "frames", False, head == "ctc")


def test_a_training_starts_from_the_recurrent_layers_of_a_run(frames, both, restored):
    def start(directory, *options):
        config = load_config(SpeechConfig, both / "config.yaml", [f"model.start_from={directory}", *options])
        features = TASK.load_features(config, both / "features")
        model = TASK.build_model(config, features)
        before = model.get_weights()
        TASK.start(config, model, features)
        heads = [weight for head in model.heads.values() for weight in head.get_weights()]
        assert len(heads) == 4 and all(map(np.array_equal, before[-4:], heads))
        return model.stack.get_weights()

    config = load_config(SpeechConfig, frames / "config.yaml")
    wanted = restored(TASK, Run(frames), config).model.stack.get_weights()
    assert all(map(np.array_equal, start(frames), wanted))
    assert not all(map(np.array_equal, start(""), wanted))
    with pytest.raises(UserError, match=r"model\.start_from: .* has other layers"):
        start(frames, "model.units=4")
    with pytest.raises(UserError, match="no such run"):
        start(frames.parent / "nothing")


# ----------------------------------------------------------------------------------------------------- how it is heard


def test_phones_are_heard_as_it_is_told(objects, both, sounds):
    found = {
        words: [one["segments"] for one in objects("predict", *sounds, *words, run=both)]
        for words in (BEST, (), ("decoding.min_frames=100000",), ("decoding.transition_weight=30",))
    }
    assert all(len(segments) == 1 for segments in found["decoding.min_frames=100000",])
    few, some, many = (sum(map(len, found[words])) for words in (("decoding.transition_weight=30",), (), BEST))
    assert few < some < many
    greedy, beam = (
        [one["output"] for one in objects("predict", *sounds, *LETTERS, f"decoding.method={method}", run=both)]
        for method in ("greedy", "beam")
    )
    assert greedy != beam


def test_windows_are_those_that_it_is_told(objects, both, sounds):
    whole, same, windows = (
        objects("predict", sounds[0], *BEST, *words, run=both)[0]
        for words in (
            (), ("decoding.window_seconds=9", "decoding.overlap_seconds=1"),
            ("decoding.window_seconds=0.3", "decoding.overlap_seconds=0.1"),
        )
    )  # fmt: skip
    assert whole == same and whole["segments"] != windows["segments"]
    assert windows["segments"][-1][2] == whole["seconds"]


def test_a_language_model_takes_part_in_the_beam(objects, answer, both, listener, sounds, tmp_path):
    beam = ("decoding.head=ctc", "decoding.method=beam")

    def heard(*words):
        return [one["output"] for one in objects("predict", *sounds[:2], *beam, *words, run=both)]

    alone, silent = heard(), heard("--lm", listener, "--lm-weight", "0")
    loud = heard("--lm", listener, "--lm-weight", "5")
    assert silent == alone != loud
    assert loud == heard(f"decoding.language_model={listener}", "decoding.language_model_weight=5")
    other = shutil.copytree(both, tmp_path / "other")
    letters = (other / "features/labels.json").read_text()
    letters = letters.replace('"a":', '"?":').replace('"e":', '"a":').replace('"?":', '"e":')
    (other / "features/labels.json").write_text(letters)
    for run, directory, reason in ((other, listener, "vocabulary"), (both, tmp_path / "none", "no such run")):
        done = answer("predict", sounds[0], *beam, "--lm", directory, run=run)
        assert done.code == 2 and reason in done.one_error()


def test_scores_are_those_of_the_head_that_is_decoded(scores, both):
    phones = scores(both)
    assert {"frame_accuracy", "phone_error_rate", "boundary_f1"} < set(phones)
    letters = scores(both, "decoding.head=ctc", "decoding.method=greedy", "--split", "valid")
    assert set(letters) == {"character_error_rate", "word_error_rate", "sentence_error_rate"}


def test_noise_and_folding_change_the_scores_alone(scores, answer, both, tmp_path):
    clean = scores(both, *BEST)
    noisy = scores(both, *BEST, "decoding.noise=[0]")
    assert noisy["frame_accuracy"] != clean["frame_accuracy"]
    names = json.loads((both / "features/vocabulary.json").read_text())["model"]["vocab"]
    fold = tmp_path / "fold.tsv"
    fold.write_text("".join(f"{name.removeprefix('▁')}\tone\n" for name in names), encoding="utf-8")
    folded = scores(both, *BEST, f"decoding.fold={fold}")
    assert folded["phone_error_rate"] < clean["phone_error_rate"]
    assert {name: folded[name] for name in ("frame_accuracy", "boundary_f1")} == {
        name: clean[name] for name in ("frame_accuracy", "boundary_f1")
    }
    fold.write_text("a b\n")
    assert "line 1 is not" in answer("evaluate", f"decoding.fold={fold}", run=tmp_path / "evaluated").last_error()


# --------------------------------------------------------------------------------------------------------------- align


@pytest.mark.parametrize("words", [BEST, LETTERS])
def test_what_was_heard_is_found_where_it_was_heard(objects, both, sounds, words):
    heard = objects("predict", *sounds, *words, run=both)
    lines = [f"{one['name']}\t{one['output']}" for one in heard]
    found = objects("align", *words, lines=[*lines[:2], "", *lines[2:]], run=both)
    if words == BEST:
        assert found == heard
    for one, other in zip(heard, found, strict=True):
        assert without(one, "segments") == without(other, "segments")
        labels, starts, ends, _ = zip(*other["segments"], strict=True)
        assert starts[0] == 0 and ends[-1] == other["seconds"] and starts[1:] == ends[:-1]
        mark = "" if words == BEST else "▁"
        assert "".join(labels) == mark + one["output"].replace(" ", mark)


def test_strings_come_from_an_option_files_and_stdin(ask, frames, sounds, tmp_path):
    grid = ask("align", sounds[0], "--phones", "sil a t sil")
    path, file = tmp_path / "grid.TextGrid", tmp_path / "list.tsv"
    path.write_text(grid, encoding="utf-8")
    entries, seconds = read_grid(path)
    assert [label for label, _, _ in entries] == ["sil", "a", "t", "sil"]
    assert entries[0][1] == 0 and entries[-1][2] == seconds == pytest.approx(1.4, abs=1e-3)
    lines = [f"{sounds[0]}\tsil a t sil"]
    file.write_text(f"{lines[0]}\n", encoding="utf-8")
    assert ask("align", file) == ask("align", lines=lines) == ask("align", "-", lines=lines) == grid
    assert ask("align", *sounds[:1], "--phones", "sil a t sil", "--output", tmp_path) == ""
    assert (tmp_path / f"{NAMES[0]}.TextGrid").read_text(encoding="utf-8") == grid
    assert ask("align", lines=[], run=frames) == ""
    rows = ask("align", *sounds[:1], "--phones", "sil a", "--format", "ctm").splitlines()
    assert [row.split()[4] for row in rows] == ["sil", "a"]
    assert ask("align", "--format", "text", lines=[*lines, f"{sounds[1]}\ta sil"]) == "sil a t sil\na sil\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{1}\tsil a q!", "{1}: the model does not know q!"),
        ("{1}\t", "{1}: is empty"),
        ("{1} sil a", "line 2: has no tab"),
        ("{1}\t" + "a b " * 100, "{1}: 200 phones"),
        ("nothing.wav\tsil", "nothing.wav: no such file"),
    ],
)
def test_a_line_that_cannot_be_aligned_is_named(answer, sounds, line, said):
    lines = [f"{sounds[0]}\tsil a", line.format(*sounds)]
    done = answer("align", "--format", "text", lines=lines)
    assert done.code == 2 and done.err.startswith(f"error: {said.format(*sounds)}") and done.err.count("\n") == 1
    assert done.out == ("" if "tab" in said else "sil a\n")


# ------------------------------------------------------------------------------------------------------ found at once


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["predict", "nothing.wav"], ["nothing.wav: no such input file"]),
        (["predict", "README.md", "nothing.wav"], ["nothing.wav: no such input file"]),
        (["predict", "--input", "nothing.txt"], ["nothing.txt: no such input file"]),
        (["predict", "README.md", "--input", "README.md"], ["INPUT", "--input"]),
        (["predict", "README.md", "--plot", "picture.jpg"], ["--plot: picture.jpg", ".png"]),
        (["predict", "README.md", "--plot", "no/folder/picture.png"], ["no/folder: no such folder"]),
        (["predict", "README.md", "--posteriors", "array.txt"], ["--posteriors: array.txt", ".npz"]),
        (["predict", "README.md", "--posteriors", "nofolder/array.npz"], ["nofolder: no such folder"]),
        (["predict", "README.md", "--output", "nofolder"], ["nofolder: no such folder"]),
        (["predict", "README.md", "Makefile", "--format", "textgrid"], ["--format textgrid", "--output DIR"]),
        (["predict", "--lm", "shared"], ["decoding.language_model", "no CTC head"]),
        (["evaluate", "decoding.language_model=shared"], ["decoding.language_model", "no CTC head"]),
        (["evaluate", "decoding.method=sample"], ["decoding.method: 'sample'", "greedy, beam"]),
        (["predict", "decoding.path=bets"], ["decoding.path: 'bets'", "best"]),
        (["predict", "decoding.head=ctc"], ["decoding.head: ctc was not trained"]),
        (["predict", "decoding.window_seconds=10"], ["decoding.window_seconds: 10.0"]),
        (["align", "--phones", "sil"], ["--phones", "0 are named"]),
        (["align", "README.md", "Makefile", "--phones", "sil"], ["--phones", "2 are named"]),
        (["align", "nothing.wav", "--phones", "sil"], ["nothing.wav: no such input file"]),
        (["align", "nothing.tsv"], ["nothing.tsv: no such input file"]),
        (["align", "README.md", "--phones", "sil", "--output", "README.md"], ["README.md: no such folder"]),
    ],
)
def test_unusable_words_are_found_at_once(at_once, frames, words, parts):
    done = at_once(*words, "--run", frames)
    assert done.code == 2 and all(part in done.one_error() for part in parts), done


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--lm", "shared"], ["decoding.language_model", "decoding.head=ctc"]),
        (
            ["--lm", "shared", "decoding.head=ctc", "decoding.method=greedy"],
            ["decoding.language_model", "decoding.method=beam"],
        ),
    ],
)
def test_a_language_model_without_a_beam_is_found_at_once(at_once, both, words, parts):
    done = at_once("predict", *words, "--run", both)
    assert done.code == 2 and all(part in done.one_error() for part in parts), done


@pytest.mark.parametrize("verb", ["predict", "align"])
def test_results_that_would_be_one_file_are_refused(answer, sounds, tmp_path, verb):
    other = tmp_path / "voice-00000.wav"
    soundfile.write(other, np.zeros(8000), 16000)
    end = "\tsil" if verb == "align" else ""
    done = answer(verb, "--output", tmp_path, lines=[f"{sounds[0]}{end}", f"{sounds[1]}{end}", f"{other}{end}"])
    assert done.code == 2 and str(sounds[0]) in done.one_error() and str(other) in done.err
    done = answer(verb, "--format", "textgrid", lines=[f"{sounds[0]}{end}", f"{sounds[1]}{end}"])
    assert done.code == 2 and "--output DIR" in done.one_error()

"""What the captioning task's verbs write: captions, drawings, rankings; and how one training starts from another."""

import dataclasses
import io
import json
import logging
import shutil
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from shared import cli, evaluate
from shared import train as training
from shared.config import load_config
from shared.run import Run
from shared.text import Vocabulary
from tasks.captioning.__main__ import PROGRAM
from tasks.captioning.config import CaptioningConfig
from tasks.captioning.corpus import prepare
from tasks.captioning.features import fit
from tasks.captioning.task import TASK
from tests.commands import Done, without_loading
from tests.errors import one_line_error

NAMES = [f"picture-{number:05d}.png" for number in range(4)]


@pytest.fixture(scope="module")
def made(trained):
    """A run that trained its own encoder."""
    return trained("captioning").directory


@pytest.fixture(scope="module")
def files(made, tmp_path_factory):
    """The first pictures of the test split, as files of a folder that holds nothing else but one more folder."""
    folder = tmp_path_factory.mktemp("pictures")
    for example in prepare(load_config(CaptioningConfig, made / "config.yaml")).splits["test"]().take(len(NAMES)):
        (folder / example["name"].numpy().decode()).write_bytes(example["picture"].numpy())
    return [folder / name for name in NAMES]


@pytest.fixture(scope="module")
def restored():
    """(task, run, configuration) -> features and model of a run, for all tests."""
    restore, known = evaluate.restore, {}

    def restored(task, run, config):
        if run.directory not in known:
            known[run.directory] = restore(task, run, config)
        return dataclasses.replace(known[run.directory], config=config)

    return restored


@pytest.fixture
def answer(made, restored, monkeypatch, capsys):
    """(verb, words) -> what the command leaves behind; it runs in this process, which holds the models already."""
    monkeypatch.setattr(evaluate, "restore", restored)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # graphs that no single command would make are many

    def answer(verb, *words, lines=(), run=made):
        stdin = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(PROGRAM, [verb, "--run", str(run), *map(str, words)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return answer


@pytest.fixture
def ask(answer):
    """(verb, words) -> lines on stdout; stderr is empty."""

    def ask(*words, **options):
        done = answer(*words, **options)
        assert done.code == 0 and done.err == "", done
        return done.out.splitlines()

    return ask


@pytest.fixture
def at_once(capsys):
    """Runs words in this process, which must end before TensorFlow is loaded."""
    yield from without_loading(PROGRAM, capsys)


# ------------------------------------------------------------------------------------------------------------- predict


def test_pictures_are_named_as_input_in_a_list_or_by_their_folder(ask, made, files, tmp_path):
    outputs = ask("predict", *files)
    evaluated = [json.loads(line)["output"] for line in (made / "predictions/test.jsonl").open()]
    assert outputs == evaluated[:4]
    file = tmp_path / "list.txt"
    file.write_text("".join(f"{path}\n" for path in files) + "\n", encoding="utf-8")
    assert ask("predict", "--input", file) == ask("predict", lines=[files[0], "", *files[1:]]) == outputs
    assert ask("predict", files[0].parent) == ask("predict", lines=[files[0].parent]) == outputs
    assert ask("predict", files[2], files[0].parent) == [outputs[2], *outputs]
    assert ask("predict", lines=[]) == ask("predict", lines=["", " "]) == []


def test_batches_change_nothing(ask, files):
    assert ask("predict", *files * 3, "decoding.batch_size=5") == ask("predict", *files) * 3


def test_json_says_all_that_is_known(ask, files):
    found = [json.loads(line) for line in ask("predict", *files, "--json", "--n-best", "2")]
    assert [(one["id"], one["name"]) for one in found] == list(enumerate(map(str, files), 1))
    assert [one["output"] for one in found] == ask("predict", *files)
    for one in found:
        assert set(one) == {"id", "name", "output", "score", "log_prob", "n_best", "regions"}
        assert len(one["n_best"]) == 2 and one["n_best"][0]["output"] == one["output"]
        for _, (left, top, right, bottom), weight in one["regions"]:
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1 and 1 / 16 <= weight <= 1  # of 16 regions


def test_n_best_are_numbered_and_ranked(ask, files):
    rows = [line.split("\t") for line in ask("predict", *files[:2], "--n-best", "3")]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2"] * 3
    for number in range(2):
        scores = [float(score) for _, score, _ in rows[3 * number : 3 * number + 3]]
        assert scores == sorted(scores, reverse=True)
    assert [rows[0][2], rows[3][2]] == ask("predict", *files[:2])


def test_words_are_drawn_where_they_were_seen(ask, files, tmp_path):
    assert ask("predict", *files[:2], "--plot", tmp_path) == ask("predict", *files[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES[:2]
    for name in NAMES[:2]:
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and min(image.size) > 100 and len(np.unique(np.asarray(image))) > 10


def test_drawings_that_would_be_one_file_are_refused(answer, files, tmp_path):
    other = shutil.copy(files[0], tmp_path / "picture-00000.jpg")
    done = answer("predict", *files, other, "--plot", tmp_path)
    assert done.code == 2 and str(files[0]) in done.one_error() and str(other) in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["picture-00000.jpg"]


def test_the_same_picture_is_described_alike_in_any_file(ask, files, tmp_path):
    with Image.open(files[0]) as image:
        pixels = image.convert("RGB")
    paths = [tmp_path / name for name in ("one.bmp", "two.webp", "three.png")]
    pixels.save(paths[0]), pixels.save(paths[1], lossless=True), pixels.convert("RGBA").save(paths[2])
    lines = [json.loads(line) for line in ask("predict", files[0], *paths, "--json")]
    assert len({line["output"] for line in lines}) == 1
    # All but PNG are kept as JPEG, which changes them a little.
    assert [line["log_prob"] for line in lines] == pytest.approx([lines[0]["log_prob"]] * 4, rel=0.02)


# -------------------------------------------------------------------------------------------------------------- search


def ranked(lines):
    return [(float(score), what) for score, what in (line.split("\t") for line in lines)]


def test_pictures_are_ranked_by_a_sentence(ask, files):
    sentence = "a large red circle is above a blue star"
    found = ranked(ask("search", "--text", sentence, files[0].parent))
    assert sorted(name for _, name in found) == list(map(str, files))
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
    assert len({score for score, _ in found}) > 1 and all(score < 0 for score, _ in found)
    assert ranked(ask("search", "--text", sentence, *files)) == found
    assert ranked(ask("search", "--text", sentence, lines=files)) == found
    assert ranked(ask("search", "--text", sentence, *files, "--top", "2")) == found[:2]
    few = ranked(ask("search", "--text", sentence, *files, "decoding.batch_size=3"))
    assert [name for _, name in few] == [name for _, name in found]


def test_the_sentence_that_a_picture_was_given_is_worth_what_was_said(ask, files):
    (one,) = [json.loads(line) for line in ask("predict", files[0], "--json", "decoding.length_penalty=3")]
    ((score, _),) = ranked(ask("search", "--text", one["output"], files[0]))
    if len(one["output"].split()) < 12:  # was not cut off before its end
        assert score == pytest.approx(one["log_prob"], abs=2e-3)


def test_sentences_are_ranked_by_a_picture(ask, files, tmp_path):
    sentences = ["two red stars", "there is a large blue circle", "a green ring is above a small black cross", "zebra"]
    file = tmp_path / "sentences.txt"
    file.write_text("".join(f"{line}\n" for line in [*sentences[:2], "", *sentences[2:]]), encoding="utf-8")
    found = ranked(ask("search", "--picture", files[0], file))
    assert sorted(text for _, text in found) == sorted(sentences)
    assert [score for score, _ in found] == sorted((score for score, _ in found), reverse=True)
    assert ranked(ask("search", "--picture", files[0], lines=sentences)) == found
    assert ranked(ask("search", "--picture", files[0], file, "--top", "1")) == found[:1]
    assert ask("search", "--picture", files[0], lines=[]) == []
    for score, text in found:  # the mean over tokens of what pictures are ranked by
        ((total, _),) = ranked(ask("search", "--text", text, files[0]))
        assert any(abs(score - total / tokens) < 2e-3 for tokens in range(2, 14))


# ------------------------------------------------------------------------------------------------------- what is wrong


def cut_off(path, source):
    path.write_bytes(source.read_bytes()[:200])


def text(path, source):
    path.write_text("this is no picture\n" * 20)


def empty(path, source):
    path.write_bytes(b"")


def missing(path, source):
    pass


def tiny(path, source):
    Image.new("RGB", (1, 1)).save(path)


def huge(path, source):
    Image.new("1", (10_000, 10_000)).save(path)


@pytest.mark.parametrize("damage", [cut_off, text, empty, missing, tiny, huge], ids=lambda damage: damage.__name__)
def test_a_picture_that_cannot_be_used_is_one_line(answer, ask, files, tmp_path, damage):
    path = tmp_path / "bad.png"
    damage(path, files[0])
    done = answer("predict", lines=[files[0], path, files[1]])
    assert done.code == 2 and str(path) in Done(done.code, "", done.err).one_error()
    assert done.out.splitlines() == ask("predict", files[0])  # what came before is not lost
    done = answer("search", "--text", "two stars", lines=[path])
    assert done.code == 2 and str(path) in done.one_error()
    done = answer("search", "--picture", path, lines=["two stars"])
    assert done.code == 2 and str(path) in done.one_error()


@pytest.mark.parametrize("words", [["predict"], ["search", "--text", "two stars"]], ids=["predict", "search"])
def test_an_address_is_refused(answer, words):
    for options in ({}, {"lines": ["https://example.org/picture.png"]}):
        inputs = [] if options else ["https://example.org/picture.png"]
        done = answer(*words, *inputs, **options)
        assert done.code == 2 and "https://example.org/picture.png: an address" in done.one_error()


def test_a_folder_without_pictures_is_one_line(answer, tmp_path):
    done = answer("predict", tmp_path)
    assert done.code == 2 and f"{tmp_path}: no picture" in done.one_error()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["predict", "nothing.png"], ["nothing.png: no such input file"]),
        (["predict", "--input", "nothing.txt"], ["nothing.txt: no such input file"]),
        (["predict", "README.md", "--input", "README.md"], ["INPUT", "--input"]),
        (["predict", "--n-best", "4"], ["--n-best: 4", "decoding.beam_size=3"]),
        (["predict", "--n-best", "2", "decoding.method=greedy"], ["--n-best: 2", "decoding.method=greedy"]),
        (["predict", "--plot", "nofolder"], ["nofolder: no such folder"]),
        (["search", "README.md"], ["--text", "--picture"]),
        (["search", "--text", "a", "--picture", "README.md"], ["--text", "--picture"]),
        (["search", "--text", " "], ["--text: is empty"]),
        (["search", "--text", "two stars", "nothing.png"], ["nothing.png: no such input file"]),
        (["search", "--picture", "nothing.png"], ["nothing.png: no such input file"]),
        (["search", "--text", "two stars", "--top", "-1"], ["--top: -1"]),
        (["predict", "model.units=4"], ["model.units=4: no such input file"]),
        (["evaluate", "model.units=4"], ["model.units", "decoding.*"]),
        (["predict", "decoding.beam_size=0"], ["decoding.beam_size: 0"]),
    ],
)
def test_unusable_words_are_found_at_once(at_once, made, words, parts):
    done = at_once(*words, "--run", made)
    assert done.code == 2 and all(part in done.one_error() for part in parts), done


# ----------------------------------------------------------------------------------------- one training from another


@pytest.fixture(scope="module")
def train(made, tmp_path_factory):
    """(run's name, overrides) -> a run of two steps that the command's inner half made."""

    def train(name, *overrides):
        options = ["training.rounds=1", "training.round_steps=2", "training.warmup_steps=0"]
        options += ["training.validation_examples=2", *overrides]
        config = load_config(CaptioningConfig, made / "config.yaml", options)
        run = Run.create(tmp_path_factory.mktemp("runs") / name, config, ["test"])
        training.train(TASK, config, run)
        return run

    yield train
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="module")
def model_of(restored):
    return lambda run: restored(TASK, run, load_config(CaptioningConfig, run.config)).model


def weights_of(part):
    return [np.array(weight) for weight in part.get_weights()]


def started(directory, features, *overrides):
    """A model of this configuration before and after it took the weights of a run."""
    config = load_config(
        CaptioningConfig, features.parent / "config.yaml", [f"model.start_from={directory}", *overrides]
    )
    found = TASK.load_features(config, features)
    model = TASK.build_model(config, found)
    before = model.get_weights()
    TASK.start(config, model, found)
    return model, before


def test_a_training_starts_from_the_weights_of_a_run(made, model_of, tmp_path):
    model, before = started(made, made / "features")
    wanted = model_of(Run(made)).get_weights()
    assert all(map(np.array_equal, model.get_weights(), wanted)) and not all(map(np.array_equal, before, wanted))
    one_line_error(lambda: started(made, made / "features", "model.units=4"), "model.start_from: ", "other layers")
    one_line_error(lambda: started(made.parent / "none", made / "features"), "no such run")
    features = shutil.copytree(made / "features", tmp_path / "features")
    shutil.copy(made / "config.yaml", tmp_path)
    Vocabulary.train(["other words"], "word", 0, True, 1).save(features / "vocabulary.json")
    one_line_error(lambda: started(made, features), "model.start_from: ", "another vocabulary")


AS_IT_CAME = ["model.train_encoder=false", "augment.flip=false", "augment.flip_words="]


def test_weights_that_lie_in_checkpoints_are_not_looked_for_elsewhere(made):
    words = [*AS_IT_CAME, f"model.start_from={made}"]
    config = load_config(CaptioningConfig, made / "config.yaml", words)
    one_line_error(lambda: fit(config, TASK.prepare(config)), "model.start_from: ", "model.encoder_rate=0")


LARGER = ["model.encoder=MobileNet", "model.memory_units=32"]  # so that some units of the memory are above 0
FROZEN = [*LARGER, *AS_IT_CAME]
JOINT = [*LARGER, "model.train_encoder=true", "model.encoder_rate=0.1", "augment.flip=true"]
JOINT += ["model.attention_supervision=0"]


@pytest.fixture(scope="module")
def frozen(train, tmp_path_factory):
    """A run on the regions of a network with random weights, which come from a file."""
    keras.utils.set_random_seed(4)
    network = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # else next to nothing would come out
            layer.moving_variance.assign(0.3 * np.ones(layer.moving_variance.shape))
            layer.beta.assign(0.3 * np.random.default_rng(4).normal(size=layer.beta.shape))
    path = tmp_path_factory.mktemp("weights") / "mobile.weights.h5"
    network.save_weights(path)
    run = train("frozen", *FROZEN, f"model.weights={path}")
    path.unlink()  # the run has its own
    return run, network.get_weights()


def test_a_frozen_encoder_describes_pictures_as_its_run_knows_it(ask, frozen, restored, files):
    run, weights = frozen
    assert (run.features / "encoder.weights.h5").exists()
    assert len(ask("predict", *files, run=run.directory)) == 4
    found = restored(TASK, run, load_config(CaptioningConfig, run.config))
    assert found.model.encoder is None
    assert all(map(np.array_equal, found.features.encoder.network.get_weights(), weights))


def test_an_encoder_that_was_frozen_can_be_trained_further(frozen, model_of):
    run, weights = frozen
    model, _ = started(run.directory, run.features, *JOINT)
    assert all(map(np.array_equal, model.encoder.network.get_weights(), weights))
    assert all(map(np.array_equal, model.writer.get_weights(), model_of(run).writer.get_weights()))


@pytest.mark.slow
def test_an_encoder_that_was_frozen_is_trained_further(train, frozen, model_of):
    first, weights = frozen
    run = train("joint", *JOINT, f"model.start_from={first.directory}")
    found = model_of(run).encoder.network.get_weights()
    assert max(np.abs(a - b).max() for a, b in zip(found, weights, strict=True)) > 1e-5
    assert not (run.features / "encoder.weights.h5").exists()


def test_captions_are_rewarded(train, made, model_of):
    words = ["training.objective=cider", f"model.start_from={made}", "training.learning_rate=0.05"]
    run = train("cider", *words, "model.attention_supervision=0")
    assert (run.features / "references.json").exists()
    metrics = json.loads(run.metrics.read_text())
    assert np.isfinite(metrics["loss"]) and "valid_cider" in metrics
    before, after = (model_of(each).writer.get_weights() for each in (Run(made), run))
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-4


# -------------------------------------------------------------------------------------------------------------- rounds


def test_a_round_is_illustrated(made, restored):
    config = load_config(CaptioningConfig, made / "config.yaml")
    context, corpus = restored(TASK, Run(made), config), TASK.prepare(config)
    predictions = TASK.decode(config, context.model, context.features, corpus, "valid", 5)
    pictures = TASK.illustrate(config, context.model, context.features, corpus, predictions)
    assert set(pictures) == {"captions", "attention-1"}
    assert all(
        picture.dtype == np.uint8 and picture.shape[2] == 3 and picture.std() > 5 for picture in pictures.values()
    )
    assert TASK.illustrate(config, context.model, context.features, corpus, []) == {}
    ((matrix, tokens),) = TASK.embeddings(context.model, context.features).values()
    assert matrix.shape == (len(context.features.vocabulary), 8) and len(tokens) == len(matrix)


def test_the_score_that_chooses_is_told_by_the_corpus(made):
    config = load_config(CaptioningConfig, made / "config.yaml")
    assert TASK.monitor(config) == "true_captions"
    assert TASK.monitor(dataclasses.replace(config, data=dataclasses.replace(config.data, corpus="coco"))) == "cider"

"""Every task from the command line: train a tiny quickstart, and what a run holds and the verbs answer is right."""

import importlib
import json
import math
import re
import resource
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shared.config import load_config
from tests.commands import ROOT, TINY, finish, run

TASKS = sorted(folder.name for folder in (ROOT / "tasks").iterdir() if (folder / "__init__.py").exists())
VERBS = ["prepare", "train", "evaluate", "predict", "report"]

FILES = [
    *("config.yaml", "command.txt", "environment.json", "features/*", "checkpoints/best.weights.h5"),
    *("checkpoints/round-00002.weights.h5", "tensorboard/events.out.tfevents.*", "metrics.jsonl", "train.log"),
    *("predictions/test.jsonl", "scores.json", "report.html"),
]
"""Every file that the design promises of a run."""


def recordings(made, predictions):
    """The recordings of the test split as files beside the run."""
    from tasks.speech.config import SpeechConfig
    from tasks.speech.corpus import prepare

    folder = made.directory.parent / "recordings"
    folder.mkdir(exist_ok=True)
    for example in prepare(load_config(SpeechConfig, made.directory / "config.yaml")).splits["test"]():
        (folder / f"{example['name'].numpy().decode()}.flac").write_bytes(example["sound"].numpy())
    return [f"{folder / line['name']}.flac" for line in predictions]


def pictures(made, predictions):
    """The pictures of the test split as files beside the run."""
    from tasks.captioning.config import CaptioningConfig
    from tasks.captioning.corpus import prepare

    folder = made.directory.parent / "pictures"
    folder.mkdir(exist_ok=True)
    for example in prepare(load_config(CaptioningConfig, made.directory / "config.yaml")).splits["test"]():
        (folder / example["name"].numpy().decode()).write_bytes(example["picture"].numpy())
    return [folder / line["name"] for line in predictions]


INPUTS = {
    "captioning": pictures,
    "language_model": lambda made, predictions: [line["text"] for line in predictions],
    "speech": recordings,
    "translation": lambda made, predictions: [line["source"] for line in predictions],
}
"""Task -> ((run, predictions of its test split) -> lines on stdin that hand the same inputs to `predict`)."""

NUMBERS = ("tokens", "characters", "bits_per_")
"""How the names of scores begin that are no shares in per cent."""


@pytest.fixture(scope="module", params=TASKS)
def made(request, trained):
    return trained(request.param)


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the run that may be changed."""
    return shutil.copytree(made.directory, tmp_path / "run")


def predictions_of(directory, split="test"):
    return [json.loads(line) for line in (directory / "predictions" / f"{split}.jsonl").read_text().splitlines()]


def inputs(made, predictions):
    return "".join(f"{line}\n" for line in INPUTS[made.task](made, predictions)).encode()


def scores_of(directory):
    return json.loads((directory / "scores.json").read_text())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def program_of(task):
    return importlib.import_module(f"tasks.{task}.__main__").PROGRAM


def test_a_task_has_a_tiny_quickstart_and_inputs():
    assert set(TASKS) == set(TINY) == set(INPUTS)


@pytest.mark.parametrize("pattern", FILES)
def test_a_run_holds_every_file(made, pattern):
    found = list(made.directory.glob(pattern))
    assert found and all(path.stat().st_size for path in found)


def test_nothing_half_written_is_left_in_a_run(made):
    assert [path for path in made.directory.rglob("*") if ".h5" in path.name and path.name.startswith(".")] == []
    assert not list(made.directory.rglob("*unfinished*"))


def test_scores_are_finite_and_in_range(made):
    scores = {name: value for name, value in scores_of(made.directory)["test"].items() if not isinstance(value, str)}
    assert scores and all(math.isfinite(value) for value in scores.values())
    lowest = scores.get("optimum_perplexity", 1)
    for name, value in scores.items():
        low, high = (lowest, math.inf) if "perplexity" in name else (0, math.inf if name.startswith(NUMBERS) else 100)
        assert low <= value <= high, name
    assert lowest >= 1


def test_train_prints_the_scores_and_nothing_else(made):
    printed = dict(line.split(maxsplit=1) for line in made.out.splitlines())
    scores = scores_of(made.directory)["test"]
    assert printed == {name: value if isinstance(value, str) else f"{value:.5g}" for name, value in scores.items()}


def test_metrics_have_one_finite_line_per_round(made):
    rounds = [json.loads(line) for line in (made.directory / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line["step"]) for line in rounds] == [(1, 4), (2, 8)]
    needed = {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds"}
    for line in rounds:
        assert needed < set(line) and any(name.startswith("valid_") for name in line)
        assert all(math.isfinite(value) for value in line.values())


def test_the_environment_is_recorded(made):
    environment = json.loads((made.directory / "environment.json").read_text())
    assert environment["seed"] == 1 and environment["parameters"] > 0 and environment["recurrent_kernels"]
    assert "python -m tasks." in (made.directory / "command.txt").read_text()


def test_there_is_one_prediction_per_example_in_order(made):
    prepared = finish(made.task, "prepare", *made.words[1:3], *made.words[5:])
    sizes = dict(line.split() for line in prepared.out.splitlines())
    assert prepared.code == 0 and set(sizes) == {"train", "valid", "test"}
    assert [line["id"] for line in predictions_of(made.directory)] == list(range(int(sizes["test"])))


def test_the_report_needs_no_other_file(made):
    page = (made.directory / "report.html").read_text(encoding="utf-8")
    assert len(page) > 5000 and "<svg" in page
    assert re.findall(r"<(?:script|link|iframe)\b", page) == []
    assert re.findall(r"""\b(?:src|href)\s*=\s*["']?(?!data:|#|["'])""", page) == []


def test_the_same_training_makes_the_same_bytes_watched_or_not(made, tmp_path):
    watched = tmp_path / "run"
    done = finish(made.task, *made.words[:4], watched, *made.words[5:], "training.horizon=true")
    assert (done.code, done.out) == (0, made.out), done
    for name in ("features", "predictions", "scores.json"):
        first, second = made.directory / name, watched / name
        assert (contents(first) == contents(second)) if first.is_dir() else first.read_bytes() == second.read_bytes()
    # With the sum of the weights, the optimiser's too, and the states of the random generators.
    states = [json.loads((run / "checkpoints" / "round-00002.json").read_text()) for run in (made.directory, watched)]
    assert states[0] == states[1] and states[0]["random"]
    assert [(run / "pictures" / "horizon.png").exists() for run in (made.directory, watched)] == [False, True]
    assert 'alt="horizon"' in (watched / "report.html").read_text(encoding="utf-8")
    tags = EventAccumulator(str(watched / "tensorboard")).Reload().Tags()["tensors"]
    assert any(tag.startswith("horizon/") for tag in tags)


def test_evaluating_again_gives_equal_scores_and_predictions(made, copied):
    before = scores_of(copied), contents(copied / "predictions")
    (copied / "scores.json").unlink()
    shutil.rmtree(copied / "predictions")
    done = finish(made.task, "evaluate", "--run", copied)
    assert (done.code, done.out) == (0, made.out)
    assert (scores_of(copied), contents(copied / "predictions")) == before


def test_evaluating_another_split_keeps_the_scores_of_the_first(made, copied):
    done = finish(made.task, "evaluate", "--run", copied, "--split", "valid")
    assert done.code == 0 and set(scores_of(copied)) == {"test", "valid"}
    assert scores_of(copied)["test"] == scores_of(made.directory)["test"]
    assert predictions_of(copied, "valid") != predictions_of(copied)


def test_a_finished_run_is_not_trained_again(made, copied):
    before = contents(copied / "checkpoints"), (copied / "metrics.jsonl").read_bytes()
    done = finish(made.task, *made.words[:4], copied, *made.words[5:])
    assert (done.code, done.out) == (0, made.out)
    assert (contents(copied / "checkpoints"), (copied / "metrics.jsonl").read_bytes()) == before


def test_another_configuration_in_the_same_run_is_refused(made):
    before = contents(made.directory)
    done = finish(made.task, *made.words, "training.learning_rate=0.25")
    assert done.code == 2 and "training.learning_rate" in done.one_error() and "0.25" in done.err
    assert contents(made.directory) == before


def test_predict_in_a_fresh_process_equals_evaluate(made):
    predictions = predictions_of(made.directory)
    done = run(made.task, "predict", "--run", made.directory, stdin=inputs(made, predictions))
    assert done.code == 0 and done.out.splitlines() == [line["output"] for line in predictions]
    assert done.err == ""


def test_predict_twice_gives_the_same_bytes(made):
    stdin = inputs(made, predictions_of(made.directory)[:20])
    twice = [finish(made.task, "predict", "--run", made.directory, "--json", stdin=stdin) for _ in "12"]
    assert twice[0].code == 0 and twice[0].out.count("\n") == 20
    assert twice[0].out == twice[1].out


def test_report_can_be_written_again(made, copied):
    page = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    done = finish(made.task, "report", "--run", copied)
    assert (done.code, done.out) == (0, f"{copied / 'report.html'}\n")
    assert (copied / "report.html").read_bytes() == page


@pytest.mark.parametrize("task", TASKS)
def test_help_is_quick(task):
    for words in ([], *([verb] for verb in [*VERBS, *program_of(task).verbs])):
        # Processor time, so that the test means the same on a busy machine.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(task, *words, "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.code == 0 and done.out.startswith("usage: ") and done.err == ""
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5, words


# ---------------------------------------------------------------------------------------------- what only one task does


LINES = ["the small red circle is above a blue square", "", "  ", "two stars", "two stars", "a zebra"]


@pytest.fixture
def translate(trained):
    made = trained("translation")

    def answer(verb, *words, lines=LINES):
        done = finish(
            "translation", verb, "--run", made.directory, *words, stdin="".join(f"{line}\n" for line in lines).encode()
        )
        assert done.code == 0 and done.err == "", done
        return done.out.splitlines()

    return answer


def test_translation_keeps_lines_and_empty_lines(translate):
    outputs = translate("predict")
    assert [bool(output) for output in outputs[:5]] == [True, False, False, True, True]
    assert outputs[3] == outputs[4]
    assert translate("predict", lines=[]) == []


def test_translation_reads_files_and_options(translate, tmp_path):
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text("two stars\n"), second.write_text("a zebra")
    outputs = translate("predict")
    assert translate("predict", first, second) == [outputs[3], outputs[5]]
    assert translate("predict", "--input", second) == [outputs[5]]


def test_translation_gives_n_best_and_json(translate):
    outputs = translate("predict")
    rows = [line.split("\t") for line in translate("predict", "--n-best", "3")]
    assert [row[0] for row in rows] == ["1"] * 3 + ["2", "3"] + ["4"] * 3 + ["5"] * 3 + ["6"] * 3
    for number in (1, 4, 5, 6):
        found = [row for row in rows if row[0] == str(number)]
        scores = [float(score) for _, score, _ in found]
        assert found[0][2] == outputs[number - 1] and scores == sorted(scores, reverse=True)
    objects = [json.loads(line) for line in translate("predict", "--json", "--n-best", "2")]
    assert [(one["id"], one["source"], one["output"]) for one in objects] == list(
        zip(range(1, 7), LINES, outputs, strict=True)
    )
    assert [len(one["n_best"]) for one in objects] == [2, 0, 0, 2, 2, 2]
    assert f"{objects[0]['n_best'][1]['score']:.4f}" == rows[1][1]


def test_translation_draws_the_first_sentence_that_is_not_empty(translate, tmp_path):
    from PIL import Image

    picture = tmp_path / "attention.png"
    assert translate("predict", "--attention", picture) == translate("predict")
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 50
        assert len(np.unique(np.asarray(image))) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["attention.png"]


def test_translation_scores_pairs_from_files_and_from_a_table(translate, trained, tmp_path):
    predictions = predictions_of(trained("translation").directory)[:20]
    files = {side: tmp_path / side for side in ("source", "target")}
    for side, file in files.items():
        file.write_text("".join(f"{line[side]}\n" for line in predictions), encoding="utf-8")
    pairs = translate("score", "--source", files["source"], "--target", files["target"])
    assert translate("score", lines=[f"{line['source']}\t{line['target']}" for line in predictions]) == pairs
    # Other sentences share the batch, which rounds differently.
    assert [float(line) for line in pairs] == pytest.approx([line["target_log_prob"] for line in predictions], abs=1e-3)
    known = json.loads(translate("score", "--json", lines=["two stars\tzwei Sterne"])[0])
    assert (known["source"], known["target"], known["tokens"]) == ("two stars", "zwei Sterne", 3)
    assert known["log_prob"] < 0


def test_translation_decodes_as_it_is_told(translate):
    sampling = ("predict", "decoding.method=sample", "decoding.temperature=2")
    once, again, other = translate(*sampling), translate(*sampling), translate(*sampling, "decoding.seed=7")
    assert once == again and once != other
    assert translate("predict", "decoding.method=greedy") == translate("predict", "decoding.beam_size=1")
    assert all(
        len(line.split()) <= 2
        for line in translate("predict", "decoding.max_length_ratio=0", "decoding.max_length_extra=2")
    )


# -------------------------------------------------------------------------------------- what one task does for another


@pytest.fixture(scope="module")
def listener(trained, tmp_path_factory):
    """A language model with the vocabulary of the translation run's target."""
    vocabulary = trained("translation").directory / "features" / "target.json"
    made = trained("language_model")
    run_directory = tmp_path_factory.mktemp("listener") / "run"
    words = ["data.language=de", f"vocabulary.file={vocabulary}"]
    done = finish("language_model", *made.words[:4], run_directory, *made.words[5:], *words)
    assert done.code == 0, done
    return run_directory


def test_a_language_model_takes_part_in_a_translation(translate, listener):
    alone = [json.loads(line) for line in translate("predict", "--json")]
    silent = [json.loads(line) for line in translate("predict", "--json", "--lm", listener, "--lm-weight", "0")]
    loud = [json.loads(line) for line in translate("predict", "--json", "--lm", listener, "--lm-weight", "5")]
    assert [line["output"] for line in silent] == [line["output"] for line in alone]
    assert loud != alone
    same = ("predict", "--json", f"decoding.language_model={listener}", "decoding.language_model_weight=5")
    assert [json.loads(line) for line in translate(*same)] == loud


def test_a_language_model_that_cannot_take_part_is_refused(trained, tmp_path):
    made, other = trained("translation"), trained("language_model")
    for directory, reason in ((other.directory, "vocabulary"), (tmp_path / "none", "no such run")):
        done = finish("translation", "predict", "--run", made.directory, "--lm", directory, stdin=b"two stars\n")
        assert done.code == 2 and reason in done.one_error()
    done = finish("translation", "predict", "--run", made.directory, "--lm", other.directory, "--lm-weight", "-1")
    assert done.code == 2 and "language_model_weight" in done.one_error()

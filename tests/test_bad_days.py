"""What goes wrong on a user's machine ends in the right exit code and one line that says what and where."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess

import pytest

from tasks.translation.__main__ import PROGRAM
from tests.commands import finish, pairs_words, start, without_loading, write_pairs

ROUNDS = ["training.rounds=4", "training.round_steps=3", "training.learning_rate=0.02"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pairs to train on and an empty configuration."""
    folder = tmp_path_factory.mktemp("bad_days")
    write_pairs(folder / "pairs")
    (folder / "pairs.yaml").write_text("# all by overrides\n")
    return folder


@pytest.fixture(scope="module")
def train_words(folder):
    """(run directory, overrides, folder of pairs) -> the words that train there."""

    def words(run, *overrides, pairs=folder / "pairs"):
        return ["train", "--config", folder / "pairs.yaml", "--run", run, *pairs_words(pairs), *ROUNDS, *overrides]

    return words


@pytest.fixture(scope="module")
def finished(folder, train_words):
    """A finished run, not to be changed."""
    done = finish("translation", *train_words(folder / "run"))
    assert done.code == 0, done
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run in the place that its name has in the command."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def at_once(capsys):
    """Runs words in this process, which must end before TensorFlow is loaded."""
    yield from without_loading(PROGRAM, capsys)


def trained_rounds(run):
    try:
        return (run / "metrics.jsonl").read_text().count("\n")
    except FileNotFoundError:
        return 0


def predict(run, text, *words):
    return finish(
        "translation", "predict", "--run", run, *words, stdin=text if isinstance(text, bytes) else text.encode()
    )


# ----------------------------------------------------------------------------------------------------- unusable input


def missing(pairs):
    (pairs / "train.y").rename(pairs / "train.z")
    return ["train.y", "train.z"]


def empty(pairs):
    (pairs / "train.x").write_text("")
    (pairs / "train.y").write_text("")
    return ["train.x", "train.y", "empty"]


def one_side_empty(pairs):
    (pairs / "valid.x").write_text("")
    return ["valid.x has 0 lines", "valid.y has 8 lines"]


def different_lengths(pairs):
    with open(pairs / "valid.y", "a") as file:
        file.write("eins\nzwei\n")
    return ["valid.x has 8 lines", "valid.y has 10 lines"]


def undecodable(pairs):
    lines = (pairs / "train.y").read_bytes().splitlines(keepends=True)
    lines[4] = "blau für\n".encode("latin-1")
    (pairs / "train.y").write_bytes(b"".join(lines))
    return ["train.y", "line 5", "UTF-8"]


@pytest.mark.parametrize("spoil", [missing, empty, one_side_empty, different_lengths, undecodable])
def test_unusable_files_are_named_and_leave_no_run(train_words, tmp_path, spoil):
    pairs = write_pairs(tmp_path / "pairs")
    parts = spoil(pairs)
    done = finish("translation", *train_words(tmp_path / "run", pairs=pairs))
    assert done.code == 2 and all(part in done.last_error() for part in parts), done
    assert not (tmp_path / "run").exists()


def test_a_key_that_does_not_exist_is_answered_with_the_nearest(at_once, train_words, tmp_path):
    done = at_once(*train_words(tmp_path / "run", "training.learning_rte=1"))
    assert done.code == 2 and "did you mean training.learning_rate?" in done.one_error()
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_is_refused(at_once, finished, train_words):
    done = at_once(*train_words(finished, "model.cell=gru"))
    assert done.code == 2 and "model.cell=lstm there, gru here" in done.one_error()


def test_one_pair_and_a_vocabulary_that_cannot_be_filled_are_trained_on(train_words, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", sizes=(1, 1, 1))
    words = ["vocabulary.unit=bpe", "vocabulary.size=8000", "training.rounds=1"]
    done = finish("translation", *train_words(tmp_path / "run", *words, pairs=pairs))
    assert done.code == 0 and done.out.startswith("bleu "), done


def test_without_a_test_split_the_validation_split_is_evaluated(train_words, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    for language in "xy":
        (pairs / f"test.{language}").unlink()
    done = finish("translation", *train_words(tmp_path / "run", "training.rounds=1", pairs=pairs))
    assert done.code == 0 and done.out.startswith("bleu "), done
    assert set(json.loads((tmp_path / "run" / "scores.json").read_text())) == {"valid"}
    assert (tmp_path / "run" / "report.html").exists()
    done = finish("translation", "evaluate", "--run", tmp_path / "run", "--split", "test")
    assert done.code == 2 and "train, valid" in done.last_error()


# ----------------------------------------------------------------------------------------------------- input to predict


def test_bytes_that_are_no_text_are_named(run, tmp_path):
    text = "red1 red2\nrot für\n".encode("latin-1")
    done = predict(run, text)
    assert done.code == 2 and "stdin: line 2" in done.one_error()
    (tmp_path / "latin.txt").write_bytes(text)
    done = predict(run, b"", tmp_path / "latin.txt")
    assert done.code == 2 and "latin.txt: line 2" in done.one_error()
    done = predict(run, b"", tmp_path)
    assert done.code == 2 and f"{tmp_path}: cannot be read" in done.one_error()


def test_very_long_and_empty_lines_are_answered(run):
    done = predict(run, f"red1\n\n{'red2 ' * 5000}\nred3\n")
    outputs = done.out.split("\n")
    assert done.code == 0 and [bool(output) for output in outputs] == [True, False, True, True, False]
    assert done.err == "warning: line 3 has 5000 tokens: only the first 100 (data.max_length) are translated\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nothing.txt"], ["nothing.txt"]),
        (["--n-best", "9"], ["--n-best", "9"]),
        (["decoding.beam_sise=2"], ["decoding.beam_size"]),
        (["--attention", "picture.jpg"], ["picture.jpg", ".png"]),
        (["--attention", "nowhere/picture.png"], ["nowhere"]),
    ],
)
def test_unusable_words_are_found_at_once(at_once, finished, words, parts):
    done = at_once("predict", "--run", finished, *words)
    assert done.code == 2 and all(part in done.one_error() for part in parts)


def test_attention_is_refused_for_a_model_that_has_none(at_once, run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("attention: additive", "attention: none"))
    done = at_once("predict", "--run", run, "--attention", "picture.png")
    assert done.code == 2 and "model.attention=none" in done.one_error()


# ------------------------------------------------------------------------------------------------- texts to learn from


WORDS = "a small red circle is above the big blue square"
TEXTS = {stem: f"{WORDS}\nthe {stem} is red\n\n" * 9 for stem in ("train", "valid", "test")}


@pytest.fixture
def learn(folder, tmp_path):
    """(texts in place of the usual ones, overrides) -> a training of a tiny language model."""

    def learn(texts, *overrides):
        (tmp_path / "text").mkdir(exist_ok=True)
        for stem, text in {**TEXTS, **texts}.items():
            (tmp_path / "text" / f"{stem}.txt").write_text(text, encoding="utf-8")
        words = [f"data.dir={tmp_path / 'text'}", f"data.cache={tmp_path / 'cache'}", "data.corpus=files"]
        words += ["data.batch_size=4", "data.window=10", "model.embedding_units=8", "model.units=8"]
        words += ["training.rounds=1", "training.sample_examples=1", *overrides]
        return finish("language_model", "train", "--config", folder / "pairs.yaml", "--run", tmp_path / "run", *words)

    return learn


@pytest.mark.parametrize("text", ["", "\n \n\n"], ids=["empty", "blank"])
@pytest.mark.parametrize("stem", ["train", "valid", "test"])
def test_an_empty_text_is_named_and_leaves_no_run(learn, tmp_path, stem, text):
    done = learn({stem: text})
    assert done.code == 2 and f"{stem}.txt: no text" in done.last_error(), done
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["ha ha ha\nha\n" * 20, "ha\n" * 20], ids=["words", "word"])
def test_a_text_of_one_word_leaves_nothing_to_predict(learn, text):
    done = learn({"train": text})
    assert done.code == 2 and "text has but one word, 'ha', so there is nothing to predict" in done.last_error(), done
    done = learn({"train": text, "valid": "ha ha\n"}, "vocabulary.unit=character", "data.batch_size=2")
    assert done.code == 0 and "perplexity_stream" in done.out, done


def test_a_text_shorter_than_its_streams_says_how_many_there_can_be(learn):
    done = learn({"train": f"{WORDS}\n"}, "data.batch_size=6")
    assert done.code == 2, done
    assert "data.batch_size: 6 streams need at least 12 tokens, and text has 11; choose fewer" in done.last_error()


def test_a_text_shorter_than_one_window_is_learned_from(learn):
    done = learn({"train": f"{WORDS}\n"}, "data.window=100", "training.round_steps=3")
    assert done.code == 0 and "each of the 4 streams has 2 tokens, fewer than one window" in done.err, done
    assert dict(line.split(maxsplit=1) for line in done.out.splitlines())["tokens"] == str(9 * 17)


def test_a_line_of_megabytes_is_read_in_pieces(learn, tmp_path):
    line = f"{WORDS} " * 60_000
    assert len(line) > 2_800_000
    texts = {"train": line, "valid": f"{line[:200_000]}\n{WORDS}\n", "test": f"{WORDS}\n{line[:200_000]}\n"}
    done = learn(texts, "training.round_steps=3", "training.validation_examples=0")
    assert done.code == 0 and "perplexity_stream" in done.out, done
    predictions = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    assert len(predictions) == 5 and max(len(one["text"]) for one in predictions) <= 1 << 16
    words = len(f"{WORDS} {line[:200_000]}".split())
    # One end for each line, none for the pieces of a line.
    assert sum(one["tokens"] for one in predictions) == words + 2
    scored = finish("language_model", "score", "--run", tmp_path / "run", stdin=f"{line[:200_000]}\nred\n".encode())
    assert scored.code == 0 and scored.out.splitlines()[0].split("\t")[1:3] == [str(words - 10 + 1), "0"], scored
    assert scored.out.count("\n") == 2


# --------------------------------------------------------------------------------------------------------- damaged runs


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def test_a_damaged_last_checkpoint_is_trained_again_from_the_one_before(run, finished, train_words):
    flip_a_bit(run / "checkpoints" / "round-00004.weights.h5")
    done = finish("translation", *train_words(run))
    assert done.code == 0 and "round-00004.weights.h5 is damaged" in done.err and "resuming after round 3" in done.err
    states = [json.loads((each / "checkpoints" / "round-00004.json").read_text()) for each in (run, finished)]
    assert states[0] == states[1]
    assert (run / "scores.json").read_bytes() == (finished / "scores.json").read_bytes()


def test_a_damaged_best_checkpoint_is_replaced_by_the_last(run):
    halve(run / "checkpoints" / "best.weights.h5")
    done = predict(run, "red1 red2\n")
    assert done.code == 0 and done.out.count("\n") == 1
    assert done.err.count("\n") == 1 and done.err.startswith("warning: ") and "best.weights.h5 is damaged" in done.err


def test_when_every_checkpoint_is_damaged_the_folder_is_named(run, train_words):
    for path in (run / "checkpoints").glob("*.json"):
        path.write_text("")
    done = predict(run, "red1\n")
    assert done.code == 1 and f"{run}/checkpoints: every checkpoint is damaged" in done.last_error()
    done = finish("translation", *train_words(run))
    assert done.code == 1 and "every checkpoint is damaged" in done.last_error()


def test_a_run_without_checkpoint_says_so(run):
    shutil.rmtree(run / "checkpoints")
    done = predict(run, "red1\n")
    assert done.code == 1 and "no checkpoint" in done.one_error()
    shutil.rmtree(run / "features")
    done = predict(run, "red1\n")
    assert done.code == 2 and "never trained" in done.one_error()


# ------------------------------------------------------------------------------------------------- while it is trained


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_training_says_how_to_resume_and_does(train_words, tmp_path, number):
    run = tmp_path / "a run"
    training = start("translation", *train_words(run, "training.rounds=6"))
    assert training.wait_until(lambda: trained_rounds(run) >= 2)
    before = trained_rounds(run)
    os.kill(training.process.pid, number)
    done = training.finish()
    assert done.code == 1 and f"stopped by {number.name}; round " in done.last_error(), done
    assert trained_rounds(run) <= before + 1
    command = shlex.split(done.last_error().partition("resume with: ")[2])
    assert command[:3] == ["python", "-m", "tasks.translation"]
    done = finish("translation", *command[3:])
    assert done.code == 0 and "resuming after round " in done.err and trained_rounds(run) == 6


def test_a_second_training_in_the_same_folder_is_refused(train_words, tmp_path):
    words = train_words(tmp_path / "run")
    first = start("translation", *words)
    assert first.wait_until((tmp_path / "run" / "train.log").exists)
    done = finish("translation", *words)
    first.process.kill()
    first.finish()
    assert done.code == 2 and f"{tmp_path / 'run'}: another process is training" in done.one_error()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "loss is (nan|inf) at step 2 with learning rate 1e[+]38; no round was finished yet"),
        # The first step of a warm-up changes nothing; the second ruins the weights, but its own loss is from before.
        (
            ["training.warmup_steps=1", "training.round_steps=1"],
            "valid_perplexity is (nan|inf) at step 2 with learning rate 1e[+]38; round 1 is saved in .*/checkpoints",
        ),
    ],
    ids=["within a round", "after a round"],
)
def test_numbers_that_are_not_finite_stop_with_step_rate_and_checkpoint(train_words, tmp_path, words, said):
    words = ["training.schedule=constant", "training.learning_rate=1e38", *words]
    done = finish("translation", *train_words(tmp_path / "run", *words))
    assert done.code == 1 and re.search(said, done.last_error()), done
    assert "a lower training.learning_rate or training.clip_norm may help" in done.last_error()
    saved = sorted(path.name for path in tmp_path.glob("run/checkpoints/*.json"))
    assert saved == (["best.json", "round-00001.json"] if "round 1" in said else [])


def small_disk(path):
    """Mounts a file system of 4 MB, and returns whether it could."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    return shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path):
    """(folder, fill(process id), free()): a disk on which no file can grow between the two calls."""
    path = tmp_path / "disk"
    mounted = small_disk(path)
    if not mounted and not hasattr(resource, "prlimit"):
        pytest.skip("neither a small disk nor a limit on files can be had here")

    def fill(process):
        if not mounted:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (10_000, 10_000))
            return
        with open(path / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
            for size in (4096, 1):
                while True:
                    file.write(b"0" * size)

    yield path, fill, lambda: (path / "filler").unlink(missing_ok=True)
    if mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(train_words, disk):
    path, fill, free = disk
    words = train_words(path / "run", "training.rounds=5")
    training = start("translation", *words)
    assert training.wait_until(lambda: trained_rounds(path / "run") >= 2)
    fill(training.process.pid)
    done = training.finish()
    assert done.code == 1 and str(path) in done.last_error(), done
    assert "No space left" in done.err or "too large" in done.err
    free()
    done = finish("translation", *words)
    assert done.code == 0 and "resuming after round " in done.err, done
    rounds = [json.loads(line)["round"] for line in (path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(rounds)) == list(range(1, 6))


def test_a_folder_that_cannot_be_written_is_named(at_once, train_words, tmp_path):
    (tmp_path / "file").write_text("")
    done = at_once(*train_words(tmp_path / "file" / "run"))
    assert done.code == 2 and f"{tmp_path / 'file' / 'run'}: cannot hold a run" in done.one_error()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_before_the_first_step_is_one_line(train_words, tmp_path, number):
    training = start("translation", *train_words(tmp_path / "run"))
    assert training.wait_until((tmp_path / "run" / "train.log").exists)
    os.kill(training.process.pid, number)
    done = training.finish()
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err, done
    ends = ("interrupted; the same command goes on", f"error: stopped by {signal.Signals(number).name}; no round was")
    assert done.err.splitlines()[-1].startswith(ends)

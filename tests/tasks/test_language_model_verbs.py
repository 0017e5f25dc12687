"""What the language model's verbs write: how probable texts are, new texts, words for gaps, and what is refused."""

import argparse
import functools
import io
import json
import logging
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from shared import cli
from shared.task import Context
from shared.text import Vocabulary
from tasks.language_model.__main__ import PROGRAM
from tasks.language_model.config import LanguageModelConfig
from tests.commands import TINY, Done, finish, run, without_loading

TEXTS = ["the small red circle is above a blue square", "two big stars", "", "  ", "a zebra a zebra", "a"]
N_BEST = [
    ("7", -1.5, "a small red circle"),
    ("7", -1.25, "a small red zebra circle touches a star"),
    ("7", -1.75, "a"),
    ("3", 0.5, "two stars"),
    ("3", 0.25, ""),
    ("x y", -3.0, "a blue star"),
]
GAPS = ["a small ___ circle is above a square", "___ small red circle", "there is a ___"]
SAMPLE = ("generate", "--max-tokens", "12")


@pytest.fixture(scope="module")
def forward(trained):
    """A run that reads from the left."""
    return trained("language_model").directory


@pytest.fixture(scope="module")
def bidirectional(tmp_path_factory):
    """A run that reads from both sides."""
    folder = tmp_path_factory.mktemp("bidirectional")
    words = ["--config", "configs/language_model/quickstart.yaml", "--run", folder / "run"]
    words += [*TINY["language_model"], f"data.cache={folder / 'cache'}", "model.bidirectional=true"]
    done = finish("language_model", "train", *words)
    assert done.code == 0 and "perplexity_fill" in done.out and "perplexity_stream" not in done.out, done
    return folder / "run"


@functools.cache
def restored(run):
    """Features and model of a run, for all tests."""
    from shared import checkpoints
    from shared.config import load_config
    from tasks.language_model.task import TASK

    config = load_config(LanguageModelConfig, run / "config.yaml")
    features = TASK.load_features(config, run / "features")
    model = TASK.build_model(config, features)
    checkpoints.restore_best(run / "checkpoints", model)
    return {"features": features, "model": model}


@pytest.fixture
def answer(forward, monkeypatch, capsys):
    """(verb, words) -> what the command leaves behind; it runs in this process, which holds the models already."""
    from shared import evaluate

    def restore(task, run, config):
        return Context(run=run, config=config, **restored(run.directory))

    monkeypatch.setattr(evaluate, "restore", restore)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # graphs that no single command would make are many

    def answer(verb, *words, stdin=b"", run=forward):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main(PROGRAM, [verb, "--run", str(run), *map(str, words)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return answer


@pytest.fixture
def ask(answer):
    """(verb, words) -> lines on stdout; stderr is empty."""

    def ask(verb, *words, lines=TEXTS, **options):
        done = answer(verb, *words, stdin="".join(f"{line}\n" for line in lines).encode(), **options)
        assert done.code == 0 and done.err == "", done
        return done.out.splitlines()

    return ask


@pytest.fixture
def at_once(capsys):
    """Runs words in this process, which must end before TensorFlow is loaded."""
    yield from without_loading(PROGRAM, capsys)


# -------------------------------------------------------------------------------------------------------------- score


def test_each_line_gets_probability_tokens_unknowns_and_perplexity(ask):
    rows = [line.split("\t") for line in ask("score")]
    assert [row[1:3] for row in rows] == [["10", "1"], ["4", "0"], ["1", "0"], ["1", "0"], ["5", "2"], ["2", "0"]]
    for log10, tokens, _, perplexity in rows:
        assert float(log10) < 0
        assert float(perplexity) == pytest.approx(10 ** (-float(log10) / int(tokens)), rel=1e-3)
    assert rows[2] == rows[3]  # blanks are no words
    assert len({row[0] for row in rows}) == 5


def test_score_without_options_is_predict(ask):
    assert ask("score") == ask("predict") and ask("score", "--json") == ask("predict", "--json")
    assert ask("score", lines=[]) == []


def test_texts_come_from_stdin_and_files(ask, tmp_path):
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text(f"{TEXTS[0]}\n"), second.write_text(TEXTS[1])
    expected = ask("score", lines=TEXTS[:2])
    assert ask("score", first, second) == ask("score", first, "-", lines=TEXTS[1:2]) == expected
    assert ask("score", "--input", second) == ask("predict", "--input", second) == expected[1:]


def test_json_holds_everything_and_says_the_same(ask):
    rows = [line.split("\t") for line in ask("score")]
    objects = [json.loads(line) for line in ask("score", "--json")]
    assert [(one["id"], one["text"]) for one in objects] == list(enumerate(TEXTS, 1))
    for one, (log10, tokens, unknown, perplexity) in zip(objects, rows, strict=True):
        assert (one["tokens"], one["unknown"]) == (int(tokens), int(unknown))
        assert f"{one['perplexity']:.4f}" == perplexity
        assert one["log_prob"] == pytest.approx(float(log10) * math.log(10), abs=1e-3)
        assert sum(one["log_probs"]) == pytest.approx(one["log_prob"], abs=1e-4)
        assert len(one["pieces"]) == len(one["log_probs"]) == one["tokens"]


def test_tokens_are_worth_what_their_line_is(ask):
    totals = [float(line.split("\t")[0]) for line in ask("score")]
    rows = [line.split("\t") for line in ask("score", "--tokens")]
    for number, (text, total) in enumerate(zip(TEXTS, totals, strict=True), 1):
        mine = [(token, float(log10)) for line, token, log10 in rows if line == str(number)]
        assert mine[-1][0] == "<eos>" and len(mine) == len(text.split()) + 1
        assert sum(log10 for _, log10 in mine) == pytest.approx(total, abs=1e-3)
    assert [token.strip("▁") for line, token, _ in rows if line == "2"] == ["two", "big", "stars", "<eos>"]


@pytest.mark.parametrize("weight", [0, 0.5, -2])
def test_an_n_best_list_is_sorted_by_the_weighted_sum(ask, weight):
    lines = [f"{name}\t{score}\t{text}" for name, score, text in N_BEST]
    log_probs = [json.loads(line)["log_prob"] for line in ask("score", "--json", lines=[row[2] for row in N_BEST])]
    rows = [line.split("\t") for line in ask("score", f"--rerank={weight}", lines=lines)]
    assert [row[0] for row in rows] == [row[0] for row in N_BEST]
    totals = {text: score + weight * log_prob for (_, score, text), log_prob in zip(N_BEST, log_probs, strict=True)}
    assert {row[2]: float(row[1]) for row in rows} == pytest.approx(totals, abs=1e-3)
    for name in ("7", "3"):
        found = [float(row[1]) for row in rows if row[0] == name]
        assert found == sorted(found, reverse=True) and len(set(found)) == len(found)
    assert [row[2] for row in rows] != [row[2] for row in N_BEST]
    apart = lines[0::2] + lines[1::2]  # as two lists one after the other
    assert [row.split("\t") for row in ask("score", f"--rerank={weight}", lines=apart)] == rows


def test_an_input_that_has_no_hypothesis_stays_in_an_n_best_list(ask):
    assert ask("score", "--rerank", "1", lines=["1\t\t"]) == ["1\t\t"]
    assert ask("score", "--rerank", "0", lines=["1\t\t", "2\t-1\ta star\tb"])[1] == "2\t-1.0000\ta star\tb"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1\t-1\ta", "1\t-2"], "line 2: is not `id TAB score TAB text`"),
        (["1\t-1\ta", ""], "line 2: is not `id TAB score TAB text`"),
        (["1\thigh\ta"], "line 1: the score 'high'"),
        (["1\tnan\ta"], "line 1: the score 'nan'"),
        (["1\t\ta"], "line 1: the score ''"),
    ],
)
def test_a_malformed_n_best_list_is_refused_by_its_line(answer, lines, said):
    text = "".join(f"{line}\n" for line in lines).encode()
    done = answer("score", "--rerank", "1", stdin=text)
    assert done.code == 2 and said in done.one_error()


@pytest.mark.parametrize("verb", ["score", "predict"])
def test_bytes_that_are_no_text_are_named(answer, verb):
    done = answer(verb, stdin="a\nfür\n".encode("latin-1"))
    assert done.code == 2 and "stdin: line 2" in done.one_error()


def test_a_bidirectional_model_scores_each_word_given_all_others(ask, bidirectional):
    rows = [line.split("\t") for line in ask("score", run=bidirectional)]
    assert [int(row[1]) for row in rows] == [10, 4, 1, 1, 5, 2]
    tokens = [line.split("\t") for line in ask("score", "--tokens", run=bidirectional)]
    assert sum(float(row[2]) for row in tokens if row[0] == "1") == pytest.approx(float(rows[0][0]), abs=1e-3)


# ----------------------------------------------------------------------------------------------------------- generate


def test_a_fresh_process_writes_the_same_texts(ask, forward):
    words = (*SAMPLE, "--count", "3", "--seed", "3")
    done = run("language_model", words[0], "--run", forward, *words[1:])
    assert (done.code, done.out.splitlines(), done.err) == (0, ask(*words), "")


def test_the_same_seed_writes_the_same_text(ask):
    once, again, other = (ask(*SAMPLE, "--seed", seed) for seed in (3, 3, 4))
    assert once == again != other and len(once) == 1
    assert ask(*SAMPLE, "decoding.seed=3") == once == ask(*SAMPLE, "decoding.seed=4", "--seed", "3")


def test_several_texts_differ_and_follow_the_seed(ask):
    texts = ask(*SAMPLE, "--count", "6", "--seed", "3")
    assert len(texts) == 6 and len(set(texts)) >= 5
    assert ask(*SAMPLE, "--count", "6", "--seed", "3") == texts
    assert ask(*SAMPLE, "--count", "6", "--seed", "4") != texts


def test_what_streams_is_what_is_known_afterwards(ask):
    for words in (["--seed", "3"], ["--temperature", "0"], ["--prompt", "a small red", "--top-k", "5"]):
        streamed = ask(*SAMPLE, *words)
        known = [json.loads(line) for line in ask(*SAMPLE, *words, "--json")]
        assert [one["output"] for one in known] == streamed
        assert (known[0]["id"], known[0]["log_prob"] < 0, 1 <= known[0]["tokens"] <= 12) == (1, True, True)


def test_temperature_zero_is_greedy_however_it_is_said(ask):
    greedy = ask(*SAMPLE, "decoding.method=greedy")
    assert ask(*SAMPLE, "--temperature", "0") == ask(*SAMPLE, "decoding.temperature=0") == greedy
    assert ask(*SAMPLE, "--top-k", "1", "--seed", "9") == ask(*SAMPLE, "--min-p", "0.9999") == greedy
    assert ask(*SAMPLE, "--top-p", "0.0001", "decoding.method=greedy") == greedy  # samples, as the option asks
    assert ask(*SAMPLE, "--beam", "1") == greedy


def test_a_beam_gives_its_best_texts_in_order(ask):
    texts = ask(*SAMPLE, "--beam", "4", "--count", "3")
    assert len(set(texts)) == 3
    assert ask(*SAMPLE, "decoding.method=beam", "decoding.beam_size=4") == texts[:1]
    objects = [json.loads(line) for line in ask(*SAMPLE, "--beam", "4", "--count", "3", "--json")]
    assert [one["output"] for one in objects] == texts and [one["id"] for one in objects] == [1, 2, 3]
    scores = [one["score"] for one in objects]
    assert scores == sorted(scores, reverse=True)


def test_a_text_begins_with_its_prompt_and_ends_in_time(ask):
    for text in ask(*SAMPLE, "--prompt", "a small red", "--count", "5", "--max-tokens", "2"):
        assert text.startswith("a small red") and len(text.split()) <= 5
    lengths = {
        len(text.split()) for text in ask("generate", "--count", "20", "--max-tokens", "3", "--temperature", "3")
    }
    assert max(lengths) == 3


def test_a_prompt_of_unknown_words_is_named(answer):
    done = answer(*SAMPLE, "--prompt", "zebra okapi zebra")
    assert done.code == 2 and "--prompt" in done.one_error() and "zebra, okapi" in done.err
    done = answer(*SAMPLE, "--prompt", "a red okapi")
    assert done.code == 0 and done.out.count("\n") == 1
    assert done.err.startswith("warning: --prompt") and "okapi" in done.err and "red" not in done.err


class Terminal(io.StringIO):
    """Remembers what could be read at each flush."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def flush(self):
        self.shown.append(self.getvalue())


def test_each_piece_is_shown_before_the_next_is_asked_for(monkeypatch):
    from tasks.language_model import task

    terminal = Terminal()

    def pieces(config, model, features, prompt):
        for written in ("", "a small", "a small red"):
            assert written == "" or terminal.shown[-1] == written
            yield {"": "a small", "a small": " red", "a small red": " star"}[written]

    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(task, "stream", pieces)
    config = LanguageModelConfig()
    features = SimpleNamespace(vocabulary=Vocabulary.train(["a small red star"], "word", 0))
    context = SimpleNamespace(config=config, model=None, features=features)
    task.generate_verb(context, argparse.Namespace(prompt="a small", count=1, json=False, decoding=config.decoding))
    assert terminal.getvalue() == "a small red star\n"


# --------------------------------------------------------------------------------------------------------------- fill


def test_a_gap_gets_its_best_words(ask, bidirectional, tmp_path):
    rows = [line.split("\t") for line in ask("fill", GAPS[0], GAPS[1], run=bidirectional)]
    assert [row[0] for row in rows] == ["1"] * 5 + ["2"] * 5
    for number in ("1", "2"):
        probabilities = [float(row[1]) for row in rows if row[0] == number]
        words = [row[2] for row in rows if row[0] == number]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1
        assert len(set(words)) == 5 and not any("▁" in word or word.startswith("<") for word in words)
    file = tmp_path / "gaps.txt"
    file.write_text("".join(f"{text}\n" for text in GAPS[:2]))
    said = ["\t".join(row) for row in rows]
    assert ask("fill", file, run=bidirectional) == ask("fill", lines=GAPS[:2], run=bidirectional) == said
    assert ask("fill", GAPS[0], "-", lines=GAPS[1:2], run=bidirectional) == said


def test_count_and_json_of_a_gap(ask, bidirectional):
    (found,) = [json.loads(line) for line in ask("fill", GAPS[2], "--count", "3", "--json", run=bidirectional)]
    assert (found["id"], found["text"], len(found["words"])) == (1, GAPS[2], 3)
    rows = [line.split("\t") for line in ask("fill", GAPS[2], "--count", "3", run=bidirectional)]
    assert [one["word"] for one in found["words"]] == [row[2] for row in rows]
    everything = ask("fill", GAPS[2], "--count", "100000", run=bidirectional)
    assert sum(float(line.split("\t")[1]) for line in everything) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("text", ["a circle", "", "a ___ small ___ circle"])
def test_a_line_without_exactly_one_gap_is_named(answer, bidirectional, text):
    done = answer("fill", stdin=f"{GAPS[0]}\n{text}\n".encode(), run=bidirectional)
    assert done.code == 2 and f"stdin: line 2: has {text.count('___')} gaps" in done.one_error()


# ------------------------------------------------------------------------------------------------------ found at once


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["score", "nothing.txt"], ["nothing.txt: no such input file"]),
        (["predict", "--input", "nothing.txt"], ["nothing.txt: no such input file"]),
        (["score", "README.md", "--input", "README.md"], ["INPUT", "--input"]),
        (["score", "--tokens", "--rerank", "1"], ["--tokens", "--rerank"]),
        (["score", "--json", "--tokens"], ["--json", "--tokens"]),
        (["generate", "--temperature", "-1"], ["decoding.temperature", "-1"]),
        (["generate", "--temperature", "hot"], ["decoding.temperature", "'hot'"]),
        (["generate", "--temperature", "nan"], ["decoding.temperature", "nan"]),
        (["generate", "decoding.temperature=-0.5"], ["decoding.temperature", "-0.5"]),
        (["generate", "--top-p", "0"], ["decoding.top_p", "0"]),
        (["generate", "--top-k", "-1"], ["decoding.top_k", "-1"]),
        (["generate", "--min-p", "1"], ["decoding.min_p", "1"]),
        (["generate", "--seed", "-1"], ["decoding.seed", "-1"]),
        (["generate", "--max-tokens", "0"], ["decoding.max_tokens", "0"]),
        (["generate", "--beam", "0"], ["decoding.beam_size", "0"]),
        (["generate", "--beam", "3", "--top-k", "5"], ["--beam", "--top-k"]),
        (["generate", "--beam", "3", "--count", "4"], ["--count: 4", "decoding.beam_size=3"]),
        (["generate", "--count", "0"], ["--count: 0"]),
        (["generate", "--count", "2", "--temperature", "0"], ["--count: 2", "--beam"]),
        (["generate", "--count", "2", "decoding.method=greedy"], ["--count: 2", "--beam"]),
        (["generate", "two stars"], ["'two stars'", "--prompt"]),
        (["fill", GAPS[0]], ["model.bidirectional=false", "train", "model.bidirectional=true"]),
    ],
)
def test_unusable_words_are_found_at_once(at_once, forward, words, parts):
    done = at_once(*words, "--run", forward)
    assert done.code == 2 and all(part in done.one_error() for part in parts), done


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["generate"], ["model.bidirectional=true", "train", "model.bidirectional=false"]),
        (["fill", GAPS[0], "--count", "0"], ["--count: 0"]),
        (["fill", "nothing.txt"], ["nothing.txt: no such input file", "___"]),
        (["fill", "a circle " * 50], ["no such input file", "___"]),
        (["fill", "a ___ and a ___"], ["'a ___ and a ___': has 2 gaps"]),
    ],
)
def test_unusable_words_of_a_bidirectional_run_are_found_at_once(at_once, forward, tmp_path, words, parts):
    run = shutil.copytree(forward, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("bidirectional: false", "bidirectional: true"))
    done = at_once(*words, "--run", run)
    assert done.code == 2 and all(part in done.one_error() for part in parts), done


def test_a_weight_that_is_no_finite_number_is_an_unusable_argument(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(PROGRAM, ["score", "--rerank", "inf", "--run", "nowhere"])
    assert end.value.code == 2 and "argument --rerank: invalid number value: 'inf'" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- pictures


def test_surprise_is_a_picture_that_grows_with_the_text_and_darkens_with_the_surprise():
    from tasks.language_model.task import draw_surprise

    pieces = ["▁a", "▁$mall$", "▁star", "<eos>"]
    expected, surprised, longer = (
        draw_surprise(pieces * times, [log_prob] * 4 * times) for times, log_prob in ((1, -0.1), (1, -9.0), (20, -0.1))
    )
    for picture in (expected, surprised, longer):
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert expected.shape == surprised.shape and surprised.mean() < expected.mean() - 1
    assert longer.shape[1] == expected.shape[1] and longer.shape[0] > expected.shape[0]


def test_the_run_holds_pictures_of_surprise(forward):
    assert list((forward / "pictures").glob("surprise-*.png"))

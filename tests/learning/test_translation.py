"""The translator learns what can be learned: the embedded corpus to its optimum, and users' files just so."""

import json
import random

import pytest

from tests.commands import run

pytestmark = pytest.mark.slow


def trained_scores(directory, *words):
    """The test scores of a training by the command line."""
    done = run("translation", "train", "--run", directory, *words)
    assert done.code == 0, done
    return json.loads((directory / "scores.json").read_text())["test"]


@pytest.mark.parametrize(("source", "target"), [("en", "de"), ("de", "en")])
def test_the_quickstart_learns_the_tiny_world(tmp_path_factory, tmp_path, source, target):
    cache = tmp_path_factory.getbasetemp() / "tiny_world"  # one for both directions
    scores = trained_scores(
        tmp_path / "run",
        *("--config", "configs/translation/quickstart.yaml", f"data.cache={cache}"),
        *(f"data.source={source}", f"data.target={target}"),
    )
    assert scores["exact_match"] >= 95
    assert scores["optimum_perplexity"] == 1 <= scores["perplexity"] <= 1.05


@pytest.mark.parametrize("order", [1, -1], ids=["copy", "reverse"])
def test_users_files_are_learned(tmp_path, order):
    """Each word has one translation; their order is kept or reversed."""
    draw = random.Random(1)
    files = tmp_path / "files"
    files.mkdir()
    for stem, size in (("train", 8000), ("valid", 200), ("test", 200)):
        lines = [draw.choices(range(20), k=draw.randint(1, 10)) for _ in range(size)]
        texts = {
            "given": (" ".join(f"word{number}" for number in line) for line in lines),
            "wanted": (" ".join(f"wort{number}" for number in line[::order]) for line in lines),
        }
        for side, sentences in texts.items():
            (files / f"{stem}.{side}").write_text("".join(f"{sentence}\n" for sentence in sentences))
    config = tmp_path / "files.yaml"
    config.write_text(
        "data: {corpus: files, source: given, target: wanted}\n"
        "vocabulary: {unit: word, joint: false}\n"
        "model: {cell: gru, embedding_units: 64, encoder_units: 64, decoder_units: 96, attention_units: 64}\n"
        "training: {rounds: 12, learning_rate: 0.004, warmup_steps: 100}\n"
    )
    scores = trained_scores(
        tmp_path / "run", "--config", config, f"data.dir={files}", f"data.cache={tmp_path / 'cache'}"
    )
    assert scores["exact_match"] >= 95

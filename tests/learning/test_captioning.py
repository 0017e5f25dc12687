"""The captioner learns the embedded corpus: scenes that it has never seen, told truly, and looked at while told."""

import json

import pytest

from tests.commands import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Of the quickstart, on scenes of the test split."""
    folder = tmp_path_factory.mktemp("quickstart")
    words = ["--config", "configs/captioning/quickstart.yaml", "--run", folder / "run"]
    done = run("captioning", "train", *words, f"data.cache={folder / 'cache'}")
    assert done.code == 0, done
    return json.loads((folder / "run" / "scores.json").read_text())["test"]


def test_the_quickstart_looks_at_what_it_names(scores):
    assert scores["attention_on_object"] >= 80


def test_the_quickstart_tells_what_is_seen(scores):
    assert scores["true_captions"] >= 90

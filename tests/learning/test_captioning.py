"""The captioner learns the embedded corpus: scenes that it has never seen, told truly, and looked at while told."""

import json

import pytest

from tests.commands import run

pytestmark = pytest.mark.slow


def test_the_quickstart_tells_what_is_seen(tmp_path):
    words = ["--config", "configs/captioning/quickstart.yaml", "--run", tmp_path / "run"]
    done = run("captioning", "train", *words, f"data.cache={tmp_path / 'cache'}")
    assert done.code == 0, done
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert scores["true_captions"] >= 90 and scores["attention_on_object"] >= 80

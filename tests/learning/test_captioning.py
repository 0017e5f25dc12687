"""The captioner learns of the embedded corpus where to look for what it names, and to tell some unseen scenes truly."""

import json

import pytest

from tests.commands import run

pytestmark = pytest.mark.slow


def test_the_quickstart_tells_what_is_seen(tmp_path):
    words = ["--config", "configs/captioning/quickstart.yaml", "--run", tmp_path / "run"]
    done = run("captioning", "train", *words, f"data.cache={tmp_path / 'cache'}")
    assert done.code == 0, done
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert scores["true_captions"] >= 30 and scores["attention_on_object"] >= 90

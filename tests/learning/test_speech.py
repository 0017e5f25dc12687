"""The recogniser learns the embedded corpus: voices that it has never heard, clean and in noise."""

import json

import pytest

from tests.commands import run

pytestmark = pytest.mark.slow


def test_the_quickstart_understands_other_voices(tmp_path):
    words = [
        "--config",
        "configs/speech/quickstart.yaml",
        "--run",
        tmp_path / "run",
        f"data.cache={tmp_path / 'cache'}",
    ]
    done = run("speech", "train", *words)
    assert done.code == 0, done
    clean = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert clean["frame_accuracy"] >= 90 and clean["phone_error_rate"] <= 5
    done = run("speech", "evaluate", "--run", tmp_path / "run", "decoding.noise=[10]")
    assert done.code == 0, done
    noisy = json.loads((tmp_path / "run" / "scores.json").read_text())["test"]
    assert clean["phone_error_rate"] < noisy["phone_error_rate"] <= 10

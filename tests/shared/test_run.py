"""A run directory: one configuration, one training process, and files that are whole at every moment."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from shared.config import RunError, TrainingConfig, UserError, load_config
from shared.run import Run, replacing, write_atomically


@dataclass(frozen=True)
class Config:
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class OtherTask:
    picture: TrainingConfig = field(default_factory=TrainingConfig)


def one_line_of(error_class, function, *arguments):
    with pytest.raises(error_class) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def python(code, *arguments):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def test_a_new_run_holds_its_configuration_and_command(tmp_path):
    run = Run.create(tmp_path / "runs" / "task" / "name", Config(), ["python", "a b"])
    assert load_config(Config, run.config) == Config()
    assert run.command.read_text() == "python 'a b'\n"
    assert Run.open(run.directory, Config) == run


def test_an_equal_configuration_resumes_and_keeps_every_command(tmp_path):
    Run.create(tmp_path, Config(), ["first"])
    before = (tmp_path / "config.yaml").read_bytes()
    run = Run.create(tmp_path, Config(), ["second"])
    assert run.config.read_bytes() == before
    assert run.command.read_text() == "first\nsecond\n"


def test_another_configuration_is_refused_with_keys_and_both_values(tmp_path):
    run = Run.create(tmp_path, Config(), ["first"])
    before = run.config.read_bytes()
    other = Config(TrainingConfig(rounds=77, seed=5))
    message = one_line_of(UserError, Run.create, tmp_path, other, ["second"])
    assert all(part in message for part in ("training.rounds", "10", "77", "training.seed", "1", "5"))
    assert "learning_rate" not in message
    assert run.config.read_bytes() == before and run.command.read_text() == "first\n"


def test_a_folder_with_other_things_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "letters.txt").write_text("dear")
    assert "letters.txt" in one_line_of(UserError, Run.create, tmp_path, Config(), [])
    assert sorted(os.listdir(tmp_path)) == ["letters.txt"]


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in one_line_of(UserError, Run.create, tmp_path / "file", Config(), [])
    assert "file" in one_line_of(UserError, Run.create, tmp_path / "file" / "run", Config(), [])


def test_opening_what_is_no_run_of_this_task_is_one_line(tmp_path):
    run = Run.create(tmp_path / "quickstart", Config(), [])
    assert str(run.directory) in one_line_of(UserError, Run.open, tmp_path / "quikstart", Config)
    assert "config.yaml" in one_line_of(UserError, Run.open, tmp_path, Config)
    assert "not a configuration of this task" in one_line_of(UserError, Run.open, run.directory, OtherTask)
    assert "not a configuration of this task" in one_line_of(UserError, Run.create, run.directory, OtherTask(), [])


def test_every_path_lies_in_the_run_and_is_its_own(tmp_path):
    run = Run(tmp_path)
    names = [name for name, value in vars(Run).items() if isinstance(value, property)]
    paths = [getattr(run, name) for name in names] + [run.predictions("valid"), run.predictions("test")]
    assert len(names) == 11 and len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_only_a_run_without_checkpoints_is_discarded(tmp_path):
    run = Run.create(tmp_path / "run", Config(), [])
    run.checkpoints.mkdir()
    run.discard()
    assert run.config.exists()
    run.checkpoints.rmdir()
    run.discard()
    assert not run.directory.exists()


def test_two_processes_cannot_train_in_one_run(tmp_path):
    run = Run.create(tmp_path, Config(), [])
    code = (
        "import sys, time, shared.run as r\n"
        "with r.Run(r.Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)\n"
    )
    other = python(code, tmp_path)
    try:
        assert other.stdout.readline() == "held\n"
        assert "another process is training" in one_line_of(UserError, Run.create, tmp_path, Config(), [])
        with pytest.raises(UserError, match="another process is training"), run.lock():
            pass
    finally:
        other.kill()
        other.wait()
    with run.lock():  # a killed process holds nothing
        assert Run.create(tmp_path / "elsewhere", Config(), [])


def test_scores_of_one_split_leave_the_others(tmp_path):
    run = Run(tmp_path)
    assert run.read_scores() == {}
    run.merge_scores("valid", {"bleu": 1.5, "bleu_signature": "nrefs:1"})
    run.merge_scores("test", {"bleu": np.float32(2.5), "size": np.int64(3)})
    run.merge_scores("valid", {"chrf": 4})
    assert json.loads(run.scores.read_text()) == {"valid": {"chrf": 4}, "test": {"bleu": 2.5, "size": 3}}


def test_damaged_scores_are_one_line(tmp_path):
    run = Run(tmp_path)
    run.scores.write_text('{"test": ')
    assert str(run.scores) in one_line_of(UserError, run.merge_scores, "test", {})


def test_writing_makes_the_folder_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "predictions" / "test.jsonl"
    write_atomically(path, "grün\n")
    write_atomically(path, b"blau\n")
    assert path.read_bytes() == b"blau\n"
    assert os.listdir(path.parent) == ["test.jsonl"]


def test_a_failing_body_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_no_space_is_one_line_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    code = (
        "import resource, sys, shared.run as r\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: r.write_atomically(sys.argv[1], bytes(5000))\n"
        "except r.RunError as error: print(error)\n"
    )
    output, _ = python(code, path).communicate()
    assert output.count("\n") == 1 and str(path) in output and "File too large" in output
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["weights"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in one_line_of(RunError, write_atomically, tmp_path / "file" / "scores.json", "")


def test_a_kill_while_writing_leaves_the_old_file_and_nothing_for_long(tmp_path):
    path = Run.create(tmp_path, Config(), []).checkpoints / "state"
    write_atomically(path, b"old")
    code = (
        "import sys, time, shared.run as r\n"
        "with r.replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'new'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = python(code, path)
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_bytes() == b"old" and len(os.listdir(path.parent)) == 2
    Run.create(tmp_path, Config(), [])
    assert os.listdir(path.parent) == ["state"]


def test_the_log_gets_what_is_logged_meanwhile(tmp_path):
    run = Run(tmp_path)
    logger = logging.getLogger("shared.example")
    for word in ("first", "second"):
        with run.logged():
            logger.warning(word)
    logger.warning("outside")
    assert re.findall("first|second|outside", run.log.read_text()) == ["first", "second"]


def test_the_environment_names_versions_device_and_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.run._device", lambda: "a device")
    run = Run(tmp_path)
    run.write_environment(seed=7, recurrent_kernels={"encoder": "own"}, parameters=12)
    environment = json.loads(run.environment.read_text())
    assert (environment["seed"], environment["parameters"]) == (7, 12)
    assert environment["recurrent_kernels"] == {"encoder": "own"}
    assert environment["device"] == "a device" and environment["processor_cores"] >= 1
    assert re.match(r"\d+\.\d+", environment["keras"]) and re.match(r"\d+\.\d+", environment["numpy"])
    assert environment["commit"] is None or re.match(r"[0-9a-f]{40}(-dirty)?$", environment["commit"])

"""The command line: verbs reach their functions, and whatever happens ends in the right exit code and one line."""

import logging
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import shared
from shared import cli
from shared.config import DecodingConfig, RunError, TrainingConfig, UserError
from shared.run import Run
from shared.task import Corpus

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Config:
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)


def check_arguments(arguments, config):
    if "missing" in arguments.inputs:
        raise UserError("missing: no such input file")


class Stage:
    """A task and the straight line's modules, all of which write down how they were called."""

    def __init__(self, monkeypatch, tmp_path):
        self.calls = []
        self.error = None
        self.config = tmp_path / "small.yaml"
        self.config.write_text("training: {rounds: 2}\n")
        task = types.SimpleNamespace(
            prepare=self.record("prepare", Corpus({}, {"train": 7, "test": 2})),
            predict=self.record("predict"),
            verbs={"score": self.record("score")},
        )
        self.program = cli.Program(
            task="example",
            description="An example.",
            config_class=Config,
            load_task=self.record("load", task),
            predict_arguments=lambda parser: parser.add_argument("--json", action="store_true"),
            check_arguments=check_arguments,
            verbs={"score": cli.Verb("score things", lambda parser: parser.add_argument("--fine"))},
        )
        context = types.SimpleNamespace(name="context")
        modules = {
            "train": {"train": self.record("train")},
            "evaluate": {
                "evaluate": self.record("evaluate", {"bleu": 38.125}),
                "restore": self.record("restore", context),
            },
            "report": {"write": self.record("report")},
        }
        for name, functions in modules.items():
            monkeypatch.setattr(shared, name, types.SimpleNamespace(**functions), raising=False)
        monkeypatch.setattr(cli, "_load", lambda program: program.load_task())
        monkeypatch.chdir(tmp_path)

    def record(self, name, result=None):
        def function(*arguments):
            self.calls.append((name, arguments))
            if self.error is not None and name == self.error[0]:
                raise self.error[1]
            return result

        return function

    def main(self, *words):
        return cli.main(self.program, [str(word) for word in words])

    def names(self):
        return [name for name, _ in self.calls]

    def arguments_of(self, name):
        return dict(self.calls)[name]

    def trained(self):
        assert self.main("train", "--config", self.config, "--run", "run") == 0
        self.calls.clear()


@pytest.fixture
def stage(monkeypatch, tmp_path):
    return Stage(monkeypatch, tmp_path)


def test_prepare_builds_the_corpus_and_says_its_sizes(stage, capsys):
    assert stage.main("prepare", "--config", stage.config, "training.seed=3") == 0
    (config,) = stage.arguments_of("prepare")
    assert config.training == TrainingConfig(rounds=2, seed=3)
    assert capsys.readouterr().out == "train 7\ntest 2\n"


def test_train_then_evaluates_and_reports_in_the_default_folder(stage, capsys, tmp_path):
    assert stage.main("train", "training.seed=3", "--config", stage.config, "decoding.beam_size=2") == 0
    assert stage.names() == ["load", "train", "evaluate", "report"]
    _, config, run = stage.arguments_of("train")
    assert config == Config(TrainingConfig(rounds=2, seed=3), DecodingConfig(beam_size=2))
    assert run.directory.resolve() == tmp_path / "runs" / "example" / "small"
    assert "decoding.beam_size=2" in run.command.read_text()
    assert capsys.readouterr().out.split() == ["bleu", "38.125"]
    assert "run directory" in run.log.read_text()


def test_train_goes_on_with_a_run_by_its_folder_alone(stage):
    stage.trained()
    assert stage.main("train", "--run", "run") == 0
    assert stage.arguments_of("train")[1].training.rounds == 2


def test_train_refuses_a_run_with_another_configuration(stage, capsys):
    stage.trained()
    assert stage.main("train", "--config", stage.config, "--run", "run", "training.rounds=5") == 2
    assert stage.calls == []
    assert "training.rounds" in capsys.readouterr().err


def test_input_that_cannot_be_used_leaves_no_run_in_the_way(stage):
    stage.error = ("train", UserError("data.dir: nothing there"))
    assert stage.main("train", "--config", stage.config, "--run", "run") == 2
    stage.error = None
    assert stage.main("train", "--config", stage.config, "--run", "run", "training.seed=9") == 0


def test_evaluate_takes_a_split_and_decoding_keys_only(stage, capsys):
    stage.trained()
    assert stage.main("evaluate", "--run", "run", "--split", "valid", "decoding.beam_size=1") == 0
    _, _, config, split = stage.arguments_of("evaluate")
    assert (config.decoding.beam_size, split) == (1, "valid")
    stage.calls.clear()
    assert stage.main("evaluate", "--run", "run", "training.rounds=3") == 2
    assert stage.calls == [] and "training.rounds" in capsys.readouterr().err


def test_predict_tells_inputs_from_overrides_wherever_they_stand(stage):
    stage.trained()
    words = ["predict", "a.txt", "--run", "run", "decoding.beam_size=1", "--json", "b=c.txt", "-"]
    assert stage.main(*words) == 0
    context, arguments = stage.arguments_of("predict")
    assert context.name == "context" and arguments.json
    assert arguments.inputs == ["a.txt", "b=c.txt", "-"]
    assert stage.arguments_of("restore")[2].decoding.beam_size == 1


def test_own_verbs_get_the_restored_run(stage):
    stage.trained()
    assert stage.main("score", "--run", "run", "--fine", "yes", "pairs.tsv") == 0
    context, arguments = stage.arguments_of("score")
    assert context.name == "context" and (arguments.fine, arguments.inputs) == ("yes", ["pairs.tsv"])


def test_report_says_where_the_page_is(stage, capsys):
    stage.trained()
    capsys.readouterr()
    assert stage.main("report", "--run", "run") == 0
    assert stage.names() == ["load", "report"]
    assert capsys.readouterr().out.strip().endswith("report.html")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train"], "--config"),
        (["train", "--config", "smal.yaml"], "small.yaml"),
        (["train", "--config", "small.yaml", "training.round=1"], "training.rounds"),
        (["train", "--config", "small.yaml", "loose"], "'loose'"),
        (["train", "--run", "nowhere"], "nowhere"),
        (["prepare", "--config", "small.yaml", "decoding.beam_size=x"], "decoding.beam_size"),
        (["evaluate", "--run", "nowhere"], "nowhere"),
        (["predict", "--run", "nowhere"], "nowhere"),
        (["report", "--run", "."], "config.yaml"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_before_anything_is_loaded(stage, capsys, words, part):
    assert stage.main(*words) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and part in captured.err
    assert captured.out == "" and stage.calls == []


def test_unusable_input_is_found_before_anything_is_loaded(stage, capsys):
    stage.trained()
    capsys.readouterr()
    assert stage.main("predict", "--run", "run", "missing") == 2
    assert capsys.readouterr().err == "error: missing: no such input file\n" and stage.calls == []


@pytest.mark.parametrize(
    "words",
    [[], ["fly"], ["train", "--confg", "x"], ["evaluate"], ["evaluate", "--run", "r", "--split", "dev"], ["score"]],
)
def test_usage_errors_exit_with_2(stage, words, capsys):
    with pytest.raises(SystemExit) as caught:
        stage.main(*words)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_failure_while_running_exits_with_1_and_one_line(stage, capsys):
    stage.error = ("train", RunError("loss: nan at step 3\nand more"))
    assert stage.main("train", "--config", stage.config) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: loss: nan at step 3 and more"


def test_a_defect_leaves_its_traceback_in_the_log_and_one_line_on_stderr(stage, capsys):
    stage.error = ("train", ValueError("shapes\ndiffer"))
    assert stage.main("train", "--config", stage.config, "--run", "run") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "error: ValueError: shapes differ; details in run/train.log"
    assert "Traceback" not in captured.err
    log = Run(stage.config.parent / "run").log.read_text()
    assert "Traceback" in log and "ValueError: shapes" in log


def test_a_defect_outside_a_run_leaves_its_traceback_in_a_temporary_file(stage, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stage.error = ("prepare", ValueError("x" * 5000))
    assert stage.main("prepare", "--config", stage.config) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    (log,) = tmp_path.glob("example-*.log")
    assert str(log) in line and len(line) < 500 and "Traceback" in log.read_text()


def test_the_traceback_is_shown_to_who_asks_for_it(stage, capsys, monkeypatch):
    monkeypatch.setenv("UNROLL_DEBUG", "1")
    assert stage.main("train") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line(stage, capsys):
    stage.error = ("train", KeyboardInterrupt())
    assert stage.main("train", "--config", stage.config) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted")


def test_what_is_logged_afterwards_is_as_it_was(stage, caplog):
    stage.main("predict", "--run", stage.trained())
    with caplog.at_level(logging.INFO):
        logging.getLogger("tasks.example").info("heard")
    assert caplog.messages[-1:] == ["heard"]


PIPE = """
import sys, types, shared
from shared import cli
from tests.shared.test_cli import Config
def predict(context, arguments):
    lines = int(sys.stdin.readline())
    for number in range(lines):
        sys.stdout.write(f"Zeile {number} über\\n")
shared.evaluate = types.SimpleNamespace(restore=lambda *arguments: None)
cli._load = lambda program: program.load_task()
task = types.SimpleNamespace(predict=predict)
program = cli.Program("example", "", Config, lambda: task, lambda parser: None, lambda *arguments: None)
sys.exit(cli.main(program, sys.argv[1:]))
"""


@pytest.fixture
def piped(tmp_path):
    """A `predict` that writes as many lines as it reads from stdin, under a locale that knows no umlauts."""
    Run.create(tmp_path, Config(), [])
    command = [sys.executable, "-c", PIPE, "predict", "--run", str(tmp_path)]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(command, cwd=ROOT, env={"PYTHONIOENCODING": "ascii"}, **pipes)


def test_output_is_utf_8_whatever_the_locale_says(piped):
    assert piped.communicate(b"1\n") == ("Zeile 0 über\n".encode(), b"")
    assert piped.returncode == 0


@pytest.mark.parametrize("lines", [1, 100000])
def test_a_reader_that_goes_away_is_no_error_message(piped, lines):
    piped.stdout.close()
    piped.stdin.write(f"{lines}\n".encode())
    piped.stdin.close()
    assert piped.stderr.read() == b"" and piped.wait() == 1


def test_translation_answers_without_tensorflow(tmp_path):
    def translation(*words):
        command = [sys.executable, "-X", "importtime", "-m", "tasks.translation", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "tensorflow" not in done.stderr and "keras" not in done.stderr
        own = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
        return done.returncode, done.stdout, own

    config = tmp_path / "small.yaml"
    config.write_text("# nothing\n")
    code, output, _ = translation("--help")
    assert code == 0 and all(verb in output for verb in ("prepare", "train", "evaluate", "predict", "report", "score"))
    assert translation("train", "--config", str(config), "model.cell=rnn")[0] == 2
    code, output, lines = translation("predict", "--run", str(tmp_path / "none"), "hello.txt")
    assert (code, output, len(lines)) == (2, "", 1) and "none" in lines[0]

"""The page is whole, self-contained and safe whatever a run holds or lacks; the results table adds up."""

import base64
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared import report
from shared.config import UserError
from shared.run import Run

HOSTILE = "<img src=x onerror=alert(1)>\"'&</td><script>alert(1)</script>"
TASK = SimpleNamespace(name="translation", monitor=lambda config: "bleu")
VOID = {"meta", "img", "br"}
MISSING = {
    "metrics": "No round is finished yet.",
    "scores": "Not evaluated yet: there are no scores.",
    "environment": "The environment was not recorded.",
    "command": "The commands were not recorded.",
    "predictions": "Not evaluated yet: there are no predictions.",
    "pictures": "There are no pictures.",
}


@dataclass(frozen=True)
class SizeConfig:
    units: int = 8
    cell: str = "lstm"
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    model: SizeConfig = field(default_factory=SizeConfig)


class Page(HTMLParser):
    """A parsed page; raises AssertionError for tags that do not nest."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.marked, self._open = [], "", [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self._open and self._open[-1] == "mark":
            self.marked.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def rounds(*scores, **others):
    return [{"round": i, "step": 10 * i, "seconds": 60, "valid_bleu": s, **others} for i, s in enumerate(scores, 1)]


@pytest.fixture
def run(tmp_path):
    """A run that holds everything."""
    run = Run.create(tmp_path / "first", Config(SizeConfig(units=16)), ["python", "-m", "tasks.translation", "train"])
    write_lines(run.metrics, rounds(10.0, 30.5, 20.0, loss=2.0, valid_perplexity=4.0))
    run.merge_scores("test", {"bleu": 31.25, "optimum_perplexity": 2.5, "perplexity": 3.5, "bleu_signature": "tok:13a"})
    run.merge_scores("valid", {"perplexity": 3.25, "optimum_perplexity": 2.25})
    predictions = [("a b c", "a b c"), ("a red dog runs", "a red cat runs"), ("the sky is blue", "zzz qqq")]
    lines = [{"id": i, "source": f"s{i}", "target": t, "output": o} for i, (t, o) in enumerate(predictions)]
    write_lines(run.predictions("test"), lines)
    run.environment.write_text(json.dumps({"commit": "abc", "recurrent_kernels": {"encoder": "own"}}))
    run.pictures.mkdir()
    for number in (1, 2, 10):
        (run.pictures / f"attention_{number}.png").write_bytes(b"\x89PNG%d" % number)
    return run


def written(run, task=TASK, config=None):
    return Page(report.write(task, run, config or Config(SizeConfig(units=16))))


def test_page_needs_nothing_but_itself(run):
    page = written(run)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in page.source
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page.source))


def test_curves_do_not_share_ids_and_refer_to_their_own(run):
    page = written(run)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:xlink:href="|url\()#(.*?)["\)]', page.source)
    assert targets
    assert set(targets) <= set(ids)
    assert page.count("svg") == 3  # loss, perplexity and BLEU; not the step, not the seconds


def test_page_is_a_function_of_the_run(run):
    assert written(run).source == written(run).source


def test_nothing_from_a_run_becomes_markup(tmp_path):
    name = HOSTILE.replace("/", "")
    config = Config(SizeConfig(cell=HOSTILE))
    run = Run.create(tmp_path / name, config, ["python", HOSTILE])
    write_lines(run.metrics, rounds(1.0, 2.0, **{HOSTILE: 1.0}))
    run.merge_scores(HOSTILE, {HOSTILE: HOSTILE, "bleu": 1.0, "bleu_signature": HOSTILE})
    write_lines(
        run.predictions("test"), [{"id": HOSTILE, HOSTILE: HOSTILE, "target": HOSTILE, "output": f"x {HOSTILE}"}]
    )
    run.environment.write_text(json.dumps({HOSTILE: HOSTILE, "kernels": {HOSTILE: HOSTILE}}))
    run.pictures.mkdir()
    (run.pictures / f"{name}.png").write_bytes(b"\x89PNG")
    page = written(run, SimpleNamespace(name=HOSTILE, monitor=lambda config: "bleu"), config)
    assert page.count("script") == 0
    assert page.count("img") == 1
    assert page.text.count("<script>") >= 15


def test_a_complete_run_lacks_nothing(run):
    text = written(run).text
    assert not any(sentence in text for sentence in MISSING.values())


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_piece_is_named_and_the_rest_is_there(run, missing):
    path = run.predictions("test") if missing == "predictions" else getattr(run, missing)
    path.rename(path.with_name("elsewhere"))
    text = written(run).text
    assert [name for name, sentence in MISSING.items() if sentence in text] == [missing]


def test_an_untrained_run_has_a_page(tmp_path):
    assert "Every key has its default." in written(Run.create(tmp_path / "new", Config(), ["x"]), config=Config()).text


@pytest.mark.parametrize("name", ["scores", "environment"])
def test_a_damaged_file_does_not_hide_the_others(run, name):
    getattr(run, name).write_text('{"te')
    page = written(run)
    assert page.count("svg") == 3
    assert (str(run.scores) in page.text) == (name == "scores")


def test_rounds_skip_half_a_line_and_the_repetition_wins(run):
    with open(run.metrics, "wb") as file:
        for number, loss in ((1, 5.0), (2, 4.0), (3, 9.0), (2, 3.0)):
            file.write(json.dumps({"round": number, "loss": loss}).encode() + b"\n")
        file.write('{"round": 4, "loss": 2.0, "note": "ü'.encode()[:-1])
    assert [(row["round"], row["loss"]) for row in report.read_rounds(run)] == [(1, 5.0), (2, 3.0), (3, 9.0)]


@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [
        ("bleu", [1.0, 3.0, 2.0], 2),
        ("bleu", [1.0, 3.0, 3.0], 2),
        ("bleu", [float("nan"), 1.0, None], 2),
        ("perplexity", [3.0, 1.0, 2.0], 2),
        ("perplexity", [float("inf"), 4.0, 9.0], 2),
    ],
)
def test_best_round_is_the_first_with_the_best_score(run, monitor, scores, best):
    lines = [{"round": number, f"valid_{monitor}": score} for number, score in enumerate(scores, 1)]
    write_lines(run.metrics, lines)
    page = written(run, SimpleNamespace(name="t", monitor=lambda config: monitor))
    assert re.search(r"best valid \w+ after round (\d)", page.text).group(1) == str(best)


def test_among_equal_scores_the_lower_perplexity_is_best(run):
    rows = [(100.0, 1.2), (100.0, 1.1), (90.0, 1.0)]
    lines = [{"round": i, "valid_bleu": bleu, "valid_perplexity": nats} for i, (bleu, nats) in enumerate(rows, 1)]
    write_lines(run.metrics, lines)
    page = written(run, SimpleNamespace(name="t", monitor=lambda config: "bleu"))
    assert "after round 2" in page.text


@pytest.mark.parametrize("values", [[0.0], [1e-3, 1e9], [float("nan")] * 2, [-1.0, 1.0, float("inf")], [5.0] * 500])
def test_any_numbers_make_a_curve(run, values):
    write_lines(run.metrics, [{"round": number, "loss": value} for number, value in enumerate(values, 1)])
    assert written(run).count("svg") == 1


def test_optimum_stands_right_below_its_score(run):
    assert re.search(r"perplexity\s*3\.500\s*3\.250\s*optimum perplexity\s*2\.500\s*2\.250", written(run).text)


def test_optimum_of_the_validation_split_is_drawn_wherever_it_is_recorded(run):
    assert written(run).text.count("lowest possible 2.250") == 1
    write_lines(run.metrics, [{"round": 1, "valid_perplexity": 4.0, "valid_optimum_perplexity": 1.75}])
    page = written(run)
    assert page.text.count("lowest possible 1.750") == 1
    assert page.count("svg") == 1


def test_worst_outputs_come_first_with_their_differences_marked(run):
    page = written(run)
    worst = page.text[page.text.index("lowest chrF") :]
    assert worst.index("zzz qqq") < worst.index("a red cat runs")
    assert "a b c" not in worst[: worst.index("Pictures")]
    assert sorted(set(page.marked)) == ["cat", "dog", "the sky is blue", "zzz qqq"]


def test_samples_show_all_text_of_any_task(run):
    lines = [
        {"id": i, "picture": f"p{i}", "captions": ["one", "two"], "score": -float(i), "ids": [1, 2]} for i in range(30)
    ]
    write_lines(run.predictions("test"), lines)
    text = written(run).text
    assert "one / two" in text
    assert "p9" in text
    assert "p15" not in text  # neither among the first nor among the worst
    assert text.index("p29") < text.index("p28")


def test_captions_are_ranked_by_all_their_references(run):
    captions = [["a dog runs", "the cat sits"], ["a dog runs", "zzz qqq"], ["one two", "three four"], "one", [None]]
    outputs = ["the cat sits", "a dog sits", "xyz", "what", "else"]
    lines = [
        {"id": i, "name": f"{i}.png", "output": output, "captions": references, "scene": "[{}]", "novel": True}
        for i, (output, references) in enumerate(zip(outputs, captions, strict=True))
    ]
    write_lines(run.predictions("test"), lines)
    text = written(run).text
    first, worst = text[text.index("The first 5") :].split("The 2 with the lowest chrF")
    assert re.search(r"id\s*name\s*output\s*references\s*chrF", first)
    assert re.search(r"0\.png\s*the cat sits\s*a dog runs / the cat sits\s*100\.0", first)
    assert worst.index("2.png") < worst.index("1.png")
    assert "[{}]" not in text


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("valid_bleu", "valid BLEU"),
        ("bleu_tok_lc", "BLEU tok lc"),
        ("valid_bleu4", "valid BLEU-4"),
        ("rouge_l", "ROUGE-L"),
        ("cider", "CIDEr"),
        ("true_captions", "true captions"),
    ],
)
def test_scores_are_written_as_the_field_writes_them(key, label):
    assert report.page.label(key) == label


def test_half_a_surrogate_pair_is_replaced(run):
    write_lines(run.predictions("test"), [{"source": "a \ud800 b", "target": "x", "output": "y"}])
    assert "a ? b" in written(run).text


def test_pictures_are_embedded_in_order(run):
    page = written(run)
    pictures = [(a["alt"], base64.b64decode(a["src"].partition(",")[2])) for tag, a in page.tags if tag == "img"]
    assert pictures == [(f"attention {number}", b"\x89PNG%d" % number) for number in (1, 2, 10)]


def test_configuration_shows_what_differs_and_hides_the_rest(run):
    text = written(run).text
    shown = text[text.index("Configuration") : text.index("Every key")]
    assert re.search(r"model\.units\s*16\s*8", shown)
    assert "cell" not in shown
    assert "cell: lstm" in text


def test_results_table_has_every_score_that_any_run_has(run, tmp_path):
    other = Run.create(tmp_path / "second|run", Config(), ["x"])
    other.merge_scores("test", {"bleu": 12.0, "exact_match": 5.0, "bleu_signature": "tok:none"})
    other.environment.write_text(json.dumps({"parameters": 1234567}))
    bare = Run.create(tmp_path / "bare", Config(), ["x"])
    write_lines(run.metrics, [*rounds(1.0, 2.0, 3.0), {"round": 3, "seconds": 90}])
    table, first, second = report.results_table([run.directory, other.directory, bare.directory]).split("\n\n")
    header, _, *rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines()]
    cells = [[cell.strip() for cell in row] for row in (header, *rows)]
    assert cells[0] == [
        "run",
        "bleu",
        "perplexity",
        "optimum_perplexity",
        "exact_match",
        "parameters",
        "training minutes",
    ]
    assert cells[1] == ["first", "31.25", "3.500", "2.500", "-", "-", "3.5"]
    assert cells[2] == [r"second\|run", "12.00", "-", "-", "5.000", "1,234,567", "-"]
    assert cells[3] == ["bare"] + ["-"] * 6
    assert (first.strip(), second.strip()) == ("BLEU: `tok:13a` (first)", "BLEU: `tok:none` (second|run)")


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    twin = Run.create(tmp_path / "deeper" / "first", Config(), ["x"])
    table = report.results_table([run.directory, twin.directory])
    assert f"| {run.directory} |" in table
    assert f"| {twin.directory} |" in table


@pytest.mark.parametrize("name", ["frist", "."])
def test_table_of_no_run_is_one_line_and_exit_2(run, name, capsys):
    with pytest.raises(UserError):
        report.results_table([run.directory.parent / name])
    assert report.main(["table", str(run.directory.parent / name)]) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.count("\n") == 1


def test_table_command_prints_the_table_and_loads_nothing_heavy(run, capsys):
    assert report.main(["table", str(run.directory)]) == 0
    assert capsys.readouterr().out == report.results_table([run.directory])
    assert report.main(["table", "--split", "valid", str(run.directory)]) == 0
    assert "| first | 3.250 | 2.250 |" in capsys.readouterr().out
    root = Path(report.__file__).parents[1]
    code = "import sys, shared.report; sys.exit(bool({'tensorflow', 'matplotlib', 'sacrebleu'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0

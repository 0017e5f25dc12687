"""A finished run as one page: the files of a run directory go in; a self-contained `report.html` comes out.

The page needs no network and no script, follows the reader's light or dark theme, and fits a phone. What a run does not
have yet is left out and named in a sentence. `python -m shared.report table RUN ...` prints scores for a README.
"""

import argparse
import base64
import difflib
import html
import io
import json
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import UserError, differences, flatten, missing_path, one_line, to_yaml
from shared.run import Run, write_atomically

if TYPE_CHECKING:
    from shared.task import Task

logger = logging.getLogger(__name__)

SPLITS = ("test", "valid", "train")
FIRST_SAMPLES, WORST_SAMPLES = 10, 10
LONGEST_TEXT = 600  # characters of one text in the samples
FIRST_CURVES = ("loss", "valid_loss", "valid_perplexity")
NOT_CURVES = ("round", "step", "seconds")

# Matplotlib writes these colours into its pictures; the page's style replaces them, so that they follow the theme.
FAINT, LINE, BEST = "#020202", "#030303", "#040404"
THEME = {FAINT: "var(--faint)", LINE: "var(--accent)", BEST: "var(--best)"}
PLOT_STYLE = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "report",  # the same run makes the same page
    "font.size": 8,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}

STYLE = """
:root { --paper: #fffefb; --ink: #1d1f23; --faint: #6b7078; --rule: #d9d8d2; --accent: #23628f; --best: #b3541e;
  --mark: #fbe0c3; --block: #f4f3ee; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e2e3e5; --faint: #989da6; --rule: #363a40;
  --accent: #79b4de; --best: #efa06a; --mark: #5c3b1a; --block: #1f2226; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.6rem 0 .7rem; font-size: 1.25rem; }
h3 { margin: 1.6rem 0 .4rem; font-size: 1rem; }
.kind { margin: 0; color: var(--faint); font-variant: small-caps; letter-spacing: .04em; }
.small { margin: .4rem 0; color: var(--faint); font-size: .82rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink);
  font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; overflow-wrap: normal; }
th { border-bottom: 1px solid var(--ink); }
.number { padding-left: .9rem; text-align: right; white-space: nowrap; }
.facts td, .samples td + td { overflow-wrap: anywhere; }
.samples { width: 100%; }
.samples tr + tr { border-top: 1px solid var(--rule); }
mark { border-radius: 2px; background: var(--mark); color: inherit; }
figure { margin: 0; }
figcaption { font-size: .85rem; }
.best { color: var(--best); white-space: nowrap; }
.curves { display: grid; gap: 1.4rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.pictures { display: grid; gap: 1.4rem; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.pictures img { max-width: 100%; border: 1px solid var(--rule); background: #fff; }
pre { padding: .8rem 1rem; overflow-x: auto; background: var(--block); font-size: .82rem; overflow-wrap: normal; }
.commands { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) {
  .samples th { display: none; }
  .samples tr, .samples td { display: block; padding: .15rem 0; text-align: left; }
  .samples td.number { padding-left: 0; }
  .samples tr { padding: .6rem 0; }
  .samples td::before { content: attr(data-label) " "; color: var(--faint); font-size: .82rem; }
}
"""

# The policy makes browsers enforce what the page promises: nothing is fetched, nothing is executed.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


class Markup(str):
    """HTML that is already safe to show; every other string is escaped before it reaches the page."""


def write(task: "Task", run: Run, config: Any) -> Path:
    """Writes `run.report` from whatever the run holds so far and returns its path; RunError if the disk refuses."""
    rounds = read_rounds(run)
    best = _best_round(rounds, task.monitor)
    try:
        scores, note = run.read_scores(), "Not evaluated yet: there are no scores."
    except UserError as error:
        scores, note = {}, f"The scores are left out: {one_line(error)}."
    optimum = scores.get("valid", {}).get("optimum_perplexity")
    sections = {
        "Scores": _scores(scores) if scores else _sentence(note),
        "Training": _curves(rounds, task.monitor, best, optimum) if rounds else _sentence("No round is finished yet."),
        "Samples": _samples(run),
        "Pictures": _pictures(run),
        "Configuration": _configuration(config),
        "Environment": _environment(run),
        "Commands": _commands(run),
    }
    summary = _summary(rounds, task.monitor, best)
    header = f'<header><p class="kind">{_escape(task.name)}</p><h1>{_escape(_name(run))}</h1>{summary}</header>'
    body = [header, *(f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections.items())]
    page = PAGE.format(title=_escape(f"{task.name}: {_name(run)}"), style=STYLE, body="\n".join(body))
    write_atomically(run.report, page.encode("utf-8", errors="replace"))  # JSON can hold half a surrogate pair
    return run.report


def read_rounds(run: Run) -> list[dict[str, Any]]:
    """The rounds of `metrics.jsonl` in order; of a round that a resumed run repeated, the later line."""
    rounds = {line["round"]: line for line in _read_lines(run.metrics) if isinstance(line.get("round"), int)}
    return [rounds[number] for number in sorted(rounds)]


def results_table(runs: Sequence[Path]) -> str:
    """A Markdown table of the test scores, one row per run directory, with the scorers' signatures below it.

    A column is there if any run has it. Raises UserError for a directory that is no run.
    """
    opened = [_open(directory) for directory in runs]
    names = [_name(run) for run in opened]
    names = [name if names.count(name) == 1 else str(run.directory) for name, run in zip(names, opened, strict=True)]
    rows, costs, signatures = [], [], {}
    for name, run in zip(names, opened, strict=True):
        scores, signed = _split_signatures(run.read_scores().get("test", {}))
        for score, signature in signed.items():
            signatures.setdefault(f"{_label(score)}: `{signature}`", []).append(name)
        rows.append({"run": name, **scores})
        parameters = _read_object(run.environment).get("parameters")
        costs.append({"parameters": parameters, "training minutes": _minutes(read_rounds(run))})
    columns = dict.fromkeys(key for row in (*rows, *costs) for key, value in row.items() if value is not None)
    lines = [columns, ["---" if key == "run" else "---:" for key in columns]]
    for row, cost in zip(rows, costs, strict=True):
        lines.append([_text({**row, **cost}.get(key)).replace("|", r"\|") for key in columns])
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    notes = [note if len(users) == len(runs) else f"{note} ({', '.join(users)})" for note, users in signatures.items()]
    return "\n".join([table, *(f"{note}\n" for note in notes)])


def _summary(rounds: Sequence[Mapping[str, Any]], monitor: str, best: int | None) -> Markup:
    if not rounds:
        return Markup("")
    steps, minutes = rounds[-1].get("step"), _minutes(rounds)
    facts = [f"{len(rounds):,} rounds"]
    facts += [f"{steps:,} steps"] if _is_number(steps) else []
    facts += [f"{minutes} minutes"] if minutes else []
    chosen = f"; best {_label(f'valid_{monitor}')} after round {best}" if best is not None else ""
    return Markup(f"<p>Training: {_escape(', '.join(facts) + chosen)}.</p>")


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> Markup:
    """One row per score with the known optimum of a score right below it, one column per split."""
    splits = [split for split in SPLITS if split in scores] + [split for split in scores if split not in SPLITS]
    values, signatures = {}, {}
    for split in splits:
        values[split], signed = _split_signatures(scores[split])
        signatures.update({f"{_label(name)}: {signature}": None for name, signature in signed.items()})
    names = {name: None for split in splits for name in values[split]}
    names = sorted(names, key=lambda name: name.startswith("optimum_"))
    order = dict.fromkeys(key for name in names for key in (name, f"optimum_{name}") if key in names)
    rows = [[_label(name), *(values[split].get(name) for split in splits)] for name in order]
    notes = ["Rates and BLEU in per cent.", *signatures]
    return Markup(_table(["", *splits], rows) + "".join(_sentence(note) for note in notes))


def _curves(rounds: Sequence[Mapping[str, Any]], monitor: str, best: int | None, optimum: float | None) -> Markup:
    """Every number that the rounds recorded, the telling ones first."""
    first = [*FIRST_CURVES, f"valid_{monitor}"]
    names = dict.fromkeys(key for row in rounds for key, value in row.items() if _is_number(value))
    names = [name for name in names if name not in NOT_CURVES and "optimum" not in name]
    names.sort(key=lambda name: first.index(name) if name in first else len(first) + (not name.startswith("valid_")))
    figures = []
    for name in names:
        points = {row["round"]: float(row[name]) for row in rounds if _is_number(row.get(name))}
        caption = f"<b>{_escape(_label(name))}</b> last {_text(list(points.values())[-1])}"
        if best in points:
            caption += f', <span class="best">at the best round {_text(points[best])}</span>'
        line = optimum if name == "valid_perplexity" else None
        if line is not None:
            caption += f", dashed: lowest possible {_text(line)}"
        figures.append(f"<figure>{_plot(name, points, best, line)}<figcaption>{caption}</figcaption></figure>")
    return Markup(f'<div class="curves">{"".join(figures)}</div>')


def _plot(name: str, points: Mapping[int, float], best: int | None, optimum: float | None) -> Markup:
    """Round -> value as an SVG whose colours are the page's."""
    import matplotlib.style  # here, since the results table does not need its second of loading
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    finite = [value for value in points.values() if math.isfinite(value)]
    with matplotlib.style.context(["default", PLOT_STYLE]):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            list(points), list(points.values()), color=LINE, marker="o" if len(points) < 40 else "", markersize=2.5
        )
        if optimum is not None:
            axes.axhline(optimum, color=FAINT, linestyle="--", linewidth=1)
        if best in points:
            axes.plot([best], [points[best]], color=BEST, marker="o", markersize=5)
        if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set_xlabel("round")
        file = io.StringIO()
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _embed(file.getvalue(), name)


def _embed(svg: str, name: str) -> Markup:
    """An SVG file as part of a page: described, with ids of its own, in the page's colours."""
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    for color, variable in THEME.items():
        svg = svg.replace(color, variable)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{_escape(_label(name))}"', 1))


def _samples(run: Run) -> Markup:
    """The first predictions of a split and the worst ones, by sentence chrF or else by the model's own score."""
    split = next((split for split in SPLITS if run.predictions(split).exists()), None)
    predictions = _read_lines(run.predictions(split)) if split else []
    if not predictions:
        return _sentence("Not evaluated yet: there are no predictions.")
    measure, qualities = _qualities(predictions)
    worst = [i for i, quality in enumerate(qualities) if quality is not None]
    worst = [i for i in worst if predictions[i].get("output") != predictions[i].get("target")]
    worst = sorted(worst, key=lambda i: qualities[i])[:WORST_SAMPLES]
    first = range(min(FIRST_SAMPLES, len(predictions)))
    page = f"<h3>The first {len(first)} of {len(predictions):,} in {_escape(split)}</h3>"
    page += _sample_table([predictions[i] for i in first], measure, [qualities[i] for i in first])
    if worst:
        page += f"<h3>The {len(worst)} with the lowest {_escape(measure)}</h3>"
        page += _sample_table([predictions[i] for i in worst], measure, [qualities[i] for i in worst])
    elif measure:
        page += _sentence("No output differs from its reference.")
    return Markup(page)


def _qualities(predictions: Sequence[Mapping[str, Any]]) -> tuple[str, list[float | None]]:
    """What ranks the predictions and its value for each, None where it has none; ("", ...) if nothing does."""
    pairs = [(line.get("output"), line.get("target")) for line in predictions]
    comparable = [isinstance(output, str) and isinstance(target, str) for output, target in pairs]
    if any(comparable):
        from sacrebleu import CHRF

        score = CHRF().sentence_score
        return "chrF", [score(o, [t]).score if yes else None for (o, t), yes in zip(pairs, comparable, strict=True)]
    scores = [line.get("score") if _is_number(line.get("score")) else None for line in predictions]
    return "score" if any(score is not None for score in scores) else "", scores


def _sample_table(predictions: Sequence[Mapping[str, Any]], measure: str, qualities: Sequence[float | None]) -> Markup:
    """All text of the predictions; words of reference and output that the other has not are marked."""
    keys = [key for key in dict.fromkeys(key for line in predictions for key in line) if key != "id"]
    keys = [key for key in keys if any(_prose(line.get(key)) for line in predictions)]
    header = ["id", *("reference" if key == "target" else _label(key) for key in keys), *([measure] if measure else [])]
    rows = []
    for line, quality in zip(predictions, qualities, strict=True):
        texts = {key: _prose(line.get(key)) for key in keys}
        target, output = texts.get("target"), texts.get("output")
        if target and output:
            texts |= {"target": _marked(target, output), "output": _marked(output, target)}
        rows.append([str(line.get("id", "")), *texts.values(), *([quality] if measure else [])])
    return _table(header, rows, "samples")


def _prose(value: Any) -> str:
    """The text of a prediction's value, shortened; empty where it is neither a string nor a list of strings."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = " / ".join(value)
    if not isinstance(value, str):
        return ""
    return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]} ..."


def _marked(text: str, other: str) -> Markup:
    words = text.split()
    matcher = difflib.SequenceMatcher(None, other.split(), words, autojunk=False)
    parts = []
    for kind, _, _, start, end in matcher.get_opcodes():
        chunk = _escape(" ".join(words[start:end]))
        parts.append(chunk if kind == "equal" else f"<mark>{chunk}</mark>" if chunk else "")
    return Markup(" ".join(part for part in parts if part))


def _pictures(run: Run) -> Markup:
    paths = sorted(
        run.pictures.glob("*.png"), key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", path.stem)]
    )
    figures = []
    for path in paths:
        name = _escape(path.stem.replace("_", " "))
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
        )
    return Markup(f'<div class="pictures">{"".join(figures)}</div>') if figures else _sentence("There are no pictures.")


def _configuration(config: Any) -> Markup:
    default = type(config)()
    values, defaults = flatten(config), flatten(default)
    rows = [[key, _plain(values[key]), _plain(defaults[key])] for key in differences(config, default)]
    table = _table(["key", "value", "default"], rows, "facts") if rows else _sentence("Every key has its default.")
    return Markup(f"{table}<details><summary>Every key</summary><pre>{_escape(to_yaml(config))}</pre></details>")


def _environment(run: Run) -> Markup:
    environment = _read_object(run.environment)
    if not environment:
        return _sentence("The environment was not recorded.")
    rows = []
    for key, value in environment.items():
        lines = [f"{k}: {_plain(v)}" for k, v in value.items()] if isinstance(value, Mapping) else [_plain(value)]
        rows.append([_label(key), Markup("<br>".join(map(_escape, lines)))])
    return _table([], rows, "facts")


def _commands(run: Run) -> Markup:
    if not run.command.exists():
        return _sentence("The commands were not recorded.")
    text = run.command.read_text(encoding="utf-8", errors="replace")
    return Markup(f'<pre class="commands">{_escape(text)}</pre>')


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> Markup:
    """Columns whose first cell is no string are set to the right; strings are escaped unless they are Markup."""
    alignments = ['class="number"' if not isinstance(cell, str) else 'dir="auto"' for cell in rows[0]]
    head = "".join(f"<th {align}>{_escape(label)}</th>" for label, align in zip(header, alignments, strict=False))
    lines = [f"<thead><tr>{head}</tr></thead>"] if header else []
    for row in rows:
        columns = zip(alignments, header or [""] * len(row), map(_escape, map(_text, row)), strict=True)
        cells = [f'<td {align} data-label="{_escape(label)}">{cell}</td>' for align, label, cell in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    return Markup(f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>\n')


def _sentence(text: str) -> Markup:
    return Markup(f'<p class="small">{_escape(text)}</p>')


def _escape(text: str) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def _label(name: str) -> str:
    """A key as readers write it: valid_bleu -> valid BLEU."""
    return name.replace("_", " ").replace("bleu", "BLEU").replace("chrf", "chrF").replace("cider", "CIDEr")


def _text(value: Any) -> str:
    """A score for people: four significant digits, thousands apart; "-" for nothing."""
    if value is None:
        return "-"
    if not _is_number(value):
        return _plain(value)
    if isinstance(value, int) or 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _split_signatures(scores: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(scores, score name -> its scorer's signature)."""
    signatures = {name: value for name, value in scores.items() if name.endswith("_signature")}
    rest = {name: value for name, value in scores.items() if name not in signatures}
    return rest, {name.removesuffix("_signature"): value for name, value in signatures.items()}


def _minutes(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    seconds = [row["seconds"] for row in rounds if _is_number(row.get("seconds"))]
    return f"{sum(seconds) / 60:,.1f}" if seconds else None


def _best_round(rounds: Sequence[Mapping[str, Any]], monitor: str) -> int | None:
    """The first round with the best monitored score: the lowest perplexity, the highest of anything else."""
    sign = -1 if monitor == "perplexity" else 1
    values = {row["round"]: row.get(f"valid_{monitor}") for row in rounds}
    values = {number: sign * value for number, value in values.items() if _is_number(value) and math.isfinite(value)}
    return max(values, key=values.get, default=None)


def _name(run: Run) -> str:
    return run.directory.resolve().name


def _open(directory: str | Path) -> Run:
    run = Run(Path(directory))
    if not run.directory.exists():
        raise missing_path(directory, "run directory")
    if not run.config.is_file():
        raise UserError(f"{directory}: not a run, since it has no config.yaml")
    return run


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; without it none. A line that is not whole, as a kill leaves it, is skipped."""
    lines = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:
            if line.strip():
                logger.warning("%s: skipped a line that is not whole", path)
            continue
        if isinstance(content, dict):
            lines.append(content)
    return lines


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty, with a warning, where it cannot be read, and empty without the file."""
    try:
        content = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError:
        logger.warning("%s: not valid JSON, so it is left out", path)
        return {}
    return content if isinstance(content, dict) else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m shared.report table RUN [RUN ...]`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.report", description="Compares finished runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = commands.add_parser("table", help="print the runs' test scores as a Markdown table")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    try:
        sys.stdout.write(results_table(parser.parse_args(arguments).runs))
    except UserError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

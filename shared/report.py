"""A finished run as one page: the files of a run directory go in; a self-contained `report.html` comes out.

The page needs no network and no script, follows the reader's light or dark theme, and fits a phone. What a run does not
have yet is left out and named in a sentence. `python -m shared.report table RUN ...` prints scores for a README.
"""

import argparse
import base64
import difflib
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared import page
from shared.config import UserError, differences, flatten, missing_path, one_line, to_yaml
from shared.run import Run, write_atomically
from shared.task import Task, rank

logger = logging.getLogger(__name__)

SPLITS = ("test", "valid", "train")
FIRST_SAMPLES, WORST_SAMPLES = 10, 10
NOT_SAMPLES = ("id", "scene")  # a column of its own, and a picture's objects, which are for programs
LONGEST_TEXT = 600  # characters of one text in the samples
FIRST_CURVES = ("loss", "valid_loss", "valid_perplexity")
NOT_CURVES = ("round", "step", "seconds")


def write(task: Task, run: Run, config: Any) -> Path:
    """Writes `run.report` from whatever the run holds so far and returns its path; RunError if the disk refuses."""
    rounds = read_rounds(run)
    best = _best_round(rounds, task.monitor(config))
    try:
        scores, note = run.read_scores(), "Not evaluated yet: there are no scores."
    except UserError as error:
        scores, note = {}, f"The scores are left out: {one_line(error)}."
    optimum = scores.get("valid", {}).get("optimum_perplexity")
    sections = {
        "Scores": _scores(scores) if scores else page.sentence(note),
        "Training": _curves(rounds, task.monitor(config), best, optimum)
        if rounds
        else page.sentence("No round is finished yet."),
        "Samples": _samples(run),
        "Pictures": _pictures(run),
        "Configuration": _configuration(config),
        "Environment": _environment(run),
        "Commands": _commands(run),
    }
    summary = _summary(rounds, task.monitor(config), best)
    header = f'<header><p class="kind">{page.escape(task.name)}</p><h1>{page.escape(_name(run))}</h1>{summary}</header>'
    body = [header, *(f"<section><h2>{title}</h2>\n{content}</section>" for title, content in sections.items())]
    content = page.render(f"{task.name}: {_name(run)}", page.Markup("\n".join(body)))
    write_atomically(run.report, content.encode("utf-8", errors="replace"))  # JSON can hold half a surrogate pair
    return run.report


def read_rounds(run: Run) -> list[dict[str, Any]]:
    """The rounds of `metrics.jsonl` in order; of a round that a resumed run repeated, the later line."""
    rounds = {line["round"]: line for line in _read_lines(run.metrics) if isinstance(line.get("round"), int)}
    return [rounds[number] for number in sorted(rounds)]


def results_table(runs: Sequence[Path], split: str = "test") -> str:
    """A Markdown table of a split's scores, one row per run directory, with the scorers' signatures below it.

    A column is there if any run has it. Raises UserError for a directory that is no run.
    """
    opened = [_open(directory) for directory in runs]
    names = [_name(run) for run in opened]
    names = [name if names.count(name) == 1 else str(run.directory) for name, run in zip(names, opened, strict=True)]
    scores, rows, signatures = [], [], {}
    for name, run in zip(names, opened, strict=True):
        values, signed = _split_signatures(run.read_scores().get(split, {}))
        for score, signature in signed.items():
            signatures.setdefault(f"{page.label(score)}: `{signature}`", []).append(name)
        parameters = _read_object(run.environment).get("parameters")
        minutes = _minutes(read_rounds(run))
        scores.append(values)
        rows.append({"run": name, **values, "parameters": parameters, "training minutes": minutes})
    columns = ["run", *_ordered(scores), "parameters", "training minutes"]
    columns = [key for key in columns if any(row.get(key) is not None for row in rows)]
    lines = [columns, ["---" if key == "run" else "---:" for key in columns]]
    lines += [[page.text(row.get(key)).replace("|", r"\|") for key in columns] for row in rows]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    notes = [note if len(users) == len(runs) else f"{note} ({', '.join(users)})" for note, users in signatures.items()]
    return "\n".join([table, *(f"{note}\n" for note in notes)])


def _summary(rounds: Sequence[Mapping[str, Any]], monitor: str, best: int | None) -> page.Markup:
    if not rounds:
        return page.Markup("")
    steps, minutes = rounds[-1].get("step"), _minutes(rounds)
    facts = [f"{len(rounds):,} rounds"]
    facts += [f"{steps:,} steps"] if page.is_number(steps) else []
    facts += [f"{minutes} minutes"] if minutes else []
    chosen = f"; best {page.label(f'valid_{monitor}')} after round {best}" if best is not None else ""
    return page.Markup(f"<p>Training: {page.escape(', '.join(facts) + chosen)}.</p>")


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> page.Markup:
    """One row per score, one column per split."""
    splits = [split for split in SPLITS if split in scores] + [split for split in scores if split not in SPLITS]
    values, signatures = {}, {}
    for split in splits:
        values[split], signed = _split_signatures(scores[split])
        signatures.update({f"{page.label(name)}: {signature}": None for name, signature in signed.items()})
    rows = [[page.label(name), *(values[split].get(name) for split in splits)] for name in _ordered(values.values())]
    notes = ["Rates and BLEU in per cent.", *signatures]
    return page.Markup(page.table(["", *splits], rows) + "".join(page.sentence(note) for note in notes))


def _ordered(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of all scores, the known optimum of a score right after it."""
    names = sorted({name: None for values in scores for name in values}, key=lambda name: name.startswith("optimum_"))
    return list(dict.fromkeys(key for name in names for key in (name, f"optimum_{name}") if key in names))


def _curves(rounds: Sequence[Mapping[str, Any]], monitor: str, best: int | None, optimum: float | None) -> page.Markup:
    """Every number that the rounds recorded, the telling ones first."""
    first = [*FIRST_CURVES, f"valid_{monitor}"]
    names = dict.fromkeys(key for row in rounds for key, value in row.items() if page.is_number(value))
    names = [name for name in names if name not in NOT_CURVES and "optimum" not in name]
    names.sort(key=lambda name: first.index(name) if name in first else len(first) + (not name.startswith("valid_")))
    figures = []
    for name in names:
        points = {row["round"]: float(row[name]) for row in rounds if page.is_number(row.get(name))}
        caption = f"<b>{page.escape(page.label(name))}</b> last {page.text(list(points.values())[-1])}"
        if best in points:
            caption += f', <span class="best">at the best round {page.text(points[best])}</span>'
        line = rounds[-1].get("valid_optimum_perplexity", optimum) if name == "valid_perplexity" else None
        if line is not None:
            caption += f", dashed: lowest possible {page.text(line)}"
        figures.append(f"<figure>{page.plot(name, points, best, line)}<figcaption>{caption}</figcaption></figure>")
    return page.Markup(f'<div class="curves">{"".join(figures)}</div>')


def _samples(run: Run) -> page.Markup:
    """The first predictions of a split and the worst ones, by sentence chrF or else by the model's own score."""
    split = next((split for split in SPLITS if run.predictions(split).exists()), None)
    predictions = _read_lines(run.predictions(split)) if split else []
    if not predictions:
        return page.sentence("Not evaluated yet: there are no predictions.")
    measure, qualities = _qualities(predictions)
    wrong = [line.get("output") is None or line["output"] not in _references(line) for line in predictions]
    worst = [i for i, quality in enumerate(qualities) if quality is not None and wrong[i]]
    worst = sorted(worst, key=lambda i: qualities[i])[:WORST_SAMPLES]
    first = range(min(FIRST_SAMPLES, len(predictions)))
    content = f"<h3>The first {len(first)} of {len(predictions):,} in {page.escape(split)}</h3>"
    content += _sample_table([predictions[i] for i in first], measure, [qualities[i] for i in first])
    if worst:
        content += f"<h3>The {len(worst)} with the lowest {page.escape(measure)}</h3>"
        content += _sample_table([predictions[i] for i in worst], measure, [qualities[i] for i in worst])
    elif measure:
        content += page.sentence("No output differs from its reference.")
    return page.Markup(content)


def _qualities(predictions: Sequence[Mapping[str, Any]]) -> tuple[str, list[float | None]]:
    """What ranks the predictions and its value for each, None where it has none; ("", ...) if nothing does."""
    pairs = [(line.get("output"), _references(line)) for line in predictions]
    comparable = [isinstance(output, str) and bool(references) for output, references in pairs]
    if any(comparable):
        from sacrebleu import CHRF

        score = CHRF().sentence_score
        return "chrF", [score(o, r).score if yes else None for (o, r), yes in zip(pairs, comparable, strict=True)]
    scores = [line.get("score") if page.is_number(line.get("score")) else None for line in predictions]
    return "score" if any(score is not None for score in scores) else "", scores


def _references(line: Mapping[str, Any]) -> list[str]:
    """What a prediction may be compared with: one target, or several captions."""
    captions = line.get("captions")
    references = [line.get("target"), *(captions if isinstance(captions, list) else [])]
    return [reference for reference in references if isinstance(reference, str)]


def _sample_table(
    predictions: Sequence[Mapping[str, Any]], measure: str, qualities: Sequence[float | None]
) -> page.Markup:
    """All text of the predictions; words of reference and output that the other has not are marked."""
    keys = [key for key in dict.fromkeys(key for line in predictions for key in line) if key not in NOT_SAMPLES]
    keys = [key for key in keys if any(_prose(line.get(key)) for line in predictions)]
    header = [
        "id",
        *({"target": "reference", "captions": "references"}.get(key) or page.label(key) for key in keys),
        *([measure] if measure else []),
    ]
    rows = []
    for line, quality in zip(predictions, qualities, strict=True):
        texts = {key: _prose(line.get(key)) for key in keys}
        target, output = texts.get("target"), texts.get("output")
        if target and output:
            texts |= {"target": _marked(target, output), "output": _marked(output, target)}
        rows.append([str(line.get("id", "")), *texts.values(), *([quality] if measure else [])])
    return page.table(header, rows, "samples")


def _prose(value: Any) -> str:
    """The text of a prediction's value, shortened; empty where it is neither a string nor a list of strings."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = " / ".join(value)
    if not isinstance(value, str):
        return ""
    return value if len(value) <= LONGEST_TEXT else f"{value[:LONGEST_TEXT]} ..."


def _marked(text: str, other: str) -> page.Markup:
    words = text.split()
    matcher = difflib.SequenceMatcher(None, other.split(), words, autojunk=False)
    parts = []
    for kind, _, _, start, end in matcher.get_opcodes():
        chunk = page.escape(" ".join(words[start:end]))
        parts.append(chunk if kind == "equal" else f"<mark>{chunk}</mark>" if chunk else "")
    return page.Markup(" ".join(part for part in parts if part))


def _pictures(run: Run) -> page.Markup:
    paths = sorted(
        run.pictures.glob("*.png"), key=lambda path: [part.zfill(9) for part in re.split(r"(\d+)", path.stem)]
    )
    figures = []
    for path in paths:
        name = page.escape(path.stem.replace("_", " "))
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
        )
    return (
        page.Markup(f'<div class="pictures">{"".join(figures)}</div>')
        if figures
        else page.sentence("There are no pictures.")
    )


def _configuration(config: Any) -> page.Markup:
    default = type(config)()
    values, defaults = flatten(config), flatten(default)
    rows = [[key, page.plain(values[key]), page.plain(defaults[key])] for key in differences(config, default)]
    table = (
        page.table(["key", "value", "default"], rows, "facts") if rows else page.sentence("Every key has its default.")
    )
    return page.Markup(
        f"{table}<details><summary>Every key</summary><pre>{page.escape(to_yaml(config))}</pre></details>"
    )


def _environment(run: Run) -> page.Markup:
    environment = _read_object(run.environment)
    if not environment:
        return page.sentence("The environment was not recorded.")
    rows = []
    for key, value in environment.items():
        lines = (
            [f"{k}: {page.plain(v)}" for k, v in value.items()] if isinstance(value, Mapping) else [page.plain(value)]
        )
        rows.append([page.label(key), page.Markup("<br>".join(map(page.escape, lines)))])
    return page.table([], rows, "facts")


def _commands(run: Run) -> page.Markup:
    if not run.command.exists():
        return page.sentence("The commands were not recorded.")
    text = run.command.read_text(encoding="utf-8", errors="replace")
    return page.Markup(f'<pre class="commands">{page.escape(text)}</pre>')


def _split_signatures(scores: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """(scores, score name -> its scorer's signature)."""
    signatures = {name: value for name, value in scores.items() if name.endswith("_signature")}
    rest = {name: value for name, value in scores.items() if name not in signatures}
    return rest, {name.removesuffix("_signature"): value for name, value in signatures.items()}


def _minutes(rounds: Sequence[Mapping[str, Any]]) -> str | None:
    seconds = [row["seconds"] for row in rounds if page.is_number(row.get("seconds"))]
    return f"{sum(seconds) / 60:,.1f}" if seconds else None


def _best_round(rounds: Sequence[Mapping[str, Any]], monitor: str) -> int | None:
    """The round whose weights are the best ones: the first of the highest rank."""
    ranks = {}
    for row in rounds:
        scores = {name: row[name] for name in (f"valid_{monitor}", "valid_perplexity") if page.is_number(row.get(name))}
        if f"valid_{monitor}" in scores and all(map(math.isfinite, scores.values())):
            ranks[row["round"]] = rank(monitor, scores)
    return max(ranks, key=ranks.get, default=None)


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
    """`python -m shared.report table [--split SPLIT] RUN [RUN ...]`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.report", description="Compares finished runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table = commands.add_parser("table", help="print the runs' scores as a Markdown table")
    table.add_argument("--split", default="test", choices=SPLITS, help="whose scores (default: test)")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    try:
        options = parser.parse_args(arguments)
        sys.stdout.write(results_table(options.runs, options.split))
    except UserError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

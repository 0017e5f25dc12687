"""The parts of a self-contained HTML page: texts, tables and curves go in; markup that is safe to show comes out."""

import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

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

# Names of scores in keys, and as the field writes them.
SPELLINGS = {
    **{"bleu": "BLEU", "chrf": "chrF"},
    **{"rouge_l": "ROUGE-L", "cider": "CIDEr", "meteor": "METEOR", "spice": "SPICE"},
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


def render(title: str, body: Markup) -> str:
    """The whole page."""
    return PAGE.format(title=escape(title), style=STYLE, body=escape(body))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> Markup:
    """Columns whose first cell is no string are set to the right; strings are escaped unless they are Markup."""
    alignments = ['class="number"' if not isinstance(cell, str) else 'dir="auto"' for cell in rows[0]]
    head = "".join(f"<th {align}>{escape(name)}</th>" for name, align in zip(header, alignments, strict=False))
    lines = [f"<thead><tr>{head}</tr></thead>"] if header else []
    for row in rows:
        columns = zip(alignments, header or [""] * len(row), map(escape, map(text, row)), strict=True)
        cells = [f'<td {align} data-label="{escape(name)}">{cell}</td>' for align, name, cell in columns]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    return Markup(f'<div class="scroll"><table class="{kind}">{"".join(lines)}</table></div>\n')


def sentence(text: str) -> Markup:
    """A short note."""
    return Markup(f'<p class="small">{escape(text)}</p>')


def escape(text: str) -> Markup:
    """Text as HTML; Markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def label(name: str) -> str:
    """A key as readers write it: valid_bleu -> valid BLEU, bleu1 -> BLEU-1."""
    for key, spelling in SPELLINGS.items():
        name = name.replace(key, spelling)
    return re.sub(r"BLEU(?=\d)", "BLEU-", name).replace("_", " ")


def text(value: Any) -> str:
    """A score for people: four significant digits, thousands apart; "-" for nothing."""
    if value is None:
        return "-"
    if not is_number(value):
        return plain(value)
    if isinstance(value, int) or 1e4 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:#.4g}"


def plain(value: Any) -> str:
    """A value as its file has it; strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def plot(name: str, points: Mapping[int, float], best: int | None, optimum: float | None) -> Markup:
    """Round -> value as an SVG whose colours are the page's."""
    import matplotlib.style  # here, since the results table does not need its second of loading
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    finite = [value for value in points.values() if math.isfinite(value)]
    with matplotlib.style.context(["default", PLOT_STYLE]):
        figure = Figure(figsize=(3.6, 2.1), layout="constrained")
        axes = figure.add_subplot()
        marker = "o" if len(points) < 40 else ""
        axes.plot(list(points), list(points.values()), color=LINE, marker=marker, markersize=2.5)
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
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    return _embed(file.getvalue(), name)


def _embed(svg: str, name: str) -> Markup:
    """An SVG file as part of a page: described, with ids of its own, in the page's colours."""
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg[svg.index("<svg") :])
    for color, variable in THEME.items():
        svg = svg.replace(color, variable)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label(name))}"', 1))

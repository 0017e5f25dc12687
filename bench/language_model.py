"""Words per second of a language model: a training step and scoring, beside PyTorch's layers at the same sizes.

    python bench/language_model.py [--pairs 7]

The rival is the architecture of PyTorch's word_language_model example, written anew here: embedding, dropout,
torch.nn.LSTM, dropout, a linear layer tied to the embedding; cross-entropy over all words, plain gradient descent with
clipping. Ours is tasks.language_model with the same sizes, dropouts and updates. Both are measured in turn, pair by
pair, in one process, and the medians compared. Needs `pip install torch`.
"""

import argparse
import json
import sys
from pathlib import Path

import own
import rival
from alternation import measure
from sizes import LANGUAGE_MODELS, language_model_name


def main():
    """Prints a Markdown table and writes bench/language_model.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, metavar="N", help="measurements of each; default: 7")
    pairs = parser.parse_args().pairs
    rows = []
    for size in LANGUAGE_MODELS:
        words = size["streams"] * size["window"]
        both = zip(own.language_model_steps(**size), rival.language_model_steps(**size), strict=True)
        for name, steps in zip(("training step", "scoring"), both, strict=True):
            ours, theirs = measure(steps, pairs)
            rows.append({
                "name": name, "size": language_model_name(**size), "words_per_second": words / ours,
                "words_per_second_pytorch": words / theirs, "speed_vs_pytorch": theirs / ours,
            })  # fmt: skip
    header = ["", "streams x window x units x layers x words", "words/s", "PyTorch", "ratio"]
    sys.stdout.write(f"| {' | '.join(header)} |\n| --- | --- | ---: | ---: | ---: |\n")
    for row in rows:
        sys.stdout.write(
            f"| {row['name']} | {row['size']} | {row['words_per_second']:,.0f} | "
            f"{row['words_per_second_pytorch']:,.0f} | {row['speed_vs_pytorch']:.2f} |\n"
        )
    Path(__file__).with_suffix(".json").write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How often a language model finds a sentence more probable than the same words in random order.

    python bench/shuffled_sentences.py --run RUN FILE

Reads one sentence a line, leaves out those of fewer than 8 words and those whose words stand in the same order after
shuffling, and prints the share of pairs that the run ranks rightly.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared import evaluate
from shared.config import load_config
from shared.run import Run
from tasks.language_model.__main__ import PROGRAM
from tasks.language_model.decode import score_texts

SHORTEST = 8  # words


def main():
    """Prints `pairs` and `ranked_rightly`, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, metavar="DIR", help="run of the language model")
    parser.add_argument("file", type=Path, help="sentences, one per line")
    arguments = parser.parse_args()
    run = Run.open(arguments.run, PROGRAM.config_class)
    context = evaluate.restore(PROGRAM.load_task(), run, load_config(PROGRAM.config_class, run.config))
    draw = random.Random(1)
    pairs = []
    for line in arguments.file.read_text(encoding="utf-8").splitlines():
        words = line.split()
        shuffled = draw.sample(words, len(words))
        if len(words) >= SHORTEST and shuffled != words:
            pairs.append((" ".join(words), " ".join(shuffled)))
    real, mixed = (
        [result["log_prob"] for result in score_texts(context.config, context.model, context.features, texts)]
        for texts in zip(*pairs, strict=True)
    )
    right = sum(a > b for a, b in zip(real, mixed, strict=True))
    sys.stdout.write(f"pairs                {len(pairs)}\nranked_rightly       {100 * right / len(pairs):.2f}\n")


if __name__ == "__main__":
    main()

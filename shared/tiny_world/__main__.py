"""How many lines of a text are sentences of the tiny world: `python -m shared.tiny_world [--language de] < FILE`."""

import argparse
import math
import sys

from shared.tiny_world import english, german
from shared.tiny_world.grammar import Grammar


def is_sentence(parse, line: str) -> bool:
    """Whether the grammar of the texts has a scene that is told by exactly this line."""
    try:
        return Grammar().log_prob(parse(line)) > -math.inf
    except ValueError:
        return False


def main() -> None:
    """Reads stdin; prints the number of lines and the shares of sentences and of different lines, in per cent."""
    parser = argparse.ArgumentParser(prog="python -m shared.tiny_world", description=__doc__)
    parser.add_argument("--language", choices=("en", "de"), default="en", help="default: en")
    parse = {"en": english, "de": german}[parser.parse_args().language].parse
    lines = [line.rstrip("\n") for line in sys.stdin]
    if not lines:
        sys.exit("error: stdin is empty")
    valid = sum(is_sentence(parse, line) for line in lines)
    sys.stdout.write(f"lines                {len(lines)}\n")
    sys.stdout.write(f"sentences            {100 * valid / len(lines):.2f}\n")
    sys.stdout.write(f"different            {100 * len(set(lines)) / len(lines):.2f}\n")


if __name__ == "__main__":
    main()

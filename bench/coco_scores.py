"""What this suite and COCO's own evaluation say of the same captions.

    python bench/coco_scores.py FILE

Reads the predictions of a captioning run, predictions/SPLIT.jsonl; any JSON lines with "output" and "captions" will do.
Prints each score as tasks.captioning.score gives it, as the package pycocoevalcap gives it for the words of its own
tokeniser and for ours, and the share of texts that the two tokenisers cut differently. Needs Java and
`pip install pycocoevalcap`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tasks.captioning.score import Cider, bleu_scores, rouge_l, tokenized

try:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider as CocoCider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
except ImportError:
    sys.exit("error: the comparison needs pycocoevalcap: .venv/bin/python -m pip install pycocoevalcap")

BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}


def own_scores(outputs: list[list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    """This suite's scores of words, in per cent."""
    singly = {"rouge_l": rouge_l, "cider": Cider.fit(references).score}
    means = {name: 100 * sum(map(measure, outputs, references)) / len(outputs) for name, measure in singly.items()}
    return bleu_scores(outputs, references)[0] | means


def coco_scores(outputs: list[list[str]], references: list[list[list[str]]]) -> dict[str, float]:
    """pycocoevalcap's scores of words, in per cent."""
    candidates = {number: [" ".join(output)] for number, output in enumerate(outputs)}
    captions = {number: list(map(" ".join, lines)) for number, lines in enumerate(references)}
    bleu = Bleu(4).compute_score(captions, candidates, verbose=0)[0]
    scores = {f"bleu{n}": value for n, value in enumerate(bleu, 1)}
    scores |= {"rouge_l": Rouge().compute_score(captions, candidates)[0]}
    scores |= {"cider": CocoCider().compute_score(captions, candidates)[0]}
    return {name: 100 * float(value) for name, value in scores.items()}


def coco_tokenized(texts: list[str]) -> list[list[str]]:
    """pycocoevalcap's words of each text, brackets as they were."""
    lines = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [[BRACKETS.get(word, word) for word in lines[number][0].split()] for number in range(len(texts))]


def main():
    """Prints one line per score, then how many texts there are and the share that is cut differently, in per cent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="predictions: JSON lines with output and captions")
    predictions = [json.loads(line) for line in parser.parse_args().file.read_text(encoding="utf-8").splitlines()]
    texts = [text for prediction in predictions for text in (prediction["output"], *prediction["captions"])]
    own_words, coco_words = list(map(tokenized, texts)), coco_tokenized(texts)

    def scored(measure, words) -> dict[str, float]:
        remaining = iter(words)
        pairs = [(next(remaining), [next(remaining) for _ in line["captions"]]) for line in predictions]
        return measure(*map(list, zip(*pairs, strict=True)))

    columns = scored(own_scores, own_words), scored(coco_scores, coco_words), scored(coco_scores, own_words)
    sys.stdout.write(f"{'':10}{'this suite':>16}{'pycocoevalcap':>16}{'with our words':>16}\n")
    for name in columns[0]:
        sys.stdout.write(f"{name:10}{''.join(f'{column[name]:16.4f}' for column in columns)}\n")
    different = sum(own != coco for own, coco in zip(own_words, coco_words, strict=True))
    sys.stdout.write(f"{len(texts):,} texts, {100 * different / len(texts):.4f} % cut differently\n")


if __name__ == "__main__":
    main()

"""The Free Spoken Digit Dataset's recordings go in; manifests for `tasks.speech` come out.

    python bench/fsdd_manifest.py FOLDER/recordings OUTPUT

writes OUTPUT/train.tsv, valid.tsv and test.tsv with the set's own split: of each speaker and digit, recordings 0 to 4
test and the others train, of which 5 to 8 validate here.
"""

import sys
from pathlib import Path

DIGITS = (  # as North American dictionaries have them
    ("zero", "z ih r ow"), ("one", "w ah n"), ("two", "t uw"), ("three", "th r iy"), ("four", "f ao r"),
    ("five", "f ay v"), ("six", "s ih k s"), ("seven", "s eh v ah n"), ("eight", "ey t"), ("nine", "n ay n"),
)  # fmt: skip


def split_of(index: int) -> str:
    """The split of a speaker's recording of a digit by its number."""
    return "test" if index < 5 else "valid" if index < 9 else "train"


def main(recordings: Path, output: Path) -> None:
    """Reads names such as 7_jackson_32.wav and writes the three files."""
    rows = {"train": [], "valid": [], "test": []}
    for path in sorted(recordings.glob("*.wav")):
        digit, speaker, index = path.stem.split("_")
        rows[split_of(int(index))].append("\t".join([str(path.resolve()), speaker, *DIGITS[int(digit)]]))
    output.mkdir(parents=True, exist_ok=True)
    for split, lines in rows.items():
        text = "\n".join(["audio\tspeaker\ttext\tphones", *lines])
        (output / f"{split}.tsv").write_text(f"{text}\n", encoding="utf-8")
        print(f"{split} {len(lines)}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))

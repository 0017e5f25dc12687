"""Files of captions: their many kinds flow in; the names of pictures, each with its captions, flow out.

A file that cannot be read at all is a `UserError` of one line; what is wrong with single lines, entries and pictures is
gathered in `Faults`.
"""

import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from shared import corpora
from shared.config import UserError

logger = logging.getLogger(__name__)

SHOWN = 3  # of what is wrong in the same way
PICTURE_COLUMNS = ("image", "picture", "file", "filename", "file_name", "image_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence")
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "valid", "test": "test"}

Captions = dict[str, list[str]]
"""Picture -> what is said of it, in the order of the file."""
Rows = Iterator[tuple[str, Any, Any]]
"""(where it stands, picture, caption or captions); whether these are texts is checked by `gathered` alone."""


class Faults:
    """What is wrong with single pictures and captions, gathered to be told in one line."""

    def __init__(self):
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Notes that `name`, a picture or a line, is wrong in the way that `kind` says."""
        self.found.setdefault(kind, []).append(name)

    def settle(self, source: str | Path, skip: bool) -> None:
        """UserError that names the first of each kind; with `skip` a warning, since all of them are left out."""
        if not self.found:
            return
        kinds = (f"{kind}: {len(names)} ({_first(names)})" for kind, names in self.found.items())
        message = f"{source}: {'; '.join(kinds)}"
        if not skip:
            raise UserError(f"{message}; mend that, or leave it out with data.on_error=skip")
        logger.warning("left out: %s", message)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def gathered(rows: Rows, source: Path, faults: Faults) -> Captions:
    """The rows of a file by pictures; empty captions are left out and counted. UserError if there is no row."""
    found, empty, where = {}, 0, ""
    for where, picture, told in rows:
        captions = [told] if isinstance(told, str) else told
        named = isinstance(picture, str) and picture.strip()
        if not named or not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            faults.add("no picture with captions", where)
            continue
        captions = [" ".join(caption.split()) for caption in captions]
        found.setdefault(str(PurePosixPath(picture.strip())), []).extend(filter(None, captions))
        empty += captions.count("")
    if not where:
        raise UserError(f"{source}: no caption in it")
    if empty:
        logger.warning("%s: %d empty captions left out", source, empty)
    return found


# ---------------------------------------------------------------------------------------------------- kinds of files


def token_rows(path: Path, faults: Faults) -> Rows:
    """Flickr8k's: lines `picture.jpg#number TAB caption`."""
    for number, line in text_lines(path, faults):
        picture, _, caption = line.partition("\t")
        yield f"line {number}", picture.rpartition("#")[0], caption


def picture_list(path: Path, faults: Faults) -> list[str]:
    """Names of pictures, one per line, each once."""
    return list(dict.fromkeys(line.strip() for _, line in text_lines(path, faults) if line.strip()))


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a file; lines that are not UTF-8 are noted."""
    for number, line in enumerate(corpora.lines(path), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError:
            faults.add(f"not valid UTF-8 in {path.name}", f"line {number}")

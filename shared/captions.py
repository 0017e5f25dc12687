"""Files of captions: their many kinds flow in; the names of pictures, each with its captions, flow out.

A file that cannot be read at all is a `UserError` of one line; what is wrong with single lines, entries and pictures is
gathered in `Faults`.
"""

import csv
import json
import logging
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared import corpora
from shared.config import UserError, one_line

logger = logging.getLogger(__name__)

SHOWN = 3  # of what is wrong in the same way
PICTURE_COLUMNS = ("image", "picture", "file", "filename", "file_name", "image_name")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentence")
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "valid", "test": "test"}

Captions = dict[str, list[str]]
"""Picture -> what is said of it, in the order of the file."""
Rows = Iterable[tuple[str, Any, Any]]
"""(where it stands, picture, caption or captions); that these are texts is checked by `gathered` alone."""


class Faults:
    """What is wrong with single pictures and captions, gathered to be told in one line."""

    def __init__(self):
        self.found: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Notes that `name`, a picture or a line, is wrong in the way that `kind` says."""
        self.found.setdefault(kind, []).append(name)

    def settle(self, source: str | Path, skip: bool) -> None:
        """UserError that counts each kind and names its first; with `skip` a warning, since they are left out."""
        if not self.found:
            return
        kinds = (f"{kind}: {len(names)} ({_first(names)})" for kind, names in self.found.items())
        message = f"{source}: {'; '.join(kinds)}"
        if not skip:
            raise UserError(f"{message}; mend them, or leave them out with data.on_error=skip")
        logger.warning("left out: %s", message)


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def gathered(rows: Rows, source: Path, faults: Faults) -> Captions:
    """The rows of a file by pictures; empty captions are left out and counted. UserError if it is empty."""
    found, empty, where = {}, 0, ""
    for where, picture, told in rows:
        captions = [told] if isinstance(told, str) else told
        named = isinstance(picture, str) and picture.strip()
        if not named or not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            faults.add("entries without a picture's name or without text", where)
            continue
        captions = [" ".join(caption.split()) for caption in captions]
        found.setdefault(posixpath.normpath(picture.strip()), []).extend(filter(None, captions))
        empty += captions.count("")
    if not where and not faults.found:
        raise UserError(f"{source}: no caption in it")
    if empty:
        logger.warning("%s: %d empty captions left out", source, empty)
    return found


# -------------------------------------------------------------------------------------------------------------- tables


def table_rows(path: Path, faults: Faults) -> Rows:
    """The rows of a file of a kind in `TABLES`, plain or with .gz behind it.

    A TSV has lines `picture TAB caption` and no header; a CSV has a header with one of `PICTURE_COLUMNS` and one of
    `CAPTION_COLUMNS`; JSON is {picture: captions} or a list of objects with such keys, and JSONL has one on each line.
    """
    return TABLES[Path(path.name.removesuffix(".gz")).suffix](path, faults)


def _tsv(path: Path, faults: Faults) -> Rows:
    for where, line in text_lines(path, faults):
        picture, tab, caption = line.partition("\t")
        yield where, picture, caption if tab else None


def _csv(path: Path, faults: Faults) -> Rows:
    reader = csv.DictReader((f"{line}\n" for _, line in text_lines(path, faults, blank=True)), strict=True)
    try:
        columns = reader.fieldnames or ()
        picture, caption = (_column(path, columns, names) for names in (PICTURE_COLUMNS, CAPTION_COLUMNS))
        for row in reader:
            where = f"{path.name} line {reader.line_num}"
            if None in row:
                faults.add("lines with more cells than columns, which need quotation marks around commas", where)
            else:
                yield where, row[picture], row[caption]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read behind line {reader.line_num}: {one_line(error)}") from error


def _column(path: Path, columns: Iterable[str], names: tuple[str, ...]) -> str:
    if found := next((column for column in columns if column.strip().lower() in names), None):
        return found
    has = ", ".join(columns) or "none"
    raise UserError(f"{path}: no column {' or '.join(names)} in its first line; it has {has}")


def _json(path: Path, faults: Faults) -> Rows:
    content = read_json(path)
    if isinstance(content, dict):
        return [(f"{path.name}: {picture}", picture, told) for picture, told in content.items()]
    if isinstance(content, list):
        return [_entry(f"{path.name} entry {number}", entry) for number, entry in enumerate(content, start=1)]
    raise UserError(f'{path}: neither {{"picture": ["caption", ...], ...}} nor [{{"image": ..., "caption": ...}}, ...]')


def _jsonl(path: Path, faults: Faults) -> Rows:
    for where, line in text_lines(path, faults):
        try:
            yield _entry(where, json.loads(line))
        except ValueError:
            faults.add("lines that are not JSON", where)


def _entry(where: str, entry: Any) -> tuple[str, Any, Any]:
    entry = entry if isinstance(entry, Mapping) else {}
    values = ([entry[name] for name in names if name in entry] for names in (PICTURE_COLUMNS, CAPTION_COLUMNS))
    return where, *(next(iter(found), None) for found in values)


TABLES = {".tsv": _tsv, ".csv": _csv, ".json": _json, ".jsonl": _jsonl}

# ------------------------------------------------------------------------------------------------------- public layouts


def token_rows(path: Path, faults: Faults) -> Rows:
    """Flickr8k's: lines `picture.jpg#number TAB caption`."""
    for where, line in text_lines(path, faults):
        picture, tab, caption = line.partition("\t")
        yield where, picture.rpartition("#")[0], caption if tab else None


def picture_list(path: Path, faults: Faults) -> list[str]:
    """Names of pictures, one per line, each once."""
    return list(dict.fromkeys(line.strip() for _, line in text_lines(path, faults)))


def coco_rows(path: Path) -> Rows:
    """COCO's: "images" with "id" and "file_name", "annotations" with "image_id" and "caption"."""
    content = read_json(path)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        told = [(each["image_id"], each["caption"]) for each in content["annotations"]]
    except (KeyError, TypeError) as error:
        wanted = '"images" with "id" and "file_name", "annotations" with "image_id" and "caption"'
        raise UserError(f"{path}: not in COCO's layout: {wanted}") from error
    pictures = [(path.name, name, []) for name in names.values()]
    return pictures + [(f"{path.name} image_id {each}", names.get(each), caption) for each, caption in told]


def karpathy_rows(path: Path) -> dict[str, Rows]:
    """Split -> rows of Karpathy's: "images" with "filename", "split", "sentences", and perhaps "filepath" before it."""
    found = {}
    try:
        for number, image in enumerate(read_json(path)["images"], start=1):
            name = posixpath.join(image.get("filepath", ""), image["filename"])
            row = (f"{path.name} image {number}", name, [each["raw"] for each in image["sentences"]])
            found.setdefault(KARPATHY_SPLITS.get(image["split"]), []).append(row)
    except (KeyError, TypeError, AttributeError) as error:
        wanted = '"images" with "filename", "split" and "sentences", these with "raw"'
        raise UserError(f"{path}: not in Karpathy's layout: {wanted}") from error
    return found


# --------------------------------------------------------------------------------------------------------------- files


def text_lines(path: Path, faults: Faults, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(file and line, from 1, text) of the lines that are not blank; those that are not UTF-8 are noted.

    With `blank` these come, too, as "", so that all lines can be counted.
    """
    for number, line in enumerate(corpora.lines(path), start=1):
        where, text = f"{path.name} line {number}", ""
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            faults.add("lines that are not valid UTF-8", where)
        if blank or text.strip():
            yield where, text


def read_json(path: Path) -> Any:
    """The content of a JSON file, plain or with .gz behind it. UserError if it is none."""
    try:
        return json.loads(b"\n".join(corpora.lines(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {one_line(error)}") from error

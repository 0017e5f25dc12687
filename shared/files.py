"""Files that commands read and write: a folder goes in, the files in it come out."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shared.config import UserError


def files_in(folder: str | Path, endings: Sequence[str], kind: str) -> list[Path]:
    """The files in a folder and in its folders whose names end as those of a kind do, in order; hidden ones left out.

    UserError for a folder without any.
    """
    found = sorted(path for path in Path(folder).rglob("[!.]*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise UserError(f"{folder}: no {kind} in it or in its folders; {', '.join(endings)} are looked for")
    return found


def expanded(names: Iterable[str], endings: Sequence[str], kind: str) -> Iterator[str]:
    """The names of files, and in the place of each folder those of the files in it, see `files_in`; no blank lines."""
    for name in filter(str.strip, names):
        if Path(name).is_dir():
            yield from map(str, files_in(name, endings, kind))
        else:
            yield name


def check_stems(option: str, names: Iterable[str]) -> None:
    """Raises UserError if what is written of two of these files, under their names without endings, would be one."""
    first = {}
    for name in names:
        other = first.setdefault(Path(name).stem, name)
        if other != name:
            raise UserError(f"{option}: {other} and {name} would be one file; take folders one after the other")

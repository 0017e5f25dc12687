"""What is computed from a corpus once, and then read from a folder beside it."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from shared.config import RunError, one_line


def computed_once(
    folder: Path, compute: Callable[[], Iterable[tuple[dict, np.ndarray]]]
) -> tuple[list[dict], np.ndarray]:
    """Records, and their arrays behind one another: what `compute` yields, which only the first call asks.

    Args:
        folder: holds both afterwards; its name has to tell apart all that decides on them.
        compute: () -> pairs of a record, which JSON can hold, and an array (rows, ...); all of one type and but for
            the rows of one shape.

    Returns:
        The records, and the rows of all (rows, ...), read from the disk where they are used; (0,) where there are none.
        RunError if the folder cannot be written.
    """
    if not folder.exists():
        with _appearing(folder) as unfinished:
            _write(unfinished, compute())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_bytes().splitlines()]
    kind = json.loads((folder / "kind.json").read_bytes())
    if not (folder / "rows").stat().st_size:
        return records, np.zeros((0, *kind["shape"]), kind["dtype"])  # an empty file cannot be mapped
    return records, np.asarray(np.memmap(folder / "rows", kind["dtype"], "r")).reshape(-1, *kind["shape"])


def _write(folder: Path, pairs: Iterable[tuple[dict, np.ndarray]]) -> None:
    array = np.zeros(0)
    with open(folder / "rows", "wb") as rows, open(folder / "records.jsonl", "wb") as records:
        for record, array in pairs:
            rows.write(np.ascontiguousarray(array))
            records.write(json.dumps(record).encode() + b"\n")
    (folder / "kind.json").write_text(json.dumps({"dtype": array.dtype.str, "shape": array.shape[1:]}))


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write into. It becomes `folder` once the body succeeds, and is removed if it does not.

    Where another process was faster, its folder stays. Raises RunError, one line naming the folder, for OSError.
    """
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        os.replace(unfinished, folder)
    except OSError as error:
        if not folder.exists():
            raise RunError(f"{folder}: cannot be written: {error.strerror or one_line(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)

"""What was computed once is read again; nothing half written is taken for whole."""

import itertools
import os

import numpy as np
import pytest

from shared.cache import computed_once
from shared.config import RunError

ROWS = np.arange(9, dtype=np.float32).reshape(3, 3)
PAIRS = [({"name": "one"}, ROWS[:2]), ({"name": "two"}, ROWS[2:])]


def once(folder, pairs=PAIRS):
    return computed_once(folder, lambda: pairs)


def broken(error):
    yield PAIRS[0]
    raise error


def test_only_the_first_call_computes_and_rows_stay_on_the_disk(tmp_path):
    first_records, first_rows = once(tmp_path / "some")
    records, rows = once(tmp_path / "some", broken(AssertionError("computed again")))
    assert records == first_records == [record for record, _ in PAIRS]
    np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(rows, first_rows)
    assert rows.dtype == np.float32 and isinstance(rows.base.base, np.memmap)


def test_of_nothing_there_are_no_rows(tmp_path):
    records, rows = once(tmp_path / "none", [])
    assert records == [] and len(rows) == 0


def test_a_full_disk_is_one_line_and_nothing_half_written_is_taken_for_whole(tmp_path):
    folder = tmp_path / "rows" / "some"
    with pytest.raises(RunError, match=r"rows/some: cannot be written: No space left on device"):
        once(folder, broken(OSError(28, "No space left on device")))
    assert list(folder.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        once(folder, broken(KeyboardInterrupt()))
    assert list(folder.parent.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        once(tmp_path / "file" / "some")


def test_what_a_killed_process_left_is_not_read(tmp_path):
    leftover = tmp_path / f"some.{os.getpid()}.unfinished"
    leftover.mkdir()
    (leftover / "rows").write_bytes(b"half")
    assert once(tmp_path / "some")[1].shape == (3, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_of_two_processes_the_first_one_wins(tmp_path):
    folder = tmp_path / "some"

    def raced():
        yield from PAIRS
        # Another process, with the same name by bad luck.
        once(folder, itertools.islice(PAIRS, 1))
        (tmp_path / f"some.{os.getpid()}.unfinished").mkdir()

    records, rows = once(folder, raced())
    assert len(records) == 1 and rows.shape == (2, 3) and [path.name for path in tmp_path.iterdir()] == ["some"]

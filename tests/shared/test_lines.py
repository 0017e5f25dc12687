"""Lines come out as they stand in the files, whatever ends them, and what is no text is named."""

import io
import sys

import pytest

from shared.config import UserError
from shared.lines import read_lines


@pytest.fixture
def write(tmp_path, monkeypatch):
    """(name, bytes) -> the file's name; the name "-" is stdin."""

    def write(name, content):
        if name == "-":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            return name
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def test_files_and_stdin_follow_each_other(write):
    names = [write("one", b"a b\n\n c \r\n"), write("-", "ä\nö".encode()), write("empty", b"")]
    assert list(read_lines(names)) == ["a b", "", " c ", "ä", "ö"]
    assert list(read_lines(names[::-1])) == ["a b", "", " c "]  # stdin is read up
    assert list(read_lines([])) == []


def test_a_byte_order_mark_and_foreign_separators_are_no_lines_ends(write):
    assert list(read_lines([write("one", "\ufeffa\x0bb\u2028c\rd\n\ufeffe\n".encode())])) == [
        "a\x0bb\u2028c\rd",
        "\ufeffe",
    ]


@pytest.mark.parametrize("name", ["latin", "-"])
def test_bytes_that_are_no_text_are_named_after_the_lines_before(write, name):
    lines = read_lines([write(name, b"one\ntwo\nf\xfcr\n")])
    assert [next(lines), next(lines)] == ["one", "two"]
    with pytest.raises(UserError, match=rf"{'stdin' if name == '-' else 'latin'}: line 3 is not valid UTF-8 .byte 2"):
        next(lines)


def test_what_cannot_be_read_is_named(tmp_path):
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=f"{path}: cannot be read: {reason}"):
            list(read_lines([str(path)]))

"""Lines of text that a command reads: names of files go in, where "-" is stdin, and their lines come out one by one."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

from shared.config import UserError


def read_lines(files: Iterable[str]) -> Iterator[str]:
    """Lines of files one after the other; "-" is stdin. UserError naming the file, and the line that is not UTF-8."""
    for name in files:
        try:
            with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else open(name, "rb") as file:
                for number, line in enumerate(file, 1):
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            shown = "stdin" if name == "-" else name
            raise UserError(f"{shown}: line {number} is not valid UTF-8 (byte {error.start + 1})") from error
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from error

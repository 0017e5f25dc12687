"""Errors of the user: a call and what its message must hold go in, the message comes out."""

from collections.abc import Callable

import pytest

from shared.config import UserError


def one_line_error(call: Callable[[], object], *parts: object) -> str:
    """The message of the UserError that a call raises, which is one line and holds every part."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message

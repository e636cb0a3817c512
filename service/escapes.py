"""Plain text of what programs print for terminals: without colours, and without what turns lines around."""

from __future__ import annotations

import re

_SEQUENCES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    "|\x1b\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\)?"  # titles of windows, links
    "|\x1b[ -/]*[0-~]"  # character sets, and others of two characters
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_ASCII_CONTROL = bytes(code for code in range(128) if _CONTROL.match(chr(code)))


def without_sequences(text: str) -> str:
    """Returns the text without escape sequences.

    >>> without_sequences("\\x1b[31mred\\x1b[0m, not blue")
    'red, not blue'
    """
    return _SEQUENCES.sub("", text) if "\x1b" in text else text


def without_controls(text: str) -> str:
    """Returns the text without control characters but tabs and line breaks, and without marks of direction.

    >>> without_controls("a bell\\x07,\\ta turn \\u202eback")
    'a bell,\\ta turn back'
    """
    if text.isascii():  # most is, and for it this takes a tenth of the time
        return text.encode().translate(None, _ASCII_CONTROL).decode()
    return _CONTROL.sub("", text)

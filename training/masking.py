"""Masks the values of secrets in text: in logs, messages and tracebacks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

MASK = "***"


class Masker:
    """Replaces secrets wherever they occur whole: as they are, quoted by Python or JSON, or in a URL.

    secrets: the values; without any, nothing changes.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        # A secret that contains another one is replaced as a whole.
        self._forms = sorted((form.encode() for form in forms), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._forms)))

    def __bool__(self) -> bool:
        return bool(self._forms)

    def mask(self, text: str) -> str:
        """Returns the text with its secrets masked."""
        if not self._forms:
            return text
        return self.mask_bytes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def mask_bytes(self, text: bytes) -> bytes:
        """As `mask`, for text in UTF-8."""
        return self._pattern.sub(MASK.encode(), text) if self._forms else text

    def begun_at(self, text: bytes) -> int:
        """Returns where a secret may begin that goes on after the end of `text`; its length if nowhere."""
        return min((_begun_at(form, text) for form in self._forms), default=len(text))

    def first(self, text: bytes) -> tuple[int, int] | None:
        """Returns begin and end of the first secret in `text`, or None."""
        found = self._pattern.search(text) if self._forms else None
        return found.span() if found else None


class MaskedStream:
    """Masks a stream of bytes whose pieces may end within a secret. Holds back only what may be one."""

    def __init__(self, masker: Masker) -> None:
        self._masker, self._held = masker, b""

    def feed(self, piece: bytes) -> bytes:
        """Returns what may be shown now that `piece` has arrived."""
        text, shown = self._held + piece, []
        while True:
            begun, found = self._masker.begun_at(text), self._masker.first(text)
            if found is None or found[0] >= begun:
                break
            # A longer secret may begin before this one ends, but this one is complete.
            shown.append(self._masker.mask_bytes(text[: found[1]]))
            text = text[found[1] :]
        self._held = text[begun:]
        return b"".join([*shown, text[:begun]])

    def flush(self) -> bytes:
        """Returns what was held back, at the end of the stream."""
        text, self._held = self._masker.mask_bytes(self._held), b""
        return text


def _begun_at(form: bytes, text: bytes) -> int:
    start = text.find(form[:1], max(len(text) - len(form) + 1, 0))
    while start >= 0:
        # The first comparison spares the second one, which copies the rest of the text.
        if form.startswith(text[start : start + 16]) and form.startswith(text[start:]):
            return start
        start = text.find(form[:1], start + 1)
    return len(text)


def _forms(secret: str) -> set[str]:
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        quote(secret, safe=""),
        quote(secret),
        quote_plus(secret),
        repr(secret.encode())[2:-1],
    }

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus

from hypothesis import given
from hypothesis import strategies as st

from training.masking import MASK, MaskedStream, Masker

SECRETS = [
    "hunter-2-hunter",
    "2-hunter-3",
    "line one\nline 'two'\nline \"three\"",
    "pass word/ä",
    "aaaa",
    "aab",
]
PIECES = st.lists(
    st.sampled_from([*SECRETS, *(secret[:4] for secret in SECRETS), "a", "b", " ", "hunter-", "2-"]),
    max_size=12,
)


@given(st.sampled_from(SECRETS), st.text(max_size=5))
def test_a_secret_is_masked_in_every_form_in_which_logs_quote_it(secret: str, around: str) -> None:
    masker = Masker([secret])
    url = f"https://x/?t={quote(secret, safe='')}"
    written = f"{around} {secret!r} {json.dumps({'token': secret})} {url} {secret}"

    masked = masker.mask(written)

    assert masked.count(MASK) >= 4
    assert quote_plus(secret) not in masker.mask(f"{around} k={quote_plus(secret)}")
    for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")):
        assert form not in masked


@given(PIECES, st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_a_stream_is_masked_however_it_is_cut(words: list[str], sizes: list[int]) -> None:
    text, stream, shown = "".join(words).encode(), MaskedStream(Masker(SECRETS)), b""
    for number in range(len(text) + 1):
        size = sizes[number % len(sizes)]
        piece, text = text[:size], text[size:]
        shown += stream.feed(piece)
    shown += stream.flush()

    whole = "".join(words)
    assert not [secret for secret in SECRETS if secret.encode() in shown]
    if not any(secret in whole for secret in SECRETS):
        assert shown.decode() == whole


def test_nothing_is_held_back_that_cannot_be_a_secret() -> None:
    stream = MaskedStream(Masker(["secret-value"]))

    assert stream.feed(b"step 1\nsecret") == b"step 1\n"
    assert stream.feed(b" no\nsecret-") == b"secret no\n"
    assert stream.feed(b"value!") == MASK.encode() + b"!"
    assert Masker([]).mask("anything") == "anything"

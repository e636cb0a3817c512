"""Whether a class or function accepts the arguments that a spec gives it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from inspect import Signature


def arguments_problem(
    signature: Signature, args: Sequence[object], named: Mapping[str, object]
) -> str | None:
    """Returns what is wrong with a call, and the way out; None if the signature accepts it.

    args: positional arguments, which the training adds. named: those of the spec.
    """
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        unknown = next((name for name in named if name not in signature.parameters), None)
        close = difflib.get_close_matches(unknown or "", signature.parameters, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; it takes {signature}"
        return f"{error}{hint}"
    return None

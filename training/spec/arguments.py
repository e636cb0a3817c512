"""Whether a class or function accepts the arguments that a spec gives it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature


def arguments_problem(
    signature: Signature, args: Sequence[object], named: Mapping[str, object]
) -> str | None:
    """Returns what is wrong with a call, and the way out; None if the signature accepts it.

    args: positional arguments, which the training adds. named: those of the spec.
    """
    parameters = signature.parameters
    open_ended = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if open_ended else [name for name in named if name not in parameters]
    if unknown:
        close = difflib.get_close_matches(unknown[0], parameters, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {signature}"
        return f"got an unexpected keyword argument {unknown[0]!r}; {hint}"
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return None

"""Whether a class or function accepts the arguments that a spec gives it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature

_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def arguments_problem(
    signature: Signature, args: Sequence[object], named: Mapping[str, object]
) -> str | None:
    """Returns what is wrong with a call, and the way out; None if the signature accepts it.

    args: positional arguments, which the training adds. named: those of the spec.
    """
    parameters = signature.parameters
    if _is_plain_call(parameters, args, named):
        return None
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


def _is_plain_call(
    parameters: Mapping[str, Parameter], args: Sequence[object], named: Mapping[str, object]
) -> bool:
    """Returns True only for a call that `bind` accepts: each parameter is given once, or has a default.

    That takes a tenth of the time of `bind`, which is asked about all others.
    """
    left, found = len(args), 0
    for name, parameter in parameters.items():
        if parameter.kind is Parameter.POSITIONAL_ONLY or parameter.kind in _ANY_NUMBER:
            return False
        if left and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            if name in named:
                return False
            left -= 1
        elif name in named:
            found += 1
        elif parameter.default is Parameter.empty:
            return False
    return not left and found == len(named)

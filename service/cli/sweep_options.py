"""The options of `syncbn sweep`, as the keys of a sweep in the REST API."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="KEY=VALUE,VALUE,…",
        help="Try these values of a key, in all combinations with the others; may be repeated.",
    ),
]
Random = Annotated[
    int | None, typer.Option("--random", min=1, metavar="N", help="Try N points drawn from --space.")
]
Space = Annotated[
    list[str] | None,
    typer.Option(
        "--space",
        metavar="KEY=MIN..MAX[:log]",
        help="Draw a key's values from a range, evenly or on a logarithmic scale, or from KEY=VALUE,VALUE,…; "
        "may be repeated.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the draws; default 0.")]
Repeat = Annotated[
    str | None,
    typer.Option(
        "--repeat",
        metavar="N|SEED,SEED,…",
        help="Run each point with these values of training.seed, or with N: the spec's and the next ones.",
    ),
]
MaxRunning = Annotated[
    int | None, typer.Option("--max-running", min=1, metavar="K", help="Run at most K jobs at once.")
]
_RANGE = re.compile(r"([^,]+?)\.\.([^,:]+)(:log)?")


def plan(
    given: Mapping[str, Any],
    grid: list[str] | None,
    random: int | None,
    space: list[str] | None,
    seed: int | None,
    repeat: str | None,
    max_running: int | None,
) -> dict[str, Any]:
    """Returns the section `sweep` of a spec with the options added, which win. Raises SpecError.

    Checks only the form of the options; the server checks the rest.
    """
    made: dict[str, Any] = dict(given)
    if grid:
        pairs = [_pair("--grid", each) for each in grid]
        for number, (key, _) in enumerate(pairs):
            if key in dict(pairs[:number]):
                raise typer.BadParameter(
                    f"{key} is given twice; write all its values after one --grid", param_hint="--grid"
                )
        made["grid"] = {**_mapping(made.get("grid")), **dict(pairs)}
    if random is not None or seed is not None or space:
        before = _mapping(made.get("random"))
        draws = {"count": random, "seed": seed}
        made["random"] = {
            **before,
            **{key: value for key, value in draws.items() if value is not None},
            "space": {**_mapping(before.get("space")), **dict(map(_space, space or ()))},
        }
        if "count" not in made["random"]:
            raise typer.BadParameter("say how many points to draw", param_hint="--random")
    if repeat is not None:
        seeds = _values("--repeat", "training.seed", repeat)
        made["repeat"] = seeds if "," in repeat else seeds[0]
    return made if max_running is None else {**made, "max_running": max_running}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _space(text: str) -> tuple[str, Any]:
    key, _, values = text.partition("=")
    if match := _RANGE.fullmatch(values.strip()):
        low, high = _values("--space", key, f"{match[1]},{match[2]}")
        return key.strip(), {"min": low, "max": high, "log": match[3] is not None}
    return _pair("--space", text)


def _pair(option: str, text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not equals or not key.strip():
        raise typer.BadParameter(f"write KEY=VALUE,VALUE, not {text!r}", param_hint=option)
    return key.strip(), _values(option, key, values)


def _values(option: str, key: str, text: str) -> list[Any]:
    """Returns the values, typed as `--set` types them."""
    from training.spec import SpecError, load_yaml

    try:
        values = load_yaml(f"[{text}]")
    except SpecError as error:
        raise typer.BadParameter(f"{key}: {error}", param_hint=option) from None
    if not isinstance(values, list) or not values:
        raise typer.BadParameter(f"{key} has no values", param_hint=option)
    for number in _numbers(values):
        if not math.isfinite(number):
            raise typer.BadParameter(f"{key}: {number} is not a finite number", param_hint=option)
    return values


def _numbers(value: object) -> Iterator[float]:
    """Yields the floats in a value, also those in lists and mappings."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | Mapping):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(each)

"""Request bodies: size limits while they arrive, and parsing of specs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from pydantic import BaseModel, ValidationError

from service.api.body_limit import allow, too_large
from service.api.context import Context, Services
from service.errors import Refused
from service.queue.store import Store
from service.secrets import Secrets, missing_secret
from service.user_code.class_paths import class_count_problems, class_path_problems
from service.user_code.imports import missing_imports
from service.user_code.links import link_problems
from service.user_code.loggers import left_out_loggers
from service.user_code.modules import NotRead, only_remembered
from service.user_code.requirements import requirement_problems
from service.user_code.schedulers import scheduler_problems
from service.user_code.scripts import problems_in_archive
from training.spec import MAX_PROBLEMS, Problem, Spec, SpecError, load_yaml
from training.spec import read_spec as parse_with_notes
from training.spec.errors import problems_of

MAX_SPEC_BYTES = 2**20
MAX_SECRET_BYTES = 2**17
MAX_COMMAND_BYTES = 2**16
MAX_REPORT_BYTES = 2**25
_LEAST_SHARE = 0.0001  # Ray counts in ten-thousandths
MAX_BYTES_AT_ONCE = 2**14
MAX_DEPTH = 100
_MAX_EXPANDED = 2 * MAX_SPEC_BYTES
JSON_TYPE = "application/json"
SPEC_TYPES = (
    JSON_TYPE,
    "application/yaml",
    "application/x-yaml",
    "text/yaml",
    "text/x-yaml",
    "text/plain",
)
_OR_YAML = f"; send YAML as {SPEC_TYPES[1]}"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_TOO_DEEP = f"has values more than {MAX_DEPTH} levels deep"
CODE_TYPES = ("application/zip", "application/octet-stream")


@dataclass(frozen=True, kw_only=True)
class SpecText:
    """The body of a request that carries a spec. Without the JSON content type it is parsed as YAML."""

    content: bytes
    is_json: bool


async def spec_body(request: Request) -> SpecText:
    """Returns the body of a request that carries a spec. Raises HTTPException (413, 415)."""
    given = _check_type(request, SPEC_TYPES)
    content = await _read(request, MAX_SPEC_BYTES, "a spec")
    return SpecText(content=content, is_json=given == JSON_TYPE)


async def _code_body(request: Request, services: Services) -> bytes:
    _check_type(request, CODE_TYPES)
    return await _read(request, services.settings.max_code_bytes, "an archive")


SpecBody = Annotated[SpecText, Depends(spec_body)]
CodeBody = Annotated[bytes, Depends(_code_body)]


def json_body(model: type[BaseModel], *, default: BaseModel | None = None) -> Any:
    """Returns the dependency that reads a route's JSON body as `model`. default: for no body; None: refused.

    Every route reads its JSON so, and documents it with `json_schema`: of a key that occurs twice, FastAPI's
    own reading would take the last value without a word. The dependency raises HTTPException (413, 415), and
    Refused with the offending keys.
    """

    async def read(request: Request) -> BaseModel:
        _check_type(request, (JSON_TYPE,))
        content = await _read(request, MAX_COMMAND_BYTES, "a command")
        if default is not None and not content:
            return default
        try:
            return model.model_validate(_storable(_load_json(_text(content, "command"))))
        except ValidationError as error:
            problems = problems_of(error, model)
        except SpecError as error:
            problems = error.problems
        raise Refused("; ".join(map(str, problems)), problems)

    return Depends(read)


def json_schema(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Returns the `openapi_extra` of a route that reads its body with `json_body`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {JSON_TYPE: {"schema": schema}}}}


async def read_report(request: Request) -> str:
    """Returns the body of a request that stores a report. Raises Refused if it is not text."""
    _check_type(request, ("text/markdown", "text/html", "application/octet-stream"))
    return _text(await _read(request, MAX_REPORT_BYTES, "a report"), "report")


async def read_secret(request: Request) -> str:
    """Returns the body of a request that sets a secret. Raises Refused if it is not text."""
    _check_type(request, ("text/plain", "application/octet-stream"))
    return _text(await _read(request, MAX_SECRET_BYTES, "a secret"), "secret")


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise Refused(f"the {what} is not text in UTF-8") from None


def read_spec(body: SpecText, services: Context) -> tuple[Spec, list[str]]:
    """Parses the spec in the body and checks it without running any of the user's code. Raises SpecError.

    Returns the spec, and what is to be said about arguments of Lightning and imports of the user's code.
    """
    spec, notes = parse_with_notes(read_document(body))
    return spec, [*notes, *check_spec(spec, services)]


def read_spec_at_once(body: SpecText, services: Context) -> tuple[Spec, list[str]] | None:
    """Does `read_spec` without blocking, in the event loop: a thread costs more than a common spec's checks.

    Returns None if it would take long: a long text, YAML, code, secrets, checkpoints, an unknown class.
    """
    if not body.is_json or len(body.content) > MAX_BYTES_AT_ONCE:
        return None
    spec, notes = parse_with_notes(read_document(body))
    if spec.code or spec.environment.secrets or spec.start_from or spec.script:
        return None
    try:
        with only_remembered(services.stamps.get()):
            return spec, [*notes, *check_spec(spec, services)]
    except NotRead:
        return None


def read_document(body: SpecText) -> object:
    """Parses the body; every value in it can be stored. Raises SpecError."""
    try:
        text = body.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([_at((), f"not UTF-8 text: {error}")]) from None
    return _storable(_load_json(text, _OR_YAML) if body.is_json else _load_yaml(text))


def check_spec(spec: Spec, services: Context) -> list[str]:
    """Checks code and secrets that a valid spec names; returns what is to be noted. Raises SpecError."""
    problems, notes = _code_problems(spec, services.store)
    problems += _never_useful(spec)
    if wanted := spec.environment.secrets:
        missing = Secrets.of(services.settings, services.store).missing(wanted)
        problems += [Problem(key="environment.secrets", message=missing_secret(name)) for name in missing]
    if problems:
        raise SpecError(problems)
    return notes


def _never_useful(spec: Spec) -> list[Problem]:
    """Returns what a new spec must not ask for, although one that an earlier version accepted may have it."""
    problems = [
        Problem(
            key=f"labels.{key}" if key else "labels",
            message=f"jobs are listed by KEY:VALUE, so the key {key!r} would not be found: give it "
            "characters, and none of them a colon",
        )
        for key in spec.labels
        if not key or ":" in key
    ]
    for name in ("cpus_per_worker", "gpus_per_worker"):
        asked = getattr(spec.resources, name)
        if 0 < asked < _LEAST_SHARE:
            why = f"{asked:g} is less than the smallest share that Ray counts, {_LEAST_SHARE:g}"
            problems.append(Problem(key=f"resources.{name}", message=why))
    if spec.resources.gpus_per_worker > 1 and spec.resources.gpus_per_worker % 1:
        why = "a worker gets a part of one GPU, or whole GPUs: ask for less than 1, or for a whole number"
        problems.append(Problem(key="resources.gpus_per_worker", message=why))
    return problems


def _code_problems(spec: Spec, store: Store) -> tuple[list[Problem], list[str]]:
    """Returns what is wrong with the classes that the spec names, and what may be."""
    if spec.code and not store.has_code(spec.code):
        return [Problem(key="code", message="no archive of this digest; upload it first (POST /v1/code)")], []
    if too_many := class_count_problems(spec):
        return too_many, []
    archive = store.get_code(spec.code) if spec.code else None
    problems = [
        *problems_in_archive(spec, archive),
        *class_path_problems(spec, archive),
        *requirement_problems(spec, archive),
        *scheduler_problems(spec, archive),
    ]
    left_out = left_out_loggers(spec, archive)
    if not archive:
        return problems, left_out
    missing, notes = missing_imports(spec, archive)
    return [*problems, *link_problems(spec, archive), *missing], [*notes, *left_out]


def _load_json(text: str, advice: str = "") -> object:
    try:
        return json.loads(text, object_pairs_hook=_mapping, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise SpecError([_at((), f"not valid JSON: {error}{advice}")]) from None
    except RecursionError:
        raise SpecError([_at((), _TOO_DEEP)]) from None


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise SpecError([_at((), f"the key {repeated!r} occurs twice in one mapping; keep one of them")])
    return mapping


def _integer(digits: str) -> int:
    """Parses an integer. Returns 2**63, which is refused later, for one too long for 64 bits."""
    return int(digits) if len(digits) < 20 else 2**63


def _load_yaml(text: str) -> object:
    data = load_yaml(text)
    if _expanded(data, {}) > _MAX_EXPANDED:
        message = (
            f"expands to more than {_MAX_EXPANDED >> 20} MiB, or contains itself, through YAML aliases; "
            "write the values out"
        )
        raise SpecError([_at((), message)])
    return data


def _expanded(value: object, known: dict[int, float]) -> float:
    """Returns the size after expansion of YAML aliases, roughly as text; infinity if it contains itself."""
    if isinstance(value, str | bytes):
        return 1 + len(value)
    if not isinstance(value, Mapping | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # while it is measured: meeting it again means that it contains itself
        items = [*value, *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_expanded(item, known) for item in items)
    return known[id(value)]


def _storable(data: object) -> object:
    if not _is_storable(data):
        raise SpecError(list(islice(_unstorable(data, ()), MAX_PROBLEMS)))
    return data


def _is_storable(data: object) -> bool:
    """Returns whether `_unstorable` yields nothing, without the time that it takes to say where.

    Level by level, which takes half the time of a recursion.
    """
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif _unstorable_scalar(value) is not None:
                return False
        if not below:
            return True
        level = below
    return False


def _unstorable(value: object, path: tuple[str, ...]) -> Iterator[Problem]:
    """Yields a problem for each value that JSON or the database cannot store."""
    if len(path) > MAX_DEPTH:
        yield _at(path[:1], _TOO_DEEP)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if message := _unstorable_scalar(key):
                yield _at(path, f"the key {key!r} {message}")
            else:
                yield from _unstorable(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unstorable(item, (*path, str(index)))
    elif message := _unstorable_scalar(value):
        yield _at(path, message)


def _unstorable_scalar(value: object) -> str | None:
    if isinstance(value, str):
        odd = not value.isprintable() and _NO_TEXT.search(value)
        return "contains characters that are not text (NUL or half a surrogate pair)" if odd else None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a number that JSON can hold"
    if isinstance(value, int):
        return None if abs(value) < 2**63 else "is a number of more than 64 bits"
    return None if value is None else f"should be a value that JSON can hold; got {type(value).__name__}"


def _at(path: tuple[str, ...], message: str) -> Problem:
    return Problem(key=".".join(path), message=message)


def _check_type(request: Request, allowed: Iterable[str]) -> str:
    """Returns the body's content type in lower case, "" if not given. Raises HTTPException(415)."""
    codings = ",".join(request.headers.getlist("content-encoding")).split(",")
    if coded := [name for coding in codings if (name := coding.strip().lower()) not in {"", "identity"}]:
        detail = f"the body's Content-Encoding is {', '.join(coded)}: send it as it is, without this header"
        raise HTTPException(415, detail, headers={"Accept-Encoding": "identity"})
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given and given not in allowed:
        raise HTTPException(415, f"cannot read {given}; send one of {', '.join(allowed)}")
    return given


async def _read(request: Request, limit: int, what: str) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise too_large(what, limit)
    allow(request.scope, limit, what)
    return await request.body()

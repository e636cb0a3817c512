"""The page of the REST API: every route with examples, and a form that sends a request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response

from service.access.rules import rule_of
from service.api.documentation import anchor
from service.web.other_clients import OTHERS
from service.web.page import render


@dataclass(frozen=True, kw_only=True)
class Field:
    """A parameter as a form asks for it. options: its only values, () if there are others."""

    name: str
    place: str
    required: bool
    about: str
    example: str
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Body:
    """The body of a request. kinds: its media types. example: None if it is a file. schema: its name."""

    kinds: tuple[str, ...]
    example: str | None
    schema: str
    about: str
    required: bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer that a route may give. kinds: media types with the names of their schemas."""

    status: str
    about: str
    kinds: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route as the page shows it. scope: "" for everybody. target: the path of the example."""

    method: str
    path: str
    anchor: str
    summary: str
    about: str
    scope: str
    changes: bool
    fields: tuple[Field, ...]
    body: Body | None
    answers: tuple[Answer, ...]
    target: str
    command: str
    call: str


def documentation_page(request: Request) -> Response:
    """Returns the page of the application's routes."""
    document: Mapping[str, Any] = request.app.openapi()
    schemas = document.get("components", {}).get("schemas", {})
    return render(
        request,
        "docs.html",
        title=document["info"]["title"],
        groups=groups(document),
        schemas=[
            (name, anchor(name), json.dumps(schemas[name], indent=2, ensure_ascii=False))
            for name in sorted(schemas)
        ],
        base=str(request.base_url).rstrip("/"),
    )


def groups(document: Mapping[str, Any]) -> dict[str, list[Route]]:
    """Returns the routes of an OpenAPI document by their first tag."""
    found: dict[str, list[Route]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            tag = next(iter(operation.get("tags", [])), "other")
            found.setdefault(tag, []).append(_route(method.upper(), path, operation))
    return found


def _route(method: str, path: str, operation: Mapping[str, Any]) -> Route:
    key = f"{method} {path}"
    known = rule_of(method, path)
    rule = known[1] if known else None
    fields = tuple(map(_field, operation.get("parameters", [])))
    target = path
    for field in fields:
        target = target.replace(f"{{{field.name}}}", quote(field.example))
    command, call = OTHERS.get(key, ("", ""))
    return Route(
        method=method,
        path=path,
        anchor=anchor(key),
        summary=operation.get("summary", ""),
        about=operation.get("description", ""),
        scope=str(rule.scope or "") if rule else "admin",
        changes=rule.changes if rule else method != "GET",
        fields=fields,
        body=_body(operation["requestBody"]) if "requestBody" in operation else None,
        answers=tuple(_answer(status, each) for status, each in operation["responses"].items()),
        target=target,
        command=command,
        call=call,
    )


def _field(parameter: Mapping[str, Any]) -> Field:
    schema = parameter.get("schema", {})
    kinds = [schema, *schema.get("anyOf", [])]
    options = next((each["enum"] for each in kinds if "enum" in each), ())
    if any(each.get("type") == "boolean" for each in kinds):
        options = ("true", "false")
    return Field(
        name=parameter["name"],
        place=parameter["in"],
        required=bool(parameter.get("required")),
        about=parameter.get("description") or schema.get("description", ""),
        example=str(parameter.get("example", "")),
        options=tuple(map(str, options)),
    )


def _body(body: Mapping[str, Any]) -> Body:
    content: Mapping[str, Any] = body["content"]
    first = next(iter(content.values()))
    example = first.get("example")
    is_text = example is None or isinstance(example, str)
    return Body(
        kinds=tuple(content),
        example=example if is_text else json.dumps(example, indent=2, ensure_ascii=False),
        schema=_schema_of(first),
        about=body.get("description", ""),
        required=bool(body.get("required")),
    )


def _answer(status: str, answer: Mapping[str, Any]) -> Answer:
    kinds: Iterable[tuple[str, Any]] = answer.get("content", {}).items()
    return Answer(
        status=status,
        about=answer["description"],
        kinds=tuple((kind, _schema_of(content)) for kind, content in kinds),
    )


def _schema_of(content: Mapping[str, Any]) -> str:
    schema = content.get("schema", {})
    refs = [schema, *schema.get("anyOf", [])]
    return next((str(each["$ref"]).rpartition("/")[2] for each in refs if "$ref" in each), "")

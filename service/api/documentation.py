"""Route /docs: the routes as a page of plain HTML, made from the OpenAPI document.

It runs no script and loads nothing, so it works without a network and under the strictest policy.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

router = APIRouter()

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
code, pre { font-size: 14px } pre { background: #8881; padding: 1em; overflow-x: auto }
h2 { border-top: 1px solid #8888; padding-top: 1em } dt { font-family: monospace } dd { color: #666 }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } dd { color: #aaa } }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'; base-uri 'none'"


@router.get("/docs", include_in_schema=False)
def documentation(request: Request) -> Response:
    """Shows every route: with the page that the console has put in place of `plain_page`, if there is one."""
    shown: Callable[[Request], Response] = request.app.state.documentation
    return shown(request)


def plain_page(request: Request) -> Response:
    """Returns every route with its parameters, bodies and answers, for an application without the console."""
    return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": _POLICY})


def page(document: Mapping[str, Any]) -> str:
    """Returns the page for an OpenAPI document."""
    title, keys = escape(document["info"]["title"]), _keys(document)
    return "\n".join(
        [
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}: REST</title>',
            f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(document['info'].get('summary', ''))}</p>",
            '<p>Errors are problem documents (RFC 9457). <a href="openapi.json">openapi.json</a></p><ul>',
            *(f'<li><a href="#{anchor(key)}"><code>{escape(key)}</code></a></li>' for key in keys),
            "</ul>",
            *_routes(document),
            "<h1>Schemas</h1>",
            *_schemas(document.get("components", {}).get("schemas", {})),
        ]
    )


def _keys(document: Mapping[str, Any]) -> list[str]:
    return [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item]


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            key = f"{method.upper()} {path}"
            yield f'<h2 id="{anchor(key)}"><code>{escape(key)}</code></h2>'
            yield f"<p><b>{escape(operation.get('summary', ''))}</b></p>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"
            yield from _parameters(operation.get("parameters", []))
            if body := operation.get("requestBody"):
                yield f"<p>Body: {escape(body.get('description', ''))} {_content(body)}</p>"
            yield "<dl>"
            for status, answer in operation["responses"].items():
                yield f"<dt>{status}</dt><dd>{escape(answer['description'])} {_content(answer)}</dd>"
            yield "</dl>"


def _parameters(parameters: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "<dl>"
    for each in parameters:
        required = ", required" if each.get("required") else ""
        yield f"<dt>{escape(each['name'])}</dt>"
        yield f"<dd>{escape(each['in'])}{required}. {escape(each.get('description', ''))}</dd>"
    yield "</dl>"


def _content(part: Mapping[str, Any]) -> str:
    """Returns the media types of a body, each with a link to its schema."""
    found = []
    for kind, content in part.get("content", {}).items():
        name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
        link = f' <a href="#{anchor(name)}">{escape(name)}</a>' if name else ""
        found.append(f"<code>{escape(kind)}</code>{link}")
    return ", ".join(found)


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        text = json.dumps(schema, indent=2, ensure_ascii=False)
        yield f'<h2 id="{anchor(name)}">{escape(name)}</h2><pre>{escape(text)}</pre>'


def anchor(text: str) -> str:
    """Returns the id of what is named so, on the page of the routes."""
    return "".join(char if char.isalnum() else "-" for char in text)

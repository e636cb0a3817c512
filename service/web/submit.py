"""The page that submits: a spec in an editor, from a template, a file or an earlier job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from service.api.context import Services
from service.api.showable import showable
from service.web.page import PageRoute, render
from service.web.recipes import recipe, recipes
from training.spec import Spec, SpecError, load_yaml, parse_spec

router = APIRouter(route_class=PageRoute, include_in_schema=False)
_FIRST = "digits"
_NAME = 200


@router.get("/submit")
def submit_page(
    request: Request,
    services: Services,
    template: Annotated[str | None, Query(max_length=_NAME)] = None,
    clone: Annotated[str | None, Query(max_length=_NAME)] = None,
) -> Response:
    """Shows a spec to be changed and submitted. clone: id of the job whose spec and code it has."""
    job = services.store.get(clone) if clone else None
    chosen = recipe(template or _FIRST) if job is None else None
    return render(
        request,
        "submit.html",
        job=job,
        chosen=chosen,
        text=as_yaml(showable(job.spec)) if job else chosen.text if chosen else "",
        recipes=recipes(),
        limit=services.settings.max_code_bytes,
        code_missing=bool(job and job.spec.get("code") and not services.store.has_code(job.spec["code"])),
    )


@router.get("/data/templates/{name:path}")
def template_text(name: str) -> Response:
    """Returns the text of a template."""
    return PlainTextResponse(recipe(name).text)


def as_yaml(document: Mapping[str, Any]) -> str:
    """Returns a stored spec as a person would write it: without what is the default, in the schema's order.

    >>> spec = parse_spec({"model": {"class_path": "a.B"}, "data": {"class_path": "a.C"}})
    >>> print(as_yaml(spec.model_dump(mode="json")), end="")
    name: B
    model:
      class_path: a.B
    data:
      class_path: a.C
    """
    whole = {key: value for key, value in document.items() if key != "source"}
    try:
        spec = parse_spec(whole)
    except SpecError:  # stored by another version
        return _dumped(whole)
    short = _dumped(spec.model_dump(mode="json", exclude={"source"}, exclude_defaults=True))
    return short if _means(short, spec) else _dumped(whole)


def _means(text: str, spec: Spec) -> bool:
    """Returns whether the text is read as the spec: what a key is by default may depend on others."""
    try:
        return parse_spec(load_yaml(text)) == spec
    except SpecError:
        return False


def _dumped(document: Mapping[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes the text that the spec's reader would take for a number, and PyYAML for text: 1e-3."""


_Dumper.yaml_implicit_resolvers = {  # lists of its own: the others are those of all of PyYAML
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)

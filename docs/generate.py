"""Generates the pages under docs/reference from the code. Usage: python docs/generate.py [--check]

Of lightning.md it writes only the part between two comments.
--check: writes nothing; exits with 1 if a page is out of date.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
PACKAGES = ("sync_bn", "training", "service")


def first_sentence(path: Path) -> str:
    """Returns the first paragraph of a module's docstring as one line; "" if it has none."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def modules() -> str:
    """Returns the page that lists every module."""
    return "\n".join(
        [
            "# Modules",
            "",
            "Every module with the first sentence of its docstring. Lower packages never import upper ones: "
            "`service` may import `training`, `training` may import `sync_bn`. The `__init__.py` of each "
            "sub-package says what it may import, and a test checks it.",
            "",
            *(line for package in PACKAGES for line in _package(ROOT / package)),
        ]
    )


def _package(folder: Path) -> Iterator[str]:
    yield f"## {folder.name}/"
    yield ""
    yield from _listed(folder)
    for room in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield f"### {room.relative_to(ROOT)}/"
        yield ""
        yield first_sentence(room / "__init__.py")
        yield ""
        yield from _listed(room)


def _listed(folder: Path) -> Iterator[str]:
    found = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    yield from (f"- `{path.stem}`: {first_sentence(path)}" for path in found)
    if found:
        yield ""


def cli() -> str:
    """Returns the page of the command line."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from service.cli.app import app

    command: Any = get_command(app)
    with command.make_context("syncbn", ["list"]) as context:
        return get_docs_for_click(obj=command, ctx=context, name="syncbn", title="The command line")


def settings() -> str:
    """Returns the page of the service's environment variables."""
    from service.settings import Settings, names_of

    rows = []
    for field, info in Settings.model_fields.items():
        default = "" if info.default_factory or info.default is None else f"`{info.default}`"
        names = ", ".join(f"`{name}`" for name in names_of(field))
        rows.append((names, default, info.description or ""))
    return "\n".join(
        [
            "# Settings",
            "",
            "Environment variables of `syncbn serve`, read once when it starts. An empty variable counts as "
            "not set; an invalid one is refused by name. `syncbn up` sets those that it needs itself.",
            "",
            *_table(("variable", "default", "meaning"), rows),
        ]
    )


def spec() -> str:
    """Returns the page of the spec's keys."""
    from training.spec import Spec

    schema = Spec.model_json_schema()
    parts = schema["$defs"]
    lines = [
        "# The spec",
        "",
        "One YAML or JSON document describes a job; `syncbn schema` prints its JSON Schema. Only `model` and "
        "`data` are required, or a [`script`](../how-to/scripts.md) in place of both.",
        "",
        *_keys(schema),
    ]
    for name in sorted(parts):
        lines += [f"## {name}", "", parts[name].get("description", ""), "", *_keys(parts[name])]
    return "\n".join(lines)


def trainer() -> str:
    """Returns the page of the Trainer's arguments."""
    from training.spec import ARGUMENTS, TrainerOptions

    properties = TrainerOptions.model_json_schema()["properties"]
    rows = [
        (
            f"`{name}`",
            _kind(properties[name]).replace("(#", "(spec.md#"),
            argument.use,
            argument.how,
        )
        for name, argument in ARGUMENTS.items()
    ]
    return "\n".join(
        [
            "# Arguments of the Trainer",
            "",
            "`trainer:` of a spec takes every argument of `lightning.pytorch.Trainer` by its own name. "
            "**honoured**: the job's Trainer gets it. **mapped**: another key of the spec says it, or jobs "
            "do it anyway; given twice with different values it is refused. **refused**: an error that names "
            "the way out, unless the value is Lightning's default. A test compares this table with the "
            "installed Lightning.",
            "",
            *_table(("argument", "type", "", "what a job makes of it"), rows),
        ]
    )


def _keys(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", [])
    rows = []
    for key, value in schema.get("properties", {}).items():
        default = "required" if key in required else f"`{json.dumps(value.get('default'))}`"
        rows.append((f"`{key}`", _kind(value), default, value.get("description", "")))
    yield from _table(("key", "type", "default", "meaning"), rows)


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON Schema in a word or two."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"`{value}`" for value in values)
    for together in ("anyOf", "oneOf", "allOf"):
        if together in schema:
            return " or ".join(dict.fromkeys(_kind(each) for each in schema[together]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_kind(schema['additionalProperties'])}"
    bounds = [
        f"{sign} {schema[name]:g}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in schema
    ]
    return " ".join([str(kind), *bounds])


def rest() -> str:
    """Returns the page of the REST routes."""
    from service.api.app import create_app
    from service.backends.memory_tracking import FakeResults
    from service.queue.store import Store
    from service.settings import Settings

    app = create_app(Settings(), Store("sqlite:///nothing.db"), FakeResults())
    lines = [
        "# REST",
        "",
        "`/docs` of a running API shows the same routes with every schema, and can send requests. Errors are "
        "problem documents (RFC 9457).",
        "",
    ]
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation.get("summary", ""), ""]
            if description := operation.get("description"):
                lines += [description, ""]
            parameters = operation.get("parameters", [])
            rows = [
                (
                    f"`{each['name']}`",
                    each["in"],
                    re.sub(r"\[(\w+)\]\(.*?\)", r"\1", _kind(each["schema"])),  # the named schema is in /docs
                    each.get("description", ""),
                )
                for each in parameters
            ]
            lines += _table(("parameter", "in", "type", "meaning"), rows) if rows else []
            responses = operation["responses"].items()
            meanings = [(f"`{code}`", response.get("description", "")) for code, response in responses]
            lines += _table(("status", "meaning"), meanings)
    return "\n".join(lines)


def lightning() -> str:
    """Returns the page of what a Lightning project may do, with the tested rows in their place."""
    sys.path.insert(0, str(ROOT))  # tests are not installed
    from tests.training.lightning_rows import ROWS

    groups: dict[str, dict[str, None]] = {}
    for row in ROWS:
        groups.setdefault(row.group, {})[row.what] = None
    lines = [
        line
        for group, rows in groups.items()
        for line in (f"### {group}", "", *(f"- {_sentence(what)}" for what in rows), "")
    ]
    text = (REFERENCE / "lightning.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- rows")
    comment, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of rows")
    assert end, "docs/reference/lightning.md has lost the comments around its rows"
    return f"{before}{begin}{comment}\n\n" + "\n".join(lines) + f"\n{end}{after}"


def _sentence(what: str) -> str:
    """Names of code, which have an underscore, a dot or a second capital letter, as code."""
    return re.sub(
        r"\b[A-Za-z]+(?:[_.][a-z_0-9]+)+(?:\(\))?|\b[A-Z]+[a-z]+[A-Z]\w*|\btrain\(\)", r"`\g<0>`", what
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |"
        for line in lines
    ] + [""]


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli,
    "lightning.md": lightning,
    "modules.md": modules,
    "rest.md": rest,
    "settings.md": settings,
    "spec.md": spec,
    "trainer.md": trainer,
}


def main() -> int:
    """Writes or checks the pages; returns the exit code."""
    check = sys.argv[1:] == ["--check"]
    stale = []
    for name, page in PAGES.items():
        path, text = REFERENCE / name, page().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run `python docs/generate.py`", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

"""What a command says of a word that other programs use."""

from __future__ import annotations

from typing import Any

import pytest
from typer.main import get_command

from service.cli import hints
from service.cli.app import app
from tests.service.cli.command_line import Syncbn
from training.spec.errors import OTHER_NAMES
from training.spec.model import Spec

COMMAND: Any = get_command(app)


def said(syncbn: Syncbn, *arguments: str) -> str:
    result = syncbn(*arguments)
    assert result.exit_code == 2
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(("word", "meant"), [("ls", "list"), ("kill", "cancel"), ("help", "--help")])
def test_a_command_of_other_programs_leads_to_ours(syncbn: Syncbn, word: str, meant: str) -> None:
    assert f"No such command '{word}'. Did you mean '{meant}'?" in said(syncbn, word, "x")


def test_a_slip_in_a_command_and_in_an_option_leads_to_it(syncbn: Syncbn) -> None:
    assert "'queue'" in said(syncbn, "queu")
    assert "--state" in said(syncbn, "list", "--staet", "running")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("list", "-n", "3"), "--limit"),
        (("list", "--status", "running"), "--state"),
        (("logs", "j1", "--watch"), "--follow"),
        (("submit", "spec.yaml", "--workers", "3"), "--set resources.workers=VALUE"),
    ],
)
def test_an_option_of_other_programs_leads_to_ours(
    syncbn: Syncbn, arguments: tuple[str, ...], meant: str
) -> None:
    assert f"(Possible options: {meant})" in said(syncbn, *arguments)


def test_hints_name_what_there_is_and_hide_nothing_that_there_is() -> None:
    options = {name for option in COMMAND.params for name in option.opts}
    everywhere = {
        name for each in COMMAND.commands.values() for option in each.params for name in option.opts
    }

    assert set(hints.COMMANDS.values()) <= {*COMMAND.commands, *options, "--help"}
    assert not set(hints.COMMANDS) & set(COMMAND.commands)
    assert set(hints.OPTIONS.values()) <= everywhere
    assert [key for key in hints.KEYS.values() if not _is_key(key)] == []
    assert [key for key in OTHER_NAMES.values() if not _is_key(key)] == []


def _is_key(dotted: str) -> bool:
    """Whether the schema of a spec has this key; what is in init_args is the class's own matter."""
    schema = Spec.model_json_schema()
    nodes = [schema]
    for part in dotted.partition(".init_args")[0].split("."):
        found = [each["properties"][part] for each in nodes if part in each.get("properties", {})]
        nodes = [each for node in found for each in _branches(node, schema["$defs"])]
        if not found:
            return False
    return True


def _branches(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _branches(definitions[node["$ref"].rpartition("/")[2]], definitions)
    several = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    return [each for branch in several for each in _branches(branch, definitions)] or [node]

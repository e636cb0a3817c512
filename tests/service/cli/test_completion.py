"""What the shell offers: asked from a real server as the shells do, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.cli import completion
from service.client import Client
from service.jobs.job import State
from tests.service.live_api import SPEC, Service


def offered(url: str, line: str, **more: str) -> tuple[list[str], str]:
    """Returns what bash is offered at the end of a line, and what the program wrote beside it."""
    words = line.split(" ")
    variables = {
        "_SYNCBN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "SYNCBN_URL": url,
        **more,
    }
    inherited = {key: value for key, value in os.environ.items() if key != "SYNCBN_API_KEY"}
    program = "import sys; from service.cli import main; sys.argv[0] = 'syncbn'; main()"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in result.stdout.splitlines() if line], result.stderr


def test_ids_and_names_come_from_the_server(service: Service, client: Client) -> None:
    first, second = client.submit({**SPEC, "name": "digits-a"}), client.submit({**SPEC, "name": "twin"})
    client.submit({**SPEC, "name": "twin"})
    sweep = client.submit_sweep({"spec": {**SPEC, "name": "point"}, "name": "rates", "repeat": 2})

    assert {first.id, second.id} <= set(offered(service.url, "syncbn show ")[0])
    assert offered(service.url, f"syncbn logs {first.id[:15]}")[0] == [first.id]
    assert offered(service.url, "syncbn cancel digits")[0] == ["digits-a"]
    assert offered(service.url, "syncbn cancel twi")[0] == []  # which one is not known
    client.submit({**SPEC, "name": "quoted name"})
    assert offered(service.url, "syncbn cancel quo")[0] == []  # a shell would make two words of it
    assert set(offered(service.url, "syncbn show ra")[0]) == {"rates", "rates-1", "rates-2"}
    assert offered(service.url, "syncbn report ")[0] == [sweep.id]
    assert offered(service.url, f"syncbn --url {service.url} list --sweep s", SYNCBN_URL="http://[")[0] == [
        sweep.id
    ]
    assert offered(service.url, "syncbn list --state queued,ru")[0] == ["queued,running"]
    assert "list" in offered(service.url, "syncbn li")[0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no address"])
def test_without_a_server_nothing_is_offered_and_nothing_said(url: str) -> None:
    assert offered(url, "syncbn show j") == ([], "")


def test_a_refused_key_offers_nothing(service: Service) -> None:
    assert offered(service.url, "syncbn show j", SYNCBN_API_KEY="wrong") == ([], "")


def test_all_states_are_offered() -> None:
    assert completion.state("") == [state.value for state in State]

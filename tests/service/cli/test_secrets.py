from __future__ import annotations

import json
from pathlib import Path

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import Service

VALUE = "hush-hush-hush"


def test_secrets_are_set_named_by_jobs_and_deleted_and_never_shown(
    syncbn: Syncbn, client: Client, service: Service, spec: str, tmp_path: Path
) -> None:
    naming = ("submit", spec, "--set", "environment.secrets=[TOKEN]", "--json")

    refused = syncbn(*naming)
    assert refused.exit_code == 2
    assert "syncbn secrets set TOKEN" in refused.stderr
    assert "no secret is set" in syncbn("secrets", "list").stdout

    assert syncbn("secrets", "set", "TOKEN", stdin=f"{VALUE}\n").exit_code == 0
    listed = syncbn("secrets", "list", "--json")
    assert [(secret["name"], secret["source"]) for secret in json.loads(listed.stdout)] == [
        ("TOKEN", "stored")
    ]
    assert "TOKEN" in syncbn("secrets", "list").stdout
    submitted = syncbn(*naming)
    assert submitted.exit_code == 0
    short = syncbn("secrets", "set", "OTHER", stdin=VALUE[:5])
    assert short.exit_code == 2

    shown = [result.stdout + result.stderr for result in (refused, listed, submitted, short)]
    assert not [text for text in shown if VALUE[:5] in text]
    assert not [
        str(path) for path in tmp_path.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()
    ]
    assert service.store.secret_names().keys() == {"TOKEN"}

    assert syncbn("secrets", "delete", "TOKEN", "--json").exit_code == 0
    assert syncbn("secrets", "delete", "TOKEN").exit_code == 4
    assert client.secrets() == []

from __future__ import annotations

import json

import pytest

from service.access.audit import Note
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import Service


def test_a_key_is_shown_once_and_its_jobs_are_its_users(syncbn: Syncbn, spec: str) -> None:
    made = syncbn("keys", "create", "ada", "--scope", "submit", "--expires", "90d")
    key = made.stdout.strip()

    assert (made.exit_code, len(key.split("_", 2))) == (0, 3)
    assert "not shown again" in " ".join(made.stderr.split())
    job = json.loads(syncbn("submit", spec, "--json", SYNCBN_API_KEY=key).stdout)
    assert job["user"] == "ada"
    assert job["id"] in syncbn("list", "--user", "ada").stdout
    assert job["id"] not in syncbn("list", "--user", "bob").stdout
    assert "ada" in syncbn("show", job["id"]).stdout
    listed = syncbn("keys", "list").stdout
    assert key.split("_")[1] in listed
    assert key.split("_", 2)[2] not in listed


def test_a_revoked_key_opens_nothing(syncbn: Syncbn) -> None:
    made = json.loads(syncbn("keys", "create", "ada", "--scope", "read", "--json").stdout)

    assert syncbn("list", SYNCBN_API_KEY=made["key"]).exit_code == 0
    assert syncbn("keys", "revoke", made["id"]).stdout == f"revoked {made['id']} of ada\n"
    refused = syncbn("list", SYNCBN_API_KEY=made["key"])
    assert refused.exit_code == 2
    assert "was revoked" in refused.stderr
    assert "revoked" in syncbn("keys", "list").stdout
    assert json.loads(syncbn("keys", "revoke", made["id"], "--json").stdout)["revoked_at"]


def test_a_key_whose_scope_is_too_small_says_so(syncbn: Syncbn) -> None:
    key = syncbn("keys", "create", "ada", "--scope", "read").stdout.strip()

    refused = syncbn("keys", "list", SYNCBN_API_KEY=key)

    assert refused.exit_code == 2
    assert "needs a key with the scope admin" in refused.stderr


@pytest.mark.parametrize("expires", ["soon", "2001-01-01", "-1d"])
def test_an_end_that_is_none_is_refused(syncbn: Syncbn, expires: str) -> None:
    refused = syncbn("keys", "create", "ada", "--scope", "read", "--expires", expires)

    assert refused.exit_code == 2
    assert "Traceback" not in refused.stderr


def test_the_audit_log_says_who_did_what(syncbn: Syncbn, spec: str) -> None:
    assert "nothing was changed" in syncbn("audit").stdout
    key = syncbn("keys", "create", "ada", "--scope", "submit").stdout.strip()
    job = json.loads(syncbn("submit", spec, "--json", SYNCBN_API_KEY=key).stdout)["id"]

    entries = json.loads(syncbn("audit", "--json", "--user", "ada").stdout)

    assert [(each["who"], each["about"], each["result"]) for each in entries] == [
        ("ada", f"/v1/jobs/{job}", "done")
    ]
    shown = syncbn("audit", "--about", job, "--since", "1h").stdout
    assert all(text in shown for text in ("ada", "127.0.0.1", "POST", job))


def test_the_audit_log_says_who_was_refused(syncbn: Syncbn, service: Service) -> None:
    note = Note(who="", credential="", address="10.0.0.7", action="GET /v1/jobs", about="/v1/jobs")
    service.store.add_audit(note, 401, 12)

    (line,) = (line for line in syncbn("audit").stdout.splitlines() if "10.0.0.7" in line)

    assert line.split()[2:] == ["(unknown)", "10.0.0.7", "GET", "/v1/jobs", "refused", "401", "(12", "times)"]

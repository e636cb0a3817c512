from __future__ import annotations

import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.client import Client, NotFound, RequestError
from service.client.errors import ClientError
from service.client.local_token import token_file
from service.client.retry import Retry
from service.errors import Refused
from service.local_token import published
from tests.service.live_api import SPEC, Service


def test_who_has_started_the_server_needs_no_key(service: Service) -> None:
    with Client(service.url) as client:
        assert client.submit(SPEC).user is None


def test_who_cannot_read_the_token_is_told_where_it_is(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with (
        Client(service.url) as stranger,
        pytest.raises(RequestError, match="has no SYNCBN_API_KEY") as refused,
    ):
        stranger.submit(SPEC)

    assert refused.value.status == 401


def test_a_client_goes_on_with_the_token_of_a_restarted_server(service: Service, client: Client) -> None:
    job = client.submit(SPEC)
    file = token_file(service.server.port)

    file.write_text("stale")
    with pytest.raises(RequestError):
        client.job(job.id)
    context = service.server.app._app.state.context  # type: ignore[attr-defined]
    file.write_text(context.local_token)

    assert client.job(job.id) == job


def test_a_key_is_sent_instead_of_the_token(client: Client, service: Service) -> None:
    made = client.create_key("ada", "submit", expires_at=datetime.now(UTC) + timedelta(days=1))
    with Client(service.url, made.key) as ada:
        job = ada.submit(SPEC)

    assert job.user == "ada"
    assert [each.id for each in client.jobs(user="ada")] == [job.id]
    assert not made.ended
    assert client.revoke_key(made.id).ended
    assert [key.id for key in client.api_keys()] == [made.id]
    assert [entry.about for entry in client.audit(user="ada")] == [f"/v1/jobs/{job.id}"]
    with pytest.raises(NotFound):
        client.revoke_key("nothing")


def test_a_refusal_for_too_many_requests_is_waited_for(
    service: Service, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("service.client.retry.time.sleep", slept.append)
    retry = Retry(1)
    error = RequestError(429, {"title": "Too Many Requests"}, retry_after=30)

    retry.back_off(error)
    retry.back_off(error)

    assert slept == [30, 30]
    with pytest.raises(ClientError):
        retry.back_off(RequestError(429, {"title": "Too Many Requests"}, retry_after=61))
    service.faults.refuse_with.append(429)
    assert list(client.jobs()) == []


# The file


def test_the_token_is_its_users_alone_and_new_each_time(tmp_path: Path) -> None:
    file = tmp_path / "syncbn" / "tokens" / "here_8000"
    with published(file) as first:
        assert file.read_text() == first
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not file.exists()
    with published(file) as second:
        assert second != first


def test_the_token_of_a_server_that_has_followed_stays(tmp_path: Path) -> None:
    with published(tmp_path / "token"):
        (tmp_path / "token").write_text("of another")

    assert (tmp_path / "token").read_text() == "of another"


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="XDG_STATE_HOME"), published(tmp_path / "file" / "token"):
        pass


def test_the_file_is_one_of_machine_and_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert token_file(8000) == tmp_path / "syncbn" / "tokens" / f"{socket.gethostname()}_8000"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(token_file(1)).startswith("/home/ada/.local/state/syncbn/tokens/")

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.embedded import same_user
from service.embedded.same_user import SameUserProtocol
from training.host.job_user import JobUser, JobUsers

NOBODY = 65534
linux = pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not say whose a socket is")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture(params=["127.0.0.1", "::"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers "hello" by the protocol."""

    async def hello(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    listener = socket.create_server((request.param, 0), family=family, dualstack_ipv6=":" in request.param)
    config = uvicorn.Config(hello, log_config=None, lifespan="off", http=SameUserProtocol)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


def _ask(port: int, user: int, answers: multiprocessing.SimpleQueue[tuple[int, str]]) -> None:
    os.setgid(user)
    os.setuid(user)
    answer = httpx.get(f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
    answers.put((answer.status_code, answer.text))


def asked_by(user: int, port: int) -> tuple[int, str]:
    """The answer that another user of this machine gets."""
    processes = multiprocessing.get_context("fork")
    answers = processes.SimpleQueue()
    process = processes.Process(target=_ask, args=(port, user, answers))
    process.start()
    process.join()
    assert process.exitcode == 0
    answer: tuple[int, str] = answers.get()
    return answer


def test_the_user_of_the_server_is_answered(port: int) -> None:
    assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False, timeout=60).text == "hello"


@linux
@as_root
def test_another_user_of_the_machine_is_refused(port: int) -> None:
    status, text = asked_by(NOBODY, port)

    assert status == 403
    assert "another user" in text


@linux
def test_an_end_that_is_closed_is_nobodys() -> None:
    """The kernel gives it to root: whoever sends a request and closes at once would be taken for root."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, own = same_user._address(client.getsockname()), same_user._address(listener.getsockname())
        assert same_user.may_connect(peer, own)

        client.close()

        assert not same_user.may_connect(peer, own)


def test_where_the_kernel_does_not_say_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_user, "_TABLES", ())
    nowhere = same_user._address(("127.0.0.1", 1))

    assert same_user.may_connect(nowhere, nowhere)


def test_addresses_of_the_tables_are_read() -> None:
    ipv4 = "0100007F" if sys.byteorder == "little" else "7F000001"

    assert same_user._parsed(f"{ipv4}:1F90") == same_user._address(("127.0.0.1", 8080))
    assert same_user._address(("::ffff:127.0.0.1", 1, 0, 0)) == same_user._address(("127.0.0.1", 1))


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="only root can become another user, and Linux says whose",
)
def test_jobs_are_answered_under_their_own_users_and_others_are_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = same_user._address(listener.getsockname())
        with JobUser(name="job", uid=1_200_000_001, gid=0).files():  # whose rights a socket is made with
            client = socket.create_connection(listener.getsockname())
        peer = same_user._address(client.getsockname())

        assert same_user.may_connect(peer, own, JobUsers(first=1_200_000_001, last=1_200_000_009))
        assert not same_user.may_connect(peer, own, JobUsers(first=1_200_000_002, last=1_200_000_009))
        assert not same_user.may_connect(peer, own)
        client.close()

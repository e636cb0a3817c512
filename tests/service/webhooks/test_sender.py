"""Requests to webhooks: to checked addresses, within a bounded time."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from service import public_addresses
from service.errors import Refused
from service.public_addresses import Allowed, check_url
from service.webhooks import sender
from tests.service.webhooks.receiver import receiving


def test_a_name_that_changes_its_address_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that was checked is the one that is connected to: the name is resolved once an attempt."""
    with receiving() as receiver:
        answers = [["93.184.216.34"], ["127.0.0.1"]]
        resolve = lambda host, port: answers.pop(0)  # noqa: ARG005, E731
        url = f"http://rebinding.example:{receiver.port}/"
        assert check_url(url, Allowed(), resolve) == url
        monkeypatch.setattr(public_addresses, "_resolve", resolve)
        monkeypatch.setattr(public_addresses.permitted, "__defaults__", (resolve,))

        with pytest.raises(Refused, match="inside the service's own network"):
            sender.send(url, {}, "{}", Allowed())

    assert receiver.received == []
    assert answers == []


def test_an_answer_that_drips_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "TOTAL_SECONDS", 1.0)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            try:
                connection, _ = server.accept()
            except OSError:  # shut down
                return
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.02):
                    try:
                        connection.sendall(b"x: y\r\n")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(sender.NotDelivered, match="no answer in time"):
            sender.send(f"http://127.0.0.1:{server.getsockname()[1]}/", {}, "{}", Allowed.parse("127.0.0.1"))
        assert time.monotonic() - began < 30
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()

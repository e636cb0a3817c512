from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from service.errors import Refused
from service.ports import is_free
from tests.namespaces import IPV6_ALONE, needs_namespaces


def test_a_port_is_free_until_somebody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert is_free("127.0.0.1", port)
    assert is_free("localhost", port)

    with socket.create_server(("127.0.0.1", port)):
        assert not is_free("127.0.0.1", port)
        assert not is_free("0.0.0.0", port)

    assert is_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Refused, match=r"^cannot listen on 192\.0\.2\.1:1: this machine has no such address$"):
        is_free("192.0.2.1", 1)


@needs_namespaces
def test_where_loopback_has_no_ipv4_it_is_said_how_to_give_it_some() -> None:
    code = "import service.ports; service.ports.is_free('127.0.0.1', 1)"

    done = subprocess.run([*IPV6_ALONE, sys.executable, "-c", code], capture_output=True, text=True)

    assert "cannot listen on 127.0.0.1:1: loopback has no IPv4 address" in done.stderr
    assert "ip address add 127.0.0.1/8 dev lo" in done.stderr

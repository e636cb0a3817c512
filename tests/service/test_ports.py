from __future__ import annotations

import socket

from service.ports import is_free


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

"""TCP ports of this machine."""

from __future__ import annotations

import errno
import socket

from service.errors import Refused


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. Raises Refused where this process may not listen anyway."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Refused(f"cannot listen on {host}:{port}: {error.strerror}") from None
            return False
    return True


def free_port() -> int:
    """One of loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

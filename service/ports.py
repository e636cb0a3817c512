"""Free TCP ports of this machine."""

from __future__ import annotations

import errno
import random
import socket

from service.errors import Refused


def is_free(host: str, port: int) -> bool:
    """Returns whether nothing listens on the port. Raises Refused if this process may not listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Refused(f"cannot listen on {host}:{port}: {_reason(host, error)}") from None
            return False
    return True


def _reason(host: str, error: OSError) -> str:
    if error.errno != errno.EADDRNOTAVAIL:
        return str(error.strerror)
    if host.startswith("127."):
        return (
            "loopback has no IPv4 address, by which this machine's servers reach each other; give it one, "
            "on Linux as root with: ip address add 127.0.0.1/8 dev lo"
        )
    return "this machine has no such address"


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a port on which nothing listens, outside the range from which systems hand out port 0.

    A port inside that range might go to another process before the server starts: Ray asks for dozens.
    Raises Refused if no port is free.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        if is_free(host, port):
            return port
    raise Refused(f"no port of {host} from 20000 to 32000 is free")

"""The HTTP protocol of the embedded MLflow server: on Linux it answers only its own user, root and jobs.

MLflow's own access control would ask every notebook and browser of that user for a password. The kernel knows
whose socket the other end of a loopback connection is, so nobody has to be asked.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from training.host.job_user import JobUsers, of_environment

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
_LINGER_S = 5.0
_REFUSAL = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"this MLflow server belongs to another user of this machine\n"
)
Address = tuple[IPv4Address | IPv6Address, int]


class SameUserProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Refuses a connection before it reads a byte if another user of this machine has opened it."""

    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._refused = not may_connect(_address(peer), _address(own), _job_users())
        if self._refused:
            transport.write(_REFUSAL)
            # Closed at once, with the request unread, the answer would be lost.
            transport.write_eof()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
        else:
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._refused else super().eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._refused:
            super().connection_lost(error)


@cache
def _job_users() -> JobUsers | None:
    return of_environment(os.environ)


def may_connect(peer: Address, own: Address, jobs: JobUsers | None = None) -> bool:
    """Returns whether the connection's other end belongs to this process's user, to root or to a job.

    True for all where the kernel has no such tables, as on macOS. False for an end that is closed already:
    the kernel does not say any more whose it was.
    """
    tables = [table for table in _TABLES if table.exists()]
    owners = [_owner(table.read_text(), peer, own) for table in tables]
    if not tables or any(owner in {0, os.geteuid()} for owner in owners):
        return True
    return jobs is not None and any(owner is not None and jobs.has(owner) for owner in owners)


def _owner(table: str, local: Address, remote: Address) -> int | None:
    """Returns the user of the established socket between the two addresses; None if there is none."""
    for line in table.splitlines()[1:]:
        _, its_local, its_remote, state, _, _, _, user, *_ = line.split()
        if state == _ESTABLISHED and _parsed(its_local) == local and _parsed(its_remote) == remote:
            return int(user)
    return None


def _parsed(text: str) -> Address:
    """Parses an address of the tables: 32-bit words in the byte order of the machine, and a port."""
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)]
    return _plain(ip_address(b"".join(words))), int(port, 16)


def _address(name: Any) -> Address:
    return _plain(ip_address(name[0].partition("%")[0])), int(name[1])


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Returns the IPv4 address of one that is mapped into IPv6: a client may connect so."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address

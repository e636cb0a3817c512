"""To which addresses webhooks may go: not into the service's own network, unless the operator allows it.

Whoever may add a webhook could otherwise have this service send requests to what only it can reach: the
machine itself, its neighbours, the metadata service of a cloud (SSRF). A name is resolved for each attempt,
its addresses are checked, and the connection goes to a checked address, so that a name that resolves to
another address a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from service.errors import Refused
from training.spec import Problem

LONGEST_URL = 2000
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What the operator allows besides public addresses: names of hosts, and networks."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Parses a list of host names, addresses and CIDRs, separated by commas. Raises ValueError."""
        hosts, networks = set(), list[Network]()
        for entry in filter(None, (each.strip().lower() for each in text.split(","))):
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if "/" in entry or ":" in entry or not entry.isascii() or " " in entry:
                    raise ValueError(
                        f"{entry!r} is neither the name of a host nor a network as 10.1.0.0/16 (without bits "
                        "after its prefix)"
                    ) from None
                hosts.add(entry)
        return cls(hosts=frozenset(hosts), networks=tuple(networks))

    def allows(self, host: str, address: IPAddress) -> bool:
        """Returns whether a webhook may go to this address of this host."""
        return (
            host.lower().rstrip(".") in self.hosts
            or any(address in network for network in self.networks)
            or is_public(address)
        )


def is_public(address: IPAddress) -> bool:
    """Returns whether the address is one of the public internet; what an IPv6 address contains counts too."""
    if isinstance(address, ipaddress.IPv6Address):
        if (inner := _inner(address)) is not None:
            return is_public(inner)
        if address not in _GLOBAL_V6:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Returns the IPv4 address to which a packet for this one goes; None for a real IPv6 address."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


Resolve = Callable[[str, int], list[str]]


def permitted(host: str, port: int, allowed: Allowed, resolve: Resolve = _resolve) -> list[str]:
    """Returns the addresses of the host to which a webhook may go; at least one. Blocks on the name service.

    Raises Refused.
    """
    try:
        addresses = [ipaddress.ip_address(each) for each in resolve(host, port)]
    except (OSError, UnicodeError, ValueError) as error:
        raise _refused(f"the name {host} cannot be resolved ({error}): check it") from None
    good = [str(address) for address in addresses if allowed.allows(host, address)]
    if not good:
        where = ", ".join(map(str, addresses)) or "no address"
        raise _refused(
            f"{host} is {where}, inside the service's own network, where webhooks may not go: use a public "
            "address, or have the operator add it to SYNCBN_WEBHOOK_ALLOWED"
        )
    return good


def check_url(url: str, allowed: Allowed, resolve: Resolve = _resolve) -> str:
    """Returns the URL as it is requested. Blocks as `permitted` does. Raises Refused."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise _refused(f"is not a URL ({error})") from None
    if len(url) > LONGEST_URL:
        raise _refused(f"is longer than {LONGEST_URL} characters")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise _refused("must be http://HOST... or https://HOST...")
    if parsed.userinfo:
        raise _refused("must not hold a user or a password: check the signature instead")
    permitted(parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80), allowed, resolve)
    return str(parsed.copy_with(fragment=None))


def _refused(message: str) -> Refused:
    return Refused(f"url: {message}", [Problem(key="url", message=message)])

"""Where webhooks may go."""

from __future__ import annotations

import ipaddress

import pytest

from service.errors import Refused
from service.public_addresses import Allowed, check_url, is_public, permitted

INSIDE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
]
OUTSIDE = ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_outside_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_what_the_operator_names_is_allowed() -> None:
    allowed = Allowed.parse(" ci.internal, 10.1.0.0/16,192.168.1.7 ,fd00::/8")

    def goes(host: str, address: str) -> bool:
        return allowed.allows(host, ipaddress.ip_address(address))

    assert goes("ci.internal", "10.9.9.9")
    assert goes("CI.internal.", "127.0.0.1")
    assert goes("x", "10.1.2.3")
    assert goes("x", "192.168.1.7")
    assert goes("x", "fd00::1")
    assert not goes("x", "10.2.0.1")
    assert not goes("x.ci.internal", "10.2.0.1")
    for wrong in ("10.1.0.1/16", "http://host", "host:80", "two words"):
        with pytest.raises(ValueError, match="neither the name of a host"):
            Allowed.parse(wrong)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.org", "must be http"),
        ("example.org", "must be http"),
        ("http://", "must be http"),
        ("https://user:pw@example.org", "user or a password"),
        ("http://localhost:8000", "inside the service's own network"),
        ("http://2130706433/", "inside the service's own network"),
        ("http://[::ffff:7f00:1]/", "inside the service's own network"),
        ("http://169.254.169.254/latest/meta-data", "inside the service's own network"),
        ("http://does-not-exist.invalid/", "cannot be resolved"),
        (f"https://example.org/{'x' * 2000}", "longer than"),
    ],
)
def test_a_url_that_webhooks_may_not_go_to_is_refused(url: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        check_url(url, Allowed())

    assert refused.value.problems[0].key == "url"


def test_of_a_names_addresses_those_inside_are_left_out() -> None:
    found = permitted("x", 80, Allowed(), lambda host, port: ["10.0.0.1", "8.8.8.8", "::1"])  # noqa: ARG005

    assert found == ["8.8.8.8"]

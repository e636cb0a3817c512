"""Checks of the API: it answers, takes the key, and is of this version."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from service.client import Client, ClientError, NotFound, RequestError, ServerUnreachable
from service.doctor.finding import Finding, fault, ok, warning
from service.doctor.versions import differences
from service.ports import is_free

ABOUT = "API"
_SECONDS = 5.0
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def check(url: str, api_key: str | None, *, expected: bool) -> Iterator[Finding]:
    """Yields what is wrong with the API. expected: `syncbn up` runs, so an API has to."""
    try:
        with Client(url, api_key, timeout=_SECONDS) as client:
            version = client.version()
    except ServerUnreachable as error:
        yield _not_there(url, str(error), expected=expected)
    except NotFound:
        yield from differences("the API", {})
    except RequestError as error:
        advice = "give its key in SYNCBN_API_KEY" if error.status in {401, 403} else "look at its log"
        yield fault(ABOUT, f"{url} answers {error.status}: {error.detail}", advice)
    except ClientError as error:
        yield fault(
            ABOUT, f"what answers at {url} is not this service: {error}", "give its address with --url"
        )
    else:
        yield ok(ABOUT, f"answers at {url}")
        yield from differences("the API", version.versions)


def _not_there(url: str, why: str, *, expected: bool) -> Finding:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host, port = parts.hostname or "", parts.port or 80
    taken = host in _LOOPBACK and not is_free("127.0.0.1", port)
    if taken:
        return fault(
            ABOUT,
            f"port {port} is taken, and what listens there does not answer as this service: {why}",
            f"see who it is (ss -ltnp sport = :{port}), or start the API with another --port",
        )
    if expected:
        return fault(ABOUT, f"`syncbn up` runs, but no API answers: {why}", "give its address with --url")
    return warning(ABOUT, f"no API answers: {why}", "start it (`syncbn up`), or give its address with --url")

"""Checks of MLflow: it answers in time, to the service's name for it, and is of the client's version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

import httpx

from service.doctor.finding import Finding, fault, ok, warning
from training.versions import own_versions

ABOUT = "MLflow"
SECONDS = 5.0
HOW_TO_START = "start it, and check SYNCBN_MLFLOW_URL"


def check(
    url: str,
    *,
    how_to_start: str = HOW_TO_START,
    seconds: float = SECONDS,
    own: Mapping[str, str] | None = None,
) -> Iterator[Finding]:
    """Yields what is wrong with the tracking server."""
    try:
        with httpx.Client(base_url=url, timeout=seconds, trust_env=False) as client:
            answer = client.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1})
            version = client.get("/version")
    except httpx.TimeoutException:
        advice = "it is frozen or overloaded: look at its processes and its database, restart it"
        yield fault(ABOUT, f"{url} accepts connections and has not answered for {seconds:g} s", advice)
        return
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        advice = f"{how_to_start}; jobs that run keep their metrics until then"
        yield fault(ABOUT, f"it is down: {url}: {error or type(error).__name__}", advice)
        return
    if answer.is_success:
        yield ok(ABOUT, f"answers at {url}")
        yield from _of_version(version, own_versions() if own is None else own)
    else:
        yield _of_status(url, answer)


def _of_status(url: str, answer: httpx.Response) -> Finding:
    what = f"{answer.status_code}: {' '.join(answer.text.split())[:200]}"
    if answer.status_code == httpx.codes.FORBIDDEN and "host" in answer.text.lower():
        host = urlsplit(url).netloc
        advice = (
            f"start it with MLFLOW_SERVER_ALLOWED_HOSTS={host} (or --allowed-hosts), beside the present ones"
        )
        return fault(ABOUT, f"it refuses the host {host} ({what})", advice)
    if answer.status_code in {401, 403}:
        return fault(ABOUT, f"{url} refuses the request ({what})", "check the proxy or the login before it")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return fault(ABOUT, f"what answers at {url} is no MLflow server ({what})", "check SYNCBN_MLFLOW_URL")
    return fault(ABOUT, f"{url} answers {what}", "look at its log")


def _of_version(answer: httpx.Response, own: Mapping[str, str]) -> Iterator[Finding]:
    theirs, here = answer.text.strip(), own.get("mlflow", "")
    if answer.is_success and here and theirs.split(".")[:2] != here.split(".")[:2]:
        yield warning(
            "versions",
            f"the MLflow server is {theirs[:40]}, the client of the jobs {here}",
            "install the same version for both, then `mlflow db upgrade`",
        )

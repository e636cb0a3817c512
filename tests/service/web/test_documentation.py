"""The page of the REST API: an example of every route that works, and what "Try it" does."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import click
import httpx
import pytest
from typer.main import get_command

from service.access.caller import Scope
from service.access.keys import new_key
from service.cli.app import app as command_line
from service.client import Client
from service.client.local_token import token_file
from service.jobs.job import State, utc_now
from service.web.documentation import Route, groups
from service.web.other_clients import OTHERS
from tests.service.examples import make_spec
from tests.service.live_api import Service
from tests.service.web.conftest import NARROW, WIDE, Console

REFUSED = {
    "GET /v1/jobs/{job_id}/checkpoints/{which}": 404,  # it has none
    "GET /v1/jobs/{job_id}/files/{path}": 404,  # nor files
    "PUT /v1/sweeps/{sweep_id}/report/{name}": 409,  # none of its jobs has begun
    "POST /v1/webhooks": 422,  # the machines of the tests know no names of others
}
"""What an example gets where it is not a success, because of what the test has made."""


def documented(service: Service) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(
        f"{service.url}/openapi.json", headers=key_of(service), trust_env=False, timeout=60
    ).json()
    return document


def key_of(service: Service) -> dict[str, str]:
    return {"Authorization": f"Bearer {token_file(service.server.port).read_text()}"}


def fresh_ids(client: httpx.Client, service: Service, key: str) -> dict[str, str]:
    """Ids of a job that the route may be tried on, of a sweep, a webhook and a key."""
    job = service.store.create_job(make_spec(resources={"workers": {"min": 1, "max": 4}}))[0]
    if key in {"DELETE /v1/jobs/{job_id}", "GET /v1/jobs/{job_id}/events", "GET /v1/jobs/{job_id}/logs"}:
        service.start_job(job.id)
        service.print(job.id, "a line")
        service.end_job(job.id, State.SUCCEEDED)
    spec = make_spec().model_dump(mode="json")
    sweep = client.post("/v1/sweeps", json={"spec": spec, "grid": {"training.seed": [0, 1]}}).json()
    webhook = client.post("/v1/webhooks", json={"url": "http://127.0.0.1:9/"}).json()
    own, _ = new_key("ada", Scope.READ, created_by="a test", now=utc_now())
    service.store.add_key(own)
    client.put("/v1/secrets/HF_TOKEN", content="a value of some length").raise_for_status()
    return {"job_id": job.id, "sweep_id": sweep["id"], "webhook_id": webhook["id"], "key_id": own.id}


def archive() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("nets.py", "import torch\n")
    return buffer.getvalue()


def status_of(client: httpx.Client, route: Route, path: str) -> int:
    """Sends the example to this path. The answer's body is not read: that of /v1/events has no end."""
    body, headers = b"", {}
    if route.body:
        headers["Content-Type"] = route.body.kinds[0]
        body = route.body.example.encode() if route.body.example is not None else archive()
    with client.stream(route.method, path, content=body, headers=headers) as answer:
        return answer.status_code


def test_every_example_is_answered_as_documented(service: Service) -> None:
    document = documented(service)
    wrong = {}
    with httpx.Client(base_url=service.url, headers=key_of(service), trust_env=False, timeout=60) as client:
        for route in [route for routes in groups(document).values() for route in routes]:
            key = f"{route.method} {route.path}"
            path = route.target
            for name, value in fresh_ids(client, service, key).items():
                example = document_example(document, route, name)
                path = path.replace(example, value) if example else path
            operation = document["paths"][route.path][route.method.lower()]
            success = next(int(status) for status in operation["responses"] if status.startswith("2"))

            status = status_of(client, route, path)

            as_it_stands = status_of(client, route, route.target)
            if (
                status != REFUSED.get(key, success)
                or not {str(status), str(as_it_stands)} <= operation["responses"].keys()
            ):
                wrong[key] = (status, as_it_stands)
    assert not wrong


def document_example(document: Mapping[str, Any], route: Route, name: str) -> str:
    parameters = document["paths"][route.path][route.method.lower()].get("parameters", [])
    return next((str(each["example"]) for each in parameters if each["name"] == name), "")


def test_commands_and_calls_of_the_examples_exist(service: Service) -> None:
    document = documented(service)
    known = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert set(OTHERS) <= known
    for command, call in OTHERS.values():
        if call:
            assert hasattr(Client, call.removeprefix("list(").removeprefix("client.").partition("(")[0]), call
        if command:
            check_command(shlex.split(command)[1:])


def check_command(words: list[str]) -> None:
    """Has the command line read the words, and run nothing."""
    command: Any = get_command(command_line)
    context = click.Context(command)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
        assert command is not None, words
    command.make_context("example", words, parent=context)


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_a_request_is_sent_from_the_page(console: Console, size: tuple[int, int]) -> None:
    page = console.page
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page = console.open("/docs#POST--v1-jobs")
    form = "article[aria-labelledby=POST--v1-jobs] .try"
    page.wait_for_selector(form)
    assert f"{console.service.url}/v1/jobs" in page.inner_text("article[aria-labelledby=POST--v1-jobs]")
    console.check_fits()
    console.check_accessible()

    page.fill(f"{form} textarea", json.dumps({**make_spec().model_dump(mode="json"), "name": "<img src=x>"}))
    page.click(f"{form} [type=submit]")
    page.click("dialog >> text=Send >> nth=-1")

    page.wait_for_selector(f"{form} .outcome:has-text('201 Created')")
    page.wait_for_selector(f"{form} .answer:has-text('<img src=x>')")
    assert "location: /v1/jobs/" in page.inner_text(f"{form} .headers")
    [job] = console.service.store.list_jobs(limit=5)[0]

    form = "article[aria-labelledby=GET--v1-jobs--job-id-] .try"
    page.click("article[aria-labelledby=GET--v1-jobs--job-id-] summary")
    page.fill(f"{form} [data-name=job_id]", job.id)
    page.click(f"{form} [type=submit]")
    page.wait_for_selector(f"{form} .answer:has-text('queued')")
    console.allow("404")
    page.fill(f"{form} [data-name=job_id]", "../" + "nothing")
    page.click(f"{form} [type=submit]")
    page.wait_for_selector(f"{form} .outcome.bad:has-text('404')")


def test_examples_are_read_by_shell_and_python(console: Console) -> None:
    page = console.open("/docs")
    for text in page.locator("pre[aria-label='With curl']").all_text_contents():
        words = shlex.split(text)
        assert words[0] == "curl"
        assert [word for word in words if word.startswith(console.service.url)], text
    for text in page.locator("pre[aria-label*='in Python' i]").all_text_contents():
        compile(text, "an example", "exec")


def test_a_stream_is_shown_while_it_lasts(console: Console) -> None:
    page = console.open("/docs#GET--v1-events")
    form = "article[aria-labelledby=GET--v1-events] .try"
    page.fill(f"{form} [data-name=after]", "0")
    page.click(f"{form} [type=submit]")
    job, _ = console.service.store.create_job(make_spec())

    page.wait_for_selector(f"{form} .answer:has-text('{job.id}')")
    assert "Stopped" not in page.inner_text(f"{form} .outcome")
    page.click(f"{form} [data-stop]")

    page.wait_for_selector(f"{form} .outcome:has-text('Stopped')")
    page.fill("#filter", "resize")
    page.wait_for_selector("#found:has-text('1 of')")

"""One real HTTP server for all tests, in a thread; what application it serves changes from test to test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.api.http_server import BoundedHttp


@dataclass
class Stage:
    url: str
    app: FastAPI | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self.app
        await self.app(scope, receive, send)

    @contextmanager
    def showing(self, app: FastAPI) -> Iterator[httpx.Client]:
        """Yields a client of `app`, with its token if it has one."""
        self.app = app
        token = app.state.context.local_token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # Loading certificates would take longer than most tests' requests.
        with httpx.Client(
            base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False
        ) as client:
            yield client


@contextmanager
def running_stage() -> Iterator[Stage]:
    """A server on a free port until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stage = Stage(f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = uvicorn.Config(
            stage, http=BoundedHttp, log_level="critical", lifespan="off", ws="none", access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield stage
        finally:
            server.should_exit = server.force_exit = True
            thread.join(timeout=60)


def sent_events(text: str) -> list[tuple[str, str, str]]:
    """The server-sent events of an answer: name, id, data."""
    found = []
    for block in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "event" in fields:
            found.append((fields["event"][0], fields.get("id", [""])[0], "\n".join(fields["data"])))
    return found

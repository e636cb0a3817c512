"""An S3 server (moto) with one bucket, in a process that tests may kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from service.ports import free_port

START_SECONDS = 120.0
BUCKET = "bucket"

# The bucket is created before the server listens, so that no client finds it missing.
SERVER = f"""
import sys
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import main

s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket("{BUCKET}", "us-east-1")
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


class S3Server:
    def __init__(self, folder: Path) -> None:
        self.log = folder / "s3.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables of a client."""
        return {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server and blocks until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(self.port)],
                stdout=log,
                stderr=log,
                env=os.environ | {"NO_COLOR": "1"},
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            said = self.log.read_text(errors="replace")
            assert self._process.poll() is None, f"the S3 server ended:\n{said}"
            assert time.monotonic() < deadline, f"the S3 server does not answer:\n{said}"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/{BUCKET}", timeout=20) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()

"""The API as a process of its own, which a test kills and starts again on the same port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from service.ports import free_port

KEY = "a key of tests"
_SERVE = (
    "import sys; from service.roles import Role; from service.server import serve; "
    "sys.exit(serve(role=Role.API, host='127.0.0.1', port=int(sys.argv[1])))"
)


class ServerProcess:
    """Serves the queue in `database` and the logs in `storage` while the `with` statement lasts."""

    def __init__(self, database_url: str, storage: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.headers = {"Authorization": f"Bearer {KEY}"}
        self._environment = os.environ | {
            "SYNCBN_DATABASE_URL": database_url,
            "SYNCBN_STORAGE": str(storage),
            "SYNCBN_API_KEY": KEY,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Returns once it answers."""
        command = [sys.executable, "-c", _SERVE, str(self.port)]
        self._process = subprocess.Popen(command, env=self._environment, stdout=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None, "the server did not start"
            try:
                httpx.get(f"{self.url}/healthz", trust_env=False, verify=False, timeout=60)
            except httpx.TransportError:
                time.sleep(0.02)
            else:
                return

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Ends it, and waits for its end."""
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait()
            self._process = None

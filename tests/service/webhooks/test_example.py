"""The receiver of docs/how-to/webhooks.md."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from service.ports import free_port
from service.webhooks.messages import headers, new_secret

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "webhooks.md"


def test_the_receiver_of_the_page_takes_what_is_signed_and_nothing_else() -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    secret, port = new_secret(), free_port()
    command = [sys.executable, "-c", source, str(port)]
    with subprocess.Popen(command, env={"WEBHOOK_SECRET": secret}, stderr=subprocess.DEVNULL) as receiver:
        try:
            now, other = int(time.time()), new_secret()
            cases = {
                "good": (headers(secret, "w.1", "{}", now), 204),
                "another secret": (headers(other, "w.1", "{}", now), 401),
                "another id": (headers(secret, "w.1", "{}", now) | {"webhook-id": "w.2"}, 401),
                "old": (headers(secret, "w.1", "{}", now - 3600), 401),
            }
            for name, (sent, status) in cases.items():
                assert post(port, sent).status_code == status, name
        finally:
            receiver.kill()


def post(port: int, sent: dict[str, str]) -> httpx.Response:
    while True:
        try:
            return httpx.post(
                f"http://127.0.0.1:{port}/", headers=sent, content="{}", trust_env=False, timeout=60
            )
        except httpx.ConnectError:
            time.sleep(0.02)

"""`syncbn top` in a real terminal: it draws, goes on over a restart of the server, and leaves no trace."""

from __future__ import annotations

import codecs
import json
import os
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import pytest

from service.client import Client
from service.jobs.job import State, new_job, utc_now
from tests.service.cli import many_jobs
from tests.service.cli.command_line import Syncbn
from tests.service.cli.terminal import cells, environment, open_terminal, plain, seen
from tests.service.examples import make_spec
from tests.service.live_api import SPEC, Service

_HOME = "\x1b[H"
_MARKS = re.compile(r"\x1b\[\?\d+[hl]")


class Top:
    """`syncbn top` in a terminal, and what it has drawn."""

    def __init__(self, url: str, columns: int, rows: int) -> None:
        self._ours, its = open_terminal(columns, rows)
        self.before = termios.tcgetattr(self._ours)
        streams: dict[str, Any] = {"stdin": its, "stdout": its, "stderr": its}
        program = "from service.cli import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "top", "--interval", "0.2"],
            env=environment(url),
            start_new_session=True,
            **streams,
        )
        os.close(its)
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def read(self) -> bool:
        """Takes in what was drawn since; returns whether more may come."""
        ready, _, _ = select.select([self._ours], [], [], 0.1)
        try:
            self.text += self._decode(os.read(self._ours, 65536)) if ready else ""
        except OSError:
            return False
        return True

    def frames(self) -> Iterator[list[str]]:
        """Yields the lines of each frame that is complete, the newest first."""
        for frame in reversed(self.text.split(_HOME)[1:-1]):
            yield plain(_MARKS.sub("", frame))

    def wait_for(self, *words: str, without: str = "\0") -> list[str]:
        """Returns the newest frame once it has all these words in it, and not that one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            frame = next(self.frames(), [])
            text = "\n".join(frame)
            if all(word in text for word in words) and without not in text and frame:
                return frame
            assert self.read(), self.text
        raise AssertionError(f"{words} were not drawn: {self.text[-3000:]!r}")

    def end(self) -> int:
        """Returns the exit code, once the program has ended and all was read."""
        while self.read() and self.process.poll() is None:
            pass
        code = self.process.wait()
        while self.read() and select.select([self._ours], [], [], 0)[0]:
            pass
        return code


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (160, 40)])
def test_top_goes_on_over_a_restart_of_the_server_and_ends_with_q(
    service: Service, client: Client, columns: int, rows: int
) -> None:
    url = f"sqlite:///{service.storage.parent / 'queue.db'}"
    many_jobs.put(url, map(many_jobs.job, range(120)))
    with Top(service.url, columns, rows) as top:
        first = top.wait_for("waiting", "more", "node-1", "running")
        service.server.stop()
        away = top.wait_for("the server does not answer")
        service.server.start()
        job = client.submit({**SPEC, "name": "after-it", "priority": 1000})
        back = top.wait_for("after-it", without="does not answer")
        top.press("q")

        assert top.end() == 0
        assert termios.tcgetattr(top._ours)[3] == top.before[3]

    for frame in (first, away, back):
        assert len(frame) <= rows
        assert max(map(cells, frame)) <= columns
        assert all(line.isprintable() for line in frame)
    assert "\x1b[?1049h" in top.text  # a screen of its own, and back to that of the shell
    assert top.text.rindex("\x1b[?1049l") > top.text.rindex(_HOME)
    assert any(line.split()[:2] == ["1", job.id[:12]] for line in back)


def test_ctrl_c_ends_top_and_a_refused_key_does(service: Service, client: Client) -> None:
    client.submit(SPEC)
    with Top(service.url, 80, 24) as top:
        top.wait_for("1 waiting")
        os.killpg(top.process.pid, signal.SIGINT)
        assert top.end() == 0
        assert "Traceback" not in top.text
    (refused,) = seen(service.url, [["top"]], SYNCBN_API_KEY="wrong")
    assert "error:" in refused


def test_top_prints_once_where_nothing_can_be_redrawn(
    service: Service, client: Client, syncbn: Syncbn
) -> None:
    waiting = client.submit({**SPEC, "name": "waits"})
    running = client.submit({**SPEC, "name": "runs"})
    service.train(service.start_job(running.id), 3)

    piped, dumb = syncbn("top"), seen(service.url, [["top"]], TERM="dumb")[0]
    document = json.loads(syncbn("top", "--json").stdout)

    assert piped.exit_code == 0
    assert "printed once" in piped.stderr
    assert waiting.id in piped.stdout
    assert running.id in piped.stdout
    assert "printed once" in dumb
    assert "\x1b" not in dumb
    assert [job["id"] for job in document["active"]] == [running.id]
    assert [job["id"] for job in document["waiting"]] == [waiting.id]
    assert (document["waiting_total"], document["cluster"]["total"]["cpus"]) == (1, 4)
    assert syncbn("--url", "http://127.0.0.1:1", "top").exit_code == 5


def test_top_without_a_scheduler_shows_the_jobs(service: Service, syncbn: Syncbn) -> None:
    job = new_job(make_spec(name="alone"), created_at=utc_now())
    many_jobs.put(f"sqlite:///{service.storage.parent / 'queue.db'}", [job])
    service.find_ray("Ray does not answer")

    shown = syncbn("top")

    assert shown.exit_code == 0
    assert "alone" in shown.stdout
    assert "no machine is known" in shown.stdout
    assert service.store.get(job.id).state is State.QUEUED

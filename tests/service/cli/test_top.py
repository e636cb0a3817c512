"""`syncbn top` in a real terminal: it draws, goes on over a restart of the server, and leaves no trace."""

from __future__ import annotations

import json
import os
import signal

import pytest

from service.client import Client
from service.jobs.job import State, new_job, utc_now
from tests.service.cli import many_jobs
from tests.service.cli.command_line import Syncbn
from tests.service.cli.terminal import HOME, Running, cells, seen
from tests.service.examples import make_spec
from tests.service.live_api import SPEC, Service

TOP = ("top", "--interval", "0.2")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (160, 40)])
def test_top_goes_on_over_a_restart_of_the_server_and_ends_with_q(
    service: Service, client: Client, columns: int, rows: int
) -> None:
    url = f"sqlite:///{service.storage.parent / 'queue.db'}"
    many_jobs.put(url, map(many_jobs.job, range(120)))
    with Running(service.url, *TOP, columns=columns, rows=rows) as top:
        before = top.settings()
        first = top.wait_for("waiting", "more", "node-1", "running")
        service.server.stop()
        away = top.wait_for("the server does not answer")
        service.server.start()
        job = client.submit({**SPEC, "name": "after-it", "priority": 1000})
        back = top.wait_for("after-it", without="does not answer")
        top.press("q")

        assert top.end() == 0
        assert top.settings() == before

    for frame in (first, away, back):
        assert len(frame) <= rows
        assert max(map(cells, frame)) <= columns
        assert all(line.isprintable() for line in frame)
    assert "\x1b[?1049h" in top.text  # a screen of its own, and back to that of the shell
    assert top.text.rindex("\x1b[?1049l") > top.text.rindex(HOME)
    assert any(line.split()[:2] == ["1", job.id[:12]] for line in back)


def test_ctrl_c_ends_top_and_a_refused_key_does(service: Service, client: Client) -> None:
    client.submit(SPEC)
    with Running(service.url, *TOP) as top:
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


@pytest.mark.parametrize(("columns", "rows"), [(10, 3), (33, 7), (400, 200)])
def test_top_fits_odd_terminals(service: Service, columns: int, rows: int) -> None:
    many_jobs.put(f"sqlite:///{service.storage.parent / 'queue.db'}", map(many_jobs.job, range(60)))
    with Running(service.url, *TOP, columns=columns, rows=rows) as top:
        frame = top.wait_for("NODE")
        top.press("q")
        assert top.end() == 0

    assert len(frame) <= rows
    assert max(map(cells, frame)) <= columns

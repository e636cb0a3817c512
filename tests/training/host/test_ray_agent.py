"""What the host agent does as an actor of Ray, without Ray: whose orders it takes, and what it leaves."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from training.host import own_folder
from training.host.ray_agent import RayHostAgent
from training.protocol import Superseded


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where agents make theirs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def agent(folders: Path) -> Iterator[RayHostAgent]:  # noqa: ARG001
    agent = RayHostAgent(3)
    yield agent
    agent._agent.close()


def test_orders_of_a_scheduler_that_was_followed_by_another_are_refused(agent: RayHostAgent) -> None:
    orders: list[Callable[[int], object]] = [
        lambda fence: agent.news(fence, "", -1, 0.0),
        lambda fence: agent.rendezvous(fence, "job-1", 1, "127.0.0.1"),
        lambda fence: agent.put_code(fence, "digest", b""),
        lambda fence: agent.stop(fence, "job-1", 1.0),
        lambda fence: agent.end(fence, "job-1"),
        lambda fence: agent.forget(fence, "job-1"),
    ]
    for fence, order in enumerate(orders, start=3):
        order(fence)
        order(fence)
        for each in orders:
            with pytest.raises(Superseded, match=f"scheduler {fence - 1} has been superseded by"):
                each(fence - 1)


def test_a_question_for_news_ends_when_another_scheduler_comes(agent: RayHostAgent) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask_on, agent, 4)
        agent.forget(5, "job-1")

        with pytest.raises(Superseded):
            waiting.result()


def ask_on(agent: RayHostAgent, fence: int) -> None:
    while True:
        told = agent.news(fence, "", -1, 0.0)
        agent.news(fence, told.instance, told.news.version, 600.0)


def test_news_of_an_agent_that_was_started_again_are_told_at_once(agent: RayHostAgent) -> None:
    told = agent.news(3, "", -1, 0.0)

    again = agent.news(3, "that of the last one", told.news.version, 600.0)

    assert again.instance == told.instance


def hold(pipe: Connection) -> None:
    pipe.send(str(own_folder.own_folder()))
    pipe.recv()
    os._exit(1)  # as if it was killed


def test_what_an_agent_leaves_that_was_killed_goes_when_the_next_one_begins(folders: Path) -> None:
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=hold, args=(its,))
    process.start()
    held = Path(mine.recv())
    (held / "code").mkdir()
    fresh, others = folders / "syncbn-agent-fresh", folders / "others"
    for folder in (fresh, others):
        folder.mkdir()
    long_ago = time.time() - 1_000
    os.utime(others, (long_ago, long_ago))

    first = own_folder.own_folder()
    assert held.exists()
    mine.send(None)
    process.join()
    second = own_folder.own_folder()

    assert not held.exists()
    assert [folder.exists() for folder in (fresh, others, first, second)] == [True] * 4
    assert second.stat().st_mode & 0o777 == 0o700

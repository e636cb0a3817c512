"""What readers of streams cost: those of the same thing as much as one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from service.api import sse
from service.api.notifier import Notifier
from service.api.sse import Streams

READERS = 300
TOPIC = ("job", "1")


class Source:
    """Has `value`, which readers are sent whenever it rises."""

    def __init__(self) -> None:
        self.value, self.reads, self.looks = 0, 0, 0
        self.stopping = threading.Event()
        self.streams = Streams(Notifier(self.look, self.stopping).subscribe, self.stopping)

    def look(self, topics: object) -> dict[tuple[str, str], int]:  # noqa: ARG002
        self.looks += 1
        return {TOPIC: self.value}

    def news(self, seen: int) -> tuple[bytes, int, bool]:
        self.reads += 1
        return (f"{self.value} " if self.value > seen else "").encode(), self.value, False

    def stream(self) -> AsyncIterator[bytes]:
        return self.streams._events(TOPIC, "", self.news, 0, b"")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "POLL_S", 0.01)


def test_many_readers_cost_one_and_an_idle_one_reads_nothing() -> None:
    async def scenario(source: Source) -> list[str]:
        received = [""] * READERS

        async def read(number: int) -> None:
            async for portion in source.stream():
                received[number] += portion.decode()

        tasks = [asyncio.create_task(read(number)) for number in range(READERS)]
        for value in (1, 2, 3):
            source.value = value
            while not all(text.endswith(f"{value} ") for text in received):
                await asyncio.sleep(0.005)
        looks, reads = source.looks, source.reads
        while source.looks < looks + 5:
            await asyncio.sleep(0.005)
        assert source.reads <= reads + 1
        source.stopping.set()
        await asyncio.gather(*tasks)
        return received

    source = Source()

    assert set(asyncio.run(scenario(source))) == {"1 2 3 "}
    assert source.reads <= 10


def test_a_reader_that_leaves_takes_nothing_from_the_others() -> None:
    async def scenario(source: Source) -> bytes:
        source.value = 1
        leaving, staying = (asyncio.ensure_future(anext(source.stream())) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        portion = await staying
        source.stopping.set()
        return portion

    assert asyncio.run(scenario(Source())) == b"1 "


def test_a_portion_that_takes_long_does_not_hold_up_those_of_other_readers() -> None:
    async def scenario(source: Source) -> list[bytes]:
        go_on = threading.Event()

        def slow(seen: int) -> tuple[bytes, int, bool]:  # noqa: ARG001
            assert go_on.wait(60)
            return b"slow", 1, True

        def quick(seen: int) -> tuple[bytes, int, bool]:  # noqa: ARG001
            return b"quick", 1, True

        news = [slow, *[quick] * 100]
        readers = [
            asyncio.ensure_future(anext(source.streams._events(TOPIC, number, each, 0, b"")))
            for number, each in enumerate(news)
        ]
        found = await asyncio.gather(*readers[1:])
        assert not readers[0].done()
        go_on.set()
        source.stopping.set()
        return [await readers[0], *found]

    assert asyncio.run(scenario(Source())) == [b"slow", *[b"quick"] * 100]

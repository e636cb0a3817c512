import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from service.errors import Unavailable
from service.queue.group_commit import GroupCommit

SECONDS = 30.0


class Disk:
    """Commits numbers, each group once `free` is set; 13 cannot be committed, and -1 only when it is away."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.free, self.begun = threading.Event(), threading.Event()

    def write(self, numbers: Sequence[int]) -> list[str | Exception]:
        self.begun.set()
        assert self.free.wait(SECONDS)
        if -1 in numbers:
            raise Unavailable("the disk", "it is away")
        self.groups.append(list(numbers))
        return [
            ValueError("13 cannot be committed") if number == 13 else f"{number} is committed"
            for number in numbers
        ]


@pytest.fixture
def disk() -> Disk:
    return Disk()


def run(disk: Disk, story: Callable[[GroupCommit[int, str]], Awaitable[None]]) -> None:
    """Runs the story; what it adds is decided when this returns."""

    async def told() -> None:
        commits = GroupCommit(disk.write)
        try:
            await asyncio.wait_for(story(commits), SECONDS)
        finally:
            disk.free.set()
            commits.close()

    asyncio.run(told())


async def one_being_committed(disk: Disk, commits: GroupCommit[int, str]) -> asyncio.Task[str]:
    first = asyncio.create_task(commits.add(1))
    assert await asyncio.to_thread(disk.begun.wait, SECONDS)
    return first


async def add(commits: GroupCommit[int, str], numbers: Sequence[int]) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(commits.add(number)) for number in numbers]
    await asyncio.sleep(0)  # each runs until it waits
    return tasks


def test_what_arrives_during_a_commit_shares_the_next_one(disk: Disk) -> None:
    async def story(commits: GroupCommit[int, str]) -> None:
        first = await one_being_committed(disk, commits)
        others = await add(commits, [2, 3, 4])
        assert not any(each.done() for each in (first, *others))
        disk.free.set()

        assert await asyncio.gather(first, *others) == [f"{number} is committed" for number in (1, 2, 3, 4)]
        assert disk.groups == [[1], [2, 3, 4]]
        assert await commits.add(5) == "5 is committed"

    run(disk, story)


def test_each_gets_its_own_outcome(disk: Disk) -> None:
    async def story(commits: GroupCommit[int, str]) -> None:
        disk.free.set()
        group = await add(commits, [2, 13, 4])
        found = await asyncio.gather(*group, return_exceptions=True)

        assert [isinstance(each, ValueError) for each in found] == [False, True, False]

    run(disk, story)


def test_a_failure_of_the_whole_group_is_that_of_each_and_the_next_group_is_written(disk: Disk) -> None:
    async def story(commits: GroupCommit[int, str]) -> None:
        first = await one_being_committed(disk, commits)
        group = await add(commits, [2, -1, 4])
        disk.free.set()
        await first

        for each in group:
            with pytest.raises(Unavailable):
                await each
        assert await commits.add(5) == "5 is committed"
        assert disk.groups == [[1], [5]]

    run(disk, story)


def test_what_nobody_waits_for_any_more_is_committed_and_does_not_harm_its_group(disk: Disk) -> None:
    async def story(commits: GroupCommit[int, str]) -> None:
        first = await one_being_committed(disk, commits)
        gone, other = await add(commits, [2, 3])
        for each in (first, gone):
            each.cancel()
        disk.free.set()

        assert await other == "3 is committed"
        assert disk.groups == [[1], [2, 3]]

    run(disk, story)


def test_a_commit_that_is_under_way_is_decided_when_it_is_closed(disk: Disk) -> None:
    async def story(commits: GroupCommit[int, str]) -> None:
        first = await one_being_committed(disk, commits)
        disk.free.set()
        await asyncio.to_thread(commits.close)

        assert disk.groups == [[1]]
        assert await first == "1 is committed"

    run(disk, story)

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait

import pytest

from service.errors import Unavailable
from service.queue.group_commit import GroupCommit

SECONDS = 30.0


class Disk:
    """Commits numbers, each group once `free` is set; 13 cannot be committed, and -1 only when it is away."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.alone: list[int] = []
        self.free, self.begun = threading.Event(), threading.Event()

    def write_all(self, numbers: Sequence[int]) -> list[str]:
        self.begun.set()
        assert self.free.wait(SECONDS)
        if -1 in numbers:
            raise Unavailable("the disk", "it is away")
        if 13 in numbers:
            raise ValueError("13 cannot be committed")
        self.groups.append(list(numbers))
        return [f"{number} is committed" for number in numbers]

    def write_one(self, number: int) -> str:
        self.alone.append(number)
        return self.write_all([number])[0]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def commits(disk: Disk) -> Iterator[GroupCommit[int, str]]:
    made = GroupCommit(disk.write_all, disk.write_one)
    yield made
    disk.free.set()
    made.close()


def test_what_arrives_during_a_commit_shares_the_next_one(disk: Disk, commits: GroupCommit[int, str]) -> None:
    first = commits.add(1)
    assert disk.begun.wait(SECONDS)
    others = [commits.add(number) for number in (2, 3, 4)]
    assert not any(each.done() for each in (first, *others))
    disk.free.set()

    assert first.result(SECONDS) == "1 is committed"
    assert [each.result(SECONDS) for each in others] == [f"{number} is committed" for number in (2, 3, 4)]
    assert disk.groups == [[1], [2, 3, 4]]


def test_an_item_that_cannot_be_committed_does_not_harm_its_group(
    disk: Disk, commits: GroupCommit[int, str]
) -> None:
    commits.add(1)
    assert disk.begun.wait(SECONDS)
    group = [commits.add(number) for number in (2, 13, 4)]
    disk.free.set()
    wait(group, SECONDS)

    assert [each.exception() is None for each in group] == [True, False, True]
    assert disk.groups == [[1], [2], [4]]
    assert disk.alone == [2, 13, 4]


def test_a_group_is_not_tried_one_by_one_while_the_database_is_away(
    disk: Disk, commits: GroupCommit[int, str]
) -> None:
    commits.add(1)
    assert disk.begun.wait(SECONDS)
    group = [commits.add(number) for number in (2, -1, 4)]
    disk.free.set()

    for each in group:
        with pytest.raises(Unavailable):
            each.result(SECONDS)
    assert disk.alone == []
    assert commits.add(5).result(SECONDS) == "5 is committed"


def test_many_threads_get_their_own_results(disk: Disk, commits: GroupCommit[int, str]) -> None:
    disk.free.set()
    found: dict[int, str] = {}

    def add(numbers: range) -> None:
        for number in numbers:
            found[number] = commits.add(number).result(SECONDS)

    threads = [threading.Thread(target=add, args=(range(100 + k, 500, 8),)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: f"{number} is committed" for number in range(100, 500)}
    assert sorted(number for group in disk.groups for number in group) == sorted(found)

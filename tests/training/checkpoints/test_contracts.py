"""What both stores of checkpoints promise: a folder and an object store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.training.checkpoints.test_checkpoints import newest, save, save_as
from tests.training.checkpoints.test_object_store import files
from training.checkpoints.bucket import Bucket
from training.checkpoints.folder import Checkpoints
from training.checkpoints.object_store import ObjectStore


class Subject(Protocol):
    """A store, and what tests do to it behind its back."""

    def store(self, **options: Any) -> Checkpoints | ObjectStore: ...

    def names(self) -> dict[int, str]:
        """The valid checkpoints and those not yet found to be broken, by step."""

    def broken(self) -> int:
        """The number of checkpoints set aside."""

    def leftovers(self) -> list[str]:
        """What is there that is no checkpoint."""

    def files(self, step: int) -> list[str]: ...

    def read(self, step: int, name: str) -> bytes: ...

    def write(self, step: int, name: str, content: bytes) -> None: ...

    def remove(self, step: int, name: str) -> None: ...


class InFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, **options: Any) -> Checkpoints:
        return Checkpoints(self.folder, **options)

    def names(self) -> dict[int, str]:
        return {
            int(path.name.removeprefix("step-")): path.name for path in sorted(self.folder.glob("step-*"))
        }

    def broken(self) -> int:
        return len(list(self.folder.glob("broken-*")))

    def leftovers(self) -> list[str]:
        return [each.name for each in self.folder.iterdir() if not each.name.startswith(("step-", "broken-"))]

    def files(self, step: int) -> list[str]:
        own = self.folder / self.names()[step]
        return sorted(str(path.relative_to(own)) for path in own.rglob("*") if path.is_file())

    def read(self, step: int, name: str) -> bytes:
        return (self.folder / self.names()[step] / name).read_bytes()

    def write(self, step: int, name: str, content: bytes) -> None:
        (self.folder / self.names()[step] / name).write_bytes(content)

    def remove(self, step: int, name: str) -> None:
        (self.folder / self.names()[step] / name).unlink()


class InBucket:
    def __init__(self, url: str, temporary: Path) -> None:
        self.url, self.bucket, self.temporary = url, Bucket(url), temporary

    def store(self, **options: Any) -> ObjectStore:
        return ObjectStore(self.url, **options)

    def names(self) -> dict[int, str]:
        whole = [name for name, found in files(self.url).items() if "broken-manifest.json" not in found]
        by_step = {int(name.split("-")[1]): name for name in whole}
        assert len(by_step) == len(whole)
        return by_step

    def broken(self) -> int:
        return sum("broken-manifest.json" in found for found in files(self.url).values())

    def leftovers(self) -> list[str]:
        return [each.name for each in self.temporary.iterdir()]

    def files(self, step: int) -> list[str]:
        return files(self.url)[self.names()[step]]

    def read(self, step: int, name: str) -> bytes:
        return self.bucket.read(f"{self.names()[step]}/{name}")

    def write(self, step: int, name: str, content: bytes) -> None:
        self.bucket.write(f"{self.names()[step]}/{name}", content)

    def remove(self, step: int, name: str) -> None:
        self.bucket.remove(f"{self.names()[step]}/{name}")


@pytest.fixture(params=["folder", pytest.param("object store", marks=pytest.mark.full)])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    if request.param == "folder":
        return InFolder(tmp_path / "checkpoints")
    return InBucket(request.getfixturevalue("url"), request.getfixturevalue("temporary"))


def test_a_checkpoint_comes_back_with_its_files_its_step_and_its_metric(subject: Subject) -> None:
    store = subject.store()
    save(store, 123, metric=0.25)
    assert subject.files(123) == ["manifest.json", "model.pt", "ranks/0.pt"]
    assert subject.leftovers() == []

    found = newest(store)

    assert (found.step, found.metric, found.path.name) == (123, 0.25, subject.names()[123])
    assert (found.path / "model.pt").read_text() == "model of 123"
    assert (found.path / "ranks" / "0.pt").read_text() == "rank 0 of 123"


def test_where_nothing_was_saved_there_is_none(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    assert subject.store().latest_valid() is None
    assert not caplog.records


def test_the_newest_is_that_of_the_highest_step(subject: Subject) -> None:
    store = subject.store()
    for step in (9, 10, 7):
        save(store, step)

    assert newest(store).step == 10


def test_an_error_while_writing_goes_on_and_leaves_nothing(subject: Subject) -> None:
    store = subject.store()
    save(store, 1)

    def write(draft: Path) -> None:
        (draft / "model.pt").write_text("half of it")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        save_as(store, 2, write)

    assert list(subject.names()) == [1]
    assert subject.leftovers() == []


@pytest.mark.parametrize(
    ("mode", "metrics", "kept"),
    [
        ("min", [0.5, 0.1, 0.4, 0.3, 0.2], [2, 4, 5]),
        ("max", [0.5, 0.1, 0.4, 0.3, 0.2], [1, 4, 5]),
        ("min", [0.5, 0.4, 0.3, 0.2, 0.1], [4, 5]),
        ("min", [math.nan, -math.inf, 0.5, None, None], [3, 4, 5]),
        ("max", [math.nan, math.inf, 0.5, 0.1, None], [3, 4, 5]),
        ("max", [0.0, 0.0, -1.0, -1.0, None], [2, 4, 5]),
        ("min", [None, None, None, None, None], [4, 5]),
    ],
)
def test_the_last_and_the_best_are_kept(
    subject: Subject, mode: str, metrics: list[float | None], kept: list[int]
) -> None:
    store = subject.store(keep_last=2, mode=mode)

    for step, metric in enumerate(metrics, 1):
        save(store, step, metric=metric)

    assert list(subject.names()) == kept


def changed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Subject], None]:
    def damage(subject: Subject) -> None:
        manifest = json.loads(subject.read(2, "manifest.json"))
        subject.write(2, "manifest.json", json.dumps(change(manifest)).encode())

    return damage


DAMAGES: dict[str, Callable[[Subject], None]] = {
    "model.pt has different content": lambda subject: subject.write(2, "model.pt", b"MODEL of 2"),
    "ranks/0.pt has 2 bytes instead of 11": lambda subject: subject.write(2, "ranks/0.pt", b"ra"),
    "model.pt is missing": lambda subject: subject.remove(2, "model.pt"),
    "manifest.json is not valid JSON": lambda subject: subject.write(
        2, "manifest.json", b'{"format": 1, \xff'
    ),
    "manifest.json is not a checkpoint manifest": lambda subject: subject.write(2, "manifest.json", b"[]"),
    "manifest.json was changed after it was written": changed(lambda manifest: manifest | {"metric": 0.0}),
    "it has format 2, but this version of the software reads 1": changed(
        lambda manifest: manifest | {"format": 2}
    ),
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    subject: Subject, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    store = subject.store()
    save(store, 1)
    save(store, 2)
    one, two = subject.names().values()
    DAMAGES[fault](subject)

    assert newest(store).step == 1
    assert newest(store).step == 1

    assert (subject.names(), subject.broken()) == ({1: one}, 1)
    (record,) = caplog.records
    assert f"checkpoint {two} is not used: {fault}" in record.message
    assert record.message.endswith(f"the run resumes from {one}")


def test_where_none_is_whole_the_run_is_said_to_start_from_the_beginning(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    store = subject.store()
    for step in (1, 2):
        save(store, step)
        subject.remove(step, "model.pt")

    assert store.latest_valid() is None

    assert len(caplog.records) == 2
    assert all("the run starts from the beginning" in record.message for record in caplog.records)


def test_a_step_that_is_there_already_stays_as_it_is(subject: Subject) -> None:
    store = subject.store()
    save(store, 1, metric=0.5, text="first")
    save(store, 1, metric=0.1, text="second")

    found = newest(store)

    assert (found.metric, (found.path / "model.pt").read_text()) == (0.5, "first")
    assert list(subject.names()) == [1]


def test_a_step_that_was_saved_before_its_metric_was_known_learns_it(subject: Subject) -> None:
    store = subject.store(keep_last=2)
    save(store, 1, text="first")
    save(store, 1, metric=0.1, text="second")
    found = newest(store)
    assert (found.metric, (found.path / "model.pt").read_text()) == (0.1, "first")

    for step in (2, 3, 4):
        save(store, step, metric=0.2)

    assert list(subject.names()) == [1, 3, 4]


def test_a_step_that_is_there_but_broken_is_replaced(
    subject: Subject, caplog: pytest.LogCaptureFixture
) -> None:
    store = subject.store()
    save(store, 1, text="first")
    broken = subject.names()[1]
    subject.write(1, "model.pt", b"FIRST")

    save(store, 1, text="second")

    assert subject.leftovers() == []
    assert (newest(store).path / "model.pt").read_text() == "second"
    assert (list(subject.names()), subject.broken()) == ([1], 1)
    assert f"{broken} is written again: model.pt has different content" in caplog.text

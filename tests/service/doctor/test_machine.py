"""Checks of this machine, and how checks are run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from service.doctor import machine, storage
from service.doctor.examine import examine
from service.doctor.finding import Check, Finding, Level, ok
from service.errors import Refused

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (0, GIB, "fault"),
        (GIB // 2, 100 * GIB, "fault"),
        (4 * GIB, 100 * GIB, "warning"),
        (50 * GIB, 100 * GIB, "ok"),
        (20 * GIB, 10_000 * GIB, "ok"),
        (GIB // 2, GIB, "ok"),
    ],
)
def test_a_disk_is_full_by_its_share_and_its_bytes(free: int, total: int, level: str) -> None:
    assert machine.of_disk(Path("/data"), free, total).level == level


def test_each_disk_is_named_once_and_a_missing_folder_by_its_parent(tmp_path: Path) -> None:
    found = list(machine.disks([tmp_path / "not" / "there", tmp_path]))

    assert len(found) == 1
    assert str(tmp_path) in found[0].message


def test_loopback_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(host: str, port: int) -> bool:
        raise Refused(f"cannot listen on {host}:{port}: loopback has no IPv4 address")

    monkeypatch.setattr(machine, "is_free", refused)

    (finding,) = machine.network()

    assert finding.level is Level.FAULT


def test_small_shared_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_SHARED_MEMORY", 2**60)

    (finding,) = machine.shared_memory(tmp_path)

    assert finding.level is Level.WARNING
    assert "--shm-size" in finding.advice


def test_a_storage_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (finding,) = storage.check(str(tmp_path), None)

    assert finding.level is Level.OK
    assert not list(tmp_path.iterdir())


def test_a_storage_that_cannot_be_written_is_named() -> None:
    # Even root cannot create a file there.
    (finding,) = storage.check("/proc/self", None)

    assert finding.level is Level.FAULT
    assert "cannot be written" in finding.message


def test_a_check_that_hangs_or_fails_delays_no_other() -> None:
    released = threading.Event()

    def hangs() -> list[Finding]:
        released.wait(60)
        return []

    def fails() -> list[Finding]:
        raise KeyError("a bug")

    checks = [
        Check(about="hangs", run=hangs, seconds=0.2),
        Check(about="fails", run=fails),
        Check(about="well", run=lambda: [ok("well", "fine")]),
    ]

    found = {each.about: each for each in examine(checks)}

    released.set()
    assert {name: each.level for name, each in found.items()} == {
        "hangs": "fault",
        "fails": "fault",
        "well": "ok",
    }
    assert found["hangs"].message == "no answer in 0.2 s"
    assert "KeyError" in found["fails"].message

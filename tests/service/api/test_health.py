"""/readyz on disks that are full or frozen: it answers in time, and names the storage."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from service import readiness
from service.api.app import create_app
from service.backends.memory_tracking import FakeResults
from service.disk_space import LEAST_FREE
from service.doctor import machine, storage
from service.doctor.examine import examine
from service.doctor.finding import Check, Level
from service.queue.store import Store
from service.settings import Settings
from tests.service.live_api import find_ray
from tests.service.serving import Stage
from tests.small_disk import MIB, fill, frozen_disk, small_disk

pytestmark = pytest.mark.full


def test_a_full_disk_is_named_until_there_is_room(stage: Stage, sqlite_store: Store, tmp_path: Path) -> None:
    find_ray(sqlite_store)
    with small_disk(tmp_path / "disk", mib=2 * LEAST_FREE // MIB) as disk:
        app = create_app(Settings(storage=str(disk)), sqlite_store, FakeResults())
        with stage.showing(app) as api:
            before = api.get("/readyz")
            filling = fill(disk, share=0.6)
            full = api.get("/readyz").json()["checks"]
            filling.unlink()
            again = api.get("/readyz")

    assert before.status_code == again.status_code == 200
    assert [name for name, check in full.items() if check["state"] != "ok"] == ["storage"]
    assert f"MiB are free in {disk}; at least 64 MiB are needed" in full["storage"]["message"]


def test_a_frozen_storage_is_named_in_time_and_costs_one_thread(
    stage: Stage, sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "DEADLINE_SECONDS", 2.5)  # the others answer in time
    find_ray(sqlite_store)
    with frozen_disk(tmp_path / "disk") as disk:
        app = create_app(Settings(storage=str(disk / "runs")), sqlite_store, FakeResults())
        with stage.showing(app) as api:
            answers = [api.get("/readyz").json()["checks"]]
            threads = threading.active_count()
            answers += [api.get("/readyz").json()["checks"] for _ in range(5)]
            grown = threading.active_count() - threads
            listed = api.get("/v1/jobs")

    for checks in answers:
        assert [name for name, check in checks.items() if check["state"] != "ok"] == ["storage"]
        assert checks["storage"]["message"] == "storage: no answer in 2.5 s"
    assert grown <= 1
    assert listed.status_code == 200


def test_doctor_names_a_frozen_storage_in_time(tmp_path: Path) -> None:
    with frozen_disk(tmp_path / "disk") as disk:
        runs = disk / "runs"
        checks = [
            Check(about="storage", run=lambda: storage.check(str(runs), None), seconds=0.5),
            Check(about="disk", run=lambda: machine.disks([runs]), seconds=0.5),
        ]
        found = list(examine(checks))

    assert [(each.about, each.level) for each in found] == [
        ("storage", Level.FAULT),
        ("disk", Level.FAULT),
    ]
    assert all(each.message == "no answer in 0.5 s" for each in found)

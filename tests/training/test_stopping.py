"""A driver that is asked to end, as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

DRIVER = """
import sys, time
from pathlib import Path
from training import stopping
from training.folder import RunFolder

stopping.PATIENCE_SECONDS = 0.5
folder = RunFolder(path=Path(sys.argv[1]))
driver = stopping.Stopping(folder)
driver.on_signal()
print("ready", flush=True)
while not driver.asked:
    time.sleep(0.01)
print("asked", flush=True)
if sys.argv[2] == "saves":
    folder.stopped.write_text("17")
    print("stopped at", driver.step, flush=True)
    sys.exit(0)
time.sleep(60)
"""
PLACE = (
    '{"rank": 0, "world_size": 1, "host": "h", "pid": 1, "thread": 1, "step": 3, "doing": "a train batch", '
    '"collectives": 0, "limit": 300.0}'
)


def driver_of(folder: Path, then: str) -> subprocess.Popen[str]:
    """Sent SIGTERM once it is ready for that."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), then], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    return process


def with_a_worker(folder: Path) -> Path:
    (folder / "hang").mkdir(parents=True)
    (folder / "hang" / "rank-0.place").write_text(PLACE.ljust(4096))
    return folder


def test_request_is_left_for_the_workers_and_their_last_step_is_known(tmp_path: Path) -> None:
    with_a_worker(tmp_path)
    (tmp_path / "stopped").write_text("9")  # of an attempt before this one

    process = driver_of(tmp_path, "saves")

    assert process.communicate(timeout=60)[0] == "asked\nstopped at 17\n"
    assert process.returncode == 0
    assert (tmp_path / "stop").exists()


def test_driver_ends_when_its_workers_make_no_progress(tmp_path: Path) -> None:
    process = driver_of(with_a_worker(tmp_path), "waits")

    process.communicate(timeout=60)
    assert process.returncode == 1


def test_driver_ends_at_once_when_no_worker_has_begun(tmp_path: Path) -> None:
    tmp_path.joinpath("stop").touch()  # of an attempt before this one: taken back

    process = driver_of(tmp_path, "waits")

    process.communicate(timeout=60)
    assert process.returncode == 1

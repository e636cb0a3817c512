from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from training.checkpoints.folder import Checkpoints
from training.checkpoints.manifest import Saved
from training.checkpoints.object_store import ObjectStore

# Saves one step after the other and prints each. Kills itself at its KILL_AT-th file system operation.
WRITER = """
import os, signal, sys
from pathlib import Path
from training.checkpoints.folder import Checkpoints

folder, first, last, kill_at, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
done = 0
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.scandir"}

def count(event, arguments):
    global done
    deep = event in {"os.remove", "os.rmdir"} or isinstance(arguments and arguments[0], int)
    if event in OPERATIONS and (deep or str(folder) in str(arguments[0])):
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
checkpoints = Checkpoints(folder, keep_last=1)
for step in range(first, last):
    with checkpoints.writing(step, metric=float(step % 3)) as draft:
        (draft / "model.pt").write_bytes(bytes([step % 256]) * size)
        (draft / "ranks").mkdir()
        (draft / "ranks" / "0.pt").write_bytes(b"rank of %d" % step)
    os.write(1, b"%d\\n" % step)
"""


def writer(
    folder: Path, *, first: int = 1, last: int, kill_at: int = 0, size: int = 1000
) -> subprocess.Popen[str]:
    numbers = [str(number) for number in (first, last, kill_at, size)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), *numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def save(
    checkpoints: Checkpoints | ObjectStore, step: int, *, metric: float | None = None, text: str | None = None
) -> None:
    with checkpoints.writing(step, metric=metric) as draft:
        (draft / "model.pt").write_text(text or f"model of {step}")
        (draft / "ranks").mkdir()
        (draft / "ranks" / "0.pt").write_text(f"rank 0 of {step}")


def save_as(checkpoints: Checkpoints | ObjectStore, step: int, write: Callable[[Path], object]) -> None:
    with checkpoints.writing(step) as draft:
        write(draft)


def newest(checkpoints: Checkpoints | ObjectStore) -> Saved:
    found = checkpoints.latest_valid()
    assert found is not None
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    """Returns the steps of all entries in the folder, which must be checkpoints."""
    return [int(name.removeprefix("step-")) for name in names(folder)]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_the_newest_is_that_of_the_highest_step_however_many_digits_it_has(checkpoints: Checkpoints) -> None:
    for step in (999_999_999, 1_000_000_000, 7):
        save(checkpoints, step)

    assert newest(checkpoints).step == 1_000_000_000


def test_the_manifest_is_plain_json_that_says_what_each_file_is(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1, metric=float("nan"))

    manifest = json.loads((newest(checkpoints).path / "manifest.json").read_text())

    assert (manifest["format"], manifest["step"], manifest["metric"]) == (1, 1, None)
    assert {name: file["size"] for name, file in manifest["files"].items()} == {
        "model.pt": 10,
        "ranks/0.pt": 11,
    }


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("link", lambda draft: (draft / "link").symlink_to("/etc")),
        ("manifest.json", lambda draft: (draft / "manifest.json").write_text("{}")),
    ],
)
def test_a_link_or_a_manifest_of_the_callers_is_refused(
    checkpoints: Checkpoints, name: str, write: Callable[[Path], object]
) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be in a checkpoint"):
        save_as(checkpoints, 1, write)

    assert names(checkpoints.folder) == []


# Retention


def test_one_that_is_not_whole_takes_no_place_of_those_that_are(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    save(checkpoints, 1)
    save(checkpoints, 9, metric=0.0)
    (tmp_path / "step-000000009" / "model.pt").unlink()

    for step in (2, 3):
        save(checkpoints, step, metric=1.0)

    assert steps(tmp_path) == [2, 3, 9]
    assert newest(checkpoints).step == 3


# Invalid checkpoints


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def as_a_link(saved: Path) -> None:
    shutil.copytree(saved, saved.parent / "elsewhere")
    shutil.rmtree(saved)
    saved.symlink_to("elsewhere")


def with_a_link_for_a_file(saved: Path) -> None:
    (saved / "model.pt").rename(saved.parent / "elsewhere")
    (saved / "model.pt").symlink_to("../elsewhere")


def as_a_file(saved: Path) -> None:
    shutil.rmtree(saved)
    saved.write_text("")


def of_another_step(saved: Path) -> None:
    shutil.rmtree(saved)
    shutil.copytree(saved.with_name("step-000000001"), saved)


DAMAGES = {
    "ranks/1.pt is not part of it": lambda saved: (saved / "ranks" / "1.pt").write_text(""),
    "link is not part of it": lambda saved: (saved / "link").symlink_to("ranks"),
    "model.pt is not a file": with_a_link_for_a_file,
    "manifest.json is missing": lambda saved: (saved / "manifest.json").unlink(),
    "it was saved as step 1": of_another_step,
    "it is a symbolic link": as_a_link,
    "manifest.json is missing ": as_a_file,
}


@pytest.mark.parametrize("fault", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    DAMAGES[fault](checkpoints.folder / "step-000000002")

    assert newest(checkpoints).step == 1

    assert {"broken-step-000000002", "step-000000001"} <= set(names(checkpoints.folder))
    assert "step-000000002" not in names(checkpoints.folder)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"checkpoint step-000000002 is not used: {fault.strip()}" in record.message
    assert "it is kept as broken-step-000000002; the run resumes from step-000000001" in record.message


def test_no_flipped_bit_goes_unnoticed(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = Checkpoints(tmp_path / "whole")
    save(whole, 1, metric=0.5)
    for file in (path for path in sorted(whole.folder.rglob("*")) if path.is_file()):
        for bit in rng.sample(range(file.stat().st_size * 8), 60):
            shutil.copytree(whole.folder, tmp_path / "flipped")
            flip(tmp_path / "flipped" / file.relative_to(whole.folder), bit)

            assert Checkpoints(tmp_path / "flipped").latest_valid() is None, (file.name, bit)
            shutil.rmtree(tmp_path / "flipped")


def test_only_the_latest_few_broken_ones_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (60, 50, 40, 30, 20, 40):
        save(checkpoints, step)
        flip(tmp_path / f"step-{step:09d}" / "model.pt", 0)
        assert checkpoints.latest_valid() is None

    assert names(tmp_path) == [f"broken-step-{step:09d}" for step in (20, 30, 40)]


@pytest.fixture
def no_root() -> Iterator[Path]:
    """A folder for a test during which this process gives up root, who may read everything."""
    with tempfile.TemporaryDirectory() as folder:
        user = os.geteuid()
        if user == 0:
            shutil.chown(folder, 65534)
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)


@pytest.mark.parametrize("unreadable", ["", "step-000000002", "step-000000002/model.pt"])
def test_storage_that_does_not_answer_is_an_error_and_no_reason_to_go_back(
    no_root: Path, unreadable: str
) -> None:
    checkpoints = Checkpoints(no_root / "checkpoints")
    save(checkpoints, 1)
    save(checkpoints, 2)
    path = checkpoints.folder / unreadable

    path.chmod(0)
    with pytest.raises(PermissionError, match="move it away to resume" if unreadable else "checkpoints"):
        checkpoints.latest_valid()
    path.chmod(0o700)

    assert newest(checkpoints).step == 2


# The same step saved twice


def test_two_writers_of_the_same_steps_do_no_harm(tmp_path: Path) -> None:
    writers = [writer(tmp_path, last=120, size=10_000) for _ in range(2)]

    errors = [one.communicate(timeout=120)[1] for one in writers]

    assert errors == ["", ""]
    assert steps(tmp_path) == [117, 119]  # the best metric: the last step divisible by 3
    assert newest(Checkpoints(tmp_path)).step == 119


def test_a_writer_whose_draft_was_cleared_away_puts_nothing_in_place(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)

    def write(draft: Path) -> None:
        (draft / "model.pt").write_text("of an attempt that is taken for dead")
        assert newest(checkpoints).step == 1

    with pytest.raises(FileNotFoundError):
        save_as(checkpoints, 2, write)

    assert steps(checkpoints.folder) == [1]


# Kills


def after_the_kill(folder: Path, said: str) -> None:
    """Checks that the last step printed, or the next one, is valid, and that the next attempt can save."""
    acknowledged = int(said.split()[-1]) if said else 0
    checkpoints = Checkpoints(folder, keep_last=1)
    found = checkpoints.latest_valid()
    step = found.step if found else 0
    assert step in {acknowledged, acknowledged + 1}
    if found:
        assert set((found.path / "model.pt").read_bytes()) == {step}
        assert (found.path / "ranks" / "0.pt").read_text() == f"rank of {step}"
    with checkpoints.writing(step + 1) as draft:
        (draft / "model.pt").write_text("the next attempt")
    best = max((saved for saved in range(step + 1) if saved % 3 == 0 and saved), default=min(step, 1))
    assert steps(folder) == sorted({best, step + 1} - {0})


def test_a_kill_at_any_operation_of_a_writer_leaves_the_last_checkpoint_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exit_codes = []
    for kill_at in range(1, 400):
        folder = tmp_path / str(kill_at)
        killed = writer(folder, last=4, kill_at=kill_at)
        said, _ = killed.communicate(timeout=60)
        exit_codes.append(killed.returncode)
        if killed.returncode == 0:
            break
        after_the_kill(folder, said)

    assert set(exit_codes[:-1]) == {-signal.SIGKILL}
    assert exit_codes[-1] == 0
    assert len(exit_codes) > 60
    assert not caplog.records  # a kill leaves no invalid checkpoint


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_time_leaves_the_last_checkpoint_whole(tmp_path: Path, seed: int) -> None:
    killed = writer(tmp_path, last=256, size=3_000_000)
    assert killed.stdout
    first = killed.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.2))
    killed.kill()
    said, _ = killed.communicate(timeout=60)

    after_the_kill(tmp_path, first + said)


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def free_bytes(disk: Path) -> int:
    state = os.statvfs(disk)
    return state.f_bavail * state.f_bsize


@pytest.mark.parametrize("left", [-1, 0, 4096], ids=["its files", "its manifest", "half its manifest"])
def test_a_full_disk_costs_the_new_checkpoint_and_not_the_one_before(small_disk: Path, left: int) -> None:
    checkpoints = Checkpoints(small_disk / "checkpoints")
    save(checkpoints, 1)

    def write(draft: Path) -> None:
        for number in range(200 if left else 1):  # a manifest of several pages
            (draft / f"{number}.txt").touch()
        (draft / "model.pt").write_bytes(b"x" * (free_bytes(small_disk) - left))

    with pytest.raises(OSError, match="No space left on device"):
        save_as(checkpoints, 2, write)

    assert names(checkpoints.folder) == ["step-000000001"]
    assert newest(checkpoints).step == 1
    save(checkpoints, 3)
    assert newest(checkpoints).step == 3


def test_a_disk_that_says_so_when_it_is_asked_to_write_costs_no_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 1)
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)  # quotas and network file systems report errors late
    for fails_at in range(1, 6):  # two files, the manifest, two folders
        calls.clear()
        with pytest.raises(OSError, match="No space left"):
            save(checkpoints, 2)
        assert len(calls) == fails_at
        assert steps(checkpoints.folder) == [1]
    assert newest(checkpoints).step == 1

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.identity import Identity, own_identity, pid_scope

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_is_found_by_what_was_written_down_of_it(sleeper: subprocess.Popen[bytes]) -> None:
    written = str(Identity.of(sleeper.pid))

    found = Identity.parse(written)

    assert found == Identity.of(sleeper.pid)
    assert found is not None
    assert found.process() == psutil.Process(sleeper.pid)
    assert not found.has_ended()


def test_a_process_that_has_ended_is_not_found_before_its_parent_knows(
    sleeper: subprocess.Popen[bytes],
) -> None:
    identity = Identity.of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert psutil.pid_exists(sleeper.pid)
    assert identity.process() is None
    assert identity.has_ended() == (sys.platform == "linux")


def test_another_process_that_was_given_the_pid_is_not_taken_for_it(sleeper: subprocess.Popen[bytes]) -> None:
    ours = Identity.of(sleeper.pid)
    place_of_it, _, ticks = ours.born.rpartition("/")

    earlier = Identity(pid=ours.pid, born=f"{place_of_it}/{int(float(ticks)) - 1}")

    assert earlier.process() is None
    assert ours.process() is not None


@pytest.mark.parametrize("born", ["another-boot/4026531836/1", "/1"])
def test_of_a_process_elsewhere_nobody_knows_whether_it_has_ended(born: str) -> None:
    elsewhere = Identity(pid=os.getpid(), born=born)

    assert elsewhere.process() is None
    assert not elsewhere.has_ended()


@linux
def test_the_wall_clock_has_no_part_in_it() -> None:
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]

    assert own_identity() == Identity(pid=os.getpid(), born=f"{pid_scope()}/{ticks}")
    assert pid_scope().startswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


@linux
def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    program = tmp_path / "a) 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as process:
        identity = Identity.of(process.pid)

        assert identity.born.rpartition("/")[2].isdecimal()
        assert identity.process() is not None
        process.kill()


@pytest.mark.parametrize("text", ["", "pid 7 on here", "7", "7@", "x@y"])
def test_other_text_names_no_process(text: str) -> None:
    assert Identity.parse(text) is None

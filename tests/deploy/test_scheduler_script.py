"""deploy/scheduler.sh: neither the node of Ray nor the scheduler stays without the other. With other programs
in their place, which say when they end.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "scheduler.sh"
STAYS = """#!/bin/bash
trap 'echo "$NAME ends" >>"$SAID"; exit 0' TERM
echo "$NAME $*" >>"$SAID"
echo $$ >"$SAID.new.$NAME"
mv "$SAID.new.$NAME" "$SAID.$NAME"
sleep 600 & wait
"""
PROGRAMS = ("ray", "syncbn")


class Container:
    """The script's process, and what its two programs have said."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._said, self.process = folder / "said", process

    def said(self) -> list[str]:
        return self._said.read_text().splitlines()

    def pid(self, program: str) -> int:
        return int(Path(f"{self._said}.{program}").read_text())

    def wait_until_started(self) -> None:
        while not all(Path(f"{self._said}.{program}").exists() for program in PROGRAMS):
            assert self.process.poll() is None
            os.sched_yield()


@contextmanager
def container(folder: Path) -> Iterator[Container]:
    for name in PROGRAMS:
        path = folder / name
        path.write_text(STAYS.replace("$NAME", name))
        path.chmod(0o755)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SAID": str(folder / "said"),
        "SYNCBN_RAY_ADDRESS": "head:6379",
    }
    # A session of its own, all of which ends with the test.
    process = subprocess.Popen([SCRIPT], env=environment, start_new_session=True)
    try:
        running = Container(folder, process)
        running.wait_until_started()
        yield running
    finally:
        with suppress(ProcessLookupError):  # all has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_node_joins_the_head_and_offers_nothing(tmp_path: Path) -> None:
    with container(tmp_path) as running:
        said = running.said()

    assert "syncbn serve --role scheduler" in said
    (ray,) = (line for line in said if line.startswith("ray start"))
    assert "--address head:6379 --block --num-cpus 0 --num-gpus 0 " in ray


def test_a_stop_lets_the_scheduler_step_down_before_its_node_goes(tmp_path: Path) -> None:
    with container(tmp_path) as running:
        running.process.terminate()
        running.process.wait()

        assert running.said()[2:] == ["syncbn ends", "ray ends"]


@pytest.mark.parametrize(("dies", "ends"), [("ray", "syncbn"), ("syncbn", "ray")])
def test_when_one_of_them_dies_so_does_the_container(tmp_path: Path, dies: str, ends: str) -> None:
    with container(tmp_path) as running:
        os.kill(running.pid(dies), signal.SIGKILL)

        assert running.process.wait() != 0
        assert running.said()[2:] == [f"{ends} ends"]


def test_without_the_address_of_a_head_it_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT], env={"PATH": os.environ["PATH"]}, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode != 0
    assert "SYNCBN_RAY_ADDRESS: is not set; it is HOST:PORT of the Ray head" in done.stderr

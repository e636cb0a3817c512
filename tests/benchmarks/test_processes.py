"""What processes are, told by command lines and parents; and what they take, of real ones."""

from __future__ import annotations

import subprocess
import sys

import psutil

from benchmarks.processes import FORK_SERVER, RANK, SUPERVISOR, Seen, by_kind, cpu, look, pss

FORKED = "python -B -c from multiprocessing.forkserver import main; main(1, 2, ['training.host.warm'])"


def seen(pid: int, parent: int, command: str) -> Seen:
    return Seen(pid=pid, parent=parent, command=command)


def test_what_is_forked_is_told_by_its_parents() -> None:
    agent = seen(1, 0, "ray::RayHostAgent.news")
    server, supervisor, rank, loader = (seen(pid, pid - 1, FORKED) for pid in (2, 3, 4, 5))

    found = by_kind([loader, rank, supervisor, server, agent])

    assert found == {
        "host agent": [agent],
        FORK_SERVER: [server],
        SUPERVISOR: [supervisor],
        RANK: [loader, rank],
    }


def test_the_fork_server_of_rays_dashboard_is_not_ours() -> None:
    server, forked = (seen(pid, pid - 1, FORKED.replace("training.host", "ray.dashboard")) for pid in (2, 3))
    ray = seen(1, 0, "ray start --include-dashboard=false")

    assert by_kind([ray, server, forked]) == {"ray start": [ray], "dashboard": [server, forked]}


def test_a_shell_is_not_what_it_starts() -> None:
    driver = seen(2, 1, "python /benchmarks/peers/ray_ddp.py --steps 3")
    shell = seen(1, 0, f"/bin/sh -c {driver.command}")

    assert by_kind([shell, driver]) == {"other": [shell], "driver": [driver]}


def test_processes_below_are_counted_with_their_memory_and_time() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as parent:
        process = psutil.Process(parent.pid)
        while not process.children():
            assert process.is_running()
        found = look([process, process.children()[0]])
        assert parent.stdin is not None
        parent.stdin.close()

    assert len(found) == 2
    assert found[1].parent == found[0].pid == parent.pid
    assert pss(found) > 1
    assert cpu(found) > 0


def test_what_has_ended_is_left_out() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        process = psutil.Process(ended.pid)

    assert look([process]) == []

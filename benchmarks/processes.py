"""The processes of a stack, by kind, with their memory and CPU time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

_FORKED, _OURS = "multiprocessing.forkserver", "training.host.warm"
_SHELL = "/bin/sh -c"  # the shell of a driver: one megabyte
RANK, SUPERVISOR, FORK_SERVER = "rank", "supervisor", "fork server"
KNOWN = {
    "ray start": "ray start",
    "ray::RayTrainWorker": RANK,
    "ray::RayHostAgent": "host agent",
    "multiprocessing.resource_tracker": "resource tracker",
    "service.dispatcher.process": "scheduler",
    "syncbn up": "API",
    "mlflow": "MLflow",
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "training.attempt": "driver",
    "ray_ddp.py": "driver",
    "ray::JobSupervisor": "supervisor of a driver",
    "ray::TrainController": "Ray Train's controller",
    "ray::PlacementGroupCleaner": "Ray Train's cleaner",
    "ray::SynchronizationActor": "Ray Train's meeting point",
    "ray::DatasetManager": "Ray Train's data manager",
    "ray::_AutoscalingCoordinatorActor": "Ray's autoscaling coordinator",
    "ray::DashboardAgent": "Ray's agents",
    "ray::RuntimeEnvAgent": "Ray's agents",
    "ray::IDLE": "idle workers",
    "dashboard": "dashboard",
    "autoscaler": "Ray's monitor",
    "log_monitor": "Ray's log monitor",
    "ray.util.client": "Ray's client server",
    _FORKED: "dashboard",  # Ray's own fork server
}
"""A part of the command line, and the process's kind. The first match counts."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A process at one moment.

    uss: private memory in MiB. pss: memory in MiB with its share of shared pages, which adds up over
    processes. cpu: CPU seconds so far, including those of children that have ended.
    """

    pid: int
    parent: int
    command: str
    uss: float = 0.0
    pss: float = 0.0
    cpu: float = 0.0


def look(roots: Iterable[psutil.Process]) -> list[Seen]:
    """Returns these processes and their descendants, without processes that end meanwhile."""
    found: dict[int, Seen] = {}
    for process in _with_descendants(roots):
        with suppress(psutil.Error):
            memory, times = process.memory_full_info(), process.cpu_times()
            found[process.pid] = Seen(
                pid=process.pid,
                parent=process.ppid(),
                command=" ".join(process.cmdline()),
                uss=memory.uss / 2**20,
                pss=memory.pss / 2**20,
                cpu=times.user + times.system + times.children_user + times.children_system,
            )
    return list(found.values())


def _with_descendants(roots: Iterable[psutil.Process]) -> Iterable[psutil.Process]:
    """Returns the processes by parentage, not by environment: a process with a long title overwrites that."""
    found: dict[int, psutil.Process] = {}
    for process in roots:
        with suppress(psutil.NoSuchProcess):
            found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return found.values()


def by_kind(processes: Sequence[Seen]) -> Mapping[str, list[Seen]]:
    """Returns the processes by kind. Fork server, supervisors and ranks differ only in their parents."""
    known = {process.pid: process for process in processes}
    found: dict[str, list[Seen]] = defaultdict(list)
    for process in processes:
        found[_kind(process, known)].append(process)
    return dict(found)


def _kind(process: Seen, known: Mapping[int, Seen]) -> str:
    if _is_forked(process):
        forks = _forks_above(process, known)
        return (FORK_SERVER, SUPERVISOR, RANK)[min(forks, 2)]
    if process.command.startswith(_SHELL):
        return "other"
    return next((name for part, name in KNOWN.items() if part in process.command), "other")


def _forks_above(process: Seen, known: Mapping[int, Seen]) -> int:
    parent = known.get(process.parent)
    return 0 if parent is None or not _is_forked(parent) else 1 + _forks_above(parent, known)


def _is_forked(process: Seen) -> bool:
    """Returns whether the process is the fork server or was forked from it."""
    return _FORKED in process.command and _OURS in process.command


def uss(processes: Iterable[Seen]) -> float:
    """Of all together, in MiB."""
    return sum(process.uss for process in processes)


def pss(processes: Iterable[Seen]) -> float:
    """Of all together, in MiB."""
    return sum(process.pss for process in processes)


def cpu(processes: Iterable[Seen]) -> float:
    """Returns the CPU time of all together, in seconds."""
    return sum(process.cpu for process in processes)

"""Describes the machine of a measurement, without names of hosts or folders."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("torch", "lightning", "ray", "mlflow")


def describe() -> dict[str, str]:
    """Returns the facts by name."""
    return {
        "CPU": _cpu_model(),
        "cores": str(_cores()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "load before": load(),
        "OS": _os_name(),
        "Python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES if find_spec(name)},
    }


def load() -> str:
    """Returns the load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "service.api.app",
        "service.queue.store",
        "service.scheduling.scheduler",
        "service.backends.memory_tracking",
    ],
)
def test_importing_the_service_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert not {"torch", "ray", "lightning", "mlflow", "numpy", "pandas"} & set(output.split())


def test_importing_the_application_reads_no_environment() -> None:
    code = (
        "import os\n"
        "os.environ.clear()\n"
        "before = dict(os.environ)\n"
        "import service.api.app, service.settings\n"
        "assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""What `ray start` is told beyond its options: Ray calls what RAY_START_HOOK names, first."""

from __future__ import annotations

import sys
from typing import Any


def alone(parameters: Any, head: bool) -> None:  # noqa: ARG001 - Ray's signature
    """Leaves out what only people and other machines would use, and no option turns off.

    These are the server for remote clients, and those parts of each node's agent that report to the
    dashboard: Ray leaves them out where it is installed without its extra `default`, and asks this import
    whether it is.
    """
    parameters.ray_client_server_port = None
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]

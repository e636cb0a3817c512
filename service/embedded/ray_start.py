"""The hook that `ray start` calls first (RAY_START_HOOK): sets what its options cannot."""

from __future__ import annotations

import sys
from typing import Any


def alone(parameters: Any, head: bool) -> None:  # noqa: ARG001 - Ray's signature
    """Turns off what one machine does not need and no option turns off.

    These are the server for remote clients and the parts of each node's agent that report to the dashboard.
    Ray skips those parts if it is installed without the extra `default`, which it tests by this import.
    """
    parameters.ray_client_server_port = None
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]

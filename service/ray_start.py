"""What `ray start` is told beyond its options: Ray calls what RAY_START_HOOK names."""

from __future__ import annotations

from typing import Any


def without_client_server(parameters: Any, head: bool) -> None:  # noqa: ARG001 - Ray's signature
    """Nobody talks to this Ray from another machine; no option of `ray start` turns that server off."""
    parameters.ray_client_server_port = None

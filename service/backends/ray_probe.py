"""Looks at a Ray cluster and its host agents, in a process of its own that can be ended if Ray hangs.

Reads a JSON object from standard input: address, queue, storage, marker, seconds. The token
is in RAY_AUTH_TOKEN. Prints a JSON object: `problem`, or `nodes`, each with what its agent says.
"""

from __future__ import annotations

import json
import sys
from time import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from service.backends import ray_calls
from service.errors import Unavailable


def main() -> None:
    """Runs the probe."""
    asked = json.load(sys.stdin)
    try:
        ray_calls.connect(asked["address"], f"syncbn-{asked['queue']}")
        answer: dict[str, Any] = {"nodes": _nodes(asked)}
    except Unavailable as error:
        answer = {"problem": str(error)}
    print(json.dumps(answer), flush=True)  # noqa: T201


def _nodes(asked: dict[str, Any]) -> list[dict[str, Any]]:
    nodes = [node for node in ray.nodes() if node["Resources"].get("CPU") or not node["Alive"]]
    calls = {node["NodeID"]: _call(node["NodeID"], asked) for node in nodes if node["Alive"]}
    return [
        {
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "agent": _answer(calls.get(node["NodeID"]), asked["seconds"]) if node["Alive"] else {},
        }
        for node in nodes
    ]


def _call(node: str, asked: dict[str, Any]) -> Any:
    try:
        agent = ray.get_actor(ray_calls.agent_name(node))
    except ValueError:
        return None
    return time(), agent.about.remote(asked["storage"], asked["marker"])


def _answer(call: Any, seconds: float) -> dict[str, Any]:
    if call is None:
        return {"problem": "missing"}
    asked_at, reference = call
    try:
        about = ray.get(reference, timeout=seconds)
    except GetTimeoutError:
        return {"problem": "silent"}
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    # The agent answered between the call and now.
    return {**about, "asked_at": asked_at, "answered_at": time()}


if __name__ == "__main__":
    main()

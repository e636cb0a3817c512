"""Checks of Ray and of the host agents: they answer, agree on versions, clocks and storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from service.doctor.clock import offset_finding
from service.doctor.finding import Finding, fault, ok, warning
from service.doctor.storage import marker
from service.doctor.versions import differences
from service.settings import Settings
from training.host.job_user import AS_ROOT

ABOUT, AGENTS = "Ray", "agents"
AGENT_SECONDS = 5.0


def check(
    settings: Settings, queue: str, *, seconds: float, own: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Yields what is wrong with Ray and its machines. queue: this queue's name, "" if it is not known."""
    answer = _probe(settings, queue, seconds)
    if problem := answer.get("problem"):
        yield _of_problem(settings, problem)
        return
    nodes = answer["nodes"]
    alive = [node for node in nodes if node["alive"]]
    if alive:
        yield ok(ABOUT, f"answers at {settings.ray_address}, machines: {', '.join(_names(alive))}")
    else:
        advice = "start a node: ray start --address=HOST:PORT"
        yield fault(ABOUT, f"{settings.ray_address} answers, but no machine has CPUs", advice)
    if gone := [node for node in nodes if not node["alive"]]:
        advice = "start Ray there again, if they should be part of it"
        yield warning(ABOUT, f"machines have left the cluster: {', '.join(_names(gone))}", advice)
    for node in alive:
        yield from _of_agent(node["address"], node["agent"], own)


def _names(nodes: list[dict[str, Any]]) -> list[str]:
    return [str(node["address"]) for node in nodes]


def _probe(settings: Settings, queue: str, seconds: float) -> dict[str, Any]:
    token = settings.ray_token.get_secret_value() if settings.ray_token else None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled" if token is None else "token", "RAY_ENABLE_AUTO_CONNECT": "0"}
    if token is not None:
        environment["RAY_AUTH_TOKEN"] = token
    asked = {
        "address": settings.ray_address,
        "queue": queue,
        "storage": settings.storage,
        "seconds": AGENT_SECONDS,
    }
    with ExitStack() as stack:
        try:
            asked["marker"] = stack.enter_context(marker(Path(settings.storage)))
        except OSError:
            asked["marker"] = ""
        try:
            done = subprocess.run(
                [sys.executable, "-m", "service.backends.ray_probe"],
                input=json.dumps({**asked, "seconds": AGENT_SECONDS}),
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"no answer in {seconds:g} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return {"problem": lines[-1][:300] if lines else f"the probe ended with code {done.returncode}"}
    return answer


def _of_problem(settings: Settings, problem: str) -> Finding:
    address, lower = settings.ray_address, problem.lower()
    if "token" in lower or "auth" in lower:
        advice = "give the token of the head in SYNCBN_RAY_TOKEN or RAY_AUTH_TOKEN (DIR/ray.token under `up`)"
        return fault(ABOUT, f"{address} refuses the token", advice)
    if "no answer in" in lower:
        advice = "its head is frozen or overloaded: look at gcs_server there, restart it"
        return fault(ABOUT, f"{address} accepts connections and does not answer: {problem}", advice)
    if "refused" in lower or "timed out" in lower or "unreachable" in lower:
        advice = settings.how_to_start("ray", "start it (ray start --head), and check SYNCBN_RAY_ADDRESS")
        return fault(ABOUT, f"it is down: {problem}", advice)
    advice = "run this on a machine where a Ray node runs, and look at Ray's logs"
    return fault(ABOUT, f"{address} cannot be asked: {problem}", advice)


def _of_agent(address: str, about: dict[str, Any], own: Mapping[str, str] | None) -> Iterator[Finding]:
    if problem := about.get("problem"):
        yield _without_agent(address, problem)
        return
    # Not a fault of a stack: on a machine of one's own, as in a container, jobs may be meant to run as root.
    of_jobs = f"; {AS_ROOT}" if about.get("jobs_as_root") and not about.get("job_user_problem") else ""
    yield ok(AGENTS, f"the host agent on {address} answers{of_jobs}")
    # Its clock was read at some moment between the call and its answer.
    clock = about["time"]
    offset = max(clock - about["answered_at"], 0.0) or min(clock - about["asked_at"], 0.0)
    yield from offset_finding(f"the clock of {address}", offset)
    yield from differences(f"the agent on {address}", about["versions"], own)
    if problem := about.get("job_user_problem"):
        yield fault(AGENTS, f"no job can start on {address}", problem)
    if about["sees_marker"] is False:
        yield fault(
            "storage",
            f"{address} does not see what this machine writes to the storage",
            "mount the same folder at the path of SYNCBN_STORAGE on every machine",
        )


def _without_agent(address: str, problem: str) -> Finding:
    if problem == "missing":
        advice = "the scheduler starts one: see that it runs, and that this is its Ray"
        return fault(AGENTS, f"there is no host agent on {address}", advice)
    if problem == "silent":
        advice = "its process is stopped or the machine overloaded; after 600 s the scheduler replaces it"
        return fault(AGENTS, f"the host agent on {address} has not answered for {AGENT_SECONDS:g} s", advice)
    if "AttributeError" in problem or "has no attribute" in problem:
        advice = "restart Ray's node there with this version"
        return fault("versions", f"the host agent on {address} is of an older version", advice)
    advice = "Ray starts it again; if this stays, look at Ray's logs there"
    return fault(AGENTS, f"the host agent on {address} is gone: {problem}", advice)

"""All calls to Ray; no other module of the service imports it.

The calling process becomes a driver of the cluster, so a Ray node has to run on the same machine.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast

import ray
from ray.exceptions import ActorDiedError, AuthenticationError, RayActorError
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from service.backends.cluster import Node
from service.errors import Unavailable
from training.host.ray_agent import RayHostAgent, gpus_of_this_task

P = ParamSpec("P")
T = TypeVar("T")

_NAME = re.compile(r".+-[1-9]\d*")  # names of attempts
_NODE_ID_LABEL = "ray.io/node-id"
CALLS_AT_ONCE = 32
_CONNECT_SECONDS = 3.0

Agent = Any
"""A handle of a RayHostAgent actor."""

AgentDied: type[Exception] = ActorDiedError
AgentAway: type[Exception] = RayActorError
"""AgentDied: the actor is gone for good. AgentAway: it may come back."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A placement group. `nodes`: the node of each bundle, once it is `placed`."""

    id: str
    name: str
    placed: bool
    nodes: tuple[str, ...]


def connect(address: str, namespace: str) -> None:
    """Makes this process a driver of the cluster. Idempotent. Raises Unavailable.

    namespace: the namespace for the names of agents and placement groups.
    """
    if ray.is_initialized():
        return
    _check(address)
    logging.getLogger("ray._private.worker").addFilter(_is_news)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise Unavailable("Ray", f"{address}: {error}") from error
    finally:
        # Ray installs its own handler if it can.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to print what Ray logs: its handler of SIGTERM is not wanted, so its absence is no news."""
    return not str(record.msg).startswith("SIGTERM handler is not set")


def _check(address: str) -> None:
    """Raises Unavailable if the head does not listen or refuses the token.

    Ray's own connection attempt takes minutes if nothing listens, and hides a wrong token.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        ray._raylet.GcsClient(address=address)
    except AuthenticationError as error:
        raise Unavailable("Ray", f"{address} refuses the token (SYNCBN_RAY_TOKEN)") from error
    except Exception as error:
        raise Unavailable("Ray", f"{address}: {error or type(error).__name__}") from error


def nodes() -> list[Node]:
    """Returns the machines that are alive and have CPUs or GPUs."""
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            memory=int(node["Resources"].get("memory", 0)),
            labels={name: value for name, value in node["Labels"].items() if name != _NODE_ID_LABEL},
        )
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def groups(known: dict[str, bool]) -> dict[str, Group]:
    """Returns the placement groups in our namespace, by name.

    known: a cache, updated in place: whether a group is in our namespace, by group id.
    """
    present = {each["placement_group_id"]: _group(each) for each in _table() if each["state"] != "REMOVED"}
    for id in known.keys() - present.keys():
        del known[id]
    for id in present.keys() - known.keys():
        # The table lists the groups of all namespaces without naming the namespace.
        ours = group(present[id].name) if _NAME.fullmatch(present[id].name) else None
        known[id] = ours is not None and ours.id == id
    return {each.name: each for id, each in present.items() if known[id]}


def _table() -> list[dict[str, Any]]:
    return list(placement_group_table().values())


def group(name: str) -> Group | None:
    """Returns the placement group of that name in our namespace, or None."""
    try:
        entry = placement_group_table(ray.util.get_placement_group(name))
    except ValueError:
        return None
    return _group(entry) if entry and entry["state"] != "REMOVED" else None


def _group(entry: dict[str, Any]) -> Group:
    nodes = entry["bundles_to_node_id"]
    return Group(
        id=entry["placement_group_id"],
        name=entry["name"],
        placed=entry["state"] == "CREATED",
        nodes=tuple(nodes[bundle] for bundle in sorted(nodes)),
    )


def create_group(name: str, bundle: dict[str, float], labels: dict[str, str], count: int) -> None:
    """Creates a placement group of `count` bundles, on nodes with `labels`, that lasts until it is removed.

    Raises if the name is taken.
    """
    selectors = [labels] * count if labels else None
    placement_group(
        [bundle] * count, strategy="PACK", name=name, lifetime="detached", bundle_label_selector=selectors
    )


def remove_group(name: str) -> None:
    """Removes the placement group. Does nothing if it does not exist."""
    try:
        remove_placement_group(ray.util.get_placement_group(name))
    except ValueError:
        return


def gpus_of(name: str, bundle: int, count: float) -> Any:
    """Returns an object reference to the ids of a bundle's GPUs."""
    strategy = PlacementGroupSchedulingStrategy(
        placement_group=ray.util.get_placement_group(name), placement_group_bundle_index=bundle
    )
    task = ray.remote(gpus_of_this_task)
    return task.options(num_cpus=0, num_gpus=count, scheduling_strategy=strategy).remote()


def agent(node: str, fence: int) -> Agent:
    """Returns the node's host agent; creates it if there is none."""
    return (
        ray.remote(RayHostAgent)
        .options(
            name=agent_name(node),
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(fence)
    )


def agent_name(node: str) -> str:
    """Returns the name of the actor that is the node's host agent."""
    return f"syncbn-agent-{node}"


def kill(agent: Agent) -> None:
    """Kills the agent's process; Ray restarts the actor."""
    ray.kill(agent, no_restart=False)


async def answer(reference: Any, seconds: float) -> Any:
    """Returns the result of a task or an actor's method. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):  # asyncio.wait_for may lose a cancellation
        return await asyncio.wrap_future(reference.future())


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a call that may block while Ray's head is away, in a daemon thread, and returns its result.

    The thread does not keep the process from exiting.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # the waiting task was cancelled
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = call(*args, **kwargs)
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="ray-call", daemon=True).start()
    return await future

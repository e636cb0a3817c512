"""Every call to Ray itself, which nothing else in the service imports.

The process that uses it becomes a driver of the cluster, so a Ray node has to run on the same machine.
"""

from __future__ import annotations

import asyncio
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

_NAME = re.compile(r".+-[1-9]\d*")  # of attempts
CALLS_AT_ONCE = 32
_CONNECT_SECONDS = 3.0

Agent = Any
"""A handle of the actor around RayHostAgent."""

AgentDied: type[Exception] = ActorDiedError
AgentAway: type[Exception] = RayActorError
"""Of the first kind it does not come back; of the second it may."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A placement group. nodes: of each bundle, once it is `placed`."""

    id: str
    name: str
    placed: bool
    nodes: tuple[str, ...]


def connect(address: str, namespace: str) -> None:
    """Makes this process a driver of the cluster, unless it is one. Raises Unavailable.

    namespace: of the names of agents and placement groups.
    """
    if ray.is_initialized():
        return
    _check(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, namespace=namespace, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise Unavailable("Ray", f"{address}: {error}") from error
    finally:
        # Ray takes the signal for itself where it can.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check(address: str) -> None:
    """Ray's own attempt to connect takes minutes where nothing listens, and hides that a token is wrong."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        ray._raylet.GcsClient(address=address)
    except AuthenticationError as error:
        raise Unavailable("Ray", f"{address} refuses the token (SYNCBN_RAY_TOKEN)") from error
    except Exception as error:
        raise Unavailable("Ray", f"{address}: {error or type(error).__name__}") from error


def nodes() -> list[Node]:
    """The machines that are alive and offer something."""
    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU"))
    ]


def groups(known: dict[str, bool]) -> dict[str, Group]:
    """Those in our namespace, by name. known: whose those are that were there before, by id; is kept up."""
    found = {each["placement_group_id"]: _group(each) for each in _table() if each["state"] != "REMOVED"}
    for id in known.keys() - found.keys():
        del known[id]
    for id in found.keys() - known.keys():
        # The table has those of all namespaces, and does not say which is whose.
        ours = group(found[id].name) if _NAME.fullmatch(found[id].name) else None
        known[id] = ours is not None and ours.id == id
    return {each.name: each for id, each in found.items() if known[id]}


def _table() -> list[dict[str, Any]]:
    return list(placement_group_table().values())


def group(name: str) -> Group | None:
    """The one of that name in our namespace."""
    try:
        found = placement_group_table(ray.util.get_placement_group(name))
    except ValueError:
        return None
    return _group(found) if found and found["state"] != "REMOVED" else None


def _group(found: dict[str, Any]) -> Group:
    nodes = found["bundles_to_node_id"]
    return Group(
        id=found["placement_group_id"],
        name=found["name"],
        placed=found["state"] == "CREATED",
        nodes=tuple(nodes[bundle] for bundle in sorted(nodes)),
    )


def create_group(name: str, bundle: dict[str, float], count: int) -> None:
    """It lasts until it is removed. Raises if there is one of that name."""
    placement_group([bundle] * count, strategy="PACK", name=name, lifetime="detached")


def remove_group(name: str) -> None:
    """Harmless when there is none."""
    try:
        remove_placement_group(ray.util.get_placement_group(name))
    except ValueError:
        return


def gpus_of(name: str, bundle: int, count: float) -> Any:
    """A reference to the ids of a bundle's GPUs."""
    place = PlacementGroupSchedulingStrategy(
        placement_group=ray.util.get_placement_group(name), placement_group_bundle_index=bundle
    )
    task = ray.remote(gpus_of_this_task)
    return task.options(num_cpus=0, num_gpus=count, scheduling_strategy=place).remote()


def agent(node: str, fence: int) -> Agent:
    """That of the node, which is made if there is none."""
    return (
        ray.remote(RayHostAgent)
        .options(
            name=f"syncbn-agent-{node}",
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(fence)
    )


def kill(agent: Agent) -> None:
    """Ray makes it anew."""
    ray.kill(agent, no_restart=False)


async def answer(reference: Any, seconds: float) -> Any:
    """What a task or an actor answers. Raises TimeoutError."""
    async with asyncio.timeout(seconds):  # asyncio.wait_for may lose a cancellation
        return await asyncio.wrap_future(reference.future())


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The answer of a call that may block for as long as Ray's head is away. It does not hold up the end."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # nobody waits for it any more
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
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="ray-call", daemon=True).start()
    return await future

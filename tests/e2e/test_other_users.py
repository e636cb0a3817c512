"""What another user of the machine can open of a running stack: no file, no socket, no port."""

from __future__ import annotations

import errno
import multiprocessing
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import httpx
import psutil
import pytest

from service.client.local_token import token_file
from tests.e2e.stack import Stack, digits

NOBODY = 65534
RAY_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/FreeObjects",
)
REFUSALS = {"401", "403", "UNAUTHENTICATED", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}
_CLOSED = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENXIO, errno.EISDIR}
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user"
)


def of_stack(stack: Stack) -> list[psutil.Process]:
    assert stack.up is not None
    up = psutil.Process(stack.up.pid)
    return list({process.pid: process for process in (up, *up.children(True), *stack.processes())}.values())


def files_of(processes: list[psutil.Process], stack: Stack) -> set[str]:
    """What the stack keeps, and what its processes have open or listen on, outside of installed software."""
    found = {str(path) for path in (stack.folder, *stack.folder.rglob("*")) if not path.is_symlink()}
    found.add(str(token_file(stack.port)))
    for process in processes:
        found |= {file.path for file in process.open_files()}
        found |= {mapped.path for mapped in process.memory_maps() if mapped.path.startswith("/dev/shm")}
        found |= {str(each.laddr) for each in process.net_connections("unix") if each.laddr}
    ours = ("/tmp", "/dev/shm", "/run", "/var", "\0", "@")
    return {path for path in found if path.startswith(ours)}


def ports_of(processes: list[psutil.Process]) -> dict[int, str]:
    """The ports on which they listen, and by which process."""
    return {
        connection.laddr.port: " ".join(process.cmdline())[:200]
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


@contextmanager
def reachable(folder: Path) -> Iterator[None]:
    """pytest closes the folders above: what is tested is that the stack's own is closed."""
    above = [path for path in folder.parents if path.stat().st_mode & 0o077 == 0 and str(path) != "/root"]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in above}
    try:
        for path in above:
            path.chmod(0o711)
        yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


# As the other user


def opened_files(paths: set[str]) -> list[str]:
    found = []
    for path in paths:
        if path[:1] in "\0@":
            found.append(f"{path!r}: an abstract socket has no permissions")
            continue
        for what, flags in (("read", os.O_RDONLY | os.O_NONBLOCK), ("write", os.O_WRONLY | os.O_NONBLOCK)):
            try:
                os.close(os.open(path, flags))
            except OSError as error:
                may_create = error.errno == errno.EISDIR and os.access(path, os.W_OK)
                if may_create or error.errno not in _CLOSED:
                    found.append(f"{path}: {what}: {error}")
            else:
                found.append(f"{path}: may {what}")
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(path)
            except (OSError, ValueError):
                continue
            found.append(f"{path}: may connect")
    return found


def answered(port: int) -> Iterator[tuple[str, str]]:
    """What the port says to each question without a token: a status of HTTP or gRPC, and more about it."""
    for path in ("/", "/v1/jobs", "/api/2.0/mlflow/experiments/search", "/metrics"):
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2, trust_env=False)
        except (httpx.HTTPError, OSError):
            break  # it does not speak HTTP
        yield str(answer.status_code), f"GET {path}: {answer.text[:100]}"
    else:
        return
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for call in RAY_CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=2)
            except grpc.RpcError as error:
                yield error.code().name, f"{call}: {error.details()}"
            else:
                yield "OK", call


def secrets_shown(pids: list[int], secrets: list[str]) -> list[str]:
    """Where in /proc, which anybody reads, a secret stands."""
    found = []
    for pid in pids:
        for name in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
            except OSError:
                continue
            found += [f"/proc/{pid}/{name} shows a secret" for secret in secrets if secret in text]
    return found


def looked(paths: set[str], ports: dict[int, str], pids: list[int], secrets: list[str], to: Any) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    found, refused = opened_files(paths) + secrets_shown(pids, secrets), set()
    for port, process in ports.items():
        for status, more in answered(port):
            refused.add(status)
            if status not in REFUSALS:
                found.append(f"port {port} of {process}: {status} {more}")
    to.put((found, refused))


def test_another_user_reads_and_writes_nothing_of_a_stack(stack: Stack) -> None:
    job = stack.submit(digits(training={"global_batch_size": 64, "max_steps": 3}))
    stack.ended(job)
    processes = of_stack(stack)
    paths, ports = files_of(processes, stack), ports_of(processes)
    secrets = [(stack.folder / name).read_text() for name in ("ray.token", "secrets.key")]
    secrets.append(token_file(stack.port).read_text())
    forked = multiprocessing.get_context("fork")
    answers = forked.SimpleQueue()
    pids = [process.pid for process in processes]
    # Forked: the interpreter may lie where the other user cannot start it.
    child = forked.Process(target=looked, args=(paths, ports, pids, secrets, answers))

    with reachable(stack.folder), reachable(token_file(stack.port)):
        child.start()
        child.join(200)

    assert child.exitcode == 0
    assert str(stack.folder / "syncbn.db") in paths
    assert {stack.port, stack.mlflow_port} < ports.keys()
    found, refused = answers.get()
    assert found == []
    assert {"401", "403", "UNAUTHENTICATED"} <= refused

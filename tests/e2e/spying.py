"""A job that looks for what it must not see or change, and trains. The tests hand this file to it as code."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn


class Pause(nn.Module):
    """Hands its input on after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


class Spy(nn.Sequential):
    """Prints `FOUND …` for each thing that it could read or change.

    paths: files and folders of others. secrets: texts that must not be seen. links: where in its own run
    folder it puts links, and where they lead. pace: seconds that a step takes at least.
    """

    def __init__(
        self, paths: list[str], secrets: list[str], links: dict[str, str], pace: float = 0.0
    ) -> None:
        super().__init__(
            Pause(pace),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
        for found in [*_rights(), *_opened(paths), *_seen(secrets)]:
            print("FOUND", found, flush=True)  # noqa: T201
        run = Path("/proc/self/fd/1").readlink().parents[2]
        for name, target in links.items():
            with suppress(FileExistsError):
                (run / name).symlink_to(target)
        print(f"user {os.getuid()} looked at {len(paths)} paths", flush=True)  # noqa: T201


def _rights() -> Iterator[str]:
    if 0 in {*os.getresuid(), *os.getresgid(), *os.getgroups()}:
        yield f"root: {os.getresuid()} {os.getresgid()} {os.getgroups()}"
    with suppress(PermissionError):
        os.setuid(0)
        yield "became root"
    # A process of the agent's fork server would be one of root.
    queue = multiprocessing.get_context("forkserver").SimpleQueue()
    child = multiprocessing.get_context("forkserver").Process(target=_tell_user, args=(queue,))
    child.start()
    if (user := queue.get()) != os.getuid():
        yield f"forked a process of user {user}"
    child.join()


def _tell_user(queue: multiprocessing.SimpleQueue[int]) -> None:
    queue.put(os.getuid())


def _opened(paths: list[str]) -> Iterator[str]:
    for path in paths:
        for flags, what in ((os.O_RDONLY, "reads"), (os.O_WRONLY, "writes")):
            with suppress(OSError):
                os.close(os.open(path, flags | os.O_NONBLOCK))
                yield f"{what} {path}"
        with suppress(OSError):
            (Path(path) / "planted").touch()
            yield f"creates files in {path}"


def _seen(secrets: list[str]) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with suppress(OSError):
                text = (process / name).read_text(errors="replace")
                yield from (f"a secret in {process / name}" for secret in secrets if secret in text)

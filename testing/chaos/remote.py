"""Calls over a Unix socket: an object in one process, and the cluster and tracking protocols in others."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from service.backends.cluster import Launch, Node, Status
from service.errors import Refused, Unavailable
from service.jobs.job import Run
from training.protocol import JOB_TAG, Point, Superseded

SECONDS_TO_ANSWER = 3.0
_SECONDS_TO_ASK = 1.0  # a client that is stopped between its connect and its request delays nobody for longer
_LONGEST_WAIT = 0.1
_SECONDS_TO_START = 60.0

Handle = Callable[..., Any]
"""Answers a call: the caller's number, the method's name and its arguments."""


def serve(path: Path, handle: Handle) -> None:
    """Answers calls for ever, one after the other, in the order in which they came."""
    with Listener(str(path), family="AF_UNIX", backlog=512) as listener:
        while True:
            try:
                with listener.accept() as connection:
                    if connection.poll(_SECONDS_TO_ASK):
                        connection.send(_answer(connection, handle))
            except (EOFError, OSError):  # the client has been killed
                continue


def _answer(connection: Connection[Any, Any], handle: Handle) -> tuple[str, Any]:
    fence, method, args, options = connection.recv()
    try:
        return "", handle(fence, method, *args, **options)
    except (Superseded, Unavailable, Refused) as error:
        return type(error).__name__, str(error)
    except Exception:
        return "Exception", traceback.format_exc()


class Remote:
    """The object that another process serves. server: what users call it."""

    def __init__(self, path: Path, server: str, fence: int = 0) -> None:
        self._path, self._server, self._fence = path, server, fence

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Returns what the method returns. Raises Unavailable if no answer comes within seconds."""
        try:
            with Client(str(self._path), family="AF_UNIX") as connection:
                connection.send((self._fence, method, args, options))
                if not connection.poll(SECONDS_TO_ANSWER):
                    raise Unavailable(self._server, f"no answer within {SECONDS_TO_ANSWER:g} s")
                error, result = connection.recv()
        except (EOFError, OSError) as gone:
            raise Unavailable(self._server, f"the connection broke: {gone!r}") from gone
        match error:
            case "":
                return result
            case "Superseded":
                raise Superseded(result)
            case "Unavailable":
                raise Unavailable(self._server, result)
            case "Refused":
                raise Refused(result)
            case _:
                raise RuntimeError(result)

    def tell(self, method: str, *args: Any) -> Any:
        """As `call`, for the test itself: waits until the process answers, in case it is just starting."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            try:
                return self.call(method, *args)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


class RemoteCluster(Remote):
    """The fake machines, for the scheduler of number `fence`. Implements `ClosableCluster`."""

    def __init__(self, path: Path, fence: int) -> None:
        super().__init__(path, "Ray", fence)
        self._woken = threading.Event()
        self.nodes()  # raises as connecting to Ray does

    def nodes(self) -> list[Node]:
        nodes: list[Node] = self.call("nodes")
        return nodes

    def attempts(self) -> Mapping[str, Status]:
        attempts: Mapping[str, Status] = self.call("attempts")
        return attempts

    def launch(self, launch: Launch) -> None:
        self.call("launch", replace(launch, code=None, secrets=None))

    def stop(self, name: str, *, seconds: float) -> None:
        self.call("stop", name, seconds=seconds)

    def end(self, name: str) -> None:
        self.call("end", name)

    def release(self, name: str) -> None:
        self.call("release", name)

    def wait(self, seconds: float) -> None:
        self._woken.wait(min(seconds, _LONGEST_WAIT))
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        pass


class RemoteResults(Remote):
    """The fake tracking server. Implements `Results`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "MLflow")

    def check(self) -> None:
        self.call("check")

    def url(self, run: Run) -> str:
        return f"http://mlflow.invalid/{run.run_id}"

    def ensure_experiment(self, name: str) -> str:
        experiment_id: str = self.call("ensure_experiment", name)
        return experiment_id

    def ensure_run(
        self,
        *,
        job_id: str,
        name: str,
        experiment: str,
        tags: Mapping[str, str] | None = None,
        tag: str = JOB_TAG,
    ) -> Run:
        run: Run = self.call(
            "ensure_run", job_id=job_id, name=name, experiment=experiment, tags=dict(tags or {}), tag=tag
        )
        return run

    def open_runs(self, job_id: str, experiment_id: str, tag: str = JOB_TAG) -> list[Run]:
        runs: list[Run] = self.call("open_runs", job_id, experiment_id, tag)
        return runs

    def names(self, run: Run) -> list[str]:
        names: list[str] = self.call("names", run)
        return names

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        points: list[Point] = self.call("history", run, None if names is None else list(names))
        return points

    def end(self, run: Run, status: str) -> None:
        self.call("end", run, status)

    def reopen(self, run: Run) -> None:
        self.call("reopen", run)

    def set_tag(self, run: Run, key: str, value: str) -> None:
        self.call("set_tag", run, key, value)

    def delete(self, run: Run) -> None:
        self.call("delete", run)

    def upload(self, run: Run, path: str, text: str) -> None:
        self.call("upload", run, path, text)

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        self.call("upload_file", run, path, file)

    def download(self, run: Run, path: str) -> str | None:
        text: str | None = self.call("download", run, path)
        return text

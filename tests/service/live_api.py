"""A real server for tests: the app under uvicorn, on a free port of this machine, with faults on demand."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import uvicorn
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.app import create_app
from service.api.jobs import shown
from service.backends.cluster import Node
from service.backends.memory_tracking import FakeResults
from service.client.local_token import token_file
from service.jobs.job import Run, State
from service.local_token import published
from service.ports import free_port
from service.queue.store import Store
from service.settings import Settings
from service.web import console
from training.protocol import Progress, log_file

App = TypeVar("App", bound=ASGIApp)
Later = Callable[..., None]
SECRETS_KEY = SecretStr("c2VjcmV0cyBvZiB0ZXN0cywgMzIgYnl0ZXMgbG9uZyE=")
NODE = Node(id="node-1", address="127.0.0.1", cpus=4, gpus=0)


@dataclass
class Faults:
    """What shall go wrong next, in order of the requests.

    `lose_answers`: so many requests are carried out and their connections dropped before the answer.
    `refuse_with`: these statuses are answered without asking the app, as a proxy does.
    `cut_after`: the next stream of events breaks after so many chunks.
    """

    lose_answers: int = 0
    refuse_with: list[int] = field(default_factory=list)
    cut_after: int | None = None


class FaultyApp:
    """An app, seen through a bad network. `serve` puts another one in its place."""

    def __init__(self) -> None:
        self.serve(_nothing)

    def serve(self, app: ASGIApp) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.streamed: defaultdict[str, bytes] = defaultdict(bytes)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append((scope["method"], scope["path"], headers))
        if self.faults.refuse_with:
            await _answer(send, self.faults.refuse_with.pop(0))
        elif self.faults.lose_answers:
            self.faults.lose_answers -= 1
            await self._app(scope, receive, _into_nothing)
            await _drop(send)
        else:
            streams = headers.get("accept") == "text/event-stream"
            await self._app(scope, receive, self._streaming(scope["path"], send) if streams else send)

    def _streaming(self, path: str, send: Send) -> Send:
        left, self.faults.cut_after = self.faults.cut_after, None

        async def cut(message: Message) -> None:
            nonlocal left
            if left is not None and message["type"] == "http.response.body":
                if left == 0:
                    raise ConnectionAbortedError("cut on demand")
                left -= 1
            await send(message)
            self.streamed[path] += message.get("body", b"")

        return cut


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    assert scope["type"] == "lifespan", "a request between two tests"


async def _into_nothing(message: Message) -> None:
    pass


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _drop(send: Send) -> None:
    """Promises a body and never sends it: uvicorn closes the connection."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
    raise ConnectionAbortedError("dropped on demand")


class LiveServer(Generic[App]):
    """Serves `app` in a thread while the `with` statement lasts; may be stopped and started on its port."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.port = free_port()  # it stays its own while it is stopped: nobody is given it for port 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        config = uvicorn.Config(
            self.app,
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="live API")
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        assert self._server.started, "the server did not start"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    def ensure_started(self) -> None:
        if not self._thread.is_alive():
            self.start()


SPEC: dict[str, Any] = {
    "name": "digits",
    "model": {"class_path": "training.models.MLP"},
    "data": {"class_path": "training.data.Digits"},
}


@dataclass(frozen=True, kw_only=True)
class Service:
    """The whole service but for its scheduler and the ranks: the test plays their parts."""

    store: Store
    results: FakeResults
    server: LiveServer[FaultyApp]
    storage: Path

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def faults(self) -> Faults:
        return self.server.app.faults

    @property
    def requests(self) -> list[tuple[str, str, dict[str, str]]]:
        """Method, path and headers of each request so far."""
        return self.server.app.requests

    def start_job(self, job_id: str, *, workers: int = 2) -> Run:
        """Takes a waiting job to running, with a run and nothing in it."""
        assert self.store.move(self.store.get(job_id), State.STARTING, attempt=1, workers=workers)
        run = self.results.ensure_run(job_id=job_id, name="", experiment="default")
        self.store.set_run(job_id, run.experiment_id, run.run_id)
        assert self.store.move(self.store.get(job_id), State.RUNNING)
        return run

    def print(self, job_id: str, text: str) -> None:
        """Rank 0 of the first attempt does."""
        path = log_file(self.storage / job_id, 1, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())

    def train(self, run: Run, steps: int, *, total: int = 4) -> None:
        """Logs a curve that everybody can check: in each step loss 1/step, accuracy step/total."""
        for step in range(1, steps + 1):
            self.results.log(run, "train_loss", step, 1 / step)
            self.results.log(run, "val_accuracy", step, step / total)
        left = float(total - steps)
        self.report(run, Progress(step=steps, total_steps=total, epoch=steps // 2, eta_seconds=left))

    def report(self, run: Run, progress: Progress) -> None:
        """Writes where the run stands, with the latest value of each metric that it has logged."""
        metrics = {point.name: point.value for point in self.results.points[run.run_id]}
        job = self.store.get(self.results.jobs[run.run_id])
        self.store.write_progress([(job, replace(progress, metrics=metrics))])

    def find_ray(self, problem: str = "") -> None:
        """What the scheduler says in its next beat: one machine, or why Ray does not answer."""
        find_ray(self.store, problem)

    def wait_until_seen(self, job_id: str) -> None:
        """Returns once a follower has been sent the job as it stands."""
        deadline = time.monotonic() + 60
        document = shown(self.store.get(job_id), self.results).model_dump_json().encode()
        while document not in self.server.app.streamed[f"/v1/jobs/{job_id}/events"]:
            assert time.monotonic() < deadline, f"nobody followed job {job_id}"
            time.sleep(0.02)

    def end_job(
        self,
        job_id: str,
        state: State,
        error: dict[str, Any] | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        assert self.store.move(self.store.get(job_id), state, error=error, weights_sha256=weights_sha256)


def find_ray(store: Store, problem: str = "", *, nodes: Iterable[Node] = (NODE,)) -> None:
    """A scheduler, the first if there is none, looks at Ray and says what it sees."""
    row = store.scheduler()
    number = store.take_over(None, "a test") if row is None else row.number
    assert number is not None
    assert store.beat(number, nodes=nodes, problem=problem)


@contextmanager
def live_service(
    server: LiveServer[FaultyApp], directory: Path, *, api_key: str | None = None, **more: Any
) -> Iterator[Service]:
    """Has `server` serve the app over a new SQLite queue and logs in `directory`, and results in memory.

    more: further settings.
    """
    url = f"sqlite:///{directory / 'queue.db'}"
    store = Store(url)
    store.migrate()
    find_ray(store)
    results, storage = FakeResults(), directory / "runs"
    settings = Settings(
        database_url=url,
        api_key=SecretStr(api_key) if api_key else None,
        storage=str(storage),
        secrets_key=SECRETS_KEY,
        webhook_allowed="127.0.0.1",
        **more,
    )
    with published(token_file(server.port)) as token:
        app = create_app(settings, store, results, local_token=token)
        console.install(app)
        server.app.serve(app)
        server.ensure_started()
        yield Service(store=store, results=results, server=server, storage=storage)
    store.close()


@contextmanager
def timers() -> Iterator[Later]:
    """Gives later(seconds, function, *arguments), which runs in a thread; ends when all have run."""
    started: list[threading.Timer] = []

    def later(seconds: float, function: Callable[..., object], *arguments: object) -> None:
        started.append(threading.Timer(seconds, function, arguments))
        started[-1].start()

    yield later
    for timer in started:
        timer.join()

"""The API and the dispatcher in threads of one process: `syncbn serve`, and the heart of `syncbn up`."""

from __future__ import annotations

import ipaddress
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Refused, ServiceError
from service.processes import is_free
from service.settings import Settings


def serve(*, host: str, port: int) -> int:
    """Serves in the foreground until SIGINT or SIGTERM; returns the exit code.

    The database, Ray and MLflow are where the environment says. A Ray or MLflow that is away is waited for.
    0: ended as asked; 2: it could not start, and the reason is on stderr.
    """
    stop = stop_on_signals()
    with _told() as failed:
        settings = Settings.from_env()
        check_address(host, port, settings)
        with running(settings, host=host, port=port, stop=stop):
            print(f"ready: http://{host}:{port}", flush=True)  # noqa: T201
            stop.wait()
    return 2 if failed else 0


def migrate() -> int:
    """Creates or updates the tables of the database that the environment names; returns the exit code."""
    from service.store import Store

    with _told() as failed:
        store = Store(Settings.from_env().database_url)
        store.migrate()
        store.close()
        print("the tables are up to date")  # noqa: T201
    return 2 if failed else 0


@contextmanager
def _told() -> Iterator[list[Exception]]:
    """Errors that a user can do something about go to stderr, and into the list."""
    failed: list[Exception] = []
    try:
        yield failed
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        failed.append(error)


def stop_on_signals() -> threading.Event:
    """Set by SIGINT and SIGTERM. For the main thread."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def check_address(host: str, port: int, settings: Settings) -> None:
    """Raises Refused for a port that is taken, and beyond loopback without a key."""
    if not _is_loopback(host) and settings.api_key is None:
        raise Refused(
            f"--host {host} is reachable from other machines and whoever reaches the API can run code here: "
            "set SYNCBN_API_KEY first, or leave --host at 127.0.0.1"
        )
    if not is_free(host, port):
        raise Refused(f"port {port} is taken: choose another with --port, or end what listens there")


@contextmanager
def running(settings: Settings, *, host: str, port: int, stop: threading.Event) -> Iterator[None]:
    """The service, from the moment the API answers (or `stop` is set) to the end of the context."""
    import uvicorn

    from service.api.app import create_app
    from service.dispatcher import Dispatcher
    from service.mlflow_rest import MlflowRest
    from service.ray_jobs import RayJobs
    from service.store import Store

    store = Store(settings.database_url)
    store.migrate()
    token = settings.ray_token.get_secret_value() if settings.ray_token else None
    cluster = RayJobs(settings.ray_url, token)
    results = MlflowRest(settings.mlflow_url, settings.mlflow_public_url)
    app = create_app(settings, store, cluster, results)
    server = uvicorn.Server(
        uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)
    )
    dispatcher = Dispatcher(settings, store, cluster, results)
    threads = [
        threading.Thread(target=server.run, name="api"),
        threading.Thread(target=dispatcher.run, args=(stop,), name="dispatcher"),
    ]
    for thread in threads:
        thread.start()
    try:
        _wait_for(lambda: server.started or not threads[0].is_alive(), stop)
        if not server.started and not stop.is_set():
            raise Refused(f"the API could not listen on {host}:{port}")
        yield
    finally:
        stop.set()
        server.should_exit = True
        for thread in threads:
            thread.join()
        store.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait_for(condition: Callable[[], bool], stop: threading.Event) -> None:
    while not condition() and not stop.wait(0.05):
        pass

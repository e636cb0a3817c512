"""`syncbn serve`: the API, the scheduler, or both. `syncbn up` uses the same API server."""

from __future__ import annotations

import gc
import ipaddress
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from service import logs
from service.client.local_token import token_file
from service.errors import Refused
from service.foreground import open_store, print_line, reported_errors, stop_on_signals
from service.local_token import published
from service.ports import is_free
from service.queue.store import Store
from service.restarts import kept_running
from service.roles import Role
from service.settings import Settings

if TYPE_CHECKING:
    from service.api.http_server import HttpServer


def serve(*, role: Role, host: str, port: int) -> int:
    """Serves in the foreground until SIGINT or SIGTERM; returns the exit code.

    The environment names the database, Ray and MLflow. Ray and MLflow need not be up yet.
    Exit code 0: stopped by a signal; 2: it could not start, and the reason is on stderr.
    """
    stop = stop_on_signals()
    with reported_errors() as failed:
        settings = Settings.from_env()
        prefix = "scheduler: " if role is Role.SCHEDULER else ""
        logs.configure(settings.log_format, text_prefix=prefix)
        if role is Role.SCHEDULER:
            from service.dispatcher.process import serve_scheduler

            serve_scheduler(settings, stop)
        else:
            _serve_api(settings, host, port, stop, scheduler=role is Role.BOTH)
    return 2 if failed else 0


def _serve_api(settings: Settings, host: str, port: int, stop: threading.Event, *, scheduler: bool) -> None:
    from service.dispatcher.process import command

    check_address(host, port, settings)
    with ExitStack() as stack:
        store = open_store(settings.database_url)
        stack.callback(store.close)
        if scheduler:
            stack.enter_context(kept_running("scheduler", command(with_parent=True), {}))
        stack.enter_context(running(settings, store, host=host, port=port, stop=stop))
        print_line(f"ready: http://{host}:{port}")
        stop.wait()


def migrate() -> int:
    """Creates or updates the tables in the database that the environment names; returns the exit code."""
    with reported_errors() as failed:
        open_store(Settings.from_env().database_url).close()
        print_line("the tables are up to date")
    return 2 if failed else 0


def check_address(host: str, port: int, settings: Settings) -> None:
    """Raises Refused if the port is taken, or if `host` is not loopback and no API key is set."""
    if not _is_loopback(host) and settings.api_key is None:
        raise Refused(
            f"--host {host} is reachable from other machines, and whoever reaches the API can run code here: "
            "set SYNCBN_API_KEY first, or leave --host at 127.0.0.1"
        )
    if not is_free(host, port):
        raise Refused(f"port {port} is taken: choose another with --port, or stop what listens there")


@contextmanager
def running(
    settings: Settings, store: Store, *, host: str, port: int, stop: threading.Event
) -> Iterator[None]:
    """Runs the API in a thread for as long as the context lasts. Enters once it answers, or `stop` is set."""
    import uvicorn

    from service.api.app import create_app
    from service.api.http_server import BoundedHttp, HttpServer
    from service.backends.mlflow import MlflowRest
    from service.web import console

    results, file = MlflowRest(settings.mlflow_url, settings.mlflow_public_url), token_file(port)
    with ExitStack() as stack:
        # Before the API answers, so that a client never reads the token of the server before.
        token = stack.enter_context(published(file)) if settings.api_key is None else None
        app = create_app(settings, store, results, stopping=stop, local_token=token, token_file=str(file))
        console.install(app)
        server = HttpServer(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=BoundedHttp,
                log_config=None,  # its records go where the service's go
                log_level="warning",
                access_log=False,  # service.api.request_scope logs requests
                timeout_graceful_shutdown=3,
            )
        )
        stack.enter_context(_listening(server, f"{host}:{port}", stop))
        _leave_out_of_garbage_collections()
        yield


def _leave_out_of_garbage_collections() -> None:
    """Takes what is there now out of them: it stays, and a full one would look at all modules every second
    under load, which holds up every request for 80 ms.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def _listening(server: HttpServer, address: str, stop: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    try:
        _wait_for(lambda: server.started or not thread.is_alive(), stop)
        if not server.started and not stop.is_set():
            raise Refused(f"the API could not listen on {address}")
        yield
    finally:
        stop.set()
        server.should_exit = True
        thread.join()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait_for(condition: Callable[[], bool], stop: threading.Event) -> None:
    while not condition() and not stop.wait(0.05):
        pass

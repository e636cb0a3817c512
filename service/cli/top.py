"""`top`: what runs, what waits and the machines, drawn again and again."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.options import AsJson, Connection
from service.cli.session import reporting, session

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from service.cli.snapshots import Watcher

_REDRAWN = 0.5  # seconds: ages go on between two answers, and the size of the terminal may change


def top(
    ctx: typer.Context,
    interval: Annotated[
        float, typer.Option(min=0.2, metavar="SECONDS", help="Time between two looks at the service.")
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Watch the service: its machines, what runs and what waits. q or Ctrl-C ends it.

    Goes on while the server is away, and says so. Where the output is no terminal, or with --json, it is
    printed once.
    """
    from service.cli.output import console

    screen = console()
    if as_json or not screen.is_interactive:
        _print_once(ctx, screen, as_json=as_json)
        return
    with reporting():
        from service.cli.snapshots import Watcher
        from service.client import Client

        connection: Connection = ctx.obj

        def connect() -> Client:
            return Client(connection.url, connection.api_key, timeout=10, retry_seconds=0)

        with Watcher(connect, interval) as watcher:
            try:
                _draw(watcher, screen, connection.url)
            except KeyboardInterrupt:
                return  # this is how it is ended


def _print_once(ctx: typer.Context, screen: Console, *, as_json: bool) -> None:
    from service.cli.output import print_json
    from service.cli.snapshots import look
    from service.cli.top_view import view

    with session(ctx, as_json=as_json) as client:
        now = look(client)
    if as_json:
        print_json(now.to_json())
        return
    screen.print(view(now, screen, height=None, url=client.url))
    why = "this terminal cannot be redrawn" if screen.is_terminal else "the output is no terminal"
    typer.echo(f"note: {why}: this was printed once", err=True)


def _draw(watcher: Watcher, screen: Console, url: str) -> None:
    """Draws until q is pressed. Raises KeyboardInterrupt, and what ends the watching."""
    from rich.live import Live

    with _keys() as pressed, Live(console=screen, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_frame(watcher, screen, url), refresh=True)
            if pressed(_REDRAWN) in ("q", "Q"):
                return


def _frame(watcher: Watcher, screen: Console, url: str) -> RenderableType:
    from rich.text import Text

    from service.cli.output import clean
    from service.cli.tables import shortened
    from service.cli.top_view import view

    now = watcher.latest()
    if now is None:
        words = f"asking {url} ... {watcher.problem}"
        return Text(shortened(clean(words), screen.width), style="dim")
    return view(now, screen, height=screen.height, url=url)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits so many seconds for a key, and returns it; "" if none was pressed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _no_key
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([keyboard], [], [], seconds)
        # A terminal that was closed gives nothing, at once.
        return (os.read(keyboard, 1).decode(errors="replace") or "q") if ready else ""

    try:
        tty.setcbreak(keyboard)  # keys come at once, and Ctrl-C still interrupts
        yield pressed
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""

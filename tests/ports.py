"""Ports for the tests' own servers."""

from __future__ import annotations

import random
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """One on which nobody listens, and which no system gives to those that ask for any.

    Otherwise another process might be given it before the server starts: Ray asks for dozens.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port from 20000 to 32000")

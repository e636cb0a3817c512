"""The store at which the ranks of a script meet, in a process of its own; under torchrun its agent has it."""

from __future__ import annotations

import os
import signal
import socket
from typing import NoReturn

from training.console import say
from training.errors import full_trace
from training.linux import die_with_parent


def serve(listener: socket.socket, rendezvous: str) -> NoReturn:
    """Serves a torch TCPStore at the rendezvous until the process is killed.

    Call it in a process that was just forked: it never returns. listener: the socket that listens there.
    """
    try:
        die_with_parent()
        import torch.distributed as dist

        address, _, port = rendezvous.rpartition(":")
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, int(port), is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        while store is not None:
            signal.pause()
    except BaseException as error:
        say(full_trace(error))
    os._exit(1)

"""How a driver that is asked to end by SIGTERM has its run saved first, and when it gives that up."""

from __future__ import annotations

import os
import signal
import threading
import time

from training.folder import RunFolder
from training.hang_folder import HangFolder

PATIENCE_SECONDS = 20.0
"""Without any progress of the workers after the request; then the last checkpoint has to do."""
EXIT_CODE = 1


class Stopping:
    """`asked` is set by the signal, which also has the workers save the run after the step they make."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.asked = False

    def on_signal(self) -> None:
        """For the main thread. Requests of an attempt before this one are taken back."""
        self.folder.stop_request.unlink(missing_ok=True)
        self.folder.stopped.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: self._begin())

    @property
    def step(self) -> int | None:
        """The last one of the run that has saved itself; None if it has not."""
        try:
            return int(self.folder.stopped.read_text())
        except FileNotFoundError:
            return None

    def _begin(self) -> None:
        if self.asked:
            return
        self.asked = True
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.stop_request.touch()
        threading.Thread(target=self._give_up_when_nothing_moves, daemon=True).start()

    def _give_up_when_nothing_moves(self) -> None:
        seen, since = self._places(), time.monotonic()
        # Where no worker has begun there is nothing to save.
        while seen and time.monotonic() - since < PATIENCE_SECONDS:
            time.sleep(0.2)
            now = self._places()
            saving = any(doing.startswith("saving") for _, doing in now)
            if now != seen or saving or self.step is not None:
                seen, since = now, time.monotonic()
        os._exit(EXIT_CODE)

    def _places(self) -> list[tuple[int, str]]:
        return [(place.step, place.doing) for place in HangFolder(self.folder.hang).places()]

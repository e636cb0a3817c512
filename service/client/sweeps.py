"""The calls of the REST API about sweeps, which are a part of `Client`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import quote

from service.client.errors import ClientError, WaitTimeout
from service.client.pages import all_items
from service.client.retry import Retry, ignore
from service.client.sweep_models import Sweep, SweepPage, SweepValidation
from service.client.transport import Transport


class SweepCalls:
    """Sweeps: several jobs from one spec, with other values for some of its keys."""

    retry_seconds: float
    _server: Transport

    def submit_sweep(self, sweep: Mapping[str, Any], idempotency_key: str | None = None) -> Sweep:
        """Queues a job for each point of a sweep, all or none, and returns the sweep.

        sweep: {"spec": …, "grid": {key: [values]}, "random": {"count", "seed", "space"}, "repeat": N or
        [seeds], "max_running": K, "name": …}; spec and one of grid, random and repeat are required. It is
        idempotent and raises as `submit`; a problem of a point names the point and the key.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._server.call(Sweep, "POST", "/v1/sweeps", **_encoded(sweep, headers))

    def validate_sweep(self, sweep: Mapping[str, Any]) -> SweepValidation:
        """Returns the points that a sweep would have; changes nothing.

        Raises RequestError if one of them is not valid.
        """
        return self._server.call(SweepValidation, "POST", "/v1/sweeps/validate", **_encoded(sweep, {}))

    def sweeps(
        self, *, id_prefix: str | None = None, name: str | None = None, limit: int | None = None
    ) -> Iterator[Sweep]:
        """Yields sweeps without their points, newest first, at most `limit` (None: all).

        id_prefix: only sweeps whose id begins so. name: only those with this name; with * or ? in it, those
        that match, as in `jobs`.
        """
        query = [(key, value) for key, value in (("id", id_prefix), ("name", name)) if value is not None]
        yield from all_items(
            lambda position: self._server.call(SweepPage, "GET", "/v1/sweeps", params=[*query, *position]),
            limit,
        )

    def sweep(self, sweep_id: str) -> Sweep:
        """Returns the sweep as it is now. Raises NotFound if the service has no sweep with this id."""
        return self._server.call(Sweep, "GET", _path(sweep_id))

    def cancel_sweep(self, sweep_id: str) -> Sweep:
        """Cancels all jobs of the sweep that have not ended. Idempotent.

        Returns the sweep without waiting. Raises RequestError if it has succeeded or failed.
        """
        return self._server.call(Sweep, "POST", f"{_path(sweep_id)}/cancel")

    def pause_sweep(self, sweep_id: str) -> Sweep:
        """Pauses the sweep: its running jobs save checkpoints, and none starts. Idempotent.

        Returns the sweep without waiting; jobs may still be pausing. Raises RequestError if it has ended or
        is being cancelled.
        """
        return self._server.call(Sweep, "POST", f"{_path(sweep_id)}/pause")

    def resume_sweep(self, sweep_id: str) -> Sweep:
        """Puts the paused jobs of a paused sweep back into the queue. Idempotent.

        Raises RequestError if it has ended, is being cancelled, or has jobs that are still pausing.
        """
        return self._server.call(Sweep, "POST", f"{_path(sweep_id)}/resume")

    def follow_sweep(
        self, sweep_id: str, poll: float = 1.0, *, on_retry: Callable[[ClientError], None] = ignore
    ) -> Iterator[Sweep]:
        """Yields the sweep as it is now and after each change, until it has ended. Blocks between changes.

        poll: seconds between requests. on_retry: called with each error that is going to be retried.
        """
        last = self.sweep(sweep_id)
        yield last
        while not last.ended:
            time.sleep(poll)
            retry = Retry(self.retry_seconds, on_retry)
            if (sweep := self._server.call(Sweep, "GET", _path(sweep_id), retry=retry)) != last:
                last = sweep
                yield sweep

    def wait_for_sweep(self, sweep_id: str, timeout: float | None = None, poll: float = 1.0) -> Sweep:
        """Blocks until all jobs of the sweep have ended, and returns it.

        timeout: seconds until WaitTimeout is raised; None: no limit. poll: seconds between requests.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        sweep = self.sweep(sweep_id)
        while not sweep.ended:
            if (remaining := deadline - time.monotonic()) <= 0:
                raise WaitTimeout(f"sweep {sweep_id} is still {sweep.state} after {timeout:g} s")
            time.sleep(min(poll, remaining))
            sweep = self._server.call(Sweep, "GET", _path(sweep_id), retry=Retry(self.retry_seconds))
        return sweep

    def upload_report(self, sweep_id: str, name: Literal["report.md", "report.html"], text: str) -> None:
        """Stores a report of the sweep with its run in MLflow, in place of an earlier one. Idempotent.

        Raises RequestError if the sweep has no run yet, or if MLflow does not answer.
        """
        headers = {"Content-Type": "text/html" if name.endswith(".html") else "text/markdown"}
        path = f"{_path(sweep_id)}/report/{name}"
        self._server.send("PUT", path, headers=headers, content=text.encode())


def _encoded(sweep: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    content = json.dumps(dict(sweep), allow_nan=False).encode()
    return {"content": content, "headers": {"Content-Type": "application/json", **headers}}


def _path(sweep_id: str) -> str:
    return f"/v1/sweeps/{quote(sweep_id, safe='')}"

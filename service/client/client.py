"""`Client`: every call of the REST API as a blocking method with safe retries."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from service.client.access import AccessCalls
from service.client.cluster_models import Cluster, QueuePage, Waiting
from service.client.errors import RequestError
from service.client.following import Following
from service.client.lifecycle import LifecycleCalls
from service.client.models import (
    Job,
    JobPage,
    Secret,
    SecretPage,
    Upload,
    Validation,
    Version,
)
from service.client.pages import all_items
from service.client.results import Results, job_path
from service.client.retry import Retry
from service.client.sweeps import SweepCalls
from service.client.transport import Transport
from service.client.webhooks import WebhookCalls

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where `syncbn up` serves the API unless it is told another port."""


class Client(Following, Results, SweepCalls, LifecycleCalls, WebhookCalls, AccessCalls):
    """A client of one service. Close it or use it in a `with` statement. Not thread-safe.

    Every call blocks, for up to `timeout` seconds without an answer, retries a lost connection for about a
    second (`retry_seconds` if that is less), and raises ClientError. Retries are idempotent. `wait`,
    `follow`, `events` and `follow_logs` retry for up to `retry_seconds` (math.inf: for ever) after they have
    found the job, so they survive a restart of the server.

    url: address of the server. api_key: None for a server of this machine that this user has started without
    one; its token is found by itself. timeout: in seconds. user: whose name is on the commands that it gives
    without a key of a user; "": nobody's. Raises ClientError if url or api_key cannot be used.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        retry_seconds: float = 60.0,
        user: str = "",
    ) -> None:
        self.retry_seconds = retry_seconds
        self._server = Transport(url, api_key, timeout, user, retry_seconds)

    @property
    def url(self) -> str:
        """The address of the server, as `http://127.0.0.1:8000`: without a trailing slash."""
        return self._server.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; the client cannot be used afterwards. Idempotent; does not block."""
        self._server.close()

    def submit(self, spec: Mapping[str, Any] | str, idempotency_key: str | None = None) -> Job:
        """Queues a job and returns it. `spec` is a mapping, or YAML or JSON text.

        Idempotent under `idempotency_key`: the same key and spec return the same job. None generates a key
        for this call, so that its own retries cannot queue the job twice.

        Raises RequestError, and queues nothing, if the spec is not valid, if it names code that was not
        uploaded, or if the key was used for another spec (status 422); its `errors` name each offending key.
        Raises ValueError if a mapping holds NaN or infinity, and TypeError if it holds what JSON cannot
        express. Raises ServerUnreachable if no answer came: if its `may_have_arrived` is true, the job may be
        queued, and only a call with the same idempotency key cannot queue it twice.
        """
        body, headers = _encoded(spec)
        headers["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        return self._server.call(Job, "POST", "/v1/jobs", content=body, headers=headers)

    def validate(self, spec: Mapping[str, Any] | str) -> Validation:
        """Returns what the spec would run, with which resources; changes nothing.

        Raises RequestError if the spec is not valid.
        """
        body, headers = _encoded(spec)
        return self._server.call(Validation, "POST", "/v1/jobs/validate", content=body, headers=headers)

    def extend(
        self,
        job_id: str,
        changes: Mapping[str, Any],
        *,
        checkpoint: str | int = "last",
        idempotency_key: str | None = None,
    ) -> Job:
        """Queues a job that goes on where another one has ended, and returns it.

        It has the other's spec and code, with `changes`, as {"training.max_epochs": 20}, and its whole state
        from `checkpoint`: "best", "last" or a step. Raises as `submit`, NotFound, and RequestError if the
        other job has not ended, has no such checkpoint, or nothing is left to train.
        """
        start = {"job": job_id, "checkpoint": checkpoint, "state": "all"}
        return self.clone(job_id, {"start_from": start, **changes}, idempotency_key=idempotency_key)

    def clone(
        self, job_id: str, changes: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Queues a job with the spec and the code of another one, and returns it.

        changes: values by dotted key, as {"training.seed": 1}. Raises as `submit`, and NotFound.
        """
        spec = self.job(job_id).spec
        for key, value in (changes or {}).items():
            spec = _changed(spec, key.split("."), value)
        return self.submit(spec, idempotency_key)

    def jobs(
        self,
        *,
        states: Iterable[str] = (),
        id_prefix: str | None = None,
        name: str | None = None,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        since: datetime | None = None,
        sweep: str | None = None,
        user: str | None = None,
        order: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Yields jobs, newest first, at most `limit` (None: all); fetches pages during the iteration.

        states: only jobs in one of these. id_prefix: only jobs whose id begins so. name: only jobs with this
        name; with * (any text) or ? (one character) in it, those whose whole name matches, where a backslash
        before one of these is the character itself. experiment: only jobs in exactly this one. labels: only
        jobs with all of these. since: only jobs created then or later; a time without a zone is local. sweep:
        only jobs of the sweep with this id. user: only jobs of this user's keys. order: `oldest`, `name`,
        `ended` (the ended ones, the last first) or `longest` (the ended ones, by how long they took). Raises
        RequestError for a state or an order that does not exist.
        """
        query: list[tuple[str, Any]] = [("state", state) for state in states]
        query += [("label", f"{key}:{value}") for key, value in (labels or {}).items()]
        moment = since.astimezone(UTC).isoformat() if since else None
        once = {"id": id_prefix, "name": name, "experiment": experiment, "since": moment}
        once |= {"sweep": sweep, "user": user, "order": order}
        query += [(key, value) for key, value in once.items() if value is not None]
        yield from all_items(
            lambda position: self._server.call(JobPage, "GET", "/v1/jobs", params=[*query, *position]), limit
        )

    def job(self, job_id: str) -> Job:
        """Returns the job as it is now. Raises NotFound if the service has no job with this id."""
        return self._server.call(Job, "GET", job_path(job_id))

    def cancel(self, job_id: str) -> Job:
        """Cancels the job: at once if it waits or is paused, soon if it runs. Idempotent.

        Returns the job without waiting for it to stop. Raises RequestError if it has succeeded or failed.
        """
        return self._server.call(Job, "POST", f"{job_path(job_id)}/cancel")

    def pause(self, job_id: str) -> Job:
        """Pauses the job: it saves a checkpoint at its next step and releases its workers. Idempotent.

        Returns the job without waiting; it may still be pausing. Raises RequestError if it has ended or is
        being cancelled.
        """
        return self._server.call(Job, "POST", f"{job_path(job_id)}/pause")

    def resume(self, job_id: str) -> Job:
        """Puts a paused job back into the queue; it continues from its checkpoint. Idempotent.

        Returns the job, unchanged if it is not paused. Raises RequestError if it has ended, is being
        cancelled, or is still pausing.
        """
        return self._server.call(Job, "POST", f"{job_path(job_id)}/resume")

    def resize(self, job_id: str, workers: int) -> Job:
        """Changes the job's number of workers to `workers`. Idempotent; the training result stays the same.

        Returns the job without waiting. A running job stops with a checkpoint and continues on the new
        number of workers as soon as the cluster has room. Raises RequestError if `workers` is outside the
        range in the job's spec or the job has ended.
        """
        return self._server.call(Job, "POST", f"{job_path(job_id)}/resize", json={"workers": workers})

    def upload_code(self, archive: bytes) -> str:
        """Uploads a zip archive and returns its digest, which goes into a spec's `code`. Idempotent.

        Raises RequestError if the archive is not valid or too large.
        """
        headers = {"Content-Type": "application/zip"}
        return self._server.call(Upload, "POST", "/v1/code", headers=headers, content=archive).digest

    def secrets(self) -> list[Secret]:
        """Returns all secrets without their values, by name."""
        return self._server.call(SecretPage, "GET", "/v1/secrets").items

    def set_secret(self, name: str, value: str) -> None:
        """Stores a secret, or replaces its value. Idempotent.

        Raises RequestError if the name or the value cannot be used, or the service cannot store secrets.
        """
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        self._server.send("PUT", _secret(name), headers=headers, content=value.encode())

    def delete_secret(self, name: str) -> None:
        """Deletes a secret. Raises NotFound, and RequestError if the service's operator gives it."""
        self._server.send("DELETE", _secret(name))

    def queue(self, *, limit: int | None = None) -> Iterator[Waiting]:
        """Yields the queued jobs, in the order in which they will start if nothing changes.

        limit: the maximum number (None: all). Fetches pages during the iteration: a job that starts meanwhile
        moves the others up.
        """
        yield from all_items(lambda position: self._queue(*position), limit)

    def queue_length(self) -> int:
        """Returns the number of queued jobs."""
        return self._queue(("limit", 1)).total

    def _queue(self, *params: tuple[str, Any]) -> QueuePage:
        return self._server.call(QueuePage, "GET", "/v1/queue", params=params)

    def cluster(self) -> Cluster:
        """Returns the cluster's nodes and free resources.

        Raises RequestError (503) if no scheduler runs or Ray does not answer it.
        """
        return self._server.call(Cluster, "GET", "/v1/cluster")

    def version(self) -> Version:
        """Returns the versions in the API's environment."""
        return self._server.call(Version, "GET", "/v1/version")

    def ready(self) -> bool:
        """Returns whether the database, the scheduler, Ray and MLflow all answer. Does not retry.

        Raises ServerUnreachable if the API itself does not answer.
        """
        try:
            self._server.send("GET", "/readyz", retry=Retry(0))
        except RequestError:
            return False
        return True


def _changed(spec: Any, keys: list[str], value: Any) -> Any:
    if not keys:
        return value
    here = dict(spec) if isinstance(spec, Mapping) else {}
    return {**here, keys[0]: _changed(here.get(keys[0]), keys[1:], value)}


def _encoded(spec: Mapping[str, Any] | str) -> tuple[bytes, dict[str, str]]:
    if isinstance(spec, str):
        return spec.encode(), {"Content-Type": "application/yaml"}
    return json.dumps(dict(spec), allow_nan=False).encode(), {"Content-Type": "application/json"}


def _secret(name: str) -> str:
    return f"/v1/secrets/{quote(name, safe='')}"

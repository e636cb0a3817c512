"""A Ray cluster, by the REST interfaces of its dashboard (Ray Jobs and the state API).

Ray itself is not imported, so the service needs neither its size nor its version.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import httpx

from service.errors import Unavailable
from service.launch import SECONDS_TO_STOP, Attempt, Node, Phase, Status

ENTRYPOINT = "python -m training.attempt"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class RayJobs:
    """The cluster whose dashboard is at `url`; `token` where Ray asks for one (RAY_AUTH_MODE=token)."""

    def __init__(self, url: str, token: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # No proxy from the environment: the dashboard is on this machine or in the cluster's own network.
        self._http = httpx.Client(base_url=url, headers=headers, timeout=15.0, trust_env=False)

    def submit(self, attempt: Attempt) -> None:
        if self.status(attempt.submission_id) is not None:
            return
        # Ray's supervisor of the job, which stops it, shares its environment. The default is 3 seconds.
        patience = {"RAY_JOB_STOP_WAIT_TIME_S": str(SECONDS_TO_STOP)}
        runtime_env: dict[str, Any] = {"env_vars": {**attempt.environment, **patience}}
        if attempt.code is not None:
            runtime_env["working_dir"] = self._upload(attempt.code)
        response = self._send(
            "POST",
            "/api/jobs/",
            json={
                "entrypoint": ENTRYPOINT,
                "submission_id": attempt.submission_id,
                "runtime_env": runtime_env,
                "metadata": {"job_id": attempt.job_id, "attempt": str(attempt.number)},
            },
        )
        # Race closed: two dispatchers submit one id. Ray answers the second with an error; it is there.
        if response.is_error and self.status(attempt.submission_id) is None:
            raise Unavailable("Ray", _last_line(response))

    def status(self, submission_id: str) -> Status | None:
        response = self._send("GET", f"/api/jobs/{submission_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        job = _checked(response).json()
        return Status(phase=Phase(job["status"].lower()), message=job.get("message") or "")

    def stop(self, submission_id: str) -> None:
        response = self._send("POST", f"/api/jobs/{submission_id}/stop")
        if response.status_code != httpx.codes.NOT_FOUND:
            _checked(response)

    def logs(self, submission_id: str) -> str:
        response = self._send("GET", f"/api/jobs/{submission_id}/logs")
        if response.status_code == httpx.codes.NOT_FOUND:
            return ""
        return _COLOURS.sub("", _checked(response).json()["logs"])

    def nodes(self) -> list[Node]:
        response = _checked(self._send("GET", "/api/v0/nodes", params={"limit": 10_000, "detail": 1}))
        found = response.json()["data"]["result"]["result"]
        return [
            Node(
                id=node["node_id"],
                address=node["node_ip"],
                cpus=node["resources_total"].get("CPU", 0.0),
                gpus=node["resources_total"].get("GPU", 0.0),
            )
            for node in found
            if node["state"] == "ALIVE"
        ]

    def close(self) -> None:
        self._http.close()

    def _upload(self, code: bytes) -> str:
        """Hands the archive to Ray, which gives it to every node; it knows a package by its name."""
        name = f"_ray_pkg_{hashlib.sha256(code).hexdigest()[:40]}.zip"
        path = f"/api/packages/gcs/{name}"
        if self._send("GET", path).status_code != httpx.codes.OK:
            _checked(self._send("PUT", path, content=code))
        return f"gcs://{name}"

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise Unavailable("Ray", f"{self._http.base_url}: {error or type(error).__name__}") from error
        if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise Unavailable("Ray", f"{self._http.base_url} refuses the token (SYNCBN_RAY_TOKEN)")
        return response


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise Unavailable(
            "Ray", f"{response.request.url} answered {response.status_code}: {_last_line(response)}"
        )
    return response


def _last_line(response: httpx.Response) -> str:
    """Ray answers an error with a traceback; its last line says what happened."""
    lines = response.text.strip().splitlines()
    return lines[-1] if lines else response.reason_phrase

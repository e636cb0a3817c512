"""Client of an MLflow tracking server's REST API, light enough for the API process."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from service.circuit import Circuit
from service.errors import Refused, Unavailable
from service.jobs.job import Run
from service.log_files import open_log
from training.metric_names import is_detail
from training.protocol import JOB_TAG, Point
from training.tracking.run_tags import EXPERIMENT_KIND

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_UPLOAD_TIMEOUT = httpx.Timeout(10.0, read=300.0)  # the server answers after it has stored the whole upload
TIMEOUT_S = 10.0
_AT_ONCE = 16  # calls: the API has 40 threads, and most routes do not need MLflow
_HINT = "; if that is because of the name in this URL, start MLflow with it in MLFLOW_SERVER_ALLOWED_HOSTS"
_PAGE = 25_000  # points of a metric per response, MLflow's maximum
_RETRYABLE = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.TOO_MANY_REQUESTS}
"""Status codes that a proxy may send and that a later retry may not get."""


class MlflowRest:
    """The tracking server at `url`; `public_url` is its URL for browsers. Implements `Results`."""

    def __init__(self, url: str, public_url: str | None = None) -> None:
        self.public_url = (public_url or url).rstrip("/")
        self._circuit = Circuit("MLflow", at_once=_AT_ONCE)
        verify = httpx.URL(url).scheme == "https"  # loading the certificates takes longer than a request
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False, verify=verify)

    def check(self) -> None:
        # Not its route /health, which answers also whom the others refuse.
        self._call("POST", "experiments/search", json={"max_results": 1})

    def url(self, run: Run) -> str:
        return f"{self.public_url}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def ensure_experiment(self, name: str) -> str:
        response = self._send("GET", f"{_API}/experiments/get-by-name", params={"experiment_name": name})
        if response.status_code == httpx.codes.NOT_FOUND:
            created = self._send(
                "POST",
                f"{_API}/experiments/create",
                json={"name": name, "tags": _listed(dict([EXPERIMENT_KIND]))},
            )
            if created.is_success:
                return str(created.json()["experiment_id"])
            # Race closed: another client created it between the two calls.
            response = self._send("GET", f"{_API}/experiments/get-by-name", params={"experiment_name": name})
        _refuse_errors(response)
        experiment = response.json()["experiment"]
        if experiment["lifecycle_stage"] == "deleted":
            raise Refused(
                f"MLflow's experiment {name!r} is deleted; restore it, or change tracking.experiment"
            )
        experiment_id = str(experiment["experiment_id"])
        self._set_kind(experiment_id, {tag["key"] for tag in experiment.get("tags", [])})
        return experiment_id

    def ensure_run(
        self,
        *,
        job_id: str,
        name: str,
        experiment: str,
        tags: Mapping[str, str] | None = None,
        tag: str = JOB_TAG,
    ) -> Run:
        experiment_id = self.ensure_experiment(experiment)
        # Searched first: a dispatcher may have died between creating the run and writing its id to the row.
        run_id = next(iter(self._runs_of(tag, job_id, experiment_id, most=1)), None)
        if run_id is None:
            body = {
                "experiment_id": experiment_id,
                "run_name": name,
                "start_time": _now(),
                "tags": _listed({**(tags or {}), tag: job_id}),
            }
            run_id = str(self._call("POST", "runs/create", json=body)["run"]["info"]["run_id"])
        return Run(experiment_id=experiment_id, run_id=run_id)

    def open_runs(self, job_id: str, experiment_id: str, tag: str = JOB_TAG) -> list[Run]:
        found = self._runs_of(tag, job_id, experiment_id, "attributes.status = 'RUNNING'", most=10)
        return [Run(experiment_id=experiment_id, run_id=run_id) for run_id in found]

    def names(self, run: Run) -> list[str]:
        data = self._call("GET", "runs/get", params={"run_id": run.run_id})["run"]["data"]
        return sorted(metric["key"] for metric in data.get("metrics", []))

    def history(self, run: Run, names: Iterable[str] | None = None) -> list[Point]:
        if names is None:
            names = [name for name in self.names(run) if not is_detail(name)]
        points = [point for name in names for point in self._points(run, name)]
        return sorted(points, key=lambda point: (point.name, point.step))

    def end(self, run: Run, status: str) -> None:
        body = {"run_id": run.run_id, "status": status, "end_time": _now()}
        self._call("POST", "runs/update", json=body)

    def reopen(self, run: Run) -> None:
        self._call("POST", "runs/update", json={"run_id": run.run_id, "status": "RUNNING"})

    def set_tag(self, run: Run, key: str, value: str) -> None:
        self._call("POST", "runs/set-tag", json={"run_id": run.run_id, "key": key, "value": value})

    def delete(self, run: Run) -> None:
        found = self._call("GET", "runs/get", params={"run_id": run.run_id})["run"]["info"]
        if found["lifecycle_stage"] != "deleted":
            self._call("POST", "runs/delete", json={"run_id": run.run_id})

    def upload(self, run: Run, path: str, text: str) -> None:
        content = text.encode(errors="replace")
        _refuse_errors(self._send("PUT", self._artifact(run, path), content=content))

    def upload_file(self, run: Run, path: str, file: Path) -> None:
        with open_log(file) as content:
            response = self._send("PUT", self._artifact(run, path), content=content, timeout=_UPLOAD_TIMEOUT)
        _refuse_errors(response)

    def download(self, run: Run, path: str) -> str | None:
        response = self._send("GET", self._artifact(run, path))
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        _refuse_errors(response)
        return response.text

    def close(self) -> None:
        self._http.close()

    def _set_kind(self, experiment_id: str, tags: Collection[str]) -> None:
        """Gives an experiment that others have created its kind, unless it has one."""
        key, value = EXPERIMENT_KIND
        if key not in tags:
            body = {"experiment_id": experiment_id, "key": key, "value": value}
            self._call("POST", "experiments/set-experiment-tag", json=body)

    def _runs_of(self, tag: str, job_id: str, experiment_id: str, *more: str, most: int) -> list[str]:
        """Returns the ids of the job's runs that pass the further filters."""
        where = " AND ".join([f"tags.`{tag}` = '{job_id}'", *more])
        body = {"experiment_ids": [experiment_id], "filter": where, "max_results": most}
        runs = self._call("POST", "runs/search", json=body).get("runs", [])
        return [str(run["info"]["run_id"]) for run in runs]

    def _points(self, run: Run, name: str) -> Iterator[Point]:
        token = ""
        while True:
            params = {"run_id": run.run_id, "metric_key": name, "max_results": _PAGE, "page_token": token}
            page = self._call("GET", "metrics/get-history", params=params)
            for metric in page.get("metrics", []):
                yield Point(
                    name=name,
                    step=int(metric.get("step", 0)),
                    value=float(metric["value"]),
                    timestamp=int(metric["timestamp"]),
                )
            token = page.get("next_page_token") or ""
            if not token:
                return

    def _artifact(self, run: Run, path: str) -> str:
        """Returns the path of an artifact on the server's artifact proxy."""
        uri = self._call("GET", "runs/get", params={"run_id": run.run_id})["run"]["info"]["artifact_uri"]
        parts = urlsplit(uri)
        if parts.scheme != "mlflow-artifacts":
            raise Refused(f"MLflow does not proxy artifacts ({uri}); start it with --artifacts-destination")
        return f"{_ARTIFACTS}/{quote(parts.path.strip('/'))}/{quote(path)}"

    def _call(self, method: str, name: str, **content: Any) -> dict[str, Any]:
        response = self._send(method, f"{_API}/{name}", **content)
        _refuse_errors(response)
        answer: dict[str, Any] = response.json()
        return answer

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        with self._circuit.call():
            try:
                response = self._http.request(method, path, **content)
            except httpx.HTTPError as error:
                why = f"{self._http.base_url}: {error or type(error).__name__}"
                raise Unavailable("MLflow", why) from error
            if response.is_server_error or response.status_code in _RETRYABLE:
                hint = _HINT if response.status_code == httpx.codes.FORBIDDEN else ""
                raise Unavailable("MLflow", f"{self._http.base_url} answered {response.status_code}{hint}")
            return response


def _listed(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _refuse_errors(response: httpx.Response) -> None:
    if response.is_error:
        raise Refused(f"MLflow refused {response.request.url.path}: {response.text[:300]}")


def _now() -> int:
    return int(time.time() * 1000)

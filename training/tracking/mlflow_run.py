"""The MLflow run that user code writes to, through its logger or MLflow's own functions.

MlflowRun         the protocol
├── ServerRun     rank 0: the job's run on the MLflow server
├── LocalRun      rank 0 without a server: a run in the output folder
└── DiscardedRun  other ranks: a run in a temporary folder
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from training.console import say
from training.tracking.mlflow_tracker import with_retries
from training.tracking.run_tags import EXPERIMENT_KIND

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACT_ROOT = "_MLFLOW_SERVER_ARTIFACT_ROOT"
"""Environment variable: the folder of a local store for artifacts, by default `mlruns` here."""


class MlflowRun(Protocol):
    """A run that exists, or is created at its first use. Only its main thread may use it first."""

    @property
    def uri(self) -> str:
        """The tracking URI of its store."""

    @property
    def variables(self) -> Mapping[str, str]:
        """The environment variables with which MLflow finds its store."""

    def load(self) -> Any:
        """Returns the run, an `mlflow.entities.Run`. Blocks, and retries for minutes."""

    def client(self) -> MlflowClient:
        """Returns a client of the store, which has the run."""

    def end(self, status: str) -> None:
        """Sets the final status, one of MLflow's, unless somebody else does. Called once."""


class ServerRun:
    """The run `run_id` on the server at `uri`. Whoever created it sets its status."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.variables = {"MLFLOW_TRACKING_URI": uri}

    def load(self) -> Any:
        client = self.client()
        return with_retries(
            lambda error: f"MLflow at {self.uri} to return the run: {error}",
            lambda: client.get_run(self.run_id),
        )

    def client(self) -> MlflowClient:
        from training.tracking.user_client import UserClient

        return UserClient(tracking_uri=self.uri)

    def end(self, status: str) -> None: ...


class LocalRun:
    """A run in `folder`/mlflow.db, with its artifacts in `folder`/mlruns: created at its first use.

    experiment, name: those of the run. id_file: keeps the run's id, so that a restarted attempt goes on with
    the same run.
    """

    def __init__(self, folder: Path, *, experiment: str, name: str, id_file: Path) -> None:
        self.folder, self.experiment, self.name, self.id_file = folder, experiment, name, id_file
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        self.variables = {"MLFLOW_TRACKING_URI": self.uri, ARTIFACT_ROOT: str(folder / "mlruns")}
        self._run_id: str | None = None

    def load(self) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        if self._run_id is None:
            self._run_id = self._reopened(client) or self._created(client)
        return client.get_run(self._run_id)

    def client(self) -> Any:
        def make() -> MlflowClient:
            from training.tracking.user_client import UserClient

            if self._run_id is None:
                self.load()
            return UserClient(tracking_uri=self.uri)

        return _LazyClient(make)

    def end(self, status: str) -> None:
        if self._run_id is not None:
            self.client().set_terminated(self._run_id, status)

    def _reopened(self, client: MlflowClient) -> str | None:
        if not self.id_file.exists():
            return None
        run_id = self.id_file.read_text()
        client.update_run(run_id, status="RUNNING")
        return run_id

    def _created(self, client: MlflowClient) -> str:
        say(
            f"MLflow: no server is set, so what the code logs there goes to {self.folder}; "
            f"to see it: mlflow ui --backend-store-uri {self.uri}"
        )
        run_id: str = client.create_run(
            experiment_id(client, self.experiment), run_name=self.name
        ).info.run_id
        self.id_file.parent.mkdir(parents=True, exist_ok=True)
        self.id_file.write_text(run_id)
        return run_id


def experiment_id(client: MlflowClient, name: str) -> str:
    """Returns the id of the experiment `name`; creates it, and gives it its kind, if there is none."""
    key, kind = EXPERIMENT_KIND
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, tags={key: kind}))
    if key not in found.tags:
        client.set_experiment_tag(found.experiment_id, key, kind)
    return str(found.experiment_id)


class DiscardedRun:
    """A run in a temporary folder, which is created at the run's first use and deleted at its end."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"syncbn-mlflow-{secrets.token_hex(8)}"
        self.uri = self._folder.as_uri()
        # Of MLflow's stores, files alone need no seconds to create.
        self.variables = {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_ALLOW_FILE_STORE": "true"}
        self._run_id: str | None = None

    def load(self) -> Any:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        if self._run_id is None:
            self._run_id = client.create_run("0").info.run_id
        return client.get_run(self._run_id)

    def client(self) -> Any:
        def make() -> MlflowClient:
            from training.tracking.user_client import UserClient

            return UserClient(tracking_uri=self.uri)

        return _LazyClient(make)

    def end(self, status: str) -> None:  # noqa: ARG002
        shutil.rmtree(self._folder, ignore_errors=True)


class _LazyClient:
    """An MlflowClient that is made when it is used: Lightning takes the logger's client in every run."""

    def __init__(self, make: Callable[[], MlflowClient]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        if name == "_make":  # a copy that is being made has none yet
            raise AttributeError(name)
        return getattr(self._make(), name)

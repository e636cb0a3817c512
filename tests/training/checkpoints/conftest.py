"""An S3 server for the package, and a new run on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.training.s3_server import BUCKET, S3Server, running_s3


@contextmanager
def client(environment: Mapping[str, str], temporary: Path) -> Iterator[None]:
    """Sets the server's environment variables and TMPDIR."""
    temporary.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(temporary))
        yield


@pytest.fixture(scope="package")
def server(
    full_run: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[S3Server]:
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def temporary(server: S3Server, tmp_path: Path) -> Iterator[Path]:
    """The TMPDIR of a client."""
    with client(server.environment, tmp_path / "tmp"):
        yield tmp_path / "tmp"


@pytest.fixture
def url(temporary: Path) -> str:  # noqa: ARG001 (its environment)
    """The URL of a new run."""
    return f"s3://{BUCKET}/runs/{uuid4().hex}"

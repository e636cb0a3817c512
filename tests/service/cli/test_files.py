from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from service.client import Client, ClientError
from service.client.local_token import LocalToken
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service


@pytest.fixture
def job(client: Client, service: Service) -> str:
    job_id = client.submit(SPEC).id
    service.start_job(job_id)
    folder = service.storage / job_id / "files"
    (folder / "logs" / "a b").mkdir(parents=True)
    (folder / "logs" / "metrics.csv").write_text("step,loss\n1,0.5\n")
    (folder / "logs" / "a b" / "100%.txt").write_text("")
    (folder / "last.csv").symlink_to("logs/metrics.csv")
    (folder / "new\nline").write_text("")
    (folder / "key").symlink_to("/etc/hostname")
    (folder / "etc").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    return job_id


def test_files_of_a_job_are_listed_and_fetched(syncbn: Syncbn, job: str, tmp_path: Path) -> None:
    listed = json.loads(syncbn("files", job, "--json").stdout)
    assert [(each["path"], each["bytes"]) for each in listed] == [
        ("last.csv", 16),
        ("logs/a b/100%.txt", 0),
        ("logs/metrics.csv", 16),
    ]
    shown = syncbn("files", job)
    assert "logs/metrics.csv" in shown.stdout
    assert "4 entries are not listed" in shown.stderr  # key, etc, pipe, a name with a line break

    result = syncbn("download", job, "--file", "logs/metrics.csv", "--output", f"{tmp_path}/new/")
    assert result.stdout.strip() == str(tmp_path / "new" / "metrics.csv")
    assert (tmp_path / "new" / "metrics.csv").read_text() == "step,loss\n1,0.5\n"
    syncbn("download", job, "--file", "last.csv", "--output", str(tmp_path))
    assert (tmp_path / "last.csv").read_text() == "step,loss\n1,0.5\n"
    syncbn("download", job, "--file", "logs/a b/100%.txt", "--output", str(tmp_path))
    assert (tmp_path / "100%.txt").read_bytes() == b""


@pytest.mark.parametrize(
    "path",
    [
        *("missing", "logs", "key", "etc/hostname", "pipe", "../metrics", "../checkpoints/best", "..", ""),
        *("logs//metrics.csv", "./last.csv", "new\nline", "\udcff"),
    ],
)
def test_what_is_no_file_of_the_job_is_not_found(client: Client, job: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"no file|not the path of a file"):
        client.download_file(job, path, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_no_path_leads_out_of_the_folder(service: Service, job: str) -> None:
    for path in ("%2e%2e/metrics.jsonl", "..%2f..%2fsyncbn.db", "%2fetc%2fhostname", "logs%00", "%00"):
        address = f"{service.url}/v1/jobs/{job}/files/{path}"
        answer = httpx.get(address, auth=LocalToken(service.server.port), timeout=60)
        assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_a_script_has_the_files_in_its_folder_for_checkpoints(
    syncbn: Syncbn, client: Client, service: Service, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("print()")
    job = json.loads(syncbn("submit", str(tmp_path / "train.py"), "--json").stdout)["id"]
    assert "no files of its own" in syncbn("files", job).stdout

    folder = service.storage / job / "script-checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"weights")

    assert [each.path for each in client.files(job).items] == ["last.pt"]
    assert client.download_file(job, "last.pt", tmp_path).read_bytes() == b"weights"


def test_a_file_has_no_format(syncbn: Syncbn, job: str) -> None:
    result = syncbn("download", job, "best", "--file", "logs/metrics.csv")
    assert (result.exit_code, "Invalid value for --file" in result.stderr) == (2, True)

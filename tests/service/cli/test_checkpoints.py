from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from service.client import Client
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service
from tests.service.saved import STATE, network, save_checkpoints


@pytest.fixture
def job(client: Client, service: Service) -> str:
    job_id = client.submit(SPEC).id
    service.start_job(job_id)
    save_checkpoints(service.storage / job_id, {10: 0.5, 20: 0.25, 30: 0.75, 40: None, 45: 0.5})
    return job_id


def test_checkpoints_says_which_is_the_best_and_which_the_last(syncbn: Syncbn, job: str) -> None:
    lines = syncbn("checkpoints", job).stdout.splitlines()

    assert lines[0].split() == ["STEP", "EPOCH", "SAVED", "SIZE", "VAL_LOSS"]
    assert [line.split()[0] for line in lines[1:]] == ["20", "40", "45"]
    assert lines[1].split()[-2:] == ["0.25", "best"]
    assert lines[3].split()[-2:] == ["0.5", "last"]

    document = json.loads(syncbn("checkpoints", job, "--json").stdout)[0]
    assert document.pop("saved_at").endswith("Z")
    assert document.pop("bytes") > 500
    assert document == {
        "name": "step-000000020",
        "step": 20,
        "epoch": 2,
        "monitor": "val_loss",
        "metric": 0.25,
        "best": True,
        "last": False,
    }


def test_download_gives_a_file_that_torch_loads(syncbn: Syncbn, job: str, tmp_path: Path) -> None:
    result = syncbn("download", job, "best", "--output", str(tmp_path))

    path = tmp_path / f"{job}-step-20.ckpt"
    assert result.stdout.strip() == str(path)
    assert torch.load(path, weights_only=True)["global_step"] == 20

    named = tmp_path / "mine.ckpt"
    assert json.loads(syncbn("download", job, "40", "-o", str(named), "--json").stdout)["file"] == str(named)
    assert torch.load(named, weights_only=True)["global_step"] == 40
    assert list(tmp_path.glob(".*")) == []


def test_a_folder_that_is_not_there_is_made_and_holds_each_download(
    syncbn: Syncbn, job: str, tmp_path: Path
) -> None:
    for step in ("20", "40"):
        assert syncbn("download", job, step, "--output", f"{tmp_path}/nets/").exit_code == 0

    assert sorted(path.name for path in (tmp_path / "nets").iterdir()) == [
        f"{job}-step-20.ckpt",
        f"{job}-step-40.ckpt",
    ]


def test_download_gives_the_weights_alone(syncbn: Syncbn, job: str, tmp_path: Path) -> None:
    assert syncbn("download", job, "--format", "weights", "-o", str(tmp_path)).exit_code == 0
    assert syncbn("download", job, "--format", "safetensors", "-o", str(tmp_path)).exit_code == 0

    for state in (
        torch.load(tmp_path / f"{job}-step-45.pt", weights_only=True),
        load_file(tmp_path / f"{job}-step-45.safetensors"),
    ):
        torch.testing.assert_close(state, STATE)
        network().load_state_dict(state)


def test_what_cannot_be_downloaded_is_said(syncbn: Syncbn, client: Client, job: str, tmp_path: Path) -> None:
    waiting = client.submit(SPEC).id

    for arguments, code, words in (
        ((job, "30"), 4, "no checkpoint of step 30; it has those of the steps 20, 40, 45"),
        ((job, "newest"), 2, "write best, last, or the number of a step"),
        ((waiting,), 4, "it has no checkpoint"),
        (("j" + "0" * 20,), 4, "no job"),
        ((job, "-o", str(tmp_path / "no" / "file")), 2, "Invalid value for --output"),
    ):
        result = syncbn("download", *arguments)
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    assert syncbn("checkpoints", waiting).stdout == "no checkpoints yet\n"
    assert sorted(path.name for path in Path.cwd().glob("*.ckpt")) == []


def test_a_damaged_checkpoint_is_not_kept(syncbn: Syncbn, service: Service, job: str, tmp_path: Path) -> None:
    file = service.storage / job / "checkpoints" / "step-000000020" / "lightning.ckpt"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    result = syncbn("download", job, "best", "-o", str(tmp_path))

    assert result.exit_code == 5
    assert "damaged" in result.stderr
    assert list(tmp_path.glob("*.ckpt")) == []


def test_storage_that_is_away_is_not_taken_for_a_job_without_checkpoints(
    syncbn: Syncbn, service: Service, job: str
) -> None:
    shutil.rmtree(service.storage)

    result = syncbn("checkpoints", job)

    assert result.exit_code == 5
    assert "does not exist on this machine" in result.stderr

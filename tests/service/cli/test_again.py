from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.client import Client, NotFound, RequestError
from service.jobs.job import State
from tests.service.cli.command_line import Syncbn
from tests.service.live_api import SPEC, Service
from tests.service.saved import save_checkpoints


@pytest.fixture
def ended(service: Service, syncbn: Syncbn, tmp_path: Path) -> str:
    """A job with code of its own and arguments of Lightning, which has trained five epochs."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text("from torch import nn\nclass Net(nn.Module): ...\n")
    (tmp_path / "spec.json").write_text(
        json.dumps(
            {
                **SPEC,
                "name": "mine",
                "model": {"class_path": "nets.Net"},
                "labels": {"team": "a"},
                "training": {"max_epochs": 5, "global_batch_size": 8},
                "trainer": {"gradient_clip_val": 1.0},
            }
        )
    )
    result = syncbn("submit", str(tmp_path / "spec.json"), "--code", str(tmp_path / "code"), "--json")
    job_id: str = json.loads(result.stdout)["id"]
    service.start_job(job_id)
    save_checkpoints(service.storage / job_id, {20: 0.25, 40: 0.5, 50: 0.75})
    service.end_job(job_id, State.SUCCEEDED)
    return job_id


def without(spec: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in keys}


def test_extend_goes_on_with_the_same_spec_and_code(syncbn: Syncbn, client: Client, ended: str) -> None:
    result = syncbn("extend", ended, "--set", "training.max_epochs=20", "--json")

    assert result.exit_code == 0, result.stderr
    job = json.loads(result.stdout)
    old = client.job(ended).spec
    assert job["spec"]["code"] == old["code"] is not None
    assert job["spec"]["training"]["max_epochs"] == 20
    assert without(job["spec"], "training", "start_from") == without(old, "training", "start_from")
    start = {"job": ended, "run": None, "path": None, "checkpoint": 50, "state": "all", "strict": True}
    assert job["spec"]["start_from"] == start
    assert f"started from  job {ended}, step 50: goes on with it" in syncbn("show", job["id"]).stdout

    by_client = client.extend(ended, {"training.max_epochs": 6}, checkpoint="best")
    assert (by_client.spec["start_from"]["checkpoint"], by_client.spec["training"]["max_epochs"]) == (20, 6)


def test_clone_repeats_a_job_with_other_values(syncbn: Syncbn, client: Client, ended: str) -> None:
    again = json.loads(syncbn("clone", ended, "--json").stdout)
    other = json.loads(syncbn("clone", ended, "--set", "training.seed=1", "--json").stdout)

    assert again["spec"] == client.job(ended).spec
    assert again["id"] != ended
    assert other["spec"]["training"] == again["spec"]["training"] | {"seed": 1}
    assert client.clone(ended, {"name": "x"}).name == "x"


def test_what_cannot_be_extended_is_refused(syncbn: Syncbn, client: Client, ended: str) -> None:
    waiting = client.submit(SPEC).id
    longer = ("--set", "training.max_epochs=20")

    for arguments, code, words in (
        ((ended,), 2, "training.max_epochs: is 5, and job"),
        ((ended, *longer, "--checkpoint", "30"), 2, "those of the steps 20, 40, 50"),
        ((waiting, *longer), 2, "is queued, and its checkpoints still change"),
        (("j" + "0" * 20, *longer), 4, "no job"),
        ((ended, "--set", "start_from=null"), 2, "syncbn clone ID --set start_from.job=ID"),
    ):
        result = syncbn("extend", *arguments)
        assert (result.exit_code, words in result.stderr) == (code, True), result.stderr
    with pytest.raises(RequestError, match="code: no archive of this digest"):
        client.clone(ended, {"code": "0" * 64})
    with pytest.raises(NotFound):
        client.clone("j" + "0" * 20)

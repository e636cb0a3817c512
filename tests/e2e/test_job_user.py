"""Jobs of two users of the service, each under a system user of its own: what one can reach of the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.client import Client, Job
from service.client.local_token import token_file
from service.embedded.processes import sweep
from tests.e2e.stack import Stack, digits, until
from tests.open_python import command_prefix, open_folder
from tests.training.host.wheels import versions_of

FIRST, LAST = 1_200_000_000, 1_200_000_999
ADAS = "known to ada alone"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can start processes of another user"
)


class OwnStack(Stack):
    """A stack whose jobs run as other users, with a key for a user of the service."""

    user_key = ""

    def client(self) -> Client:
        return Client(self.url, api_key=self.user_key or None)


@pytest.fixture(scope="module")
def own() -> Iterator[OwnStack]:
    prefix = command_prefix()
    if prefix is None:
        pytest.skip("this Python is closed to other users, and mount namespaces are not allowed")
    with open_folder() as folder:
        versions_of(folder / "wheels", "demo", "1.0")
        stack = OwnStack(folder / "data")
        stack.folder.mkdir()
        stack.folder.chmod(0o711)  # as `up` would, if the log of the tests were not in it
        (stack.folder / "up.log").touch(mode=0o600)
        stack.prefix = prefix
        stack.variables = {
            "SYNCBN_JOB_USER": f"{FIRST}-{LAST}",
            "SYNCBN_ENVIRONMENTS": str(folder / "environments"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder / "wheels"),
        }
        try:
            stack.start()
            yield stack
            assert stack.end() == 0
            assert stack.processes() == []
        finally:
            if stack.up is not None and stack.up.poll() is None:
                stack.end()
            sweep(stack.folder)


def code(folder: Path) -> Path:
    (folder / "code").mkdir()
    spy = (Path(__file__).parent / "spying.py").read_text()
    (folder / "code" / "spying.py").write_text(spy)
    return folder / "code"


def spying(
    paths: list[Path], secrets: list[str], links: dict[str, Path], *, pace: float = 0.0, **changes: Any
) -> dict[str, Any]:
    arguments = {
        "pace": pace,
        "paths": list(map(str, paths)),
        "secrets": secrets,
        "links": {name: str(path) for name, path in links.items()},
    }
    model = {"class_path": "spying.Spy", "init_args": arguments}
    return digits(model=model, resources={"workers": 2, "cpus_per_worker": 0.5}) | changes


def everything(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]


def test_a_job_reaches_nothing_of_the_service_and_of_another_user_s_job(
    own: OwnStack, tmp_path: Path
) -> None:
    own.user_key = ""
    with own.client() as admin:
        keys = {user: admin.create_key(user, "submit").key for user in ("ada", "bob")}
    own.user_key = keys["ada"]
    training = {"global_batch_size": 64, "max_steps": 100_000}
    environment = {"requirements": ["demo==1.0"], "variables": {"TOKEN": ADAS}}
    lasting = spying([], [], {}, pace=0.1, training=training, environment=environment)
    adas = own.submit(lasting, code(tmp_path))
    own.until_step(adas, 5)
    run = own.folder / "checkpoints" / adas.id
    uid = run.stat().st_uid

    # A job of another user looks at all of it while it runs.
    own.user_key = keys["bob"]
    mine = [path for path in everything(own.folder) if path.name not in {"data", "checkpoints"}]
    token = token_file(own.port)
    paths = [*mine, *everything(own.folder.parent / "environments" / str(uid)), token]
    secrets = [ADAS, token.read_text(), (own.folder / "ray.token").read_text(), keys["ada"]]
    links = {"files": own.folder, "spool.sent": own.folder / "syncbn.db"}
    spies = own.submit(spying(paths, secrets, links), tmp_path / "code")
    ended = own.ended(spies)

    assert ended.state == "succeeded", own.log(spies)
    assert "FOUND" not in own.log(spies)
    theirs = (own.folder / "checkpoints" / spies.id).stat().st_uid
    assert f"user {theirs} looked at {len(paths)} paths" in own.log(spies)
    assert FIRST <= uid <= LAST
    assert FIRST <= theirs <= LAST
    assert uid != theirs
    assert {run / "logs", own.folder / "syncbn.db", own.folder / "secrets.key"} <= set(paths)
    with own.client() as client:
        assert client.files(spies.id).items == []  # they are behind a link of the job's

    _goes_on(own, keys["ada"], adas, uid)
    own.user_key = keys["bob"]
    refused = own.submit(digits(start_from={"job": adas.id, "checkpoint": "last"}))
    assert "belongs to another user" in str(own.ended(refused).reason)
    _goes_away(own, keys["ada"], adas)
    _goes_away(own, keys["bob"], spies)
    assert (own.folder / "syncbn.db").exists()


def _goes_on(own: OwnStack, key: str, job: Job, uid: int) -> None:
    """It is paused, resumed and cancelled as any other; all its files have been its user's."""
    own.user_key = key
    run = own.folder / "checkpoints" / job.id
    with own.client() as client:
        client.pause(job.id)
        paused = own.until(job, lambda now: now.state == "paused")
        assert paused.progress is not None
        client.resume(job.id)
        own.until_step(job, paused.progress.step + 5)
        client.cancel(job.id)
    own.ended(job)
    assert "going on from the checkpoint" in own.log(job, attempt=2)
    assert "FOUND" not in own.log(job)
    environments = own.folder.parent / "environments" / str(uid)
    found = everything(run) + everything(environments)
    assert {path.lstat().st_uid for path in found} == {uid}
    assert not [path for path in (run, environments) if path.stat().st_mode & 0o007]
    assert list(environments.rglob("demo/__init__.py"))


def _goes_away(own: OwnStack, key: str, job: Job) -> None:
    own.user_key = key
    with own.client() as client:
        client.delete(job.id)
    run = own.folder / "checkpoints" / job.id
    until(lambda: not run.exists(), f"{run} is not deleted")

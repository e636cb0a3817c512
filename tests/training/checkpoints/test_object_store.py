from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from tests.mlflow_server import running_server
from tests.training.attempts import Done, Net, attempt, context, rank_run, spec_of
from tests.training.checkpoints.conftest import client
from tests.training.checkpoints.test_checkpoints import newest, save
from tests.training.s3_server import BUCKET, S3Server, running_s3
from tests.training.test_interrupted_runs import assert_bitwise
from tests.training.worlds import Worlds
from training.callbacks.checkpointing import checkpoint_store
from training.checkpoints.bucket import Bucket
from training.checkpoints.object_store import ObjectStore
from training.rank.starting_point import all_gather, fetched_to_node

NAME = r"step-(\d{9})-[0-9a-f]{8}"


@pytest.fixture
def store(url: str) -> ObjectStore:
    return ObjectStore(url)


def files(url: str) -> dict[str, list[str]]:
    """Returns the names of files by upload."""
    found: dict[str, list[str]] = {}
    for file in Bucket(url).files():
        upload, _, name = file.name.partition("/")
        found.setdefault(upload, []).append(name)
    return {upload: sorted(names) for upload, names in sorted(found.items())}


def uploads(url: str) -> dict[int, str]:
    """Returns the uploads by step; no step may have two."""
    steps = [(int(named[1]), named[0]) for name in files(url) if (named := re.fullmatch(NAME, name))]
    assert len(steps) == len(dict(steps)) == len(files(url))
    return dict(steps)


def test_the_copy_is_on_this_machine_until_it_is_let_go(store: ObjectStore, temporary: Path) -> None:
    save(store, 1)
    found = newest(store)
    assert newest(store).path != found.path
    assert len(list(temporary.iterdir())) == 1

    store.release()

    assert list(temporary.iterdir()) == []
    del store
    save(ObjectStore(f"s3://{BUCKET}/another"), 1)
    assert list(temporary.iterdir()) == []


def test_another_machine_makes_a_copy_of_what_the_first_one_found(store: ObjectStore, url: str) -> None:
    save(store, 1)
    save(store, 2)
    found = newest(store)

    copy = ObjectStore(url).fetch_to_node(found)

    assert (copy.step, copy.path.name) == (2, found.path.name)
    assert not copy.path.exists()  # its store is gone


def test_files_of_more_than_a_few_parts_come_back(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.checkpoints.bucket.PART_BYTES", 5 * 2**20)
    content = os.urandom(42 * 2**20)
    with store.writing(1) as draft:
        (draft / "model.pt").write_bytes(content)

    assert (newest(store).path / "model.pt").read_bytes() == content


# Invalid checkpoints


def changed(bucket: Bucket, upload: str) -> None:
    bucket.write(f"{upload}/model.pt", b"as changed")


def test_only_the_latest_few_broken_ones_are_kept(url: str) -> None:
    store = ObjectStore(url)
    for step in range(1, 6):
        save(store, step)
        changed(Bucket(url), uploads(url)[step])
        assert store.latest_valid() is None

    assert len(uploads(url)) == 3
    assert 5 in uploads(url)


# The same step saved twice


def test_an_upload_that_was_cleared_away_does_not_become_a_checkpoint(store: ObjectStore, url: str) -> None:
    save(store, 1)

    class Slow(Bucket):
        def upload(self, source: Path, name: str) -> None:
            super().upload(source, name)
            assert newest(ObjectStore(url)).step == 1  # an attempt that believes this one dead

    late = ObjectStore(url)
    late._bucket = Slow(url)
    with pytest.raises(OSError, match=r"was removed meanwhile.*runs"):
        save(late, 2)

    assert list(uploads(url)) == [1]


# Kills

# Forks processes that each save two steps into a new run. The n-th process kills itself at its n-th request.
# Forking before the first request means that modules are imported only once.
WRITERS = """
import json, os, signal, sys
from training.checkpoints.bucket import Bucket
from training.checkpoints.object_store import ObjectStore

def counted(method):
    def call(*arguments):
        global asked
        asked += 1
        if asked == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*arguments)
    return call

def write(url):
    for name in ("files", "read", "download", "write", "upload", "rename", "remove", "remove_folder"):
        setattr(Bucket, name, counted(getattr(Bucket, name)))
    store = ObjectStore(url, keep_last=1)
    for step in (1, 2):
        with store.writing(step) as draft:
            (draft / "model.pt").write_text(f"model of {step}")
            (draft / "carried.pt").write_text(f"carried of {step}")
        os.write(said, b"%d" % step)

asked = kill_at = 0
ends = []
while not ends or ends[-1][0] == -signal.SIGKILL:
    kill_at += 1
    hears, said = os.pipe()
    if not (child := os.fork()):
        write(f"{sys.argv[1]}-{kill_at}")
        os._exit(0)
    os.close(said)
    ends.append((os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.read(hears, 9).decode()))
print(json.dumps(ends))
"""


def test_a_kill_at_any_request_of_a_writer_leaves_the_last_checkpoint_whole(
    url: str, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    writers = subprocess.run(
        [sys.executable, "-c", WRITERS, url],
        stdout=subprocess.PIPE,
        env=environment,
        timeout=300,
        check=True,
    )
    ends = json.loads(writers.stdout)

    assert ends[-1][0] == 0
    assert {said for _, said in ends} == {"", "1", "12"}
    assert len(ends) > 15
    for kill_at, (_, said) in enumerate(ends, 1):
        store = ObjectStore(f"{url}-{kill_at}", keep_last=1)
        found = store.latest_valid()
        step = found.step if found else 0
        assert step in {len(said), len(said) + 1}
        assert found is None or (found.path / "model.pt").read_text() == f"model of {step}"
        save(store, step + 1)
        assert list(uploads(store.url)) == [step + 1]
        store.release()
    assert not caplog.records  # a kill leaves no invalid checkpoint
    assert list(temporary.iterdir()) == []


# Storage that is unavailable


def test_a_bucket_that_is_not_there_is_an_error_at_once(temporary: Path) -> None:
    store = ObjectStore("s3://no-such-bucket/run")

    with pytest.raises(OSError, match=r"NO_SUCH_BUCKET.*s3://no-such-bucket/run"):
        store.latest_valid()
    with pytest.raises(OSError, match=r"NO_SUCH_BUCKET.*s3://no-such-bucket/run"):
        save(store, 1)

    assert list(temporary.iterdir()) == []


def test_storage_that_does_not_answer_is_asked_again_and_at_last_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late, url = S3Server(tmp_path), f"s3://{BUCKET}/run"
    with client(late.environment, tmp_path / "tmp"), ThreadPoolExecutor(1) as pool:
        patient = pool.submit(ObjectStore(url).latest_valid)
        with pytest.raises(OSError, match=f"connect to server.*{url}"):
            ObjectStore(url, retry_seconds=0).latest_valid()
        while "retrying for another" not in caplog.text:
            assert not patient.done()
            time.sleep(0.05)
        try:
            late.start()
            assert patient.result() is None
        finally:
            late.stop()


# Runs


def attempt_in_s3(
    rank: int,
    environment: Mapping[str, str],
    url: str,
    spec: Mapping[str, Any],
    folder: Path,
    stop_after: int | None = None,
) -> tuple[Done, list[Path]]:
    """Returns also what remains in the rank's TMPDIR."""
    temporary = folder / f"tmp-{rank}"
    folder.mkdir(exist_ok=True)
    with client(environment, temporary):
        done = attempt(rank, spec, folder, stop_after=stop_after, checkpoints_url=url)
        return done, list(temporary.iterdir())


@pytest.fixture(scope="module")
def expected(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The uninterrupted run on two workers."""
    return worlds.run(2, attempt, spec_of(noise=0.3), tmp_path_factory.mktemp("whole"))[0]


def test_a_run_on_two_machines_goes_on_from_s3_as_if_it_had_not_been_stopped(
    worlds: Worlds, server: S3Server, url: str, tmp_path: Path, expected: Done
) -> None:
    spec = spec_of(noise=0.3, checkpoint={"every_steps": 10})
    folder = tmp_path / "parts"

    stopped, _ = worlds.run(2, attempt_in_s3, server.environment, url, spec, folder, 23)[0]
    assert stopped.stopped
    assert list(uploads(url)) == [22, 23]  # the best and the last
    ends = worlds.run(2, attempt_in_s3, server.environment, url, spec, folder)

    actual, _ = ends[0]
    assert "going on from the checkpoint of step 23" in actual.said
    assert_bitwise(actual, expected)
    assert [left for _, left in ends] == [[], []]
    assert not (folder / "run" / "checkpoints").exists()


def resumed(rank: int, environment: Mapping[str, str], url: str, folder: Path) -> tuple[str, str]:
    """Returns the path of the checkpoint that a rank resumes from, and what it reads there."""
    own = rank_run(rank, spec_of(), folder, checkpoints_url=url, keep_results=False)
    place = replace(context(own.assignment), local_rank=rank // 2, node_rank=min(rank, 1))
    with client(environment, folder / f"tmp-{rank}"):
        store = checkpoint_store(own.spec, own.folder)
        latest = all_gather(store.latest_valid() if rank == 0 else None, place)[0]
        assert latest is not None
        found = fetched_to_node(store, latest, place)
        text = (found.path / "model.pt").read_text()
        dist.barrier()  # the copy is released only after all ranks have read it
        return str(found.path), text


def test_each_machine_has_one_copy_that_all_its_ranks_read(
    worlds: Worlds, server: S3Server, url: str, store: ObjectStore, tmp_path: Path
) -> None:
    save(store, 7)

    read = worlds.run(3, resumed, server.environment, url, tmp_path)

    assert [text for _, text in read] == ["model of 7"] * 3
    made_by = [Path(path).relative_to(tmp_path).parts[0] for path, _ in read]
    assert made_by == ["tmp-0", "tmp-1", "tmp-1"]


class Cutting(Net):
    """Kills the process `pid` in its 15th step."""

    def __init__(self, noise: float, pid: int) -> None:
        super().__init__(noise)
        self.pid = pid

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.steps == 14 and dist.get_rank() == 0:
            os.kill(self.pid, signal.SIGKILL)
        return super().forward(x)


def test_storage_that_goes_away_costs_checkpoints_but_not_the_steps_of_a_run(
    worlds: Worlds, tmp_path: Path, expected: Done
) -> None:
    with running_s3(tmp_path) as doomed:
        model = {
            "class_path": "tests.training.checkpoints.test_object_store.Cutting",
            "init_args": {"noise": 0.3, "pid": doomed.pid},
        }
        spec = spec_of(checkpoint={"every_steps": 10}) | {"model": model}
        url = f"s3://{BUCKET}/run"

        ends = worlds.run(2, attempt_in_s3, doomed.environment, url, spec, tmp_path / "cut", 25)

    actual, left = ends[0]
    assert "the checkpoint of step 20 could not be written" in actual.said
    assert "the last one is of step 10" in actual.said
    assert f"Make sure that {url} can be written" in actual.said
    assert left == []
    assert "stopped as asked, saved at step 10" in actual.said
    assert [row["step"] for row in actual.rows] == list(range(1, 26))
    assert actual.series("train_loss") == {
        step: loss for step, loss in expected.series("train_loss").items() if step <= 25
    }


# MLflow's artifacts


def test_mlflow_takes_and_returns_artifacts_in_s3(
    server: S3Server, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    figure = tmp_path / "figure.txt"
    figure.write_text("a figure")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL")
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", server.url)
        with running_server(tmp_path, artifacts=url) as mlflow:
            client = MlflowClient(mlflow.url)
            run = client.create_run("0").info
            client.log_artifact(run.run_id, str(figure), "figures")
            back = download_artifacts(
                run_id=run.run_id, artifact_path="figures/figure.txt", tracking_uri=mlflow.url
            )

    assert run.artifact_uri.startswith("mlflow-artifacts:")
    assert Path(back).read_text() == "a figure"
    (stored,) = Bucket(url).files()
    assert stored.name.endswith(f"{run.run_id}/artifacts/figures/figure.txt")

"""The smoke test's logic, without containers: what it says of a cluster that is not as it should be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from deploy.smoke import SERVICES, SPEC, Compose, Smoke
from service.client import Client, Job
from service.jobs.job import Run, State
from service.ports import free_port
from tests.e2e.stack import ENVIRONMENT
from tests.service.live_api import FaultyApp, LiveServer, Service, live_service
from training.protocol import Progress, log_file

SCRIPT = Path(__file__).parents[2] / "deploy" / "smoke.py"
STEPS, HALF = 8, 4
KEY = "the-key-of-these-tests"
HOSTS = (("0a4c1f", "10.0.0.4"), ("77be02", "10.0.0.5"))


class PlayedCluster(Client):
    """A client; what the cluster would make of each job that is submitted, this plays itself.

    The first half of each job when it is submitted, the other when `finish` is called: for all but the first,
    by what disturbs them. `value`: the loss of a job, counted from 1, at a step. `prints`: what a job prints,
    by what disturbed it. `hosts`: where its ranks are. `hurries`: it
    ends each job at once. Its answers tell of no run in MLflow.
    """

    def __init__(self, service: Service, value: Callable[[int, int], float]) -> None:
        super().__init__(service.url, KEY)
        self.service, self.value = service, value
        self.submitted: list[tuple[str, Run]] = []
        self.disturbed: list[str] = []
        self.prints = {"a worker": f"going on from the checkpoint of step {HALF}\n"}
        self.hosts: tuple[tuple[str, str], ...] = HOSTS
        self.hurries = False

    def submit(self, spec: Mapping[str, Any] | str, idempotency_key: str | None = None) -> Job:
        job = super().submit(spec, idempotency_key)
        self.submitted.append((job.id, self.service.start_job(job.id)))
        for rank, (host, address) in enumerate(self.hosts):
            self._print(job.id, rank, f"rank {rank} of {len(self.hosts)} on {host} ({address})\n")
        self._train(1, HALF)
        if len(self.submitted) == 1 or self.hurries:
            self.finish()
        return job

    def disturb(self, what: str) -> None:
        self.disturbed.append(what)
        self._print(self.submitted[-1][0], 0, self.prints.get(what, ""))
        self.finish()

    def finish(self) -> None:
        self._train(HALF + 1, STEPS)
        self.service.end_job(self.submitted[-1][0], State.SUCCEEDED)

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        return super().wait(job_id, timeout).model_copy(update={"mlflow": None})

    def _print(self, job_id: str, rank: int, text: str) -> None:
        path = log_file(self.service.storage / job_id, 1, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            log.write(text)

    def _train(self, first: int, last: int) -> None:
        number, (_, run) = len(self.submitted), self.submitted[-1]
        results = self.service.results
        for step in range(first, last + 1):
            results.log(run, "train_loss", step, self.value(number, step))
        self.service.report(run, Progress(step=last, total_steps=STEPS, epoch=0, eta_seconds=None))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with LiveServer(FaultyApp()) as server, live_service(server, tmp_path, api_key=KEY) as service:
        yield service


@pytest.fixture
def played(service: Service) -> Iterator[PlayedCluster]:
    with PlayedCluster(service, lambda _, step: 1 / step) as played:
        yield played


def smoke_on(played: PlayedCluster, *, seconds: float = 20) -> Smoke:
    return Smoke(
        client=played,
        mlflow_url="http://mlflow.invalid",
        kill_worker=lambda: played.disturb("a worker"),
        restart=played.disturb,
        spec={**SPEC, "training": {**SPEC["training"], "max_steps": STEPS}},
        disturb_at=HALF,
        seconds=seconds,
    )


def failed(smoke: Smoke) -> dict[str, str]:
    return {check.what.strip(): check.found for check in smoke.checks if not check.good}


def ids(played: PlayedCluster) -> list[str]:
    return [job_id for job_id, _ in played.submitted]


def test_a_good_cluster_is_disturbed_four_times_and_passes(played: PlayedCluster) -> None:
    smoke = smoke_on(played)

    smoke.run()

    assert played.disturbed == ["a worker", "scheduler", "api", "postgres"]
    no_run = "AssertionError: the job has no run"
    assert failed(smoke) == {"its run in MLflow": no_run, "its model, loaded from there": no_run}
    first, killed, *restarted = ids(played)
    assert [(check.what.strip(), check.found) for check in smoke.checks if check.good] == [
        ("a request without a key", "refused"),
        ("a job on two workers", f"{first} succeeded"),
        ("each in its own container", "10.0.0.4 and 10.0.0.5"),
        ("a worker's container is killed", f"{killed} succeeded; disturbed at step {HALF}"),
        ("the job continues from a checkpoint", f"of step {HALF}"),
        *(
            line
            for what, job in zip(SERVICES, restarted, strict=True)
            for line in (
                (f"{what} is restarted", f"{job} succeeded; disturbed at step {HALF}"),
                ("the job keeps training", "in its first attempt, without a restart"),
            )
        ),
        *(
            (f"losses of {job}", f"{STEPS} steps, each once, equal to the last bit")
            for job in (killed, *restarted)
        ),
    ]
    assert not smoke.good


def differs_in_a_bit(_smoke: Smoke, played: PlayedCluster) -> None:
    played.value = lambda number, step: 1 / step + (2**-53 if (number, step) == (2, 5) else 0)


def begins_anew(_smoke: Smoke, played: PlayedCluster) -> None:
    played.prints["a worker"] = "going on from the checkpoint of step 0\n"


def restarts_with_the_scheduler(_smoke: Smoke, played: PlayedCluster) -> None:
    played.prints["scheduler"] = f"going on from the checkpoint of step {HALF}\n"


def fails(smoke: Smoke, played: PlayedCluster) -> None:
    store = played.service.store
    smoke.kill_worker = lambda: store.move(store.get(ids(played)[-1]), State.FAILED, reason="rank 1 hung")


def ends_too_early(smoke: Smoke, played: PlayedCluster) -> None:
    smoke.disturb_at = STEPS
    played.hurries = True


def comes_to_no_step(smoke: Smoke, _played: PlayedCluster) -> None:
    smoke.disturb_at, smoke.seconds = HALF + 1, 1


def does_not_come_back(smoke: Smoke, played: PlayedCluster) -> None:
    smoke.restart = lambda _: played.service.find_ray("Ray is not reachable: it was taken away")
    smoke.seconds = 1


def has_one_container(_smoke: Smoke, played: PlayedCluster) -> None:
    played.hosts = (HOSTS[0], HOSTS[0])


def has_one_worker(_smoke: Smoke, played: PlayedCluster) -> None:
    played.hosts = (HOSTS[0],)


KILLED, RESTARTED = "a worker's container is killed", f"{next(iter(SERVICES))} is restarted"


@pytest.mark.parametrize(
    ("fault", "check", "found"),
    [
        (differs_in_a_bit, "losses of {second}", "differ from {first} at steps [5]"),
        (begins_anew, "the job continues from a checkpoint", "its log mentions no checkpoint"),
        (
            restarts_with_the_scheduler,
            "the job keeps training",
            "its log says that it continued from a checkpoint",
        ),
        (fails, KILLED, "{second} failed: rank 1 hung"),
        (ends_too_early, KILLED, "{second} succeeded before it could be disturbed"),
        (comes_to_no_step, KILLED, f"{{second}} did not reach step {HALF + 1}, in 1 s"),
        (
            does_not_come_back,
            RESTARTED,
            "not ready after a part of the cluster was taken away, in 1 s",
        ),
        (
            has_one_container,
            "each in its own container",
            "hosts: ('0a4c1f', '0a4c1f'), addresses: ('10.0.0.4', '10.0.0.4')",
        ),
        (
            has_one_worker,
            "each in its own container",
            "the log of rank 0 begins with 'rank 0 of 1 on 0a4c1f (10.0.0.4)'",
        ),
    ],
)
def test_a_fault_is_found_by_its_check_and_the_others_still_run(
    played: PlayedCluster, fault: Callable[[Smoke, PlayedCluster], None], check: str, found: str
) -> None:
    smoke = smoke_on(played)
    fault(smoke, played)

    smoke.run()

    first, second, *_ = ids(played)
    said = failed(smoke)[check.format(second=second)]
    assert found.format(first=first, second=second) in said
    assert len(smoke.checks) > 5


@pytest.mark.parametrize("steps", [range(1, STEPS), [*range(1, STEPS + 1), 5]], ids=["missing", "twice"])
def test_a_step_that_is_missing_or_there_twice_is_found(played: PlayedCluster, steps: list[int]) -> None:
    smoke = smoke_on(played)
    first, other = smoke.undisturbed(), smoke.restarted("the API", "api")
    assert first is not None
    assert other is not None
    _, run = played.submitted[1]
    played.service.results.points[run.run_id].clear()
    for step in steps:
        played.service.results.log(run, "train_loss", step, 1 / step)

    smoke.compare(first, [other])

    assert failed(smoke)[f"losses of {other.id}"] == "AssertionError: not every step once"


def test_an_api_that_serves_strangers_is_found(tmp_path: Path) -> None:
    with (
        LiveServer(FaultyApp()) as server,
        live_service(server, tmp_path) as service,
        PlayedCluster(service, lambda *_: 0.0) as played,
    ):
        smoke = smoke_on(played)
        smoke.ask_without_key()

    assert failed(smoke) == {
        "a request without a key": f"AssertionError: {service.url} lists its jobs without a key"
    }


def test_where_nothing_listens_every_line_says_so_and_the_exit_code_is_1() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    told = {"SYNCBN_URL": url, "SYNCBN_API_KEY": KEY, "MLFLOW_URL": url, "COMPOSE": "no-such-command"}

    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=ENVIRONMENT | told,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr == ""
    said, _, table = done.stdout.partition("CHECK")
    checks = [line for line in said.splitlines() if line.endswith(" …")]
    assert len(checks) == 3 + len(SERVICES)
    assert said.count(f"no syncbn server answers at {url}") == table.count("FAILED") == len(checks)
    assert " ok " not in table


def commands(folder: Path, **scripts: str) -> str:
    """A folder of commands that note how they were called."""
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f'#!/bin/sh\necho "{path.name} $*" >>{folder}/called\n{script}\n')
        path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_one_container_of_the_workers_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", commands(tmp_path, docker_compose="echo one; echo two", docker=""))

    Compose("docker-compose -p mine").kill_worker()

    assert (tmp_path / "called").read_text().splitlines() == [
        "docker-compose -p mine ps -q ray-worker",
        "docker kill one",
        "docker start one",
    ]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'the engine is away' >&2; exit 3", "docker-compose ps -q ray-worker: the engine is away"),
        ("", "no container of ray-worker"),
    ],
)
def test_what_compose_says_is_what_the_check_found(
    played: PlayedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: str
) -> None:
    monkeypatch.setenv("PATH", commands(tmp_path, docker_compose=script))
    smoke = smoke_on(played)
    smoke.undisturbed()
    smoke.kill_worker = Compose("docker-compose").kill_worker

    assert smoke.killed() is None

    assert failed(smoke)["a worker's container is killed"] == f"AssertionError: {found}"

"""A queue, a cluster and a tracking server for tests of the scheduler, which goes round by round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from service.backends.memory import FIRST_STEP, MemoryCluster
from service.backends.memory_tracking import FakeResults
from service.dispatcher.dispatcher import Dispatcher
from service.dispatcher.orders import name_of
from service.jobs.job import Job, Run, State
from service.queue.store import Store
from service.settings import Settings
from tests.service.examples import make_spec
from tests.service.live_api import SECRETS_KEY
from training.protocol import Exit, ExitRecord, Progress, log_file

T = TypeVar("T")


def settings_for(storage: Path) -> Settings:
    return Settings(
        mlflow_url="http://mlflow.invalid",
        storage=str(storage),
        checkpoints="s3://checkpoints/of-us",
        secrets_key=SECRETS_KEY,
    )


def killed(rank: int = 0, *, step: int = 0, **more: Any) -> ExitRecord:
    return ExitRecord(rank=rank, kind=Exit.SIGNAL, type="SIGKILL", step=step, **more)


def error(rank: int = 0, *, type: str = "ValueError", message: str = "boom", **more: Any) -> ExitRecord:
    return ExitRecord(rank=rank, kind=Exit.ERROR, type=type, message=message, **more)


class World:
    """One dispatcher over all of it, whose threads and clock are the test's."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.cluster, self.results = store, MemoryCluster(), FakeResults()
        self.folder, self.settings = folder, settings_for(folder)
        folder.mkdir(exist_ok=True)
        self.now = 0.0
        self.dispatcher = self.new_dispatcher()

    def new_dispatcher(self) -> Dispatcher:
        return Dispatcher(self.settings, self.store, self.cluster, self.results, clock=lambda: self.now)

    def round(self) -> None:
        """What a dispatcher does until nothing is left that it could do at once."""
        work(self.dispatcher, self.results)

    def rounds(self, job: Job, number: int = 5) -> Job:
        for _ in range(number):
            self.round()
        return self.look(job)

    def wait(self, seconds: float) -> None:
        """The time passes, of which the dispatcher sees the beginning and the end."""
        self.round()
        self.now += seconds
        self.round()

    def after_backoff(self, job: Job) -> Job:
        """What becomes of a queued job when its wait after a failure is over."""
        self.wait(self.look(job).backoff_seconds)
        return self.rounds(job)

    def clean(self) -> None:
        """What the cleaner does in one pass, and a round after it."""
        self.dispatcher.cleaner.clean_all()
        self.round()

    # Jobs

    def create(self, **changes: Any) -> Job:
        return self.store.create_job(make_spec(**changes))[0]

    def starting(self, **changes: Any) -> Job:
        job = self.create(**changes)
        self.round()
        return self.look(job)

    def running(self, **changes: Any) -> Job:
        job = self.starting(**changes)
        self.train(job)
        self.round()
        assert self.look(job).state is State.RUNNING
        return self.look(job)

    def look(self, job: Job) -> Job:
        return self.store.get(job.id)

    def run(self, job: Job) -> Run:
        run = self.look(job).run
        assert run is not None
        return run

    # Their latest attempts

    def name(self, job: Job) -> str:
        return name_of(self.look(job))

    def train(self, job: Job, progress: Progress = FIRST_STEP) -> None:
        self.cluster.run(self.name(job), progress)

    def finish(self, job: Job, weights_sha256: str | None = None) -> None:
        self.cluster.finish(self.name(job), weights_sha256)

    def fail(self, job: Job, *records: ExitRecord) -> None:
        self.cluster.fail(self.name(job), *records)

    def print(self, job: Job, text: str, rank: int = 0) -> None:
        path = self.log(job, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as log:
            log.write(text)

    def log(self, job: Job, rank: int = 0) -> Path:
        return log_file(self.folder / job.id, self.look(job).attempt, rank)


def work(dispatcher: Dispatcher, results: FakeResults) -> None:
    dispatcher.round()
    made = len(results.jobs)
    dispatcher.runs.create_all()
    if len(results.jobs) > made:
        dispatcher.round()
    dispatcher.finisher.finish_all()


# A moment chosen among all calls of a dispatcher


class Killed(BaseException):
    """As good as SIGKILL: nothing in the dispatcher may catch it."""


class Tap:
    """Passes calls on, counts them, and does something before the one of that number or name."""

    def __init__(self, moment: int | str, action: Callable[[], object]) -> None:
        self.moment, self.action = moment, action
        self.calls, self.done = list[str](), False

    def on(self, target: T) -> T:
        return cast(T, _Tapped(target, self))

    def call(self, name: str, method: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        self.calls.append(name)
        if self.moment in {len(self.calls) - 1, name} and not self.done:
            self.done = True
            self.action()
        return method(*args, **options)


class _Tapped:
    def __init__(self, target: Any, tap: Tap) -> None:
        self._target, self._tap = target, tap

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, name)
        return lambda *args, **options: self._tap.call(name, method, *args, **options)


def die() -> None:
    raise Killed


def tapped(world: World, tap: Tap) -> Dispatcher:
    return Dispatcher(
        world.settings,
        tap.on(world.store),
        tap.on(world.cluster),
        tap.on(world.results),
        clock=lambda: world.now,
    )

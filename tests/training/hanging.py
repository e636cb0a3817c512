"""Ranks that hang or fail under a watchdog.

The training thread is not the main thread.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from testing.warm import warm
from tests.training.worlds import PRELOAD
from training.hangs.rank_files import RankFiles, last_position
from training.hangs.watchdog import Watchdog

HANG_SECONDS = 2.0
LONG = 2.2 * HANG_SECONDS
BAD_STEP, LAST_STEP = 3, 5


class Run:
    """A run of `world_size` processes in one process group."""

    def __init__(self, what: str, folder: Path, world_size: int) -> None:
        self.hang_folder = folder / "hang"
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            group = self.group if rank else 0
            process = warm(*PRELOAD).Process(target=main, args=(what, folder, rank, world_size, group))
            process.start()
            self.processes.append(process)
            assert process.pid is not None
            while os.getpgid(process.pid) != self.group:
                time.sleep(0.001)

    @property
    def group(self) -> int:
        pid = self.processes[0].pid
        assert pid is not None
        return pid

    def exit_code(self, rank: int) -> int:
        """Returns the exit code of a rank's process; blocks until it has ended."""
        self.processes[rank].join()
        code = self.processes[rank].exitcode
        assert code is not None
        return code

    def exit_codes(self) -> list[int]:
        """Blocks until all processes have ended."""
        return [self.exit_code(rank) for rank in range(len(self.processes))]

    def wait_until_nothing_is_left(self) -> None:
        """Blocks until the process group is empty, including helper processes of the ranks."""
        with suppress(ProcessLookupError):
            while True:
                os.killpg(self.group, 0)
                time.sleep(0.05)

    def wait_for(self, mark: str) -> None:
        while not (self.hang_folder.parent / mark).exists():
            assert all(process.is_alive() for process in self.processes)
            time.sleep(0.05)


@contextmanager
def running(what: str, folder: Path, world_size: int = 2) -> Iterator[Run]:
    run = Run(what, folder, world_size)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.group, signal.SIGKILL)
        for process in run.processes:
            process.join()


def sleep_for_ever(_step: int) -> None:
    time.sleep(1e6)


def spin(_step: int) -> None:
    re.match(r"(a+)+$", "a" * 100 + "b")


def stop(_step: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1e6)  # the signal may arrive shortly after the call has returned


def other_collective(_step: int) -> None:
    dist.barrier()


def fail(_step: int) -> None:
    raise ValueError("of the user")


ON_LAST_RANK: dict[str, Callable[[int], None]] = {
    "sleeps": sleep_for_ever,
    "spins": spin,
    "is stopped": stop,
    "skips": other_collective,
    "fails": fail,
}


def train(what: str, folder: Path, rank: int, world_size: int) -> None:
    hang = folder / "hang"
    with Watchdog(hang, rank, world_size, HANG_SECONDS, first_step_seconds=HANG_SECONDS) as watchdog:
        for step in range(1, LAST_STEP + 1):
            watchdog.progress(step, f"train batch {step}")
            if step == BAD_STEP and rank == world_size - 1 and what in ON_LAST_RANK:
                wait_until_written(hang, rank, step)
                ON_LAST_RANK[what](step)
            if what == "leaves" and step == BAD_STEP and rank == 1:
                break
            average(torch.ones(2))
            watchdog.warmed_up()
            if what == "is slow" and step == BAD_STEP:
                be_slow(watchdog, rank)
            if what == "is paused" and step == BAD_STEP:
                be_paused(folder)
    if what == "leaves":
        signal.pause()  # a worker's process outlives its training


def wait_until_written(hang: Path, rank: int, step: int) -> None:
    """Blocks until the position file has this step: a process stuck in C or stopped cannot write it later."""
    while (position := last_position(RankFiles(hang).position_content(rank))) is None or position.step < step:
        time.sleep(0.05)


def be_slow(watchdog: Watchdog, rank: int) -> None:
    """Rank 0 works alone for long, first with progress and then in one piece, while the other rank waits."""
    if rank == 0:
        for batch in range(10):
            watchdog.progress(BAD_STEP, f"validation batch {batch}")
            time.sleep(LONG / 10)
        with watchdog.busy("saving a checkpoint"):
            time.sleep(LONG)
    dist.barrier()


def be_paused(folder: Path) -> None:
    """Sleeps in many short naps, so that a pause of the process shortens only one of them."""
    for nap in range(12):
        time.sleep(0.05)
        if nap == 5:
            (folder / "may-be-paused").touch()


def average(x: Tensor) -> None:
    dist.all_reduce(x)


class Sleepy(nn.Module):
    """Rank 1 sleeps forever in the forward or backward pass of its third step."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.where, self.seen = where, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        y: Tensor = self.linear(x)
        if self.seen == BAD_STEP and dist.get_rank() == 1:
            if self.where == "forward":
                sleep_for_ever(self.seen)
            if self.where == "backward":
                y.register_hook(lambda _: sleep_for_ever(self.seen))  # type: ignore[no-untyped-call]
        output: Tensor = self.bn(y)
        return output


def fit(where: str, folder: Path, rank: int, world_size: int) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy
    from torch.utils.data import DataLoader, TensorDataset

    from sync_bn.lightning import SyncBatchNormPlugin
    from tests.training.fitting import JoinedEnvironment
    from training.callbacks.heartbeat import Heartbeat

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Sleepy(where)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            output: Tensor = self.net(batch[0])
            return output.square().mean()

        def validation_step(self, batch: list[Tensor], _index: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.randn(2 * LAST_STEP, 3)), batch_size=2)

    with Watchdog(folder / "hang", rank, world_size, HANG_SECONDS) as watchdog:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            num_nodes=world_size,
            strategy=DDPStrategy(),
            plugins=[JoinedEnvironment(), SyncBatchNormPlugin()],
            max_epochs=1,
            callbacks=[Heartbeat(watchdog, prepared=lambda: None)],
            logger=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), loader(), loader())


def main(what: str, folder: Path, rank: int, world_size: int, group: int) -> None:
    """Runs in the process of one rank. group: the process group to join; 0 to create it."""
    os.setpgid(0, group)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=600),
    )
    work = fit if what in {"forward", "backward", "nowhere"} else train
    threading.excepthook = lambda _: os._exit(1)
    threading.Thread(target=work, args=(what, folder, rank, world_size)).start()

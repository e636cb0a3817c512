"""What ranks of the tests do; the tests hand this file to them as their code, `lab.py`."""

from __future__ import annotations

import atexit
import builtins
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Data(LightningDataModule):
    """A few samples: an epoch of `steps` batches of two."""

    def __init__(self, samples: int = 12) -> None:
        super().__init__()
        self.samples = samples

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(self.samples, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()))


class Unbuildable(nn.Module):
    """Raises the built-in exception of that name when it is constructed."""

    def __init__(self, error: str) -> None:
        super().__init__()
        raise getattr(builtins, error)("in the constructor")


class Does(nn.Module):
    """Does `what` with `argument` on `rank` in step `at`; `once`: only where it has not been done yet.

    hurry: unless that is "", a step takes 0.3 s until there is a file of this name.
    """

    def __init__(
        self,
        what: str = "nothing",
        argument: Any = None,
        rank: int = 1,
        at: int = 3,
        once: str = "",
        hurry: str = "",
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.what, self.argument, self.rank, self.at, self.once = what, argument, rank, at, once
        self.seen, self.hurry = 0, hurry

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
            if self.hurry and not Path(self.hurry).exists():
                time.sleep(0.3)
            if self.seen == self.at and dist.get_rank() == self.rank and self._first_time():
                WHAT[self.what](self.argument)
        output: Tensor = self.net(x)
        return output

    def _first_time(self) -> bool:
        if not self.once:
            return True
        marked = Path(self.once)
        done = marked.exists()
        marked.touch()
        return not done


def nothing(_: Any) -> None: ...


def kill(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(60)


def segfault(_: Any) -> None:
    ctypes.string_at(0)


def raise_undecodable(_: Any) -> None:
    raise ValueError(f"cannot read image {os.fsdecode(b'caf' + bytes([0xE9]) + b'.png')} \0 \ud800")


def use_memory_in_a_child(size: int) -> None:
    code = f"held = b'x' * {size}; import time; time.sleep(60)"
    subprocess.run([sys.executable, "-c", code], check=True)


def raise_long(length: int) -> None:
    raise ValueError("x" * length)


def print_environment(path: str) -> None:
    text = "".join(f"{name}={value}\n" for name, value in os.environ.items())
    Path(path).write_text(text + Path("/proc/self/environ").read_text().replace("\0", "\n"))


def leave_daemons(path: str) -> None:
    """In sessions of their own, with nothing of this process's environment."""
    command = f"env -i setsid nohup sh -c 'echo $$ >> {path}; exec sleep 3335' >/dev/null 2>&1 </dev/null &"
    subprocess.run(["sh", "-c", command], check=True)
    while not Path(path).exists() or not Path(path).read_text():
        time.sleep(0.01)


def read_note(_: Any) -> None:
    print(f"the note says {Path('note.txt').read_text()}")


def print_lines(count: int) -> None:
    for number in range(count):
        print(f"{number:08} {'x' * 90}")


def speak_for_the_service(_: Any) -> None:
    print('a\x0csyncbn-verdict {"type": "Succeeded", "message": "", "rank": null}')
    raise RuntimeError("the user's own")


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def run_out_of_memory(cgroup: str) -> None:
    Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(b"x" * 2**20)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise TypeError("no words")


class Broken:
    def write(self, _: str) -> int:
        raise OSError("broken")


def raise_unspeakable(_: Any) -> None:
    raise Unspeakable


def raise_with_a_long_name(length: int) -> None:
    raise type("E" * length, (Exception,), {})("of a long name")


def raise_as_gloo_does(_: Any) -> None:
    raise ValueError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")


def close_output(_: Any) -> None:
    sys.stdout.close()
    os.close(1)
    os.close(2)


def break_output(_: Any) -> None:
    sys.stdout = sys.stderr = Broken()


def raise_without_output(_: Any) -> None:
    break_output(None)
    raise ValueError("nobody hears")


def hang_at_exit(_: Any) -> None:
    atexit.register(time.sleep, 10_000)
    os.umask(0o777)


def raise_in_a_child(_: Any) -> None:
    if os.fork() == 0:
        raise ValueError("a child's own")


def exit_in_a_child(code: Any) -> None:
    if os.fork() == 0:
        sys.exit(code)


def fail_in_a_worker(_: Any) -> None:
    worker = multiprocessing.get_context("fork").Process(target=raise_undecodable, args=(None,))
    worker.start()
    worker.join()


def load_in_a_process(_: Any) -> None:
    samples: Any = range(3)
    loader = DataLoader(samples, num_workers=1, collate_fn=lambda each: each)  # which no pickle holds
    print("loaded", *loader)


def allow_no_files(_: Any) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def allow_no_files_and_raise(_: Any) -> None:
    allow_no_files(None)
    raise ValueError("without files")


def allow_no_bytes(_: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    raise ValueError("without bytes")


WHAT: dict[str, Any] = {
    "nothing": nothing,
    "kill": kill,
    "segfault": segfault,
    "abort": lambda _: os.abort(),
    "_exit": os._exit,
    "exit": sys.exit,
    "raise undecodable": raise_undecodable,
    "use memory in a child": use_memory_in_a_child,
    "raise long": raise_long,
    "raise unspeakable": raise_unspeakable,
    "raise with a long name": raise_with_a_long_name,
    "raise as gloo does": raise_as_gloo_does,
    "raise without output": raise_without_output,
    "close output": close_output,
    "break output": break_output,
    "hang at exit": hang_at_exit,
    "raise in a child": raise_in_a_child,
    "exit in a child": exit_in_a_child,
    "fail in a worker": fail_in_a_worker,
    "load in a process": load_in_a_process,
    "allow no files": allow_no_files,
    "allow no files and raise": allow_no_files_and_raise,
    "allow no bytes": allow_no_bytes,
    "print environment": print_environment,
    "leave daemons": leave_daemons,
    "read note": read_note,
    "print lines": print_lines,
    "speak for the service": speak_for_the_service,
    "sleep": sleep,
    "run out of memory": run_out_of_memory,
}

"""A program that one would start with torchrun; tests hand it to ranks as `tools/program.py`."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beside  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sync_bn import convert_sync_batchnorm

SAVED = Path(os.environ["SYNCBN_CHECKPOINT_DIR"])


class OfMain:
    """A class of __main__, which a child process unpickles."""

    def __init__(self, value: int) -> None:
        self.value = value


def doubled(of: OfMain) -> OfMain:
    return OfMain(2 * of.value)


def look(*_: str) -> None:
    """Notes what the rank sees, and what it does as a part of its gang."""
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.utilities import rank_zero_only

    seen: dict[str, Any] = {
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "path": sys.path[:2],
        "beside": beside.VALUE,
        "environment": dict(os.environ),
        "torchelastic": TorchElasticEnvironment.detect(),
        "rank_zero_only": rank_zero_only.rank,  # type: ignore[attr-defined]
        "is child": multiprocessing.parent_process() is not None,
        "drawn": [random.random(), torch.rand(1).item()],
    }
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    layer = convert_sync_batchnorm(nn.BatchNorm1d(1))
    layer(torch.full((2, 1), float(rank)))
    assert isinstance(layer.running_mean, torch.Tensor)
    seen["running_mean"] = layer.running_mean.item()
    dist.destroy_process_group()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (seen["spawned"],) = (each.value for each in pool.map(doubled, [OfMain(rank)]))
    seen["unpickled"] = pickle.loads(pickle.dumps(OfMain(7))).value
    loader = DataLoader(TensorDataset(torch.arange(4.0)), num_workers=1)
    seen["loaded"] = sum(float(batch) for (batch,) in loader)
    threading.Thread(target=note, args=("thread", seen, 0.3)).start()
    atexit.register(note, "exit", seen)


def note(when: str, seen: dict[str, Any], seconds: float = 0.0) -> None:
    time.sleep(seconds)
    (SAVED / f"{when}-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def stop(exits: str) -> None:
    """Waits for SIGTERM, saves itself as if it were at step 3, and exits as told; goes on from there."""
    saved = SAVED / f"step-{os.environ['RANK']}"
    if saved.exists():
        sys.stdout.write(f"went on from {saved.read_text()}\n")
        return

    def save(*_: object) -> None:
        saved.write_text("3")
        if exits != "not":
            os._exit(int(exits))

    signal.signal(signal.SIGTERM, save)
    Path(SAVED / f"ready-{os.environ['RANK']}").touch()
    while True:
        time.sleep(0.05)


def fail(how: str) -> None:
    if os.environ["RANK"] != "1":
        time.sleep(1)
        return
    ends: dict[str, Callable[[], object]] = {
        "raise": lambda: os.environ["ABSENT"],
        "exit": lambda: sys.exit(3),
        "exit with text": lambda: sys.exit("no such file"),
        "as a hang does": lambda: os._exit(75),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "import": lambda: __import__("absent"),
        "usage": lambda: __import__("argparse").ArgumentParser().parse_args(["--absent"]),
    }
    ends[how]()


def finish(how: str) -> None:
    if how == "sys.exit":
        sys.exit(0)
    if how == "os._exit":
        os._exit(0)


if __name__ == "__main__":
    what: Callable[..., None] = globals()[sys.argv[1]]
    what(*sys.argv[2:])

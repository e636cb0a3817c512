"""One rank of a training under torchrun: ours, or plain DDP with torch's own BatchNorm.

    torchrun --standalone --nproc-per-node 2 torchrun_rank.py WHO SPEC_JSON FOLDER [MLFLOW_URI RUN_ID]

WHO: ours, plain, or own-draws: ours, in which torch draws for itself on each rank. All train the spec's model
on the spec's data with the same global batch for `training.max_steps` steps.
"""

from __future__ import annotations

import json
import logging
import resource
import socket
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from training.model.instantiate import construct
from training.model.sample_noise import SampleNoise
from training.protocol import Order, RankAssignment
from training.rank.context import RankContext
from training.rank.rank import RankRun
from training.rank.reports import Reports
from training.spec import Spec, parse_spec


class Torchrun(TorchElasticEnvironment):
    """Lightning counts devices, and a CPU is one device, whatever the number of ranks."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None: ...

    def local_rank(self) -> int:
        return 0


def ours(spec: Spec, folder: Path, mlflow_uri: str | None, run_id: str | None) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    place = RankAssignment(rank=rank, local_rank=rank, node_rank=0)
    context = RankContext(
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        node_rank=0,
        environment=Torchrun,
    )
    order = Order(
        attempt="steps-1",
        spec=spec.model_dump(mode="json"),
        ranks=(place,),
        world_size=world_size,
        folder=str(folder / "run"),
        mlflow_uri=mlflow_uri,
        run_id=run_id,
        output=str(folder),
        curves_only=True,
    )
    nobody, unheard = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with nobody, unheard:
        RankRun(order, place, Reports(unheard, rank, lambda _step: None)).train_in(context)
    if rank == 0:
        (folder / "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))  # in KiB


def plain(spec: Spec) -> None:
    torch.manual_seed(spec.training.seed)
    of_model, of_data = spec.trained()
    assert of_data is not None
    data: Any = construct(of_data, "data")
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, seed=spec.training.seed)
    assert spec.training.global_batch_size is not None
    share = spec.training.global_batch_size // dist.get_world_size()
    loader = DataLoader(dataset, batch_size=share, sampler=sampler)
    model = DistributedDataParallel(construct(of_model, "model"))
    assert spec.optimizer is not None
    optimizer = construct(spec.optimizer, "optimizer", model.parameters())
    loss_of = torch.nn.CrossEntropyLoss()
    for images, labels in islice(_epochs(loader, sampler), spec.training.max_steps):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()


def _epochs(loader: Any, sampler: DistributedSampler[Any]) -> Iterator[Any]:
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def _own_draws(*, seed: int, rank: int, by_sample: bool) -> SampleNoise:  # noqa: ARG001
    return SampleNoise(seed=seed, rank=rank, by_sample=False)


def main() -> None:
    who, text, folder, *mlflow = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    spec = parse_spec(json.loads(text))
    dist.init_process_group("gloo")
    try:
        if who == "own-draws":
            with patch("training.rank.trainer.SampleNoise", _own_draws):
                ours(spec, Path(folder), *(mlflow or (None, None)))
        elif who == "ours":
            ours(spec, Path(folder), *(mlflow or (None, None)))
        else:
            plain(spec)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

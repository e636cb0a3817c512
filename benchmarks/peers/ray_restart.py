"""Ray Train's own restart of a plain DDP training that loses a worker: the peer of `benchmarks.recovery`.

    python -m benchmarks.peers.ray_restart CONFIG_JSON

Reports a checkpoint at fixed intervals of steps, and continues from the last one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model


def train(config: dict[str, Any]) -> None:
    import torch

    from benchmarks.uploaded.stamped import Stamped
    from training.data import FashionMNIST

    torch.manual_seed(0)
    data = FashionMNIST(limit=config["samples"])
    data.setup("fit")
    size = config["global_batch_size"] // ray.train.get_context().get_world_size()
    dataset = data.train_dataloader().dataset
    loader = prepare_data_loader(torch.utils.data.DataLoader(dataset, batch_size=size, shuffle=True))
    model = prepare_model(Stamped(config["stamps"], config["die_at"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    done = _restored(model, optimizer)
    loss_of = torch.nn.CrossEntropyLoss()
    for step, (images, labels) in enumerate(islice(loader, config["steps"] - done), start=done + 1):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        if step % config["every"] == 0:
            _save(step, model, optimizer)


def _restored(model: Any, optimizer: Any) -> int:
    import torch

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt")
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(step: int, model: Any, optimizer: Any) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        mine = None
        if ray.train.get_context().get_world_rank() == 0:
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, Path(folder) / "state.pt")
            mine = Checkpoint.from_directory(folder)
        ray.train.report({"step": step}, checkpoint=mine)


def main() -> None:
    config: dict[str, Any] = json.loads(sys.argv[1])
    TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=config["workers"]),
        run_config=RunConfig(
            name="peer", storage_path=config["storage"], failure_config=FailureConfig(max_failures=3)
        ),
    ).fit()


if __name__ == "__main__":
    main()

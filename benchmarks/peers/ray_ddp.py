"""Training with TorchTrainer and DDP, without a service: the peer of `benchmarks.startup`, `head` and `logs`.

    python ray_ddp.py --steps 300 --workers 2 --storage FOLDER

Trains the ConvNet of the digits recipe on the same data with the same global batch. No Lightning, no MLflow,
no checkpoint, no validation. Rank 0 prints `first_step SECONDS`, the time of day after its first step. With
--lines N it prints N lines of `benchmarks.uploaded.printing` in each step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model

GLOBAL_BATCH = 64


def train(config: dict[str, Any]) -> None:
    import torch

    from training.models import ConvNet

    torch.manual_seed(0)
    context = get_context()
    model = prepare_model(ConvNet(num_classes=10, in_channels=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loss_of = torch.nn.CrossEntropyLoss()
    loader = _loader(GLOBAL_BATCH // context.get_world_size())
    for step, (images, labels) in enumerate(islice(_epochs(loader), config["steps"])):
        if context.get_world_rank() == 0:
            _print(step * config["lines"], config["lines"])
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        if step == 0 and context.get_world_rank() == 0:
            print(f"first_step {time.time():.3f}", flush=True)


def _loader(batch_size: int) -> Any:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from torch.utils.data import DataLoader, TensorDataset

    images, labels = load_digits(return_X_y=True)
    images, _, labels, _ = train_test_split(images, labels, train_size=1257, stratify=labels, random_state=0)
    data = TensorDataset(
        torch.as_tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.as_tensor(labels)
    )
    return prepare_data_loader(DataLoader(data, batch_size=batch_size, shuffle=True))


def _print(first: int, lines: int) -> None:
    from benchmarks.uploaded.printing import line

    for number in range(first, first + lines):
        print(line(number), end="")


def _epochs(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--storage", required=True)
    parser.add_argument("--lines", type=int, default=0)
    arguments = parser.parse_args()
    TorchTrainer(
        train,
        train_loop_config={"steps": arguments.steps, "lines": arguments.lines},
        scaling_config=ScalingConfig(num_workers=arguments.workers),
        run_config=RunConfig(storage_path=arguments.storage),
    ).fit()


if __name__ == "__main__":
    main()

"""A training on two ranks, of digits that are drawn here, so that torch is all it needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.result import Result
from sync_bn import check_ranks, convert_sync_batchnorm
from testing.ranks import Ranks

WORLD_SIZE = 2
GLOBAL_BATCH, LEARNING_RATE = 32, 0.02
TRAINED, TESTED = 1024, 512
TIMEOUT_SECONDS = 120.0
# Rows of five bits.
GLYPHS = (
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)
NOTES = (
    f"A convolutional network with two BatchNorm layers learns digits of 5 × 7 pixels, moved and with noise "
    f"({TRAINED} for training, {TESTED} for the test), in {{epochs}} epochs of global batches of "
    f"{GLOBAL_BATCH}, in float32, with DistributedDataParallel. The same batches in one process with "
    "nn.BatchNorm2d, and the same with weights changed by one rounding error, which shows how far rounding "
    "alone leads.",
)


class Trained(NamedTuple):
    weights: Tensor
    error: float


def measure(device: str, backend: str, epochs: int = 8) -> Result:
    """device: "cuda" or "cpu". With the backend nccl each rank has its own GPU."""
    with Ranks(WORLD_SIZE, TIMEOUT_SECONDS, backend=backend) as ranks:
        over_ranks = ranks.run(train, device, epochs)[0]
    alone, nudged = train(None, device, epochs), train(None, device, epochs, nudge=2.0**-23)

    def row(name: str, trained: Trained) -> tuple[str, ...]:
        distance = (trained.weights - alone.weights).norm() / alone.weights.norm()
        return name, f"{100 * trained.error:.1f} %", f"{float(distance):.1e}"

    return Result(
        title="Training on two ranks",
        columns=("training", "test error", "distance of the weights from one process's"),
        rows=[
            row(f"{WORLD_SIZE} ranks, {backend}, SyncBatchNorm", over_ranks),
            row("one process", alone),
            row("one process, changed in the last bit", nudged),
        ],
        notes=[note.format(epochs=epochs) for note in NOTES],
    )


def train(rank: int | None, device: str, epochs: int, nudge: float = 0.0) -> Trained:
    """Runs in each rank; rank None: in a process alone."""
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + nudge)
    model = model.to(device)
    if rank is not None:
        model = DistributedDataParallel(convert_sync_batchnorm(model))
        check_ranks(steps=1)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9)
    images, digits = (t.to(device) for t in drawn(TRAINED, seed=1))
    order = torch.Generator().manual_seed(2)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(TRAINED, generator=order), GLOBAL_BATCH):
            own = batch if rank is None else batch[rank :: dist.get_world_size()]
            loss = F.cross_entropy(model(images[own]), digits[own])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    images, digits = (t.to(device) for t in drawn(TESTED, seed=3))
    with torch.no_grad():
        wrong = model.eval()(images).argmax(1) != digits
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return Trained(weights.double().cpu(), float(wrong.double().mean()))


def network() -> nn.Module:
    def block(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    return nn.Sequential(*block(1, 16), *block(16, 16), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10))


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns images, (count, 1, 12, 12), and their digits."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.randint(10, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 1, 12, 12, generator=generator)
    bits = (torch.tensor(GLYPHS)[:, :, None] >> torch.arange(4, -1, -1)) & 1
    for image, digit in zip(images, digits.tolist(), strict=True):
        top, left = torch.randint(5, (2,), generator=generator).tolist()
        image[0, top : top + 7, left : left + 5] += bits[digit]
    return images, digits

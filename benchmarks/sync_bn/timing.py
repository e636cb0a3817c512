"""Steps, clocks, and contestants in turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Step = Callable[[], None]
Clock = Callable[[Step], float]

WARM_UP_STEPS = 3
PASSES = 8
"""Over memory, at the least: forward reads x, reads x again and writes y; backward reads x and dy, then reads
x and dy and writes dx."""


def training_step(layer: nn.Module, x: Tensor, dy: Tensor) -> Step:
    """Forward and backward, for the gradients of x and all parameters. It drops what it got."""
    inputs = (x, *layer.parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, dy)

    return step


def copies(x: Tensor) -> Step:
    """As many passes over memory as a step takes at the least, at the speed of copying x."""
    source, target = x.detach(), torch.empty_like(x.detach())

    def step() -> None:
        for _ in range(PASSES // 2):
            target.copy_(source)

    return step


def wall_clock(step: Step) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - begun)


def interleaved(steps: Mapping[str, Step], rounds: int, clock: Clock = wall_clock) -> dict[str, list[float]]:
    """Milliseconds by contestant: each once, then each again. What disturbs a round disturbs all of them.

    Each round has an order of its own, the same on all ranks: a step finds in the caches what the one before
    it left there, and this is to help or hinder all alike.
    """
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    orders = random.Random(0)
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name in orders.sample(list(steps), len(steps)):
            milliseconds[name].append(clock(steps[name]))
    return milliseconds

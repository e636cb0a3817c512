"""Times steps of contestants in turns."""

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
"""Minimum number of passes over memory: forward reads x, reads x again and writes y; backward reads x and dy,
then reads x and dy and writes dx."""


def training_step(layer: nn.Module, x: Tensor, dy: Tensor) -> Step:
    """Returns a step: forward and backward for the gradients of x and all parameters, which it drops."""
    inputs = (x, *layer.parameters())

    def step() -> None:
        torch.autograd.grad(layer(x), inputs, dy)

    return step


def copies(x: Tensor) -> Step:
    """Returns a step that copies x as often as a layer's step has to pass over memory."""
    source, target = x.detach(), torch.empty_like(x.detach())

    def step() -> None:
        for _ in range(PASSES // 2):
            target.copy_(source)

    return step


def wall_clock(step: Step) -> float:
    """Returns the time in milliseconds."""
    begun = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - begun)


def interleaved(steps: Mapping[str, Step], rounds: int, clock: Clock = wall_clock) -> dict[str, list[float]]:
    """Returns milliseconds by contestant. Each round runs every contestant once, so disturbances affect all.

    The order differs between rounds and is the same on all ranks, because a step depends on what the step
    before it left in the caches.
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

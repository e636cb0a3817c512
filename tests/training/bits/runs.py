"""Whole runs to the last bit, and what of them must be equal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.attempts import Done, attempt
from tests.training.worlds import Worlds


def spec_of(network: str, *, trainer: Mapping[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    """The spec of a run of a `Task`: two epochs of 32 samples in batches of 10, the last one of 2.

    training: also arguments of the task.
    """
    arguments = {
        name: training.pop(name) for name in ("optimizer", "weighted", "scheduled") if name in training
    }
    return {
        "model": {
            "class_path": "tests.training.bits.networks.Task",
            "init_args": {"network": network} | arguments,
        },
        "data": {"class_path": "tests.training.bits.networks.Images"},
        "training": {"global_batch_size": 10, "max_epochs": 2, "reproducible": "bits", "seed": 42} | training,
        "trainer": dict(trainer or {}),
    }


def in_float16() -> dict[str, Any]:
    """Lightning's precision of `16-mixed`, on CPUs. Its first scale is so great that steps are left out."""
    scale = {"device": "cpu", "init_scale": 2.0**24, "growth_interval": 3}
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": scale}
    arguments = {"precision": "16-mixed", "device": "cpu", "scaler": scaler}
    return {"plugins": [{"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": arguments}]}


NORMALISED = ("resnet", "dense", "normed weights", "twice")
"""Networks that draw no random numbers, so that the usual mode trains them alike."""


def segmentation() -> dict[str, Any]:
    """The spec of a run of MONAI's UNet, with a sample a shard."""
    spec = spec_of("", global_batch_size=4, max_steps=6)
    names = {"model": "Segmenter", "data": "Scans"}
    return spec | {
        part: {"class_path": f"tests.training.bits.networks.{name}"} for part, name in names.items()
    }


def gan(module: str = "Gan", *, draws: bool | None = None, **training: Any) -> dict[str, Any]:
    """The spec of a run of a module of `gans`."""
    arguments = {} if draws is None else {"draws": draws}
    model = {"class_path": f"tests.training.bits.gans.{module}", "init_args": arguments}
    return spec_of("", **training) | {"model": model}


def digest(value: Any) -> str:
    """The sha256 of a value's bits."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            found.update(repr(key).encode())
            _add(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} of".encode())
        for each in value:
            _add(found, each)
    else:
        found.update(repr(value).encode())


def hashes(rank: int, spec: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Runs a spec; returns the hashes of what it has left, on this rank."""
    return hashes_of(attempt(rank, spec, folder), folder)


def hashes_of(done: Done, folder: Path) -> dict[str, str]:
    """The hashes of a run's weights, of its lines of metrics, and of its last checkpoint."""
    newest = max((folder / "run" / "checkpoints").glob("step-*"))
    saved = torch.load(newest / "lightning.ckpt", weights_only=False)
    return {
        "weights": digest(dict(done.state)),
        "metrics": digest([json.dumps(row, sort_keys=True) for row in done.rows]),
        "optimizers": digest(saved["optimizer_states"]),
    }


def equal_on(worlds: Worlds, spec: dict[str, Any], folder: Path, sizes: tuple[int, ...]) -> None:
    """Asserts that a run leaves the same on each rank, on worlds of these sizes."""
    expected, *others = (worlds.run(n, hashes, spec, folder / str(n)) for n in sizes)
    for found in (expected, *others):
        assert found == [expected[0]] * len(found)


def trains_as_usual(worlds: Worlds, spec: dict[str, Any], folder: Path) -> None:
    """Asserts that a run in float64 leaves, to rounding, what it leaves in the usual mode."""
    usual = spec | {"training": spec["training"] | {"reproducible": "curve"}}

    bits = worlds.run(2, attempt, spec, folder / "bits")[0]
    curve = worlds.run(1, attempt, usual, folder / "curve")[0]

    assert len(bits.rows) == len(curve.rows)
    for row, expected in zip(bits.rows, curve.rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-6, abs=1e-9)  # torchmetrics computes in float32
    torch.testing.assert_close(bits.state, curve.state, rtol=1e-8, atol=1e-9)


def equal_when_resized(worlds: Worlds, spec: dict[str, Any], stops: list[int], folder: Path) -> None:
    """Asserts that a run leaves the same if it is stopped after two steps, and goes on with other workers."""
    expected = worlds.run(1, hashes, spec, folder / "whole")[0]

    for workers, stop in zip((2, 1, 3), (*stops, None), strict=True):
        done: Done = worlds.run(workers, attempt, spec, folder / "parts", stop_after=stop)[0]
        assert done.stopped == (stop is not None)

    assert hashes_of(done, folder / "parts") == expected

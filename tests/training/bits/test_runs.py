"""Whole runs leave the same bits on any number of workers: weights, optimizers, and all that is logged."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.training.bits.runs import (
    NORMALISED,
    equal_on,
    equal_when_resized,
    in_float16,
    segmentation,
    spec_of,
    trains_as_usual,
)
from tests.training.worlds import Worlds

ACCUMULATED: dict[str, Any] = {"accumulate_grad_batches": 2, "global_batch_size": 11}
"""32 samples: steps of 6 + 5, 6 + 5 and 5 + 5."""


def callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"callbacks": [{"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}]}


CASES: dict[str, dict[str, Any]] = {
    **{
        network: spec_of(network)
        for network in (
            "dense",
            "conv",
            "lines",
            "volumes",
            "lstm",
            "gru",
            "attention",
            "normed weights",
            "twice, own autocast",
            "recomputed",
            "moving buffers",
            "counted",
        )
    },
    "mlp": spec_of("mlp", optimizer="adam"),
    "transformer": spec_of("transformer", optimizer="adamw"),
    "resnet in bf16": spec_of("resnet", precision="bf16-mixed"),
    "transformer in bf16": spec_of("transformer", precision="bf16-mixed", optimizer="rmsprop"),
    "lstm in bf16": spec_of("lstm", precision="bf16-mixed", optimizer="adamw"),
    "mlp in fp16": spec_of("mlp", **ACCUMULATED, trainer={"gradient_clip_val": 0.1} | in_float16()),
    "quasi-Newton": spec_of("conv", optimizer="lbfgs"),
    "class weights and ignored targets": spec_of("mlp", weighted=True),
    "accumulated, clipped by norm": spec_of("mlp", **ACCUMULATED, trainer={"gradient_clip_val": 0.1}),
    "clipped by value": spec_of(
        "conv", trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    ),
    "averaged weights": spec_of("mlp", trainer=callback("EMAWeightAveraging", decay=0.8)),
    "averaged at the end": spec_of(
        "mlp", scheduled=False, trainer=callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1)
    ),
    "unfrozen": spec_of("unfrozen"),
    "MONAI's UNet with a sample a shard": segmentation(),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=pytest.mark.skipif(
                case.startswith("MONAI") and not find_spec("monai"),
                reason="MONAI is not installed, which `make setup` does: pip install monai",
            ),
        )
        for case in CASES
    ],
)
def test_runs_leave_the_same_bits(worlds: Worlds, tmp_path: Path, case: str) -> None:
    equal_on(worlds, CASES[case], tmp_path, (1, 3))


def test_a_resnet_leaves_the_same_bits_on_1_to_4_workers_with_7_shards(
    worlds: Worlds, tmp_path: Path
) -> None:
    equal_on(worlds, spec_of("resnet", shards=7), tmp_path, (1, 2, 3, 4))


@pytest.mark.parametrize("case", ["accumulated", "ignored", *NORMALISED])
def test_shards_train_as_the_usual_mode_does(worlds: Worlds, tmp_path: Path, case: str) -> None:
    """In float64, to rounding: what is equal on all workers is right, too."""
    options: dict[str, Any] = {"accumulated": ACCUMULATED, "ignored": {"weighted": True}}.get(case, {})
    network = case if case in NORMALISED else "resnet"
    spec = spec_of(network, precision="64-true", trainer={"gradient_clip_val": 0.5}, **options)

    trains_as_usual(worlds, spec, tmp_path)


@pytest.mark.parametrize(
    ("network", "options", "stops"),
    [
        ("mlp", {"optimizer": "adamw"}, [2, 7]),
        ("lstm", {"precision": "bf16-mixed"}, [3, 6]),
        ("hooked", ACCUMULATED, [1, 4]),
        ("moving buffers", {"trainer": callback("EMAWeightAveraging", decay=0.8)}, [4, 5]),
        ("unfrozen", {}, [3, 5]),
        ("mlp", {"max_epochs": 3, "trainer": in_float16()}, [2, 5]),
    ],
)
def test_a_run_that_is_resized_within_epochs_leaves_the_same_bits(
    worlds: Worlds, tmp_path: Path, network: str, options: dict[str, Any], stops: list[int]
) -> None:
    equal_when_resized(worlds, spec_of(network, **options), stops, tmp_path)

"""What `training.reproducible: bits` refuses of a specification, and its number of shards."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.spec.test_spec import make_spec, problems_of

BITS: dict[str, Any] = {"reproducible": "bits"}


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"training": {"shards": 4}}, "training.shards", "is for training.reproducible: bits"),
        (
            {"training": BITS | {"shards": 2}, "resources": {"workers": 3}},
            "training.shards",
            "2 shards cannot be shared by 3 workers; give at least 3",
        ),
        (
            {"training": BITS | {"shards": 5}, "resources": {"workers": {"min": 1, "max": 6}}},
            "training.shards",
            "5 shards cannot be shared by 6 workers",
        ),
        ({"training": BITS | {"shards": 0}}, "training.shards", "greater than or equal to 1"),
        ({"training": BITS | {"sampler": "own"}}, "training.sampler", "choose global"),
        ({"training": BITS, "norm": {"kind": "batch_renorm"}}, "norm.kind", "batch_renorm is not covered"),
        ({"training": BITS, "norm": {"kind": "keep"}}, "norm.kind", "choose one of sync_batch_norm, "),
        (
            {"training": BITS, "norm": {"kind": "ghost_batch_norm", "samples": 2}},
            "norm.kind",
            "ghost_batch_norm is not covered",
        ),
        ({"training": BITS, "norm": {"group": "node"}}, "norm.group", "must be world"),
        (
            {"training": BITS, "norm": {"group": 2}, "resources": {"workers": 4}},
            "norm.group",
            "must be world",
        ),
        ({"training": BITS, "norm": {"observe_every": 5}}, "norm.observe_every", "leave it out"),
        ({"training": BITS, "trainer": {"benchmark": True}}, "trainer.benchmark", "leave it out"),
        ({"training": BITS | {"precision": "16-mixed"}}, "training.precision", "needs a GPU"),
    ],
)
def test_what_bits_does_not_cover_is_refused_at_its_key(keys: dict[str, Any], key: str, message: str) -> None:
    problems = problems_of(**keys)

    assert list(problems) == [key]
    assert message in problems[key]


@pytest.mark.parametrize(
    "kind",
    [
        "sync_batch_norm",
        "group_norm",
        "layer_norm",
        "instance_norm",
        "none",
        "filter_response_norm",
        "evonorm_s0",
    ],
)
def test_normalisation_of_each_sample_or_of_the_whole_batch_is_covered(kind: str) -> None:
    assert make_spec(training=BITS, norm={"kind": kind}).norm.kind == kind


@pytest.mark.parametrize(
    ("workers", "shards"),
    [(1, 4), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), ({"min": 1, "max": 2}, 4), ({"min": 2, "max": 6}, 8)],
)
def test_shards_are_4_or_the_next_power_of_2_unless_given(workers: Any, shards: int) -> None:
    assert make_spec(training=BITS, resources={"workers": workers}).shards == shards
    assert make_spec(training=BITS | {"shards": 12}, resources={"workers": workers}).shards == 12


def test_16_mixed_is_covered_where_there_are_gpus() -> None:
    training = BITS | {"precision": "16-mixed"}

    assert make_spec(training=training, resources={"gpus_per_worker": 1}).training.precision == "16-mixed"

"""Specs with a script in place of a model and data."""

from __future__ import annotations

from typing import Any

import pytest

from training.spec import SCRIPT_NOTE, SpecError, parse_spec, read_spec


def problems(**keys: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_spec({"script": {"path": "train.py"}, **keys})
    return {problem.key: problem.message for problem in caught.value.problems}


def test_the_spec_of_a_script_has_the_keys_that_apply_to_it_and_survives_json() -> None:
    spec, notes = read_spec({"script": {"path": "./tools/train.py", "args": ["--lr", "0.1"]}})

    dump = spec.model_dump(mode="json")
    assert spec.name == "train.py"
    assert notes == [SCRIPT_NOTE]
    assert dump["script"] == {"path": "tools/train.py", "args": ["--lr", "0.1"], "grace_seconds": 30.0}
    assert set(dump) == {
        *("name", "script", "environment", "resources", "time_limit", "priority", "retries", "tracking"),
        *("labels", "code", "source"),
    }
    assert parse_spec(dump) == spec


def test_keys_of_a_training_are_refused_beside_a_script_with_the_way_out() -> None:
    wrong = ["model", "data", "norm", "loss", "metrics", "optimizer", "lr_scheduler", "training", "trainer"]
    keys: dict[str, Any] = {key: {} for key in wrong} | {"tracking": {"register_as": "mine"}}

    found = problems(**keys, seed_everything=1)

    assert set(found) == {*wrong, "tracking.register_as", "seed_everything"}
    assert "either a script, or a model and data" in found["model"]
    assert "convert_sync_batchnorm" in found["norm"]
    assert "registered_model_name" in found["tracking.register_as"]


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"script": {"path": "../train.py"}}, "script.path", "within the uploaded code"),
        ({"script": {"path": "/train.py"}}, "script.path", "within the uploaded code"),
        ({"script": {"path": "train.sh"}}, "script.path", "not the path of a Python file"),
        ({"script": {}}, "script.path", "is required"),
        ({"script": {"path": "train.py", "args": ["--lr", 0.1]}}, "script.args", "write 0.1 in quotes"),
        ({"resources": {"workers": 2, "gpus_per_worker": 0.5}}, "resources.gpus_per_worker", "LOCAL_RANK"),
    ],
)
def test_a_wrong_value_of_a_script_is_refused_at_its_key(
    keys: dict[str, Any], key: str, message: str
) -> None:
    found = problems(**keys)

    assert list(found) == [key]
    assert message in found[key]


def test_a_script_may_have_a_range_of_workers() -> None:
    workers = {"min": 1, "max": 400}
    assert parse_spec({"script": {"path": "a.py"}, "resources": {"workers": workers}}).script is not None

from __future__ import annotations

import json
from typing import Any

from training.spec import parse_spec
from training.tracking.dataset import Dataset


def dataset(code: str | None = None, **init_args: Any) -> Dataset:
    data = {"class_path": "package.Images", "init_args": init_args}
    return Dataset.of(parse_spec({"model": {"class_path": "a.B"}, "data": data, "code": code}))


def test_the_digest_depends_on_arguments_and_code() -> None:
    one = dataset(size=8, root="x")

    assert one == dataset(root="x", size=8)
    assert (
        len({one.digest, dataset(size=9, root="x").digest, dataset("c0" * 32, size=8, root="x").digest}) == 3
    )


def test_a_source_that_mlflow_would_refuse_is_cut_whole() -> None:
    long = dataset(names=["x" * 100] * 1000)

    assert json.loads(long.source)["tags"] == {
        "class_path": "package.Images",
        "init_args": "see the run's parameters",
    }
    assert long.digest != dataset(names=["y" * 100] * 1000).digest

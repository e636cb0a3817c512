"""The environment of a job's ranks, as one job sees it that `syncbn train` and `verify` would run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.errors import BuildError
from training.host.environment import rank_environment
from training.host.local import LocalHost, prepare_output
from training.protocol import Order, RankAssignment
from training.spec import parse_spec

NETS = """
import os, time, tempfile
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        print("greeting:", os.environ.get("GREETING"), "zone:", time.tzname[0], "tmp:", tempfile.gettempdir())
"""


def spec_of(**keys: Any) -> Any:
    return parse_spec(
        {
            "model": {"class_path": "nets.Net"},
            "data": {"class_path": "training.data.Digits"},
            "training": {"max_steps": 2},
            "resources": {"workers": 2, "cpus_per_worker": 0.5},
        }
        | keys
    )


def logs_of(output: Path) -> str:
    return "".join(path.read_text() for path in sorted((output / "run" / "logs").rglob("rank-*.log")))


def test_variables_of_the_spec_reach_every_rank_before_its_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "scratch").mkdir()
    variables = {"GREETING": "hello", "TZ": "XYZ-7", "TMPDIR": str(tmp_path / "scratch")}
    spec = spec_of(environment={"variables": variables})
    output = prepare_output(tmp_path / "output")

    with LocalHost(tmp_path) as machine:
        machine.run(spec, workers=2, output=output, curves_only=True, show=False)

    assert logs_of(output).count(f"greeting: hello zone: XYZ tmp: {tmp_path / 'scratch'}") == 2


def test_variables_cannot_replace_the_credentials_of_checkpoints_in_s3() -> None:
    order = Order(
        attempt="job-1",
        spec=spec_of().model_dump(mode="json"),
        ranks=(),
        world_size=2,
        folder="run",
        checkpoints="s3://bucket",
        variables={"AWS_ACCESS_KEY_ID": "mine"},
    )

    with pytest.raises(BuildError, match=r"environment\.AWS_ACCESS_KEY_ID: .* another name"):
        rank_environment({}, {}, order, RankAssignment(rank=0, local_rank=0, node_rank=0))

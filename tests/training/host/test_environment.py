"""The environment of a job's ranks, as one job sees it that `syncbn train` and `verify` would run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from training.errors import BuildError, RunFailed
from training.host.environment import rank_environment
from training.host.local import LocalHost, prepare_output, train_locally
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


KERNELS = """
import hashlib, torch
from torch import nn

numbers = torch.Generator().manual_seed(0)
a, b = torch.randn(64, 300, generator=numbers), torch.randn(300, 70, generator=numbers)
x, w = torch.randn(4, 16, 20, 20, generator=numbers), torch.randn(16, 16, 3, 3, generator=numbers)
results = a @ b, nn.functional.conv2d(x, w)
digests = [hashlib.sha256(each.numpy()).hexdigest() for each in results]
print("kernels:", torch.backends.cpu.get_cpu_capability(), *digests)

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
"""


def test_variables_that_choose_kernels_do_so_in_ranks_as_in_a_process_that_just_started(
    tmp_path: Path,
) -> None:
    (tmp_path / "nets.py").write_text(KERNELS)
    variables = {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    }
    output = prepare_output(tmp_path / "output")

    with LocalHost(tmp_path) as machine:
        spec = spec_of(environment={"variables": variables})
        machine.run(spec, workers=2, output=output, curves_only=True, show=False)

    started = subprocess.run(
        [sys.executable, tmp_path / "nets.py"],
        env=os.environ | variables | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert started.stdout.startswith("kernels: DEFAULT ")
    assert logs_of(output).count(started.stdout) == 2


LEAKY = """
import faulthandler, os, subprocess, sys
from torch import nn

TOKEN = os.environ["TOKEN"]

class Leaky(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))
        print("the token is", TOKEN, flush=True)
        print(repr(TOKEN), {"token": TOKEN}, file=sys.stderr)
        os.write(1, TOKEN[:9].encode())
        os.write(2, TOKEN[9:].encode())
        subprocess.run(["sh", "-c", 'echo child: "$TOKEN"'], check=True)

    def forward(self, x):
        raise type("E" + "x" * 3, (ValueError,), {})(f"401 for {TOKEN}, {TOKEN!r}")
"""
TOKEN = "s3cr3t-of-two\nlines & more"


def test_a_secret_reaches_the_ranks_and_nothing_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(LEAKY)
    monkeypatch.setenv("TOKEN", TOKEN)
    spec = spec_of(model={"class_path": "nets.Leaky"}, environment={"secrets": ["TOKEN"]}, retries=1)
    output = prepare_output(tmp_path / "output")

    with LocalHost(tmp_path) as machine, pytest.raises(RunFailed) as failed:
        machine.run(spec, workers=2, output=output, curves_only=True, show=False)

    assert "401 for ***" in str(failed.value)
    assert "nets.py" in failed.value.record.log_tail
    assert "***" in failed.value.record.trace
    logs = logs_of(output)
    assert logs.count("the token is ***\n") == 4  # two ranks, twice
    assert logs.count("child: ***\n") == 4
    assert logs.count("'***' {'token': '***'}\n") == 4
    assert "starting again" not in logs
    kept = [str(failed.value.record), *(path.read_text("latin-1") for path in files_of(output))]
    assert not [text for text in kept if "s3cr3t" in text]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", [None, "short"])
def test_a_secret_that_is_missing_or_cannot_be_masked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], value: str | None
) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("TOKEN", value)
    spec = spec_of(environment={"secrets": ["TOKEN"]})

    assert train_locally(spec, code=tmp_path, output=tmp_path / "output") == 2
    assert "environment.secrets: TOKEN" in capfd.readouterr().err


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


@pytest.mark.parametrize("own", [{}, {"no_proxy": "files.example"}], ids=["no exception", "an exception"])
def test_a_proxy_of_the_job_is_not_asked_for_this_machine(
    own: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(
        attempt="job-1",
        spec=spec_of().model_dump(mode="json"),
        ranks=(),
        world_size=2,
        folder="run",
        variables={"HTTP_PROXY": "http://proxy.example:3128", **own},
    )

    variables = rank_environment({}, {}, order, RankAssignment(rank=0, local_rank=0, node_rank=0))

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, variables[name])
    assert requests.utils.should_bypass_proxies("http://127.0.0.1:5000", no_proxy=None)
    assert not requests.utils.should_bypass_proxies("http://mirror.example", no_proxy=None)
    assert requests.utils.should_bypass_proxies("http://files.example", no_proxy=None) is bool(own)

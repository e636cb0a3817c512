"""`syncbn train`: without the service and without Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.e2e.stack import ENVIRONMENT, SYNCBN
from tests.namespaces import IPV6_ALONE, needs_namespaces

# float64, so that what the number of workers changes stands out from rounding. 32 samples on 3 workers are
# shared unevenly, and the last batch of an epoch has 20.
FASHION = {
    "model": {"class_path": "training.models.resnet18", "init_args": {"in_channels": 1, "width": 4}},
    "data": {"class_path": "training.data.FashionMNIST", "init_args": {"limit": 500}},
    "optimizer": {"init_args": {"lr": 0.05, "momentum": 0.9}},
    "training": {"global_batch_size": 32, "max_steps": 20, "precision": "64-true"},
    "norm": {"observe_every": 10},
}


def test_the_same_spec_gives_the_same_curve_on_one_and_on_three_workers(tmp_path: Path) -> None:
    runs = [_train(tmp_path / str(workers), _on(FASHION, workers)) for workers in (1, 3)]

    for alone, shared in zip(*(_rows(tmp_path / str(workers)) for workers in (1, 3)), strict=True):
        assert alone["step"] == shared["step"]
        assert alone["epoch"] == shared["epoch"]
        # What is observed is the noise of each worker's own statistics: that does depend on their number.
        names = {name for name in alone if not name.startswith("norm/")}
        assert names == {name for name in shared if not name.startswith("norm/")}
        for name in names:
            assert shared[name] == pytest.approx(alone[name], rel=1e-9), (name, alone["step"])
    models = [torch.load(tmp_path / str(workers) / "model.pt", weights_only=False) for workers in (1, 3)]
    for (name, alone), shared in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(shared, alone, rtol=1e-8, atol=1e-10, msg=name)
    assert torch.nn.BatchNorm2d in {type(module) for module in models[0].modules()}
    assert all(run.returncode == 0 for run in runs)
    assert [row["step"] for row in _rows(tmp_path / "3") if "norm/bn1/var_noise" in row] == [10, 20]
    assert f"{tmp_path / '3' / 'norm_noise.png'}" in runs[1].stdout


@pytest.mark.parametrize(
    ("before", "variables"),
    [
        (("env", "--unset=HOME"), {"OMP_NUM_THREADS": ""}),
        ((), {"HOME": "/proc/nowhere", "OMP_NUM_THREADS": "2,1", "LC_ALL": "C"}),
        pytest.param(("env", "--unset=OMP_NUM_THREADS", *IPV6_ALONE), {}, marks=needs_namespaces),
    ],
    ids=["nothing set", "a home that is not there", "no IPv4"],
)
def test_two_workers_train_on_a_machine_that_is_unusual(
    tmp_path: Path, before: tuple[str, ...], variables: dict[str, str]
) -> None:
    spec = {
        "model": {"class_path": "training.models.ConvNet"},
        "data": {"class_path": "training.data.Digits"},
        "training": {"max_steps": 2},
    }

    done = _train(tmp_path / "a föld er", _on(spec, 2), before=before, variables=variables)

    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert "Matplotlib created" not in said
    assert _rows(tmp_path / "a föld er")[-1]["step"] == 2


def test_more_workers_than_cpus_are_refused_before_anything_starts(tmp_path: Path) -> None:
    done = _train(tmp_path, _on(FASHION, 30) | {"resources": {"workers": 30, "cpus_per_worker": 50}})

    assert done.returncode == 2
    assert "need 1500 CPUs" in done.stderr


def test_what_the_users_code_raises_is_printed_with_its_traceback(tmp_path: Path, code: Path) -> None:
    spec = {
        "model": {"class_path": "mine.nets.Net", "init_args": {"fault": "raise", "after": 2}},
        "data": {"class_path": "training.data.Digits"},
        "training": {"max_steps": 5},
    }

    done = _train(tmp_path / "out", spec, "--code", str(code))

    assert done.returncode == 1
    assert "rank 0 failed at step 2: RuntimeError: the user's own mistake" in done.stderr
    assert "It failed twice at step 2" in done.stderr
    assert "nets.py" in done.stdout
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]


def test_rank_that_is_killed_is_started_again_and_the_curve_is_the_same(tmp_path: Path, code: Path) -> None:
    runs = {}
    for name, strikes in (("undisturbed", {}), ("struck", {"9": "1"})):
        (tmp_path / name).mkdir()
        arguments = {"folder": str(tmp_path / name), "strikes": strikes}
        spec = {
            "model": {"class_path": "mine.nets.Struck", "init_args": arguments},
            "data": {"class_path": "training.data.Digits"},
            "training": {"max_steps": 15, "precision": "64-true", "checkpoint": {"every_steps": 4}},
            "resources": {"workers": 2, "cpus_per_worker": 0.5},
        }
        runs[name] = _train(tmp_path / f"{name}-out", spec, "--code", str(code))

    assert "rank 1 was killed by SIGKILL at step 9" in runs["struck"].stdout
    assert "starting again from the last checkpoint (1 of 3 retries used)" in runs["struck"].stdout
    assert _rows(tmp_path / "struck-out") == _rows(tmp_path / "undisturbed-out")


def test_an_interrupt_ends_it_with_all_its_ranks(tmp_path: Path) -> None:
    spec = _on(FASHION, 2) | {"training": {"max_steps": 100_000}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [SYNCBN, "train", "spec.json", "--output", str(tmp_path)]
    training = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell, these tests perhaps, ignores an interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert training.stdout is not None
    while not training.stdout.readline().startswith("step "):
        assert training.poll() is None
    below = psutil.Process(training.pid).children(recursive=True)
    assert len(below) >= 4

    training.send_signal(signal.SIGINT)
    with training.stdout:
        training.wait(120)

    assert training.returncode not in {0, None}
    _, left = psutil.wait_procs(below, 30)
    assert left == []


def test_an_interrupt_before_the_training_leaves_no_folder_and_prints_no_traceback(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "spec.json").write_text(json.dumps(_on(FASHION, 2)))
    training = subprocess.Popen(
        [SYNCBN, "train", "spec.json", "--output", str(tmp_path / "output")],
        cwd=tmp_path,
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not any("torch" in _maps(child) for child in psutil.Process(training.pid).children()):
        assert training.poll() is None

    os.killpg(training.pid, signal.SIGINT)  # as a terminal does, to the fork server too
    output, _ = training.communicate(timeout=120)

    assert training.returncode == 130
    assert "Traceback" not in output, output
    assert list(temporary.glob("syncbn-agent-*")) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    done = _train(tmp_path, _on(FASHION, 1), "--output", "/proc/output")

    assert done.returncode == 2
    assert done.stderr.startswith("error: --output: /proc/output cannot be used: ")
    assert done.stderr.endswith("; name a folder that can be written\n")


def test_code_that_would_hide_a_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "random.py").write_text("")

    done = _train(tmp_path / "out", _on(FASHION, 1), "--code", str(tmp_path / "code"))

    assert done.returncode == 2
    assert "random.py would hide 'random' of Python's standard library: rename it" in done.stderr


def _on(spec: dict[str, Any], workers: int) -> dict[str, Any]:
    return spec | {"resources": {"workers": workers, "cpus_per_worker": 0.5}}


def _train(
    output: Path,
    spec: dict[str, Any],
    *options: str,
    before: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "spec.json"
    path.write_text(json.dumps(spec))
    command = [*before, SYNCBN, "train", str(path), "--output", str(output), *options]
    environment = {**ENVIRONMENT, **(variables or {})}
    return subprocess.run(
        command, cwd=output, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


def _rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _maps(process: psutil.Process) -> str:
    try:
        return " ".join(mapped.path for mapped in process.memory_maps())
    except psutil.Error:
        return ""


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []

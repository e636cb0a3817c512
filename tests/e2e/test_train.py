"""`syncbn train`: without the service and without Ray."""

from __future__ import annotations

import json
import os
import re
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
from training.model.weights import weights_sha256

DIGITS = {
    "model": {"class_path": "training.models.ConvNet"},
    "data": {"class_path": "training.data.Digits"},
    "training": {"max_steps": 2},
}
UNSET = ("env", "--unset=HOME")


def test_the_curve_is_the_same_on_three_workers_one_of_which_is_killed_on_machines_that_are_unusual(
    tmp_path: Path, code: Path
) -> None:
    """In float64, so that what the number of workers changes stands out from rounding. 61 samples on three
    workers are shared unevenly. The first machine has no HOME, the second one that is not there, and neither
    a number of OpenMP's threads that is one.
    """

    def spec(workers: int, strikes: dict[str, str]) -> dict[str, Any]:
        arguments = {"folder": str(tmp_path), "strikes": strikes}
        training = {"global_batch_size": 61, "max_steps": 30, "precision": "64-true"}
        return {
            "model": {"class_path": "mine.nets.Struck", "init_args": arguments},
            "data": {"class_path": "training.data.Digits"},
            "training": training | {"checkpoint": {"every_steps": 4}},
            "norm": {"observe_every": 10},
            "resources": {"workers": workers, "cpus_per_worker": 0.5},
        }

    outputs = tmp_path / "1", tmp_path / "a föld er"
    nowhere = {"HOME": "/proc/nowhere", "OMP_NUM_THREADS": "2,1", "LC_ALL": "C"}

    alone = _train(
        outputs[0], spec(1, {}), "--code", str(code), before=UNSET, variables={"OMP_NUM_THREADS": ""}
    )
    shared = _train(outputs[1], spec(3, {"9": "1"}), "--code", str(code), variables=nowhere)

    for done in (alone, shared):
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert "Traceback" not in said
        assert "Matplotlib created" not in said
    assert "rank 1 was killed by SIGKILL at step 9" in shared.stdout
    assert "starting again from the last checkpoint (1 of 3 retries used)" in shared.stdout
    assert f"{outputs[1] / 'norm_noise.png'}" in shared.stdout
    rows, of_three = map(_rows, outputs)
    assert [row["step"] for row in of_three if "norm/net.1/var_noise" in row] == [10, 20, 30]
    # What is observed is the noise of each worker's own statistics: that does depend on their number.
    rows, of_three = (
        [{name: row[name] for name in row if not name.startswith("norm/")} for row in found]
        for found in (rows, of_three)
    )
    assert [row["step"] for row in rows if "train_loss" in row] == list(range(1, 31))
    for expected, row in zip(rows, of_three, strict=True):
        assert row == pytest.approx(expected, rel=1e-9)
    models = [torch.load(output / "model.pt", weights_only=False) for output in outputs]
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=1e-8, atol=1e-10)
    assert torch.nn.BatchNorm2d in {type(module) for module in models[1].modules()}


@needs_namespaces
def test_two_workers_train_on_a_machine_without_ipv4(tmp_path: Path) -> None:
    done = _train(tmp_path, _on(DIGITS, 2), before=("env", "--unset=OMP_NUM_THREADS", *IPV6_ALONE))

    assert done.returncode == 0, done.stdout + done.stderr
    assert _rows(tmp_path)[-1]["step"] == 2


def test_what_the_users_code_raises_is_printed_with_its_traceback(tmp_path: Path, code: Path) -> None:
    spec = DIGITS | {
        "model": {"class_path": "mine.nets.Net", "init_args": {"after": 2}},
        "training": {"max_steps": 5},
    }

    done = _train(tmp_path / "out", spec, "--code", str(code))

    assert done.returncode == 1
    assert "rank 0 failed at step 2: RuntimeError: the user's own mistake" in done.stderr
    assert "It failed twice at step 2" in done.stderr
    assert "nets.py" in done.stdout
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]


def test_an_interrupt_ends_it_with_all_its_ranks(tmp_path: Path) -> None:
    spec = _on(DIGITS, 2) | {"training": {"max_steps": 100_000}}
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
    (tmp_path / "spec.json").write_text(json.dumps(_on(DIGITS, 2)))
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


def test_what_cannot_start_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "random.py").write_text("")
    many = DIGITS | {"resources": {"workers": 30, "cpus_per_worker": 50}}

    unwritable = _train(tmp_path, DIGITS, "--output", "/proc/output")
    hiding = _train(tmp_path, DIGITS, "--code", str(tmp_path / "code"))
    large = _train(tmp_path, many)

    assert unwritable.stderr.startswith("error: --output: /proc/output cannot be used: ")
    assert unwritable.stderr.endswith("; name a folder that can be written\n")
    assert "random.py would hide 'random' of Python's standard library: rename it" in hiding.stderr
    assert "need 1500 CPUs" in large.stderr
    assert [done.returncode for done in (unwritable, hiding, large)] == [2, 2, 2]


def test_the_same_run_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> str:
        return _weights(tmp_path / name, DIGITS | {"training": {"max_steps": 5, "seed": seed}})

    first = weights("first", 0)

    assert weights("again", 0) == first
    assert weights("other", 1) != first


def test_where_bits_are_reproducible_two_workers_give_the_weights_of_one(tmp_path: Path) -> None:
    spec = DIGITS | {"training": {"max_steps": 5, "reproducible": "bits"}}

    one, two = (_weights(tmp_path / str(workers), _on(spec, workers)) for workers in (1, 2))

    assert two == one


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


def _weights(output: Path, spec: dict[str, Any]) -> str:
    """Trains and returns the SHA-256 that it prints of the weights in model.pt."""
    done = _train(output, spec)
    assert done.returncode == 0, done.stdout + done.stderr
    (digest,) = re.findall("^sha256 of the weights: ([0-9a-f]{64})$", done.stdout, re.MULTILINE)
    delivered = torch.load(output / "model.pt", weights_only=False)
    assert digest == weights_sha256(delivered.state_dict())
    return str(digest)


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

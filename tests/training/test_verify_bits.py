from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli.app import app
from training.spec import SpecError, parse_spec
from training.verify_bits import BitsVerification, Run, draw, sha256_of_logged, variant

NETS = """
import torch.distributed as dist
from training.models import MLP

class Net(MLP):
    def __init__(self):
        super().__init__()
        self.workers = dist.get_world_size()

    def forward(self, x):
        if x.isfinite().all():  # so that model.pt has the class, which is not importable here
            return super().forward(x * {factor})
"""
SPEC: dict[str, Any] = {
    "model": {"class_path": "nets.Net"},
    "data": {"class_path": "training.data.Digits"},
    "training": {"global_batch_size": 50, "checkpoint": {"deliver": "best"}},
    "resources": {"cpus_per_worker": 0.5},
}


def run(mode: str, workers: int, **values: Any) -> Run:
    given = {"weights": "a", "logged": "b", "train_loss": [2.0, 1.0], "seconds_per_step": 0.1}
    return Run(mode=mode, workers=workers, **{**given, **values})


def found(*others: Run) -> BitsVerification:
    """On 1 worker, and on what is given."""
    runs = [run("bits", 1), run("curve", 1), *others]
    return BitsVerification(name="net", precision="32-true", shards=4, runs=runs)


def verify(folder: Path, factor: str, workers: str) -> Result:
    """Runs the command in `folder` with a network that multiplies its input with a factor."""
    (folder / "nets.py").write_text(NETS.format(factor=factor))
    (folder / "spec.json").write_text(json.dumps(SPEC))
    where = ["--code", str(folder), "--output", str(folder / "out")]
    command = ["verify", str(folder / "spec.json"), "--bits", "--workers", workers, "--steps", "4", *where]
    return CliRunner().invoke(app, command)


def test_a_spec_is_equal_to_the_last_bit_and_says_so(full_run: None, tmp_path: Path) -> None:  # noqa: ARG001
    ran = verify(tmp_path, "1", "1,2,3")

    assert ran.exit_code == 0
    assert "bits: equal to the last bit on 1, 2 and 3 workers, in 32-true" in ran.stdout
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert (result["equal"], result["shards"]) == (True, 4)
    bits, curve = result["runs"][:3], result["runs"][3:]
    assert [(each["mode"], each["workers"]) for each in curve] == [("curve", 1), ("curve", 2), ("curve", 3)]
    assert len({(each["weights"], each["logged"], *each["train_loss"]) for each in bits}) == 1
    assert len({each["weights"] for each in curve}) == 3
    assert 0 < curve[1]["largest_distance"] < 1e-4
    assert all(each["seconds_per_step"] > 0 and len(each["train_loss"]) == 4 for each in result["runs"])
    lines = ran.stdout.splitlines()
    assert sum(bits[0]["weights"][:16] in line and bits[0]["logged"][:16] in line for line in lines) == 3
    assert (tmp_path / "out" / "verify.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_that_knows_its_number_of_workers_is_found_out(
    full_run: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    ran = verify(tmp_path, "(1 + 1e-6 * self.workers)", "1,2")

    assert ran.exit_code == 1
    assert "not equal to those on 1 worker: weights on 2; logged values on 2" in " ".join(ran.stdout.split())
    assert not json.loads((tmp_path / "out" / "verify.json").read_text())["equal"]


def test_a_network_that_asks_for_its_number_of_workers_is_refused_before_it_trains(
    full_run: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    ran = verify(tmp_path, "(1 + 1e-6 * dist.get_world_size())", "1,2")

    assert ran.exit_code == 1
    said = " ".join(ran.stderr.split())
    assert "(Net)" in said
    assert "let it not depend on the rank or the number of workers" in said


def test_the_time_of_a_step_needs_two() -> None:
    ran = CliRunner().invoke(app, ["verify", "spec.yaml", "--bits", "--steps", "1"])

    assert ran.exit_code == 2
    assert "give at least 2" in " ".join(ran.stderr.replace("│", "").split())


def test_each_hash_counts_for_bits_alone() -> None:
    same = [run("bits", 2), run("curve", 2, weights="c", logged="d", train_loss=[2.0, 1.1])]

    assert not found(*same).different
    assert found(*same, run("bits", 3, weights="c"), run("bits", 4, weights="c")).verdict == (
        "bits: not equal to those on 1 worker: weights on 3 and 4"
    )
    assert found(*same, run("bits", 3, logged="c")).different == {"logged values": [3]}


def test_distances_are_relative_to_the_first_number_of_workers_in_the_same_mode() -> None:
    other = run("curve", 2, train_loss=[2.0, 1.5])
    result = found(other)
    first, second = result.of("curve")

    assert (result.distances(first), result.distances(second)) == ([0, 0], [0, 0.5])


def test_all_logged_values_but_times_count() -> None:
    rows = [{"step": 1, "train_loss": 2.0}, {"step": 2, "train_loss": 1.0, "step_seconds": 0.1}]
    other_times = [{"train_loss": 2.0, "step": 1, "step_seconds": 5.0}, rows[1]]
    changed = [rows[0], {"step": 2, "train_loss": 1.0000000000000002}]

    assert sha256_of_logged(rows) == sha256_of_logged(other_times) != sha256_of_logged(changed)


def test_runs_differ_in_workers_and_mode_alone() -> None:
    spec = parse_spec(SPEC | {"norm": {"kind": "sync_batch_norm", "observe_every": 5}})

    bits, curve = variant(spec, "bits", 2, 30, 6), variant(spec, "curve", 2, 30, 6)
    other = variant(spec, "bits", 6, 30, 6)

    assert (bits.shards, other.shards) == (8, 8)
    assert bits.resources.cpus_per_worker == other.resources.cpus_per_worker
    assert (bits.training.max_steps, bits.training.checkpoint.deliver) == (30, "last")
    assert bits.norm == curve.norm == spec.norm.model_copy(update={"observe_every": None})
    same = {"reproducible": "curve", "shards": None}
    assert bits.training.model_copy(update=same) == curve.training
    assert bits.resources == curve.resources


def test_what_bits_does_not_cover_is_refused_before_the_first_run() -> None:
    spec = parse_spec(SPEC | {"norm": {"kind": "batch_norm"}})

    with pytest.raises(SpecError, match=r"norm\.kind"):
        variant(spec, "bits", 1, 30, 2)


@pytest.mark.parametrize("norm", [{"kind": "none"}, {"kind": "group_norm", "groups": 2}])
def test_a_normalisation_of_each_sample_is_kept(norm: dict[str, Any]) -> None:
    spec = parse_spec(SPEC | {"norm": norm})

    assert variant(spec, "bits", 1, 30, 2).norm == spec.norm


@pytest.mark.parametrize("loss", [1.0, 1.0 + 1e-7, 0.0])
def test_the_figure_is_drawn_whether_or_not_bits_are_equal(loss: float, tmp_path: Path) -> None:
    curve = run("curve", 2, train_loss=[2.0, 1.0 + 1e-6])
    result = found(run("bits", 2, train_loss=[2.0, loss]), curve)

    draw(result, tmp_path / "a.png")
    draw(replace(result, runs=[*found().runs, run("curve", 2)]), tmp_path / "b.png")

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")

"""What the bits of a result depend on: recorded, equal on all ranks, and not passed over in silence."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from testing.warm import warm
from tests.mlflow_server import MlflowServer
from tests.training.attempts import attempt, spec_of
from tests.training.bits import onednn
from tests.training.worlds import Worlds
from training.bits.environment import UNKNOWN, change, history, own_environment, raise_if_different
from training.errors import BuildError

if TYPE_CHECKING:
    from mlflow import MlflowClient

ONE = {
    "torch": "2.13.0",
    "cpu": "Intel Xeon",
    "instructions": "AVX512",
    "onednn": "AVX512_CORE_AMX",
    "mkl": "Intel AVX512",
    "caches": "L1 49152, L2 2097152",
    "threads": "1",
}
LESSER = {"instructions": "AVX2", "onednn": "AVX2_VNNI", "mkl": "Intel AVX2"}
ISA = {
    "Intel AVX2": "AVX2",
    "Intel AVX2 with Intel DL Boost": "AVX2_VNNI",
    "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions": "AVX512_CORE",
    "Intel AVX-512 with Intel DL Boost": "AVX512_CORE_VNNI",
    "Intel AVX-512 with Intel DL Boost and bfloat16 support": "AVX512_CORE_BF16",
    "Intel AVX 10.1": "AVX512_CORE_FP16",
    "Intel AVX10.1 and Intel AMX with bfloat16 and 8-bit integer support": "AVX512_CORE_AMX",
}
"""What oneDNN says that it uses, and the name in ONEDNN_MAX_CPU_ISA."""


def bits(**training: Any) -> dict[str, Any]:
    return spec_of(precision="32-true", reproducible="bits", max_epochs=1, **training)


def checkpoint_of(folder: Path) -> Path:
    return max((folder / "run" / "checkpoints").glob("step-*"))


def environments(folder: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = torch.load(checkpoint_of(folder) / "train_state.pt")["environments"]
    return found


def refused(*others: dict[str, str]) -> str:
    """Why ranks on hosts a, b, ... are refused, where rank 0 has ONE and the others have it with changes."""
    ranks = [(name, ONE | other) for name, other in zip("abc", [{}, *others], strict=False)]
    with pytest.raises(BuildError, match=r"^training\.reproducible: bits needs workers of one kind") as error:
        raise_if_different(ranks)
    return str(error.value)


def test_hosts_of_two_instruction_sets_are_refused_with_what_holds_all_to_the_lesser() -> None:
    said = refused({}, LESSER)

    assert "torch's instruction set is AVX512 for rank 0 on a and AVX2 for rank 2 on c" in said
    assert "oneDNN's instruction set is AVX512_CORE_AMX for rank 0 on a and AVX2_VNNI for rank 2 on c" in said
    assert "resources.node_labels" in said
    assert said.endswith(
        "environment.variables: {ATEN_CPU_CAPABILITY: avx2, ONEDNN_MAX_CPU_ISA: AVX2_VNNI, "
        "MKL_ENABLE_INSTRUCTIONS: AVX2}"
    )


def test_the_lesser_set_may_be_that_of_rank_0() -> None:
    with pytest.raises(BuildError, match=r"\{ONEDNN_MAX_CPU_ISA: AVX512_CORE_AMX\}$"):
        raise_if_different([("a", ONE), ("b", ONE | {"onednn": "AVX512_CORE_AMX_FP16"})])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"torch": "2.14.0"}, "torch is 2.13.0 for rank 0 on a and 2.14.0 for rank 1 on b"),
        (LESSER | {"mkl": "AMD AVX2"}, "MKL's instruction set is Intel AVX512"),
        ({"caches": "L1 32768, L2 1048576"}, "the CPU's caches is L1 49152"),
        ({"threads": "2"}, "the number of threads is 1"),
        ({"gpu": "NVIDIA H100, cuDNN 91000"}, "the GPU is none for rank 0 on a and NVIDIA H100, cuDNN 91000"),
    ],
)
def test_what_no_variable_holds_is_refused_with_the_choice_of_hosts_alone(
    other: dict[str, str], said: str
) -> None:
    text = refused(other)

    assert said in text
    assert text.endswith("run it on hosts of one kind (resources.node_labels)")


def test_hosts_that_differ_in_name_alone_are_of_one_kind() -> None:
    raise_if_different([("a", ONE), ("b", ONE | {"cpu": "Intel Core"})])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's sets are those of x86")
@pytest.mark.parametrize("limit", ["DEFAULT", "AVX512_CORE_BF16", "AVX10_1_512", "AVX512_CORE", "AVX2"])
def test_the_set_of_onednn_is_what_onednn_itself_says(limit: str, tmp_path: Path) -> None:
    process = warm(onednn.__name__).Process(target=onednn.say_sets, args=(limit, tmp_path / "said"))

    process.start()
    process.join()

    assert process.exitcode == 0
    said = (tmp_path / "said").read_text()
    theirs = re.search(r"info,cpu,isa:(.*)", said)
    assert theirs is not None
    assert f"ours:{ISA.get(theirs[1], theirs[1])}" in said.splitlines()


def refused_with_other_threads(rank: int, spec: dict[str, Any], folder: Path) -> str:
    before = torch.get_num_threads()
    torch.set_num_threads(1 + rank)
    try:
        attempt(rank, spec, folder)
    except BuildError as error:
        return str(error)
    finally:
        torch.set_num_threads(before)
    raise AssertionError("it trained")


def test_every_rank_refuses_a_run_whose_ranks_differ(worlds: Worlds, tmp_path: Path) -> None:
    said = worlds.run(2, refused_with_other_threads, bits(), tmp_path)

    assert said[0] == said[1]
    assert "the number of threads is 1 for rank 0" in said[0]


def test_a_run_that_goes_on_elsewhere_says_so_for_good(worlds: Worlds, tmp_path: Path) -> None:
    stopped = worlds.run(2, attempt, bits(), tmp_path, stop_after=5)[0]
    here = environments(tmp_path)
    file = checkpoint_of(tmp_path) / "train_state.pt"
    elsewhere = here[0] | {"torch": "2.12.0"}
    # The manifest of a checkpoint has its checksums, so it is another run's that goes on from the file.
    source = tmp_path / "elsewhere"
    source.mkdir()
    (source / "lightning.ckpt").write_bytes((file.parent / "lightning.ckpt").read_bytes())
    torch.save(torch.load(file) | {"environments": [elsewhere]}, source / "train_state.pt")
    spec = bits() | {"start_from": {"path": str(source / "lightning.ckpt"), "state": "all"}}

    went_on = worlds.run(
        2, attempt, spec, tmp_path / "on", start_from=str(source / "lightning.ckpt"), stop_after=3
    )[0]
    again = worlds.run(1, attempt, spec, tmp_path / "on", start_from=str(source / "lightning.ckpt"))[0]

    at_home = worlds.run(1, attempt, bits(), tmp_path)[0]

    assert stopped.stopped
    assert went_on.stopped
    assert "one environment" not in stopped.said + at_home.said
    assert environments(tmp_path) == here
    text = f"made in one environment: torch was 2.12.0 and is {torch.__version__}"
    assert text in went_on.said
    assert text in again.said
    assert environments(tmp_path / "on") == [elsewhere, *here]


def test_only_what_matters_and_each_environment_once_is_kept() -> None:
    other = ONE | LESSER

    assert change([ONE], ONE | {"cpu": "Intel Core"}) == ""
    assert change([], ONE) == ""
    assert change([UNKNOWN], ONE) == "earlier steps were made in an environment that was not recorded"
    assert history([ONE, other], ONE | {"cpu": "Intel Core"}) == [other, ONE | {"cpu": "Intel Core"}]
    assert change([other, ONE], ONE).startswith("torch's instruction set was AVX2 and is AVX512; oneDNN's")


_TRAINS = """
import json, sys
from pathlib import Path
from training.host.local import train_locally
from training.spec import parse_spec
sys.exit(train_locally(parse_spec(json.loads(sys.argv[1])), code=None, output=Path(sys.argv[2])))
"""


def train(spec: dict[str, Any], output: Path) -> None:
    """In a process of its own: the fork server that it starts would serve all later tests of this one."""
    subprocess.run([sys.executable, "-c", _TRAINS, json.dumps(spec), str(output)], check=True)


@pytest.mark.filterwarnings("ignore")  # what MLflow and what it stands on warn of is theirs to mend
def test_a_run_in_mlflow_says_what_its_bits_depend_on(
    server: MlflowServer,
    client: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec: dict[str, Any] = {
        "model": {"class_path": "training.models.MLP"},
        "data": {"class_path": "training.data.Digits"},
        "training": {"global_batch_size": 500, "max_epochs": 1},
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
        "tracking": {"experiment": "bits"},
    }
    train(spec, tmp_path / "curve")
    source = checkpoint_of(tmp_path / "curve") / "lightning.ckpt"
    spec["training"] = {"global_batch_size": 500, "max_epochs": 2, "reproducible": "bits"}
    spec["start_from"] = {"path": str(source), "state": "all"}
    spec["environment"] = {"variables": {"ATEN_CPU_CAPABILITY": "default"}}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)

    train(spec, tmp_path / "bits")

    experiment = client.get_experiment_by_name("bits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("syncbn.environment")}
    assert tags.pop("syncbn.environment_changed").endswith("in an environment that was not recorded")
    expected = own_environment(on_gpu=False) | {"instructions": "DEFAULT", "threads": "1"}
    assert tags == {f"syncbn.environment.{key}": value for key, value in expected.items()}

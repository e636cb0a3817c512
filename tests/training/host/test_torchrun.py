"""The variables of a script's ranks."""

from __future__ import annotations

from training.host.environment import rank_environment
from training.protocol import Order, RankAssignment


def environments(gpus: float, *ids: tuple[str, ...]) -> list[dict[str, str]]:
    """Of the ranks of the second host of two, which have these GPUs."""
    ranks = tuple(
        RankAssignment(rank=2 + local, local_rank=local, node_rank=1, gpus=own)
        for local, own in enumerate(ids)
    )
    order = Order(
        attempt="job-2",
        start=3,
        spec={
            "script": {"path": "train.py"},
            "retries": 4,
            "resources": {"cpus_per_worker": 2, "gpus_per_worker": gpus},
        },
        ranks=ranks,
        world_size=4,
        hosts=2,
        folder="/runs/job",
        rendezvous="::1:29500",
        variables={"MINE": "1"},
    )
    return [rank_environment({"RANK": "7", "CUDA_VISIBLE_DEVICES": "5"}, {}, order, each) for each in ranks]


def test_a_rank_knows_its_place_in_the_gang_whatever_the_machine_has_set() -> None:
    first, second = environments(0, (), ())

    assert (first["RANK"], first["LOCAL_RANK"], first["GROUP_RANK"]) == ("2", "0", "1")
    assert (second["RANK"], second["LOCAL_RANK"], second["GROUP_RANK"]) == ("3", "1", "1")
    assert (second["WORLD_SIZE"], second["LOCAL_WORLD_SIZE"], second["GROUP_WORLD_SIZE"]) == ("4", "2", "2")
    assert (second["MASTER_ADDR"], second["MASTER_PORT"]) == ("::1", "29500")
    assert (second["TORCHELASTIC_RUN_ID"], second["TORCHELASTIC_RESTART_COUNT"]) == ("job", "2")
    assert second["SYNCBN_CHECKPOINT_DIR"] == "/runs/job/script-checkpoints"
    assert (second["OMP_NUM_THREADS"], second["MINE"]) == ("2", "1")
    assert "MLFLOW_RUN_ID" not in second


def test_the_gpu_with_the_number_of_the_local_rank_is_the_rank_s_own() -> None:
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments(1, ("3",), ("1",))] == ["3,1", "3,1"]
    assert {each["CUDA_VISIBLE_DEVICES"] for each in environments(2, ("4", "5"), ("6", "7"))} == {"4,5,6,7"}

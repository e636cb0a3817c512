"""Code that asks for its rank gets another one for a while."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from training.protocol import RankAssignment
from training.rank.another_worker import on_another_worker
from training.rank.strategy import GroupEnvironment


def _seen(environment: GroupEnvironment) -> dict[str, object]:
    return {
        "torch": (dist.get_rank(), dist.get_world_size()),
        "lightning": (environment.global_rank(), environment.world_size()),
        "on hosts": (environment.local_rank(), environment.node_rank()),
        "variables": {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID")},
        "rank zero": rank_zero_only(lambda: "done")(),
    }


def test_all_that_tells_the_rank_tells_another_one(tmp_path: Path) -> None:
    environment = GroupEnvironment(RankAssignment(rank=0, local_rank=2, node_rank=4))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with (
            patch.dict(os.environ, {"RANK": "0", "SLURM_PROCID": "none"}),
            patch.object(rank_zero_only, "rank", 0),
        ):
            before = _seen(environment)
            with on_another_worker(environment):
                elsewhere = _seen(environment)
            after = _seen(environment)
    finally:
        dist.destroy_process_group()

    assert elsewhere == {
        "torch": (1, 2),
        "lightning": (1, 2),
        "on hosts": (3, 5),
        "variables": {"RANK": "1", "WORLD_SIZE": None, "SLURM_PROCID": "none"},
        "rank zero": None,
    }
    assert after == before
    assert before["rank zero"] == "done"

"""The environment variables of a script's ranks: torchrun's, MLflow's and our own. Pure."""

from __future__ import annotations

from pathlib import Path

from training.protocol import Order, RankAssignment
from training.run_dir import RunFolder

CHECKPOINT_DIR = "SYNCBN_CHECKPOINT_DIR"


def script_variables(order: Order, assignment: RankAssignment) -> dict[str, str]:
    """Returns what torchrun would set for this rank, the job's MLflow run, and the folder to save in.

    A worker sees the GPUs of all workers on its host, in the order of their local ranks, since a program for
    torchrun takes the one with the number LOCAL_RANK.
    """
    assert order.rendezvous is not None
    address, _, port = order.rendezvous.rpartition(":")
    variables = {
        "RANK": str(assignment.rank),
        "LOCAL_RANK": str(assignment.local_rank),
        "WORLD_SIZE": str(order.world_size),
        "LOCAL_WORLD_SIZE": str(len(order.ranks)),
        "GROUP_RANK": str(assignment.node_rank),
        "GROUP_WORLD_SIZE": str(order.hosts),
        "ROLE_NAME": "default",
        "ROLE_RANK": str(assignment.rank),
        "ROLE_WORLD_SIZE": str(order.world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": str(order.start - 1),
        "TORCHELASTIC_MAX_RESTARTS": str(order.spec["retries"]),
        "TORCHELASTIC_RUN_ID": order.attempt.rpartition("-")[0],
        # As under torchrun, the store at MASTER_PORT is there already: no rank opens the port.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        CHECKPOINT_DIR: str(RunFolder(path=Path(order.folder)).script_checkpoints),
    }
    if order.spec["resources"]["gpus_per_worker"]:
        gpus = dict.fromkeys(gpu for each in order.ranks for gpu in each.gpus)
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if order.mlflow_uri and order.run_id:
        variables |= {"MLFLOW_TRACKING_URI": order.mlflow_uri, "MLFLOW_RUN_ID": order.run_id}
    return variables

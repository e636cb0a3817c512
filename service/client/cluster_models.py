"""The answers about the queue and the cluster."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.client.models import Answer, ExpectedStart, Total


class Waiting(Answer):
    """A job in the queue.

    position: counted from 1, which starts first. priority: higher ones start first. reason: why the job
    waits. needs: for the least number of workers with which it starts. created_at: with a time zone, UTC.
    not_before: when it may start again after a failure; None if it need not wait. expected_start: None if it
    has not been estimated.
    """

    position: int
    id: str
    name: str
    priority: int = 0
    reason: str | None = None
    needs: Total
    created_at: datetime
    not_before: datetime | None = None
    expected_start: ExpectedStart | None = None


class QueuePage(Answer):
    """One page of the queue; `next_cursor` is None on the last. total: the number of all jobs in it."""

    items: list[Waiting]
    next_cursor: str | None = None
    total: int = 0


class Amount(Answer):
    """A number of CPUs and of GPUs, and memory in bytes; None: not known.

    A fraction of a CPU or GPU is a part of one that several workers share.
    """

    cpus: float
    gpus: float
    memory: int | None = None


class Node(Amount):
    """A node of the cluster, and all its CPUs, GPUs and memory, in use or not.

    id: Ray's, in hex. address: its IP address in the cluster's network. labels: by which a job's node_labels
    choose. free: what running jobs leave of it, estimated; None if the server does not say.
    """

    id: str
    address: str
    labels: dict[str, str] = Field(default_factory=dict)
    free: Amount | None = None


class Cluster(Answer):
    """The cluster as the scheduler last saw it.

    nodes: those that can run workers. total, free: over all nodes; free is what no job holds. running: ids of
    the jobs that hold workers.
    """

    nodes: list[Node]
    total: Amount
    free: Amount
    running: list[str] = Field(default_factory=list)

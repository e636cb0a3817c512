"""A process group whose ranks have agreed to share memory, as if they were on certain hosts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

import torch
import torch.distributed as dist

from sync_bn import _sums, groups

CPU = torch.device("cpu")


@contextmanager
def new_group(
    members: Sequence[int], hosts: Sequence[str] | None = None, seconds: float = 40.0
) -> Iterator[dist.ProcessGroup]:
    """A group of `members`, prepared as if its ranks were on `hosts`. Every rank must enter it."""
    group = dist.new_group(list(members), timeout=timedelta(seconds=seconds))
    assert group is not None
    if (rank := dist.get_rank()) in members:
        host = ("here",) if hosts is None else (hosts[members.index(rank)],)
        with patch.object(groups, "host", return_value=host):
            _sums.prepare(group, CPU)
    yield group
    if rank in members:
        dist.destroy_process_group(group)

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.sync_bn.memory import living_bytes


def test_living_bytes_are_the_running_sum_of_what_is_allocated_and_freed() -> None:
    before = torch.empty(10_000)

    def work() -> Tensor:
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(before.numel() // 5)
        del second
        return third

    counted = living_bytes(work)

    changes = [after - before for before, after in pairwise(counted)]
    assert [change for change in changes if abs(change) >= 4000] == [4000, 8000, -4000, 8000, -8000]
    assert max(counted) == 16_000
    assert counted[-1] == 8000

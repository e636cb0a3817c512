from __future__ import annotations

from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import CatMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from tests.training.worlds import Worlds
from training.model.metric_sync import sync_directly

SHARES = [5, 0, 3]
TARGET = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
PREDICTED = torch.tensor([0, 1, 1, 0, 2, 2, 0, 0])


def synced(rank: int, metric: Metric) -> tuple[list[float], int]:
    """Returns a metric over all shares, and the number of barriers that computing it took."""
    module = nn.ModuleList([metric])
    sync_directly(module)
    mine = slice(sum(SHARES[:rank]), sum(SHARES[: rank + 1]))
    with patch.object(dist, "barrier", wraps=dist.barrier) as barrier:
        if SHARES[rank]:
            metric.update(PREDICTED[mine], *([] if isinstance(metric, CatMetric) else [TARGET[mine]]))
        return metric.compute().flatten().tolist(), barrier.call_count


def test_states_of_one_shape_meet_by_a_gather_alone(worlds: Worlds) -> None:
    metric = MulticlassAccuracy(3, average="none")
    whole = MulticlassAccuracy(3, average="none")
    whole.update(PREDICTED, TARGET)

    found = worlds.run(3, synced, metric)

    assert found == [(whole.compute().tolist(), 0)] * 3


def test_states_whose_shape_differs_by_rank_meet_as_torchmetrics_has_it(worlds: Worlds) -> None:
    found = worlds.run(3, synced, CatMetric())

    for values, barriers in found:
        assert values == PREDICTED.tolist()
        assert barriers > 0

"""Torch's own distributed tests of SyncBatchNorm, all that ship with the installed torch, pass with ours."""

import re
from collections.abc import Iterator

import pytest
from torch.nn.modules.batchnorm import _BatchNorm

from testing.ranks import RankError, Ranks
from tests.sync_bn.torch_harness import TORCHS_TESTS, cases, modules_about_sync_batch_norm, run_case

pytest.importorskip("numpy", reason="torch's own tests import it")

NAMES = [case.name for case in cases()]
# These convert a model and look at it, but never run it.
CONVERSION_ALONE = {"test_SyncBatchNorm_process_group", "test_sync_bn_logged"}
SKIPS = re.compile(r"(unittest\.|nccl_)?(skip|require)")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Ranks for these tests alone, because what torch's tests import changes settings for good."""
    with Ranks(2) as ranks:
        yield ranks


@pytest.mark.parametrize("name", NAMES)
def test_torchs_case_passes_with_our_layer(ranks: Ranks, name: str) -> None:
    usages = ranks.run(run_case, name)

    if name in CONVERSION_ALONE:
        assert all(usage.conversions for usage in usages)
    else:
        assert any(usage.forwards for usage in usages)


def test_a_layer_that_normalises_by_its_own_samples_fails_torchs_case(ranks: Ranks) -> None:
    with pytest.raises(RankError, match="AssertionError: Tensor-likes are not close"):
        ranks.run(run_case, "test_DistributedDataParallel_SyncBatchNorm", _BatchNorm.forward)


def test_all_cases_that_torch_ships_are_found() -> None:
    assert modules_about_sync_batch_norm() == [TORCHS_TESTS]
    assert len(NAMES) >= 13  # as many as torch 2.8 has
    assert set(NAMES) >= CONVERSION_ALONE


def test_decorators_that_are_taken_off_do_nothing_but_skip() -> None:
    for case in cases():
        for decorator in case.decorators:
            assert SKIPS.match(decorator), f"{case.name} is decorated by {decorator}"

"""The collectives: how many, of what, that every rank reaches them, and that no rank waits for its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sync_bn import SyncBatchNorm, check_ranks
from tests.sync_bn import layouts
from tests.sync_bn.conftest import RanksOf
from tests.sync_bn.one_process import BY_PASSES, Passes, Step, device, passes_of, step

Call = tuple[int, torch.dtype]


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the handshake, so that ranks may do what they are refused in the first steps."""
    try:
        check_ranks(steps=0)
        yield
    finally:
        check_ranks()


def collectives_of_one_step(
    rank: int, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], options: dict[str, Any]
) -> list[list[Call]]:
    """(number of elements, dtype) of the all-reduces of a forward, and those of its backward."""
    calls: list[Call] = []
    all_reduce = dist.all_reduce

    def recording(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((tensor.numel(), tensor.dtype))
        return all_reduce(tensor, *args, **kwargs)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("no collective but all_reduce is allowed")

    others = ("all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier", "reduce")
    with unchecked(), patch.multiple(dist, **dict.fromkeys(others, forbidden) | {"all_reduce": recording}):
        x = torch.randn(shapes[rank], dtype=dtypes[rank], requires_grad=True)
        residual = torch.randn_like(x) if "activation" in options else None
        weights = torch.ones(len(x)) if "activation" in options else None
        y = SyncBatchNorm(x.shape[1], **options)(x, residual, weights)
        forward = calls.copy()
        torch.autograd.backward(y.sum())
    return [forward, calls[len(forward) :]]


@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"activation": "relu"}], ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_one_all_reduce_each_way_of_a_size_that_does_not_depend_on_ranks_or_input(
    ranks_of: RanksOf, world_size: int, options: dict[str, Any]
) -> None:
    shapes = [(0, 5, 4, 4), (3, 5, 4, 4), (2, 5)][-world_size:]
    dtypes = [torch.float16, torch.float32, torch.bfloat16][:world_size]

    for forward, backward in ranks_of(world_size).run(collectives_of_one_step, shapes, dtypes, options):
        assert forward == [(11, torch.float64)]
        assert backward == [(10, torch.float64)]


def own_part(rank: int) -> Tensor:
    torch.manual_seed(rank)
    return torch.randn(4, 3, dtype=torch.float64)


def cube_loss(y: Tensor) -> Tensor:
    return (y**3).sum()


def gradients_where_needed(rank: int, needed: list[list[str]]) -> list[Tensor | None]:
    tensors = {"x": own_part(rank), "weight": torch.ones(3).double(), "bias": torch.ones(3).double()}
    for name in needed[rank]:
        tensors[name].requires_grad_()
    layer = SyncBatchNorm(3, dtype=torch.float64)
    layer.weight, layer.bias = (
        nn.Parameter(tensors[name], requires_grad=tensors[name].requires_grad) for name in ("weight", "bias")
    )
    torch.autograd.backward(cube_loss(layer(tensors["x"])))
    return [tensors["x"].grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize(
    "needed",
    [
        [["x", "weight", "bias"], ["weight", "bias"]],
        [["x"], ["bias"]],
        [["weight"], ["x", "bias"]],
    ],
    ids=str,
)
def test_ranks_need_not_agree_about_what_needs_gradients(ranks_of: RanksOf, needed: list[list[str]]) -> None:
    x = torch.cat([own_part(0), own_part(1)]).requires_grad_()
    layer = nn.BatchNorm1d(3, dtype=torch.float64)
    nn.init.ones_(layer.bias)
    y = layer(x)
    torch.autograd.backward(cube_loss(y))
    assert x.grad is not None

    by_rank = ranks_of(2).run(gradients_where_needed, needed)

    for name, of_rank in zip(("x", "weight", "bias"), zip(*by_rank, strict=True), strict=True):
        assert [gradient is not None for gradient in of_rank] == [name in names for names in needed]
    for rank, (dx, _, _) in enumerate(by_rank):
        if dx is not None:
            torch.testing.assert_close(dx, x.grad.tensor_split(2)[rank])


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses the operations that wait for a device, because the host has to know a tensor's values."""

    FORBIDDEN = ("_local_scalar_dense", "is_nonzero", "nonzero", "item", "equal", "masked_select", "unique")
    BY_MASK = ("index", "index_put", "index_put_")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in self.BY_MASK and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.FORBIDDEN or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


def no_waiting() -> TorchDispatchMode:
    return NoWaiting()  # type: ignore[no-untyped-call]


def step_that_does_not_wait(
    rank: int, options: dict[str, Any], extras: list[str], passes: Passes
) -> list[str]:
    with passes_of(passes):
        layer = SyncBatchNorm(16, **options, device=device())
        x = torch.randn(4 + rank, 16, 5, requires_grad=True, device=device())
        residual = torch.randn_like(x) if "residual" in extras else None
        weights = torch.rand(len(x), 5, device=device()) if "sample_weight" in extras else None
        # The handshake of the first steps is on the host alone, so it is under the mode too.
        with no_waiting():
            torch.autograd.backward(layer(x, residual, weights), torch.ones_like(x))
    return [name for name, p in layer.named_parameters() if p.grad is not None]


@BY_PASSES
@pytest.mark.parametrize(
    ("options", "extras"),
    [
        ({}, []),
        ({"momentum": None}, []),
        ({"activation": "relu"}, ["residual"]),
        ({"activation": "silu"}, ["sample_weight"]),
        ({"affine": False, "track_running_stats": False}, ["residual", "sample_weight"]),
    ],
    ids=str,
)
def test_step_never_waits_for_the_device(
    ranks_of: RanksOf, options: dict[str, Any], extras: list[str], passes: Passes
) -> None:
    affine = options.get("affine", True)
    for with_gradient in ranks_of(2).run(step_that_does_not_wait, options, extras, passes):
        assert with_gradient == (["weight", "bias"] if affine else [])


def test_mode_sees_what_waits() -> None:
    for wait in (Tensor.item, bool, Tensor.nonzero, lambda x: x[x > 0], lambda x: x.equal(x)):
        with pytest.raises(AssertionError, match="waits for the device"), no_waiting():
            wait(torch.ones(1))


def same_step_twice(rank: int, x: Tensor, dy: Tensor, passes: Passes) -> list[Step]:
    del rank
    with passes_of(passes):
        return [step(SyncBatchNorm(x.shape[1]), x, dy) for _ in range(2)]


@BY_PASSES
@pytest.mark.parametrize("layout", [layouts.contiguous, layouts.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_samples_give_equal_bits_on_every_rank_and_in_every_run(
    ranks_of: RanksOf, dtype: torch.dtype, layout: layouts.Layout, passes: Passes
) -> None:
    torch.manual_seed(0)
    x, dy = (layout((3 * torch.randn(5, 17, 5, 4) + 7).to(dtype)) for _ in range(2))

    steps = [s for of_rank in ranks_of(3).run(same_step_twice, x, dy, passes) for s in of_rank]

    for s in steps[1:]:
        torch.testing.assert_close(vars(s), vars(steps[0]), rtol=0, atol=0)
